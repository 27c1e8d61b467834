package view

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// errSkip means that the file is to be left out.
var errSkip = errors.New("skip")

// setID are the bits of a mode that only mean what they meant with the owner.
const setID = syscall.S_ISUID | syscall.S_ISGID

// openDir opens the directory name in dir, which must not be a link to one.
func openDir(dir int, name string) (int, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ELOOP || err == unix.ENOTDIR {
		err = fmt.Errorf("something else is there: %w", unix.ENOTDIR)
	}
	return fd, err
}

// checkPlace reports that a directory is where a file should go: a rename would
// say so too, but only when the file's data has been fetched.
func checkPlace(dir int, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return nil
	case err == nil && st.Mode&syscall.S_IFMT == syscall.S_IFDIR:
		return fmt.Errorf("a directory is there: %w", unix.EISDIR)
	}
	return err
}

// putFile makes a file under a name of its own with mk and then gives it name.
func putFile(dir int, name string, mk func(temp string) error) error {
	var temp string
	err := error(unix.EEXIST)
	for err == unix.EEXIST {
		temp = fmt.Sprintf(".lamina-%016x", rand.Uint64())
		err = mk(temp)
	}
	if err == nil {
		err = unix.Renameat(dir, temp, dir, name)
	}
	// It is still there after an error, and after a rename between two names of
	// one file, which does nothing.
	_ = unix.Unlinkat(dir, temp, 0)
	return err
}

// hardLink makes name in dir another name of the file at the path first.
func (c *copier) hardLink(dir int, name, first string) error {
	from := c.base
	parts := strings.Split(first, "/")
	for _, part := range parts[:len(parts)-1] {
		fd, err := openDir(from, part)
		if from != c.base {
			_ = unix.Close(from)
		}
		if err != nil {
			return err
		}
		from = fd
	}
	if from != c.base {
		defer func() { _ = unix.Close(from) }()
	}
	return putFile(dir, name, func(temp string) error {
		return unix.Linkat(from, parts[len(parts)-1], dir, temp, 0)
	})
}

// describe gives the open file fd the owner, mode and xattrs of nid.
func (c *copier) describe(fd int, nid index.NID, a *index.Attr) error {
	if c.owners {
		if err := forgive(unix.Fchown(fd, int(a.UID), int(a.GID))); err != nil {
			return err
		}
	}
	// After the owner, a change of which takes capabilities away, and before the
	// mode, which may forbid it.
	err := c.m.Tree.Xattrs(nid, func(name string, value []byte) bool {
		_ = unix.Fsetxattr(fd, name, value, 0)
		return true
	})
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	return unix.Fchmod(fd, keptMode(a, &st))
}

// describeAt is describe, and the time, for a file that is not opened: a link, or
// what opening would wake.
func (c *copier) describeAt(dir int, name string, nid index.NID, a *index.Attr) error {
	if c.owners {
		if err := forgive(unix.Fchownat(dir, name, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW)); err != nil {
			return err
		}
	}
	at := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	err := c.m.Tree.Xattrs(nid, func(name string, value []byte) bool {
		_ = unix.Lsetxattr(at, name, value, 0)
		return true
	})
	if err != nil {
		return err
	}
	if a.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if err := unix.Fchmodat(dir, name, keptMode(a, &st), 0); err != nil {
			return err
		}
	}
	return setTimes(dir, name, a)
}

// keptMode is the mode that a copy gets: without set-id bits if it has another
// owner than the original.
func keptMode(a *index.Attr, st *unix.Stat_t) uint32 {
	mode := a.Mode & 0o7777
	if st.Uid != a.UID || st.Gid != a.GID {
		mode &^= setID
	}
	return mode
}

// forgive takes for no error that owners cannot be set, by who is not root and in
// user namespaces that lack the number.
func forgive(err error) error {
	if err == unix.EPERM || err == unix.EINVAL {
		return nil
	}
	return err
}

// setTimes sets the time of name in dir, of a link that of itself. The index has
// one time, which becomes that of access too.
func setTimes(dir int, name string, a *index.Attr) error {
	t := unix.Timespec{Sec: a.Mtime, Nsec: int64(a.MtimeNsec)}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}
