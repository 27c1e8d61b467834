package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrFilesystem: the filesystem of an upper directory lacks what a union needs.
var ErrFilesystem = errors.New("upper directory cannot be used")

// Probe tries, in the directory work, whether the filesystem can do what a union of u
// needs: xattrs and whiteouts. The kernel's overlayfs mounts without them, and then
// does not keep what it was told. ErrFilesystem: it cannot, or work is on another one.
func (u Upper) Probe(work string) error {
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(u.Dir, &a), unix.Stat(work, &b)); err != nil {
		return fmt.Errorf("probe %s: %w", u.Dir, err)
	}
	if a.Dev != b.Dev {
		return fmt.Errorf("%w: %s is on another filesystem than its work directory", ErrFilesystem, u.Dir)
	}
	dir, err := os.MkdirTemp(work, "probe-")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFilesystem, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "file")
	if err := unix.Mknod(file, unix.S_IFREG|0o600, 0); err != nil {
		return fmt.Errorf("%w: make a file: %w", ErrFilesystem, &os.PathError{Op: "mknod", Path: file, Err: err})
	}
	if err := unix.Setxattr(file, u.Xattr(MarkOrigin), []byte("probe"), 0); err != nil {
		return fmt.Errorf("%w: the filesystem of %s does not keep the xattrs of overlayfs: %w", ErrFilesystem, u.Dir, err)
	}
	to := filepath.Join(dir, "to")
	if err := unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, to, unix.RENAME_WHITEOUT); err != nil {
		return fmt.Errorf("%w: the filesystem of %s does not make whiteouts: %w", ErrFilesystem, u.Dir, err)
	}
	return nil
}
