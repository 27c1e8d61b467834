package overlay

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// maxLinks is how many symbolic links one path may lead through, as in Linux.
const maxLinks = 40

// Resolve returns the node that path leads to, from the root of the tree and
// following symbolic links, none of which leads out of it. Errors are the
// index's, and ELOOP.
func (t *Tree) Resolve(path string) (index.NID, error) {
	rest := strings.Split(path, "/")
	at := []index.NID{t.Root()} // the way from the root
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		nid, err := t.Lookup(at[len(at)-1], name)
		if err != nil {
			return 0, fmt.Errorf("resolve %s: %w", path, err)
		}
		var a index.Attr
		if err := t.Attr(nid, &a); err != nil {
			return 0, fmt.Errorf("resolve %s: %w", path, err)
		}
		if a.Mode&unix.S_IFMT != unix.S_IFLNK {
			// Lookup finds out too, but not of ".." and of a slash at the end.
			if a.Mode&unix.S_IFMT != unix.S_IFDIR && len(rest) > 0 {
				return 0, fmt.Errorf("resolve %s: %w", path, index.ErrNotDir)
			}
			at = append(at, nid)
			continue
		}
		target, err := t.Readlink(nid)
		if err != nil {
			return 0, fmt.Errorf("resolve %s: %w", path, err)
		}
		if links++; links > maxLinks {
			return 0, fmt.Errorf("resolve %s: %w", path, unix.ELOOP)
		}
		if len(target) > 0 && target[0] == '/' {
			at = at[:1]
		}
		rest = append(strings.Split(string(target), "/"), rest...)
	}
	return at[len(at)-1], nil
}

// maxExtents is how many extents Locate returns at the most.
const maxExtents = 1 << 10

// Locate returns where the data of the regular file at path lies, of Device i in
// layer i-1; holes are left out. Errors are those of Resolve, EINVAL if it is no
// regular file or has data in more than 1024 places, and index.ErrCorrupt if it has
// data of a device that the tree lacks.
func (t *Tree) Locate(path string) ([]index.Extent, error) {
	nid, err := t.Resolve(path)
	if err != nil {
		return nil, err
	}
	var a index.Attr
	if err := t.Attr(nid, &a); err != nil {
		return nil, fmt.Errorf("locate %s: %w", path, err)
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("locate %s: %w", path, unix.EINVAL)
	}
	var extents []index.Extent
	var failed error
	err = t.Extents(nid, 0, a.Size, func(e index.Extent) bool {
		switch {
		case e.Device == 0 || int(e.Device) > len(t.layers):
			failed = fmt.Errorf("extent at %d of device %d: %w", e.FileOff, e.Device, index.ErrCorrupt)
		case len(extents) == maxExtents:
			failed = unix.EINVAL
		}
		extents = append(extents, e)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, fmt.Errorf("locate %s: %w", path, err)
	}
	return extents, nil
}
