//go:build integration

package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// sides are where something may be that is moved to and fro.
func side(v int) string { return []string{"a", "b"}[v%2] }

func lowerMoved(dir string) error {
	return errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o755), os.Mkdir(filepath.Join(dir, "b"), 0o755),
		os.WriteFile(filepath.Join(dir, "a", file), content(own(dir, file), 0), 0o644))
}

func moveFile(s *step) error {
	if err := os.Rename(s.path(side(s.v-1)+"/"+file), s.path(side(s.v)+"/"+file)); err != nil {
		return err
	}
	return s.sync("a", "b")
}

func lookMoved(dir string) func(int) error {
	return func(v int) error {
		return errors.Join(absent(filepath.Join(dir, side(v+1), file)),
			isContent(filepath.Join(dir, side(v), file), own(dir, file), 0))
	}
}

// inFolder are the files of a folder that is moved.
func inFolder() []string { return []string{"x", "y", "sub/z", "sub/deep/er/x"} }

func lowerFolder(dir string) error {
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o755); err != nil {
		return err
	}
	for _, n := range inFolder() {
		path := filepath.Join(dir, "a", "folder", n)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content(own(dir, n), 0), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// moveFolder moves a folder, and every third time changes its mode and that of a
// file in it, which the image has at another place.
func moveFolder(s *step) error {
	if err := os.Rename(s.path(side(s.v-1)+"/folder"), s.path(side(s.v)+"/folder")); err != nil {
		return err
	}
	if err := s.sync("a", "b"); err != nil {
		return err
	}
	if s.v%3 != 0 {
		return nil
	}
	folder := s.path(side(s.v) + "/folder")
	return errors.Join(os.Chmod(folder, 0o700), os.Chmod(filepath.Join(folder, "sub/z"), 0o600))
}

func lookFolder(dir string) func(int) error {
	return func(v int) error {
		errs := []error{absent(filepath.Join(dir, side(v+1), "folder"))}
		for _, n := range inFolder() {
			errs = append(errs, isContent(filepath.Join(dir, side(v), "folder", n), own(dir, n), 0))
		}
		return errors.Join(errs...)
	}
}

// lowerPair makes a file and a folder: any two may be exchanged.
func lowerPair(dir string) error {
	return errors.Join(os.WriteFile(filepath.Join(dir, "a"), content(own(dir, "a"), 0), 0o644),
		os.Mkdir(filepath.Join(dir, "b"), 0o755),
		os.WriteFile(filepath.Join(dir, "b", file), content(own(dir, "b"), 0), 0o644))
}

func exchangePair(s *step) error {
	err := unix.Renameat2(unix.AT_FDCWD, s.path("a"), unix.AT_FDCWD, s.path("b"), unix.RENAME_EXCHANGE)
	if err != nil {
		return err
	}
	return s.sync(".")
}

func lookPair(dir string) func(int) error {
	return func(v int) error {
		return errors.Join(isContent(filepath.Join(dir, side(v)), own(dir, "a"), 0),
			isContent(filepath.Join(dir, side(v+1), file), own(dir, "b"), 0))
	}
}

func lowerRemade(dir string) error {
	folder := filepath.Join(dir, "folder")
	return errors.Join(os.Mkdir(folder, 0o755), os.WriteFile(filepath.Join(folder, file), content(own(dir, file), 0), 0o644))
}

// remakeFolder goes round: a folder with a file, without, no folder, and a new one
// through which nothing of the image may be seen.
func remakeFolder(s *step) error {
	folder := s.path("folder")
	switch s.v % 4 {
	case 1:
		if err := os.Remove(filepath.Join(folder, file)); err != nil {
			return err
		}
		return s.sync("folder")
	case 2:
		if err := os.Remove(folder); err != nil {
			return err
		}
		return s.sync(".")
	case 3:
		if err := os.Mkdir(folder, 0o750); err != nil {
			return err
		}
		return s.sync(".", "folder")
	}
	if err := writeSynced(s.path(".tmp"), content(own(s.dir, file), s.v), os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	if err := os.Rename(s.path(".tmp"), filepath.Join(folder, file)); err != nil {
		return err
	}
	return s.sync(".", "folder")
}

func lookRemade(dir string) func(int) error {
	folder := filepath.Join(dir, "folder")
	return func(v int) error {
		if v%4 == 2 {
			return absent(folder)
		}
		list, err := os.ReadDir(folder)
		if err != nil {
			return err
		}
		if v%4 == 0 {
			return isContent(filepath.Join(folder, file), own(dir, file), v)
		}
		if len(list) > 0 {
			return fmt.Errorf("not empty: %v", list)
		}
		return nil
	}
}

// manyFiles is how many files those have that copy one up after the other.
const manyFiles = 90

func numbered(v int) string { return fmt.Sprintf("f%d", v) }

func lowerCopied(dir string) error {
	for v := 1; v <= manyFiles; v++ {
		if err := os.WriteFile(filepath.Join(dir, numbered(v)), content(own(dir, file), v), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// copyUpOne changes a file of the image, in one of several ways, and syncs every
// third.
func copyUpOne(s *step) error {
	path := s.path(numbered(s.v))
	old := content(own(s.dir, file), s.v)
	if s.v%2 == 0 { // then its data is copied up later than its attributes
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
	}
	if err := changeData(path, s.v, len(old)); err != nil {
		return err
	}
	if s.v%3 == 0 {
		if err := syncPath(path); err != nil {
			return err
		}
	}
	s.synced() // but see checkCopied
	return nil
}

// changeData changes the data of a file of a size in the way of its number.
func changeData(path string, v, size int) error {
	switch v / 2 % 4 {
	case 0:
		return os.Truncate(path, 0)
	case 1:
		return os.Truncate(path, int64(size/2))
	case 2:
		return writeAt(path, int64(size))
	default:
		return writeAt(path, int64(size/2))
	}
}

func writeAt(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("changed"), off)
	return errors.Join(err, f.Close())
}

// changedData is what changeData makes of old.
func changedData(old []byte, v int) []byte {
	b := append([]byte(nil), old...)
	switch v / 2 % 4 {
	case 0:
		return nil
	case 1:
		return b[:len(b)/2]
	case 2:
		return append(b, "changed"...)
	default:
		return append(b[:len(b)/2], append([]byte("changed"), b[min(len(b), len(b)/2+7):]...)...)
	}
}

// checkCopied: what was not synced is old or new. Of data that was written, a part
// may be there; of the image's own data, all.
func checkCopied(dir string, b bounds) error {
	var errs []error
	for v := 1; v <= manyFiles; v++ {
		path, old := filepath.Join(dir, numbered(v)), content(own(dir, file), v)
		now := changedData(old, v)
		isNow := func() error { return checkExactly(path, now) }
		isOld := func() error { return checkExactly(path, old) }
		var err error
		switch {
		case v > b.most:
			err = isOld()
		case v <= b.least && (v%3 == 0 || b.exact):
			err = isNow()
		case v/2%4 < 2: // cut off
			if err = isNow(); err != nil && isOld() == nil {
				err = nil
			}
		default:
			err = checkWritten(path, old, now)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s, in way %d: %w", numbered(v), v/2%4, err))
		}
	}
	return errors.Join(errs...)
}

func lowerLinked(dir string) error {
	for v := 1; v <= manyFiles/3; v++ {
		names := linkedNames(dir, v)
		if err := os.WriteFile(names[0], content(own(dir, file), v), 0o644); err != nil {
			return err
		}
		if err := errors.Join(os.Link(names[0], names[1]), os.Link(names[0], names[2])); err != nil {
			return err
		}
	}
	return nil
}

// linkedNames are those that a file of the image has.
func linkedNames(dir string, v int) []string {
	n := filepath.Join(dir, numbered(v))
	return []string{n + "a", n + "b", n + "c"}
}

func changeLinked(s *step) error {
	path := linkedNames(s.dir, s.v)[s.v%3]
	if s.v%2 == 0 {
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
	} else if err := writeAt(path, int64(len(content(own(s.dir, file), s.v)))); err != nil {
		return err
	}
	if err := syncPath(path); err != nil {
		return err
	}
	s.synced()
	return nil
}

// checkLinked: all names of a file show the same, before and after it was changed by
// one of them.
func checkLinked(dir string, b bounds) error {
	var errs []error
	for v := 1; v <= manyFiles/3; v++ {
		errs = append(errs, checkLinks(dir, v, b))
	}
	return errors.Join(errs...)
}

func checkLinks(dir string, v int, b bounds) error {
	old := content(own(dir, file), v)
	now, mode := old, uint32(0o600)
	if v%2 == 1 {
		now, mode = append(append([]byte(nil), old...), "changed"...), 0o644
	}
	var st [3]unix.Stat_t
	for i, path := range linkedNames(dir, v) {
		if err := unix.Lstat(path, &st[i]); err != nil {
			return err
		}
		got := st[i].Mode & 0o7777
		switch {
		case st[i].Ino != st[0].Ino || got != st[0].Mode&0o7777:
			return fmt.Errorf("%s and %s are parted", linkedNames(dir, v)[0], path)
		case st[i].Nlink != 3:
			return fmt.Errorf("%s: %d links", path, st[i].Nlink)
		case got != mode && (v <= b.least || got != 0o644):
			return fmt.Errorf("%s: mode %o", path, got)
		}
		least, most := old, old
		if v <= b.most {
			most = now
		}
		if v <= b.least {
			least = now
		}
		if err := checkWritten(path, least, most); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}
