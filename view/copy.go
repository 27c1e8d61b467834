package view

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// CopyOptions configures Copy.
type CopyOptions struct {
	// Owners keeps the owners of files, which takes root; who is not root gets
	// everything as their own, as with cp -a.
	Owners bool
}

// SkippedError is what Copy and CopyTar return when all was copied but files that
// could not be made: devices, for who is not root, and sockets, for which tar has
// no place. It wraps EPERM.
type SkippedError struct {
	Paths []string // in the image
}

// skippedShown is how many paths the text of a SkippedError has.
const skippedShown = 10

// Error lists the paths, the first ones if they are many.
func (e *SkippedError) Error() string {
	shown := e.Paths[:min(len(e.Paths), skippedShown)]
	text := strings.Join(shown, ", ")
	if n := len(e.Paths) - len(shown); n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("copied without %d special files, which cannot be made here: %s", len(e.Paths), text)
}

// Unwrap gives EPERM.
func (e *SkippedError) Unwrap() error { return syscall.EPERM }

// Copy copies what is at src in the image to dst on the disk, as cp -a does. A
// symbolic link at the end of src is copied as a link. If dst is a directory, the
// copy gets src's name in it, or if src ends with "/." or "/.." or is the root, its
// contents come into dst. Otherwise the copy is dst itself, whose directory must
// be there.
//
// Kept are modes, times to the nanosecond, links and hard links among what is
// copied, holes, and xattrs as far as the file system and the rights allow; set-id
// bits only with the owner. Directories that are there are merged into and get the
// attributes of the image's; every other file replaces what has its name, whole or
// not at all, and never a directory. Below dst no symbolic link is followed.
//
// What could not be made is told by a SkippedError, after all else was copied.
func (m *Image) Copy(ctx context.Context, src, dst string, o CopyOptions) error {
	c := &copier{ctx: ctx, m: m, guard: newGuard(m.Tree.Index), links: map[index.NID]string{}, owners: o.Owners}
	err := c.run(src, dst)
	if err == nil && len(c.skipped) > 0 {
		err = &SkippedError{c.skipped}
	}
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, err)
	}
	return nil
}

// copier is a Copy under way. It names files by a directory's descriptor and one
// name in it, so that no link of the destination can lead it elsewhere.
type copier struct {
	ctx     context.Context
	m       *Image
	guard   *guard
	owners  bool
	base    int                  // the directory that paths in links start at
	links   map[index.NID]string // files with several names: where the first one went
	skipped []string
	buf     []byte
}

func (c *copier) run(src, dst string) error {
	s, err := c.m.locate(src, false)
	if err != nil {
		return err
	}
	into, name, contents, err := target(src, dst, &s)
	if err != nil {
		return err
	}
	if !contents && isDots(name) {
		return fmt.Errorf("%q is no name for a copy: %w", name, syscall.EINVAL)
	}
	d, err := os.OpenFile(into, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	c.base = int(d.Fd())
	if contents {
		return c.fill(c.base, "", s.path, s.nid)
	}
	return c.copy(c.base, name, name, s.path, s.nid)
}

// isDots reports whether name leads to a directory that has another name.
func isDots(name string) bool { return name == "." || name == ".." }

// lastName splits a path, without slashes at its end, before its last name.
func lastName(path string) (dir, name string) {
	path = strings.TrimRight(path, "/")
	cut := strings.LastIndexByte(path, '/') + 1
	return path[:cut], path[cut:]
}

// contentsOf reports whether src names no file but what is in a directory.
func contentsOf(src string, s *spot) bool {
	_, last := lastName(src)
	return s.path == "/" || isDots(last)
}

// target decides where the copy of s goes: to name in the directory into, or its
// contents into that.
func target(src, dst string, s *spot) (into, name string, contents bool, err error) {
	_, name = lastName(src)
	inside := contentsOf(src, s)
	info, err := os.Stat(dst)
	switch {
	case err == nil && info.IsDir():
		return dst, name, inside, nil
	case err == nil && s.isDir():
		return "", "", false, fmt.Errorf("%s: %w", dst, syscall.ENOTDIR)
	case err != nil && !os.IsNotExist(err):
		return "", "", false, err
	case strings.HasSuffix(dst, "/") && !s.isDir():
		return "", "", false, fmt.Errorf("no directory %s: %w", dst, syscall.ENOENT)
	case dst == "":
		return "", "", false, syscall.ENOENT
	}
	// Not cleaned: ".." behind a link is above where the link leads.
	into, name = lastName(dst)
	if isDots(name) {
		return "", "", false, fmt.Errorf("%s: %w", dst, syscall.ENOENT)
	}
	if into == "" {
		into = "."
	}
	return into, name, false, nil
}

// copy copies nid, which is at path in the image, to name in the directory dir.
// rel is the way there from the copier's base.
func (c *copier) copy(dir int, name, rel, path string, nid index.NID) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	var a index.Attr
	if err := c.m.Tree.Attr(nid, &a); err != nil {
		return err
	}
	if a.Mode&syscall.S_IFMT == syscall.S_IFDIR {
		return c.copyDir(dir, name, rel, path, nid)
	}
	if err := checkPlace(dir, name); err != nil {
		return fmt.Errorf("%s: %w", rel, err)
	}
	if first, ok := c.links[nid]; ok {
		if err := c.hardLink(dir, name, first); err != nil {
			return fmt.Errorf("link %s to %s: %w", rel, first, err)
		}
		return nil
	}
	made, err := c.copyFile(dir, name, nid, &a)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", rel, err)
	case !made:
		c.skipped = append(c.skipped, path)
	case a.Nlink > 1:
		c.links[nid] = rel
	}
	return nil
}

// copyDir makes the directory, or takes the one that is there, and fills it.
func (c *copier) copyDir(dir int, name, rel, path string, nid index.NID) error {
	if err := unix.Mkdirat(dir, name, 0o700); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make directory %s: %w", rel, err)
	}
	fd, err := openDir(dir, name)
	if err != nil {
		return fmt.Errorf("directory %s: %w", rel, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return c.fill(fd, rel, path, nid)
}

// fill copies what is in the directory nid to that of fd, then nid's attributes:
// the last, since they may forbid writing and filling changes the time.
func (c *copier) fill(fd int, rel, path string, nid index.NID) error {
	entries, err := c.m.readDir(path, nid, c.guard)
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		if err := c.copy(fd, e.Name, filepath.Join(rel, e.Name), e.Path, e.NID); err != nil {
			return err
		}
	}
	var a index.Attr
	if err := c.m.Tree.Attr(nid, &a); err != nil {
		return err
	}
	// A directory that was there may be somebody else's.
	if err := forgive(c.describe(fd, nid, &a)); err != nil {
		return fmt.Errorf("directory %s: %w", rel, err)
	}
	return forgive(setTimes(fd, ".", &a))
}

// copyFile makes anything but a directory; made is false if it is a device or the
// like that this process may not make.
func (c *copier) copyFile(dir int, name string, nid index.NID, a *index.Attr) (made bool, err error) {
	err = putFile(dir, name, func(temp string) error {
		switch a.Mode & syscall.S_IFMT {
		case syscall.S_IFREG:
			return c.makeRegular(dir, temp, nid, a)
		case syscall.S_IFLNK:
			target, err := c.m.Tree.Readlink(nid)
			if err != nil {
				return err
			}
			if err := unix.Symlinkat(string(target), dir, temp); err != nil {
				return err
			}
		default:
			if err := unix.Mknodat(dir, temp, a.Mode&^0o7777|0o600, int(a.Rdev)); err == unix.EPERM {
				return errSkip
			} else if err != nil {
				return err
			}
		}
		return c.describeAt(dir, temp, nid, a)
	})
	if err == errSkip {
		return false, nil
	}
	return true, err
}

// makeRegular makes a regular file with its data, holes left out.
func (c *copier) makeRegular(dir int, temp string, nid index.NID, a *index.Attr) (err error) {
	fd, err := unix.Openat(dir, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), temp)
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	if err := f.Truncate(a.Size); err != nil {
		return err
	}
	if c.buf == nil {
		c.buf = make([]byte, pieceSize)
	}
	var failed error
	err = c.m.Tree.Extents(nid, 0, a.Size, func(e index.Extent) bool {
		failed = c.m.pieces(c.ctx, nid, e.FileOff, e.Len, c.buf, func(p []byte, off int64) error {
			_, err := f.WriteAt(p, off)
			return err
		})
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return err
	}
	if err := c.describe(fd, nid, a); err != nil {
		return err
	}
	return setTimes(dir, temp, a)
}
