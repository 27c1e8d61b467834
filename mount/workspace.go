package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// A writable mount is a workspace: what is written is in an upper directory that
// outlives the mount, and its record says what image that belongs to.

// upperName is the upper directory beside a record.
const upperName = "upper"

// ErrWorkspace: a workspace cannot be used as was asked.
var ErrWorkspace = errors.New("workspace cannot be used")

// Upper returns the upper directory of a writable mount.
func (s *State) Upper() string {
	if s.Options.Upper != "" {
		return s.Options.Upper
	}
	return filepath.Join(s.dir(), upperName)
}

// workDir is what overlayfs needs beside the upper directory, on the same
// filesystem.
func (s *State) workDir() string {
	if u := s.Options.Upper; u != "" {
		return filepath.Join(filepath.Dir(u), "."+filepath.Base(u)+".work")
	}
	return filepath.Join(s.dir(), "work")
}

// source is what mountinfo shows as the device of a writable mount.
func (s *State) source() string { return "lamina:" + s.Name }

// writable describes what covers the mount; nil if it is not writable.
func (s *State) writable() *fs.Writable {
	if !s.Options.RW {
		return nil
	}
	return &fs.Writable{Upper: s.Upper(), Work: s.workDir(), Source: s.source()}
}

// prepareUpper makes the directories of a writable mount of t, where there are
// none. The root of the union looks like the upper directory, so a new one is
// made like the image's.
func (s *State) prepareUpper(t *overlay.Tree) error {
	if !s.Options.RW {
		return nil
	}
	if err := os.MkdirAll(s.workDir(), 0o700); err != nil {
		return fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	if err := s.lockUpper(); err != nil {
		return err
	}
	if err := s.goOn(); err != nil {
		return err
	}
	if err := s.prepareDirs(t); err != nil {
		return fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	if s.Engine != Kernel {
		return nil // the union does it
	}
	if err := (overlay.Upper{Dir: s.Upper()}).Probe(s.workDir()); err != nil {
		return fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	return nil
}

// lockUpper sees to it that nobody else mounts the upper directory until keep or end:
// overlayfs would let two do so, and damage it.
func (s *State) lockUpper() error {
	f, err := os.Open(s.workDir())
	if err != nil {
		return fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: another process is mounting %s, or reads its changes", ErrWorkspace, s.Name)
		}
		return fmt.Errorf("workspace %s: lock %s: %w", s.Name, f.Name(), err)
	}
	s.upperLock = f
	// Who had the lock before may have mounted it.
	all, err := List(s.Options.Root)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Options.RW && e.Status != Unmounted && sameFile(e.workDir(), s.workDir()) {
			return fmt.Errorf("%w: %s is mounted at %s", ErrWorkspace, e.Name, e.Options.Dir)
		}
	}
	return nil
}

// unlockUpper lets others mount the upper directory: the record says that it is.
func (s *State) unlockUpper() {
	if s.upperLock != nil {
		_ = s.upperLock.Close()
		s.upperLock = nil
	}
}

func (s *State) prepareDirs(t *overlay.Tree) error {
	upper := s.Upper()
	err := os.Mkdir(upper, 0o700)
	if errors.Is(err, os.ErrExist) {
		list, err := os.ReadDir(upper)
		if err != nil {
			return err
		}
		if len(list) > 0 || s.Kept {
			return nil
		}
	} else if err != nil {
		return err
	}
	return likeRoot(upper, t)
}

// likeRoot gives the directory dir the attributes of the root of t.
func likeRoot(dir string, t *overlay.Tree) error {
	var a index.Attr
	if err := t.Attr(t.Root(), &a); err != nil {
		return err
	}
	if err := os.Chown(dir, int(a.UID), int(a.GID)); err != nil {
		return err
	}
	if err := unix.Chmod(dir, a.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	var failed error
	err := t.Xattrs(t.Root(), func(name string, value []byte) bool {
		if err := unix.Setxattr(dir, name, value, 0); err != nil {
			failed = fmt.Errorf("set xattr %s of %s: %w", name, dir, err)
		}
		return failed == nil
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: a.Mtime, Nsec: int64(a.MtimeNsec)}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, ts, 0); err != nil {
		return &os.PathError{Op: "utimens", Path: dir, Err: err}
	}
	return nil
}

// resume finds the workspace that o is for, if it exists, and sees whether it may
// be mounted.
func resume(o *Options) error {
	if !o.RW {
		return nil
	}
	if o.Name != "" && !validName(o.Name) {
		return fmt.Errorf("%w: name %q: use letters, digits, and . _ - not in front", ErrWorkspace, o.Name)
	}
	all, err := List(o.Root)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Options.RW && e.Status != Unmounted && o.Upper != "" && sameFile(e.Upper(), o.Upper) {
			return fmt.Errorf("%w: %s is the upper directory of %s, which is mounted at %s", ErrWorkspace, o.Upper, e.Name, e.Options.Dir)
		}
		if o.Name == "" && e.Status == Unmounted && o.Upper != "" && sameFile(e.Upper(), o.Upper) {
			o.Name = e.Name
		}
	}
	i := slices.IndexFunc(all, func(e Entry) bool { return e.Name == o.Name })
	if o.Name == "" || i < 0 {
		return nil
	}
	e := all[i]
	switch {
	case !e.Options.RW:
		return fmt.Errorf("%w: a mount is called %s", ErrWorkspace, o.Name)
	case e.Status != Unmounted:
		return fmt.Errorf("%w: %s is mounted at %s", ErrWorkspace, o.Name, e.Options.Dir)
	case o.Upper != "" && !sameFile(o.Upper, e.Upper()):
		return fmt.Errorf("%w: the upper directory of %s is %s", ErrWorkspace, o.Name, e.Upper())
	}
	o.Upper = e.Options.Upper
	return nil
}

func validName(s string) bool {
	return len(s) <= 100 && !strings.HasPrefix(s, ".") && !strings.HasPrefix(s, "-") && clean(s) == s
}

// sameFile tells whether two paths lead to one file.
func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// goOn makes s the record of the workspace that has its name, if there is one: it
// must have been made over the same layers.
func (s *State) goOn() error {
	if !s.Options.RW {
		return nil
	}
	was, err := Load(s.Options.Root, s.Name)
	if errors.Is(err, os.ErrNotExist) || err == nil && !was.Kept {
		return nil
	}
	if err != nil {
		return err
	}
	if was.Chain != s.Chain {
		return fmt.Errorf("%w: %s was made over %s with digest %s, not over %s with %s; write NAME@DIGEST, or give another --name",
			ErrWorkspace, s.Name, was.Image, was.Digest, s.Image, s.Digest)
	}
	s.Kept, s.Created = true, was.Created
	return nil
}

// made notes that the mount is there, which from now on needs no process that makes
// it; one that cannot be noted is taken away.
func (s *State) made() error {
	defer s.unlockUpper()
	s.Maker, s.Kept = Process{}, s.Kept || s.Options.RW
	err := s.save()
	if err != nil {
		err = errors.Join(err, fs.Unmount(context.Background(), s.Options.Dir, true))
	}
	return err
}

// end takes back what s says of a mount that is over. A workspace stays; of other
// mounts nothing does.
func (s *State) end() error {
	defer s.unlockUpper()
	if !s.Kept {
		return s.remove()
	}
	s.clear()
	return s.save()
}

// tidy takes back what s says of a mount that is over, if it is over and nobody is
// about to mount it again.
func (s *State) tidy() {
	if !s.Kept {
		_ = s.remove() // who it belongs to may do it at the same time
		return
	}
	if s.isClear() {
		return
	}
	lock, err := os.Open(s.workDir())
	if err != nil {
		return
	}
	defer func() { _ = lock.Close() }()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	now, err := Load(s.Options.Root, s.Name)
	if err != nil || now.Server != s.Server || now.Holder != s.Holder || now.Server.Alive() || now.Holder.Alive() || now.Maker.Alive() {
		return
	}
	now.clear()
	_ = now.save()
}

// clear takes back what a record says of a mount, and isClear tells whether there is
// anything.
func (s *State) clear() {
	s.clearKernel()
	s.Server, s.Holder, s.Maker = Process{}, Process{}, Process{}
}

func (s *State) isClear() bool {
	none := Process{}
	return s.Server == none && s.Holder == none && s.Maker == none && s.ServedBy == "" &&
		!slices.ContainsFunc(s.Layers, func(l LayerState) bool { return l.Direct })
}

// forget takes back what a mount called name that failed has left.
func forget(root, name string) {
	s, err := Load(root, name)
	if err != nil {
		s = &State{Name: name, Options: Options{Root: root}}
	}
	// It may have failed because another process is mounting that workspace.
	if _, err := os.Stat(s.workDir()); err == nil && s.lockUpper() != nil {
		s.unlockUpper()
		return
	}
	_ = s.end()
}

// Discard removes the workspace that target, its name or mountpoint, means, which
// is not mounted, and all that was written to it. An upper directory that the
// user named stays.
func Discard(ctx context.Context, root, target string) error {
	e, err := find(root, target)
	if err != nil {
		return err
	}
	if e.Status != Unmounted {
		return fmt.Errorf("discard %s: it is mounted at %s", target, e.Options.Dir)
	}
	if err := errors.Join(os.RemoveAll(e.workDir()), os.RemoveAll(e.dir())); err != nil {
		return fmt.Errorf("discard %s: %w", target, err)
	}
	return ctx.Err()
}
