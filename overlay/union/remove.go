package union

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// whiteouts are links to one file, as long as the filesystem makes more of them.
type whiteouts struct{ none bool }

// whiteoutName is that file in ownDir.
const whiteoutName = "whiteout"

// whiteout makes one where w leads to, and nothing is.
func (u *Union) whiteout(w where) error {
	for !u.whites.none {
		switch err := unix.Linkat(u.work, whiteoutName, w.fd, w.path, 0); err {
		case nil, unix.EEXIST, unix.ENOSPC, unix.EDQUOT:
			return err
		case unix.EMLINK:
			_ = unix.Unlinkat(u.work, whiteoutName, 0)
		case unix.ENOENT:
		default:
			u.whites.none = true
		}
		if err := unix.Mknodat(u.work, whiteoutName, unix.S_IFCHR, 0); err != nil {
			u.whites.none = true
		}
	}
	return unix.Mknodat(w.fd, w.path, unix.S_IFCHR, 0)
}

// Unlink removes name, which is no directory, from dir. The file itself lives on
// until it is forgotten.
func (u *Union) Unlink(ctx context.Context, dir ID, name string) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	// Of several names in the lower tree one can go when all are in the upper.
	return u.untilRaised(ctx, func() (ID, error) { return u.unlink(dir, name) })
}

// unlink is Unlink, unless name is that of a lower file which has to be copied up
// before; this it returns.
func (u *Union) unlink(dir ID, name string) (ID, error) {
	u.names.Lock()
	defer u.names.Unlock()
	d, err := u.parent(dir)
	if err != nil {
		return 0, err
	}
	c, err := u.child(d, name, false)
	if err != nil {
		return 0, err
	}
	w, err := u.findIn(d, name)
	if err != nil {
		return 0, err
	}
	defer w.close()
	if c.n != nil {
		if c.n.isDir() {
			return 0, unix.EISDIR
		}
		s, err := u.slot(d, name)
		if err != nil {
			return 0, err
		}
		defer s.w.close()
		return 0, u.unlinkUpper(d, name, c, s)
	}
	var a Attr
	if err := u.lowerAttr(c.nid, &a); err != nil {
		return 0, err
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return 0, unix.EISDIR
	}
	if a.Nlink > 1 {
		return ID(c.nid), nil
	}
	if err := u.whiteout(w); err != nil {
		return 0, err
	}
	u.gone(c.nid, &a)
	return 0, nil
}

// gone notes that the lower file nid, of which a is what stat showed, has no name
// any more.
func (u *Union) gone(nid index.NID, a *Attr) {
	last := *a
	last.Nlink = 0
	u.add(&node{id: ID(nid), typ: a.Mode & unix.S_IFMT, lower: nid, dead: true, last: &last}, place{})
}

// unlinkUpper removes name, which is c, from d.
func (u *Union) unlinkUpper(d *node, name string, c child, s slot) error {
	here := c.n.at == place{d, name}
	if err := u.letGo(c.n, here, c.st.Nlink == 1, s); err != nil {
		return err
	}
	if here {
		u.move(c.n, place{})
	}
	return nil
}

// letGo removes the name s of n. If it is the one that n is found by (here), n becomes
// an orphan; last says that it has no other link.
func (u *Union) letGo(n *node, here, last bool, s slot) error {
	switch {
	case here && last:
		flags := uint(0)
		if s.covers {
			flags = unix.RENAME_WHITEOUT
		}
		if err := unix.Renameat2(s.w.fd, s.w.path, u.work, orphanName(n.ino), flags); err != nil {
			return err
		}
		n.orphan = true
		return nil
	case here:
		_ = unix.Unlinkat(u.work, orphanName(n.ino), 0) // of a server that died before it unlinked
		if err := unix.Linkat(s.w.fd, s.w.path, u.work, orphanName(n.ino), 0); err != nil {
			return err
		}
		n.orphan = true
	}
	err := u.clear(s)
	if err != nil && here {
		_ = unix.Unlinkat(u.work, orphanName(n.ino), 0)
		n.orphan = false
	}
	return err
}

// clear removes the file s, and leaves a whiteout where one is needed.
func (u *Union) clear(s slot) error {
	if !s.covers {
		return unix.Unlinkat(s.w.fd, s.w.path, 0)
	}
	tmp := u.temp()
	if err := u.whiteout(where{fd: u.work, path: tmp}); err != nil {
		return err
	}
	// Between two links of one file a rename does nothing; this is none of the
	// whiteouts, so it is replaced.
	if err := unix.Renameat(u.work, tmp, s.w.fd, s.w.path); err != nil {
		u.discard(tmp)
		return err
	}
	return nil
}

// Rmdir removes the directory name from dir. ENOTEMPTY: there is something in it.
func (u *Union) Rmdir(dir ID, name string) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	u.names.Lock()
	defer u.names.Unlock()
	d, err := u.parent(dir)
	if err != nil {
		return err
	}
	c, err := u.child(d, name, false)
	if err != nil {
		return err
	}
	isDir, err := c.isDir(u)
	if err != nil {
		return err
	}
	if !isDir {
		return index.ErrNotDir
	}
	if c.n == nil {
		return u.rmdirLower(d, name, c.nid)
	}
	covered, err := u.isEmpty(c.n)
	if err != nil {
		return err
	}
	s, err := u.slot(d, name)
	if err != nil {
		return err
	}
	defer s.w.close()
	if err := u.bury(c.n, &c.st); err != nil {
		return err
	}
	if err := u.rmdirUpper(s, covered); err != nil {
		u.unbury(c.n)
		return err
	}
	u.move(c.n, place{})
	return nil
}

func (u *Union) rmdirLower(d *node, name string, nid index.NID) error {
	empty, err := u.isLowerEmpty(nid, nil)
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	if err != nil {
		return err
	}
	var a Attr
	if err := u.lowerAttr(nid, &a); err != nil {
		return err
	}
	w, err := u.findIn(d, name)
	if err != nil {
		return err
	}
	defer w.close()
	if err := u.whiteout(w); err != nil {
		return err
	}
	u.gone(nid, &a)
	return nil
}

// rmdirUpper removes the directory s, which has nothing in it but whiteouts.
func (u *Union) rmdirUpper(s slot, covered []string) error {
	if len(covered) == 0 && !s.covers {
		return unix.Unlinkat(s.w.fd, s.w.path, unix.AT_REMOVEDIR)
	}
	tmp, flags := u.temp(), uint(0)
	if s.covers {
		flags = unix.RENAME_WHITEOUT
	}
	if err := unix.Renameat2(s.w.fd, s.w.path, u.work, tmp, flags); err != nil {
		return err
	}
	u.sweep(tmp, covered)
	return nil
}

// sweep removes the directory tmp in ownDir with the whiteouts in it. What it
// leaves, the next Open removes.
func (u *Union) sweep(tmp string, whiteouts []string) {
	for _, name := range whiteouts {
		_ = unix.Unlinkat(u.work, tmp+"/"+name, 0)
	}
	_ = unix.Unlinkat(u.work, tmp, unix.AT_REMOVEDIR)
}

// bury makes the directory n, which st describes, one that is nowhere. It is held
// open, so that its inode number is not given to another before it is forgotten.
func (u *Union) bury(n *node, st *unix.Stat_t) error {
	w, err := u.find(n)
	if err != nil {
		return err
	}
	defer w.close()
	if n.held, err = unix.Openat(w.fd, w.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		n.held = 0
		return err
	}
	last := new(Attr)
	u.fill(n, st, last)
	last.Nlink = 0
	n.last, n.dead = last, true
	return nil
}

func (u *Union) unbury(n *node) {
	_ = unix.Close(n.held)
	n.held, n.last, n.dead = 0, nil, false
}

// isEmpty returns the whiteouts in the directory n. ENOTEMPTY: it has something else,
// or shows something of the lower tree.
func (u *Union) isEmpty(n *node) ([]string, error) {
	var whiteouts []string
	err := u.listUpper(n, 0, func(e *dirent) (bool, error) {
		if e.name == "." || e.name == ".." {
			return true, nil
		}
		if e.typ != unix.DT_CHR && e.typ != unix.DT_UNKNOWN {
			return false, unix.ENOTEMPTY
		}
		var st unix.Stat_t
		if err := unix.Fstatat(e.fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, err
		}
		if !isWhiteout(&st) {
			return false, unix.ENOTEMPTY
		}
		whiteouts = append(whiteouts, e.name)
		return true, nil
	})
	if err != nil || n.lower == 0 {
		return whiteouts, err
	}
	empty, err := u.isLowerEmpty(n.lower, whiteouts)
	if err == nil && !empty {
		err = unix.ENOTEMPTY
	}
	return whiteouts, err
}

// isLowerEmpty tells whether the lower directory nid has nothing but what is in
// whiteouts.
func (u *Union) isLowerEmpty(nid index.NID, whiteouts []string) (bool, error) {
	gone := make(map[string]bool, len(whiteouts))
	for _, name := range whiteouts {
		gone[name] = true
	}
	empty := true
	err := u.lower.ReadDir(nid, 0, func(d *index.Dirent) bool {
		if name := string(d.Name); name != "." && name != ".." && !gone[name] {
			empty = false
		}
		return empty
	})
	return empty, err
}
