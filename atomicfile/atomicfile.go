package atomicfile

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Write makes or replaces the file path with what fill writes: when it returns nil,
// that is on the disk under its name. temp begins the file's path until it is whole:
// a directory of path's filesystem, as a rule path's own, and a prefix.
//
// fill gets the empty file, open for writing and with mode 0600, and does not close
// it; what else belongs to the file, such as its mode, it sets there. Errors are
// fill's as they are, and those of package os.
func Write(path, temp string, fill func(f *os.File) error) error {
	if err := Place(path, temp, fill); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// WriteBytes is Write of b.
func WriteBytes(path, temp string, b []byte) error {
	return Write(path, temp, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// Place is Write whose name may be lost in a crash until SyncDir was called with the
// directory of path. What it stands for afterwards is old or new, and whole.
func Place(path, temp string, fill func(f *os.File) error) (err error) {
	f, name, err := create(temp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // again, maybe
			if name != "" {
				_ = os.Remove(name)
			}
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if name == "" {
		if name, err = link(f, path, temp); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if name == path {
		return nil
	}
	return os.Rename(name, path)
}

// create makes the file that is filled. Where the filesystem can, it has no name, and
// goes with the process.
func create(temp string) (f *os.File, name string, err error) {
	fd, err := unix.Open(filepath.Dir(temp), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), temp), "", nil
	}
	f, err = os.CreateTemp(filepath.Dir(temp), filepath.Base(temp)+"*")
	if err != nil {
		return nil, "", err
	}
	return f, f.Name(), nil
}

// link gives f, which is whole, a name: path, or a temporary one if that is taken.
func link(f *os.File, path, temp string) (name string, err error) {
	for name = path; ; name = fmt.Sprintf("%s%016x", temp, rand.Uint64()) {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			return name, nil
		}
		if err != unix.EEXIST {
			return "", &os.LinkError{Op: "link", Old: temp, New: name, Err: err}
		}
	}
}

// SyncDir brings to the disk which names are in dir.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
