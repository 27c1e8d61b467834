// Package tree takes down a directory tree, entry by entry, so that two of them
// can be compared: what lamina mounts with what another program unpacked.
//
// A Tree holds everything that an image can say of an entry. It does not hold
// what belongs to the file system it lies on: inode numbers, block counts, the
// sizes of directories, access and change times. Hard links are held as the name
// that comes first in order.
package tree

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is one name in a tree.
type Entry struct {
	Mode     uint32 // st_mode, with the type
	UID, GID uint32
	Rdev     uint64 // of devices
	Nlink    uint64
	Size     int64  // of regular files
	Mtime    int64  // nanoseconds
	Target   string // of symbolic links
	Sum      [sha256.Size]byte
	Link     string // first name of the same inode; "" unless there are several
	Xattrs   map[string]string
}

// Tree maps paths, relative to the root, which is ".", to entries.
type Tree map[string]Entry

// inode is what hard links share.
type inode struct {
	first string
	sum   [sha256.Size]byte
}

// Read takes root down, contents included. Every file is read once, in order of
// names.
func Read(root string) (Tree, error) {
	t := Tree{}
	inodes := map[uint64]inode{}
	dev := uint64(0)
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		if name == "." {
			dev = st.Dev
		} else if st.Dev != dev {
			return fmt.Errorf("read tree %s: %s lies on another file system", root, name)
		}
		e, err := read(p, name, &st, inodes)
		if err != nil {
			return err
		}
		t[name] = e
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read tree: %w", err)
	}
	return t, nil
}

func read(p, name string, st *unix.Stat_t, inodes map[uint64]inode) (Entry, error) {
	e := Entry{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink),
		Mtime: st.Mtim.Nano(),
	}
	var err error
	if e.Xattrs, err = xattrs(p); err != nil {
		return e, err
	}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(p)
		return e, err
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	case unix.S_IFREG:
		e.Size = st.Size
	}
	if kind == unix.S_IFDIR {
		return e, nil
	}
	first, seen := inodes[st.Ino]
	if seen {
		e.Link, e.Sum = first.first, first.sum
		return e, nil
	}
	if kind == unix.S_IFREG {
		if e.Sum, err = sum(p, st.Size); err != nil {
			return e, err
		}
	}
	if st.Nlink > 1 {
		e.Link = name
		inodes[st.Ino] = inode{name, e.Sum}
	}
	return e, nil
}

// Sum returns the digest of a file's content. The error wraps what reading gave.
func Sum(p string) (s [sha256.Size]byte, err error) {
	info, err := os.Stat(p)
	if err != nil {
		return s, err
	}
	return sum(p, info.Size())
}

func sum(p string, size int64) (s [sha256.Size]byte, err error) {
	f, err := os.Open(p)
	if err != nil {
		return s, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	n, err := io.CopyBuffer(h, struct{ io.Reader }{f}, make([]byte, 256<<10))
	if err != nil {
		return s, err
	}
	if n != size {
		return s, fmt.Errorf("read %s: %d bytes, but its size is %d", p, n, size)
	}
	h.Sum(s[:0])
	return s, nil
}

func xattrs(p string) (map[string]string, error) {
	n, err := unix.Llistxattr(p, nil)
	if err != nil || n == 0 {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return nil, err
	}
	list := make([]byte, n)
	if n, err = unix.Llistxattr(p, list); err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: p, Err: err}
	}
	all := map[string]string{}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list[:n], []byte{0}), []byte{0}) {
		if len(name) == 0 {
			continue // overlayfs counts its own and then leaves them out
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, string(name), v)
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + string(name), Path: p, Err: err}
		}
		all[string(name)] = string(v[:n])
	}
	return all, nil
}

// Options relax a comparison.
type Options struct {
	// AnyMtime lists paths whose time no layer says.
	AnyMtime []string
	// Rounded takes a time for right that is the wanted one rounded to the second:
	// eStargz keeps no more.
	Rounded bool
}

// Diff describes, one line each, in what got differs from want. It is empty when
// the trees are equal. The root's time is never compared, as few layers say it.
func Diff(want, got Tree, o Options) []string {
	var lines []string
	names := slices.Sorted(maps.Keys(want))
	for _, n := range names {
		w := want[n]
		g, ok := got[n]
		if !ok {
			lines = append(lines, fmt.Sprintf("%q: missing", n))
			continue
		}
		anyTime := n == "." || slices.Contains(o.AnyMtime, n)
		if o.Rounded && g.Mtime == rounded(w.Mtime) {
			anyTime = true
		}
		if d := w.diff(g, anyTime); len(d) > 0 {
			lines = append(lines, fmt.Sprintf("%q: %s", n, strings.Join(d, "; ")))
		}
	}
	for _, n := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[n]; !ok {
			lines = append(lines, fmt.Sprintf("%q: must not be there", n))
		}
	}
	return lines
}

// rounded rounds nanoseconds to the next whole second.
func rounded(ns int64) int64 { return time.Unix(0, ns).Round(time.Second).UnixNano() }

func (w Entry) diff(g Entry, anyTime bool) (d []string) {
	differ := func(what string, want, got any) {
		if want != got {
			d = append(d, fmt.Sprintf("%s is %v, want %v", what, got, want))
		}
	}
	differ("mode", fmt.Sprintf("%o", w.Mode), fmt.Sprintf("%o", g.Mode))
	differ("owner", [2]uint32{w.UID, w.GID}, [2]uint32{g.UID, g.GID})
	differ("rdev", w.Rdev, g.Rdev)
	differ("link count", w.Nlink, g.Nlink)
	differ("size", w.Size, g.Size)
	if !anyTime {
		differ("mtime", w.Mtime, g.Mtime)
	}
	differ("target", w.Target, g.Target)
	differ("first name", w.Link, g.Link)
	if w.Sum != g.Sum {
		d = append(d, "content differs")
	}
	if !maps.Equal(w.Xattrs, g.Xattrs) {
		d = append(d, fmt.Sprintf("xattrs are %q, want %q", g.Xattrs, w.Xattrs))
	}
	return d
}
