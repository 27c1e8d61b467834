package view

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// CopyTar writes what is at src as a tar stream to w, for a destination "-": with
// PAX headers for times to the nanosecond and for xattrs, owners as numbers, and
// hard links among what is copied. Names in it begin with src's last name or, if
// src ends with "/." or "/.." or is the root, with ".". A symbolic link at the end
// of src is copied as a link. Holes are written as zeros.
//
// Sockets are told by a SkippedError, after the whole stream was written.
func (m *Image) CopyTar(ctx context.Context, w io.Writer, src string) error {
	c := &tarCopier{ctx: ctx, m: m, out: tar.NewWriter(w), links: map[index.NID]string{}}
	err := c.run(src)
	if err == nil {
		err = c.out.Close()
	}
	if err == nil && len(c.skipped) > 0 {
		err = &SkippedError{c.skipped}
	}
	if err != nil {
		return fmt.Errorf("copy %s to a tar: %w", src, err)
	}
	return nil
}

// tarCopier is a CopyTar under way.
type tarCopier struct {
	ctx     context.Context
	m       *Image
	out     *tar.Writer
	links   map[index.NID]string // files with several names: the first one
	skipped []string
	buf     []byte
}

func (c *tarCopier) run(src string) error {
	s, err := c.m.locate(src, false)
	if err != nil {
		return err
	}
	e, err := c.m.entryAt(s)
	if err != nil {
		return err
	}
	_, e.Name = lastName(src)
	if contentsOf(src, &s) {
		e.Name = "."
	} else if isDots(e.Name) {
		return fmt.Errorf("%q is no name in a tar: %w", e.Name, syscall.EINVAL)
	}
	g := newGuard(c.m.Tree.Index)
	todo := []Entry{e} // Name is the one in the tar
	for len(todo) > 0 {
		e := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := c.add(&e); err != nil {
			return fmt.Errorf("%s: %w", e.Path, err)
		}
		if !e.IsDir() {
			continue
		}
		entries, err := c.m.readDir(e.Path, e.NID, g)
		if err != nil {
			return err
		}
		for _, child := range slices.Backward(entries) {
			child.Name = e.Name + "/" + child.Name
			todo = append(todo, child)
		}
	}
	return nil
}

// add writes one entry.
func (c *tarCopier) add(e *Entry) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	h := &tar.Header{
		Name: e.Name, Mode: int64(e.Mode & 0o7777), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: e.Mtime, Format: tar.FormatPAX, PAXRecords: map[string]string{},
	}
	switch e.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case syscall.S_IFDIR:
		h.Typeflag = tar.TypeDir
		h.Name += "/"
	case syscall.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Target
	case syscall.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case syscall.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case syscall.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		c.skipped = append(c.skipped, e.Path)
		return nil
	}
	if e.isDevice() {
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(e.Rdev))), int64(unix.Minor(uint64(e.Rdev)))
	}
	if first, ok := c.links[e.NID]; ok {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return c.out.WriteHeader(h)
	}
	if !e.IsDir() && e.Nlink > 1 {
		c.links[e.NID] = h.Name
	}
	if err := c.xattrs(h, e.NID); err != nil {
		return err
	}
	if err := c.out.WriteHeader(h); err != nil {
		return err
	}
	if h.Size == 0 {
		return nil
	}
	if c.buf == nil {
		c.buf = make([]byte, pieceSize)
	}
	return c.m.pieces(c.ctx, e.NID, 0, h.Size, c.buf, func(p []byte, _ int64) error {
		_, err := c.out.Write(p)
		return err
	})
}

// xattrs puts the xattrs of nid into h, but those whose name PAX cannot have.
func (c *tarCopier) xattrs(h *tar.Header, nid index.NID) error {
	return c.m.Tree.Xattrs(nid, func(name string, value []byte) bool {
		if !strings.Contains(name, "=") {
			h.PAXRecords["SCHILY.xattr."+name] = string(value)
		}
		return true
	})
}
