package union

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// Name is an entry of a directory.
type Name struct {
	Dir  ID
	Name string
}

// Rename is renameat2(2) with flags, of which it knows RENAME_NOREPLACE. What is
// replaced lives on until it is forgotten.
func (u *Union) Rename(ctx context.Context, from, to Name, flags uint32) error {
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return unix.EINVAL
	}
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	return u.untilRaised(ctx, func() (ID, error) { return u.rename(from, to, flags) })
}

// untilRaised calls do for as long as it returns a lower file that has to be copied
// up before.
func (u *Union) untilRaised(ctx context.Context, do func() (ID, error)) error {
	for {
		lower, err := do()
		if err != nil || lower == 0 {
			return err
		}
		if _, err := u.raise(ctx, lower, noData); err != nil {
			return err
		}
	}
}

// end is one end of a rename.
type end struct {
	d    *node
	name string
	slot slot
	c    child // of what is there
	none bool  // nothing is
}

func (u *Union) end(at Name) (e end, err error) {
	if e.d, err = u.parent(at.Dir); err != nil {
		return e, err
	}
	e.name = at.Name
	e.c, err = u.child(e.d, e.name, false)
	if errors.Is(err, index.ErrNotExist) {
		e.none, err = true, nil
	}
	if err != nil {
		return e, err
	}
	e.slot, err = u.slot(e.d, e.name)
	return e, err
}

// rename is Rename, unless it takes a lower file that has to be copied up before;
// this it returns.
func (u *Union) rename(from, to Name, flags uint32) (ID, error) {
	u.names.Lock()
	defer u.names.Unlock()
	src, err := u.end(from)
	if err != nil {
		return 0, err
	}
	defer src.slot.w.close()
	dst, err := u.end(to)
	if err != nil {
		return 0, err
	}
	defer dst.slot.w.close()
	switch {
	case src.none:
		return 0, index.ErrNotExist
	case flags&unix.RENAME_NOREPLACE != 0 && !dst.none:
		return 0, unix.EEXIST
	case src.c.n == nil:
		return ID(src.c.nid), nil
	case dst.c.n != nil && dst.c.n == src.c.n:
		return 0, nil // two links of one file
	}
	if !dst.none && dst.c.n == nil {
		// A lower file with several names loses one only when all are copied up.
		var a index.Attr
		if err := u.lower.Attr(dst.c.nid, &a); err != nil {
			return 0, err
		}
		if a.Mode&unix.S_IFMT != unix.S_IFDIR && a.Nlink > 1 {
			return ID(dst.c.nid), nil
		}
	}
	return 0, u.replace(&src, &dst)
}

// travel marks what is at e so that it is the same file in the directory of to.
func (u *Union) travel(e, to *end) error {
	if err := u.follow(e.c.n, to.d, e.slot.w); err != nil {
		return err
	}
	if e.c.n.isDir() && e.c.n.lower == 0 && to.slot.covers {
		return u.setOpaque(e.slot.w)
	}
	return nil
}

// replace moves src to dst.
func (u *Union) replace(src, dst *end) error {
	if err := u.checkKinds(src, dst); err != nil {
		return err
	}
	covered, err := u.mayReplace(dst)
	if err != nil {
		return err
	}
	if err := u.travel(src, dst); err != nil {
		return err
	}
	undo, err := u.yield(dst, covered)
	if err != nil {
		return err
	}
	if err := u.renameOver(src, dst); err != nil {
		undo()
		return err
	}
	here := place{src.d, src.name}
	if !dst.none {
		u.replaced(dst)
	}
	if src.c.n.at == here {
		u.move(src.c.n, place{dst.d, dst.name})
	}
	return nil
}

func (u *Union) checkKinds(src, dst *end) error {
	if dst.none {
		return nil
	}
	dir, err := dst.c.isDir(u)
	switch {
	case err != nil:
		return err
	case dir && !src.c.n.isDir():
		return unix.EISDIR
	case !dir && src.c.n.isDir():
		return index.ErrNotDir
	}
	return nil
}

// mayReplace says whether what is at dst may be replaced, and returns what whiteouts
// are in it, if it is a directory of the upper.
func (u *Union) mayReplace(dst *end) ([]string, error) {
	if dst.none {
		return nil, nil
	}
	if dst.c.n != nil {
		if dst.c.n.isDir() {
			return u.isEmpty(dst.c.n)
		}
		return nil, nil
	}
	dir, err := dst.c.isDir(u)
	if err != nil || !dir {
		return nil, err
	}
	empty, err := u.isLowerEmpty(dst.c.nid, nil)
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return nil, err
}

// yield prepares what is at dst in the upper directory for being replaced: a file
// that is found by this name gets one among the orphans, and a directory loses its
// whiteouts. undo takes the first back.
func (u *Union) yield(dst *end, covered []string) (undo func(), err error) {
	undo = func() {}
	n := dst.c.n
	if n == nil {
		return undo, nil
	}
	if n.isDir() {
		if err := u.strip(dst, covered); err != nil {
			return undo, err
		}
		return func() { u.unbury(n) }, u.bury(n, &dst.c.st)
	}
	if n.at != (place{dst.d, dst.name}) {
		return undo, nil
	}
	name := orphanName(n.ino)
	_ = unix.Unlinkat(u.work, name, 0) // of a server that died before it renamed
	return func() { _ = unix.Unlinkat(u.work, name, 0) },
		unix.Linkat(dst.slot.w.fd, dst.slot.w.path, u.work, name, 0)
}

// strip puts an opaque directory without entries, but with the same attributes, in
// the place of the directory dst, which has whiteouts alone.
func (u *Union) strip(dst *end, covered []string) error {
	if len(covered) == 0 {
		return nil
	}
	tmp := u.temp()
	if err := unix.Mkdirat(u.work, tmp, 0o700); err != nil {
		return err
	}
	st := &dst.c.st
	w := where{fd: u.work, path: tmp}
	err := u.setOpaque(w)
	if err == nil {
		err = unix.Fchownat(u.work, tmp, int(st.Uid), int(st.Gid), 0)
	}
	if err == nil {
		err = unix.Fchmodat(u.work, tmp, st.Mode&0o7777, 0)
	}
	if err == nil {
		err = unix.Renameat2(u.work, tmp, dst.slot.w.fd, dst.slot.w.path, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		u.discard(tmp)
		return err
	}
	u.sweep(tmp, covered)
	return nil
}

// renameOver moves src to dst, in whose place is a file, an empty directory, a
// whiteout or nothing, and leaves a whiteout where one is needed.
func (u *Union) renameOver(src, dst *end) error {
	s, d := src.slot.w, dst.slot.w
	if dst.slot.whiteout && src.c.n.isDir() {
		if err := unix.Renameat2(s.fd, s.path, d.fd, d.path, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		if src.slot.covers {
			return nil // the whiteout is where it is needed
		}
		return unix.Unlinkat(s.fd, s.path, 0)
	}
	flags := uint(0)
	if src.slot.covers {
		flags = unix.RENAME_WHITEOUT
	}
	return unix.Renameat2(s.fd, s.path, d.fd, d.path, flags)
}

// replaced notes that what was at dst is there no more.
func (u *Union) replaced(dst *end) {
	n := dst.c.n
	switch {
	case n == nil:
		var a Attr
		if u.lowerAttr(dst.c.nid, &a) == nil {
			u.gone(dst.c.nid, &a)
		}
		return
	case n.at != (place{dst.d, dst.name}):
		return
	case !n.isDir():
		n.orphan = true
	}
	u.move(n, place{})
}
