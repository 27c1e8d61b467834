package union

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/overlay"
)

// cutDir, in ownDir, has a note for each file that is being cut off while its data
// becomes the upper's: what is half done would show zeros, or to the kernel's overlayfs
// more data than the file has. The next Open does the rest.
const cutDir = "cuts"

// cutOff makes the first size bytes of f, which are on the disk, all that n has.
func (u *Union) cutOff(n *node, f *file, size int64) error {
	u.names.RLock() // n stays where the note says that it is
	defer u.names.RUnlock()
	note, err := u.writeCut(n, size)
	if err != nil {
		return err
	}
	err = keeping(f, func() error { return unix.Ftruncate(f.fd, size) })
	if err != nil {
		u.discardNote(note)
		return err
	}
	if err := u.unmark(f.fd); err != nil {
		return err // and the note stays
	}
	u.discardNote(note)
	return nil
}

// discardNote removes a note, if there is one. One that stays does no harm once its
// file is not marked any more.
func (u *Union) discardNote(note string) {
	if note != "" {
		_ = unix.Unlinkat(u.work, note, 0)
	}
}

// unmark makes the data of the upper file fd its own.
func (u *Union) unmark(fd int) error {
	for _, mark := range []string{overlay.MarkMetacopy, overlay.MarkRedirect} {
		if err := unix.Fremovexattr(fd, u.upper.Xattr(mark)); err != nil && err != unix.ENODATA {
			return err
		}
	}
	return nil
}

// writeCut notes that n is about to be cut off, in a symbolic link, which is made at
// once. It returns the note's name in ownDir: none of a file that nobody finds again.
func (u *Union) writeCut(n *node, size int64) (string, error) {
	if n.at.dir == nil {
		return "", nil
	}
	var names []string
	for d := n; d != u.root; d = d.at.dir {
		if d.at.dir == nil {
			return "", nil
		}
		names = append(names, d.at.name)
	}
	target := strconv.FormatInt(size, 10) + "/" + join(names)
	if len(target) >= unix.PathMax {
		return "", nil
	}
	note := cutDir + "/" + strconv.FormatUint(n.ino, 16)
	_ = unix.Unlinkat(u.work, note, 0)
	err := unix.Symlinkat(target, u.work, note)
	if err == unix.ENOENT {
		if err = unix.Mkdirat(u.work, cutDir, 0o700); err == nil || err == unix.EEXIST {
			err = unix.Symlinkat(target, u.work, note)
		}
	}
	return note, err
}

// finishCuts does what the notes in own say.
func (u *Union) finishCuts(own string) error {
	dir := filepath.Join(own, cutDir)
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		note := filepath.Join(dir, e.Name())
		target, err := os.Readlink(note)
		if err != nil {
			return err
		}
		if err := u.finishCut(e.Name(), target); err != nil {
			return fmt.Errorf("cut off %s: %w", target, err)
		}
		if err := os.Remove(note); err != nil {
			return err
		}
	}
	return nil
}

// finishCut cuts off the file with an inode number that a note's target says, unless
// that was done.
func (u *Union) finishCut(ino, target string) error {
	digits, path, _ := strings.Cut(target, "/")
	size, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return err
	}
	fd, err := unix.Open(filepath.Join(u.upper.Dir, path), unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ELOOP || err == unix.ENOTDIR || err == unix.EISDIR {
		return nil // it is no more
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch _, err := unix.Fgetxattr(fd, u.upper.Xattr(overlay.MarkMetacopy), nil); {
	case err == unix.ENODATA || strconv.FormatUint(st.Ino, 16) != ino:
		return nil
	case err != nil:
		return err
	}
	return errors.Join(unix.Ftruncate(fd, size), u.unmark(fd))
}
