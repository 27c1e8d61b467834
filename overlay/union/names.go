package union

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A lower file with several names is copied up at one after the other. If that ends
// half way, those names that it has got are taken from it: the lower file shows there
// again, which is the same.

// namesPrefix begins, before tempPrefix, the names of copies in ownDir that get several
// names. Such a copy goes when it has all of them.
const namesPrefix = "all-"

// takeBack removes what is at the places at, of a copy that could not be put at all
// places.
func (u *Union) takeBack(at []place) error {
	var errs []error
	for _, p := range at {
		w, err := u.findIn(p.dir, p.name)
		if err == nil {
			err = u.keepTime(p.dir, func() error { return unix.Unlinkat(w.fd, w.path, 0) })
			w.close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// takeBackAll removes, from the whole upper directory, the names of copies in own that
// an earlier process did not put at all places.
func (u *Union) takeBackAll(own string) error {
	list, err := os.ReadDir(own)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var copies []string
	inos := make(map[uint64]bool)
	for _, e := range list {
		if !strings.HasPrefix(e.Name(), namesPrefix) {
			continue
		}
		path := filepath.Join(own, e.Name())
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		copies = append(copies, path)
		if st.Nlink > 1 {
			inos[st.Ino] = true
		}
	}
	if len(inos) > 0 {
		err := filepath.WalkDir(u.upper.Dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return removeOneOf(path, inos)
		})
		if err != nil {
			return err
		}
	}
	for _, c := range copies { // now that nothing is left of them
		if err := os.Remove(c); err != nil {
			return err
		}
	}
	return nil
}

// removeOneOf removes the file at path if it is one of inos, and leaves the time of its
// directory as it was.
func removeOneOf(path string, inos map[uint64]bool) error {
	var st, dir unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || !inos[st.Ino] {
		return nil
	}
	up := filepath.Dir(path)
	if err := unix.Lstat(up, &dir); err != nil {
		return err
	}
	if err := unix.Unlink(path); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, up, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, dir.Mtim}, 0)
}
