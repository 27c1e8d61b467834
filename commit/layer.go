package commit

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/overlay"
)

// The names by which a layer says that something of lower layers is not there.
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
)

const (
	// xattrRecord begins the PAX record of an xattr.
	xattrRecord = "SCHILY.xattr."
	// permissions are the bits of a mode that a tar has.
	permissions = 0o7777
)

var (
	// ErrName: a file's name begins with ".wh.", which a layer cannot hold.
	ErrName = errors.New("name begins with .wh.: a layer would delete by it")
	// ErrChanging: a file became shorter while it was read.
	ErrChanging = errors.New("file was cut off while it was read")
)

// Summary counts what a layer holds.
type Summary struct {
	Added, Modified, Deleted int
	// Bytes are those of the contents of files.
	Bytes int64
	// Sockets are left out: a tar cannot hold them.
	Sockets []string
}

// layerWriter writes changes as the tar of a layer.
type layerWriter struct {
	tar    *tar.Writer
	latest time.Time // no time is later, if it is set
	sum    Summary
	buf    []byte
}

// writeLayer writes the changes that changes calls its argument with as the tar
// of a layer to w. latest, if it is set, takes the place of later times.
func writeLayer(ctx context.Context, w io.Writer, latest time.Time, changes func(func(*overlay.Change) error) error) (Summary, error) {
	l := &layerWriter{tar: tar.NewWriter(w), latest: latest, buf: make([]byte, 256<<10)}
	err := changes(func(c *overlay.Change) error {
		if err := l.change(ctx, c); err != nil {
			return fmt.Errorf("layer: %s: %w", c.Path, err)
		}
		return nil
	})
	if err == nil {
		err = l.tar.Close()
	}
	return l.sum, err
}

// change writes one change.
func (l *layerWriter) change(ctx context.Context, c *overlay.Change) error {
	if c.Unchanged || c.Covered {
		return nil
	}
	dir, name := path.Split(c.Path)
	if strings.HasPrefix(name, whiteoutPrefix) {
		return ErrName
	}
	switch c.Kind {
	case overlay.Deleted:
		l.sum.Deleted++
		return l.mark(dir + whiteoutPrefix + name)
	case overlay.Added:
		l.sum.Added++
	case overlay.Modified:
		l.sum.Modified++
	}
	if c.Attr.Mode&unix.S_IFMT == unix.S_IFSOCK {
		l.sum.Sockets = append(l.sum.Sockets, c.Path)
		if c.Kind == overlay.Modified { // what was there is not any more
			return l.mark(dir + whiteoutPrefix + name)
		}
		return nil
	}
	h, err := l.header(c)
	if err != nil {
		return err
	}
	if err := l.tar.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		return l.contents(ctx, c)
	}
	if c.Opaque {
		return l.mark(h.Name + opaqueName)
	}
	return nil
}

// mark writes an empty file that is there for its name. It has no time of its
// own: the same deletion is to give the same layer.
func (l *layerWriter) mark(name string) error {
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
}

// header returns the entry of c, which is present.
func (l *layerWriter) header(c *overlay.Change) (*tar.Header, error) {
	h := &tar.Header{
		Name: c.Path, Mode: int64(c.Attr.Mode & permissions),
		Uid: int(c.Attr.UID), Gid: int(c.Attr.GID),
		ModTime: time.Unix(c.Attr.Mtime, int64(c.Attr.MtimeNsec)),
		Format:  tar.FormatPAX, // for nanoseconds and any name
	}
	if !l.latest.IsZero() && h.ModTime.After(l.latest) {
		h.ModTime = l.latest
	}
	if c.Link != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, c.Link
		return h, nil
	}
	for _, x := range c.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[xattrRecord+x.Name] = string(x.Value)
	}
	switch c.Attr.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, c.Attr.Size
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, c.Path+"/"
		if c.Path == "." {
			h.Name = "./"
		}
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, c.Target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if c.Attr.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		rdev := uint64(c.Attr.Rdev)
		h.Devmajor, h.Devminor = int64(unix.Major(rdev)), int64(unix.Minor(rdev))
	default:
		return nil, fmt.Errorf("mode %#o: %w", c.Attr.Mode, overlay.ErrUpper)
	}
	return h, nil
}

// contents writes the bytes of a regular file.
func (l *layerWriter) contents(ctx context.Context, c *overlay.Change) error {
	if c.Attr.Size == 0 {
		return nil
	}
	f, err := c.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	n, err := io.CopyBuffer(l.tar, io.LimitReader(f, c.Attr.Size), l.buf)
	l.sum.Bytes += n
	if err == nil && n < c.Attr.Size {
		err = fmt.Errorf("%w: %d of %d bytes", ErrChanging, n, c.Attr.Size)
	}
	return err
}
