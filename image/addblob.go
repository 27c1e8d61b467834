package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// AddBlob stores a blob that write makes: it writes the bytes and returns their
// descriptor, whose digest and size must be theirs. When AddBlob returns nil the
// blob is verified to have that size and on disk. It belongs to no image yet:
// Prune spares it until Close or the end of this process. If write fails, or
// the process is killed, nothing is left.
//
// Errors: write's, ErrCorrupt for a wrong descriptor, ErrNotImage if a newer
// version made the store, and the system's; if the disk is full the error names
// the directory.
func (s *Store) AddBlob(write func(io.Writer) (ocispec.Descriptor, error)) (ocispec.Descriptor, error) {
	desc, err := s.addBlob(write)
	if err != nil {
		return desc, fmt.Errorf("add blob to %s: %w", s.dir, err)
	}
	return desc, nil
}

func (s *Store) addBlob(write func(io.Writer) (ocispec.Descriptor, error)) (desc ocispec.Descriptor, err error) {
	if err := s.version(); err != nil {
		return desc, err
	}
	if err := s.announce(); err != nil {
		return desc, err
	}
	if err := makeDir(s.partials); err != nil {
		return desc, full(err, s.partials)
	}
	f, path, err := unnamed(s.partials)
	if err != nil {
		return desc, full(err, s.partials)
	}
	defer func() {
		_ = f.Close()
		if path != "" {
			_ = os.Remove(path)
		}
	}()
	if desc, err = write(f); err != nil {
		return desc, full(err, s.partials)
	}
	if err := checkDescriptor(desc); err != nil {
		return desc, err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != desc.Size {
		return desc, errors.Join(err, fmt.Errorf("%w: blob %s is not of %d bytes", ErrCorrupt, desc.Digest, desc.Size))
	}
	return desc, s.adopt(f, path, desc)
}

// unnamed makes a file in dir that has no name, and so goes with the process,
// where the filesystem knows that. Elsewhere path is what to remove.
func unnamed(dir string) (f *os.File, path string, err error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), "", nil
	}
	if f, err = os.CreateTemp(dir, temporary+"*"); err != nil {
		return nil, "", err
	}
	return f, f.Name(), f.Chmod(0o644)
}

// adopt gives the file its place in the layout.
func (s *Store) adopt(f *os.File, from string, desc ocispec.Descriptor) error {
	if err := f.Sync(); err != nil {
		return full(err, s.partials)
	}
	if s.refresh(desc) {
		return nil
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	w, err := s.writer()
	if err != nil {
		return full(err, s.dir)
	}
	to := s.path(blobPath(desc.Digest))
	if err := makeDir(filepath.Dir(to)); err != nil {
		return full(err, filepath.Dir(to))
	}
	// What is at the place now is not this blob: HasBlob would have said so.
	if err := os.Remove(to); err != nil && !isNotExist(err) {
		return err
	}
	if from == "" {
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.AT_FDCWD, to, unix.AT_SYMLINK_FOLLOW)
	} else {
		err = os.Rename(from, to)
	}
	if err != nil {
		return full(fmt.Errorf("name blob %s: %w", to, err), filepath.Dir(to))
	}
	w.dirty[filepath.Dir(to)] = true
	w.sync()
	return w.err
}
