package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// diffWriter writes a directory, or an overlayfs upper, as an OCI layer.
type diffWriter struct {
	tw    *tar.Writer
	root  string
	links map[uint64]string // inode -> first name
}

// WriteDiff writes dir to w as an OCI layer: overlayfs's whiteouts and opaque
// marks become OCI's, overlayfs's own xattrs are left out, everything else is
// kept as it is, to the nanosecond. The order is that of names.
func WriteDiff(w io.Writer, dir string) error {
	d := &diffWriter{tw: tar.NewWriter(w), root: dir, links: map[uint64]string{}}
	if err := filepath.WalkDir(dir, d.add); err != nil {
		return fmt.Errorf("tar %s: %w", dir, err)
	}
	return d.tw.Close()
}

func (d *diffWriter) add(p string, _ fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	name, err := filepath.Rel(d.root, p)
	if err != nil || name == "." {
		return err
	}
	info, err := os.Lstat(p)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // tar has no sockets
	}
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	if info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0 {
		return d.mark(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)))
	}
	h, err := d.header(p, name, info, &st)
	if err != nil {
		return err
	}
	opaque := h.PAXRecords["SCHILY.xattr.trusted.overlay.opaque"] == "y"
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "SCHILY.xattr.trusted.overlay.") {
			delete(h.PAXRecords, k)
		}
	}
	if err := d.tw.WriteHeader(h); err != nil {
		return err
	}
	if opaque {
		if err := d.mark(filepath.Join(name, ".wh..wh..opq")); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.Copy(d.tw, f)
	return err
}

func (d *diffWriter) mark(name string) error {
	return d.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX})
}

func (d *diffWriter) header(p, name string, info fs.FileInfo, st *unix.Stat_t) (*tar.Header, error) {
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(p); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	h.Name, h.Format = name, tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	// Only the time of change belongs into an image.
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Uname, h.Gname = "", ""
	if st.Nlink > 1 && !info.IsDir() {
		if first, ok := d.links[st.Ino]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return h, nil
		}
		d.links[st.Ino] = name
	}
	h.PAXRecords, err = xattrs(p)
	return h, err
}

// xattrs returns p's extended attributes as PAX records.
func xattrs(p string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, fmt.Errorf("listxattr %s: %w", p, err)
	}
	records := map[string]string{}
	for name := range bytes.SplitSeq(buf[:n], []byte{0}) {
		if len(name) == 0 {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, string(name), v)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s %s: %w", p, name, err)
		}
		records["SCHILY.xattr."+string(name)] = string(v[:n])
	}
	return records, nil
}
