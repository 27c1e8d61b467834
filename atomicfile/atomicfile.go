package atomicfile

import (
	"errors"
	"os"
	"path/filepath"
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
	f, err := os.CreateTemp(filepath.Dir(temp), filepath.Base(temp)+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // again, maybe
			_ = os.Remove(f.Name())
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// SyncDir brings to the disk which names are in dir.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
