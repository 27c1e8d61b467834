package union

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// load makes nodes of all that the upper directory has, with names locked or before
// anybody knows of the union: for who asks by ID and has not looked up.
func (u *Union) load() error {
	if u.loaded {
		return nil
	}
	if err := u.loadDir(u.root); err != nil {
		return err
	}
	if err := u.loadOrphans(); err != nil {
		return err
	}
	u.loaded = true
	return nil
}

func (u *Union) loadDir(d *node) error {
	var dirs []*node
	err := u.listUpper(d, 0, func(e *dirent) (bool, error) {
		if e.name == "." || e.name == ".." {
			return true, nil
		}
		c, err := u.child(d, e.name, false)
		if errors.Is(err, index.ErrNotExist) {
			return u.loadWhiteout(d, e.name)
		}
		if err != nil {
			return false, err
		}
		if c.n != nil {
			u.pin(c.n)
			if c.n.isDir() {
				dirs = append(dirs, c.n)
			}
		}
		return true, nil
	})
	for _, d := range dirs {
		if err == nil {
			err = u.loadDir(d)
		}
	}
	return err
}

// pin keeps n although nobody was counted to know it.
func (u *Union) pin(n *node) {
	u.table.Lock()
	n.pinned = true
	u.table.Unlock()
}

// loadWhiteout notes that the lower file called name in d is gone, unless it has
// another name or is somewhere else, which later nodes tell.
func (u *Union) loadWhiteout(d *node, name string) (bool, error) {
	if d.lower == 0 {
		return true, nil
	}
	nid, err := u.lower.Lookup(d.lower, name)
	if errors.Is(err, index.ErrNotExist) {
		return true, nil
	}
	if err == nil {
		u.whitened = append(u.whitened, nid)
	}
	return err == nil, err
}

// loadOrphans makes nodes of what an earlier process left unlinked, and of lower
// files that have no name any more.
func (u *Union) loadOrphans() error {
	fd, err := unix.Openat(u.work, orphanDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	err = eachEntry(fd, func(e *dirent) (bool, error) {
		ino, err := strconv.ParseUint(e.name, 16, 64)
		if err != nil {
			return true, nil
		}
		return true, u.loadOrphan(ino, where{fd: fd, path: e.name})
	})
	if err != nil {
		return err
	}
	for _, nid := range u.whitened {
		if u.touched.has(uint64(nid)) {
			continue
		}
		var a Attr
		if err := u.lowerAttr(nid, &a); err != nil {
			return err
		}
		u.gone(nid, &a)
	}
	u.whitened = nil
	return nil
}

func (u *Union) loadOrphan(ino uint64, w where) error {
	u.table.Lock()
	known := u.byIno[ino]
	u.table.Unlock()
	if known != nil {
		// It has another name. If it was found by that, its server died on the way
		// there or from there, and this one would count as a link.
		if !known.orphan {
			return unix.Unlinkat(w.fd, w.path, 0)
		}
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(w.fd, w.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	m, err := u.readMarks(w)
	if err != nil {
		return err
	}
	n := &node{id: u.base + ID(ino), ino: ino, typ: st.Mode & unix.S_IFMT, orphan: true, pinned: true}
	if m.origin != 0 && u.from(m, n.typ) {
		n.id = ID(m.origin)
	}
	if m.metacopy {
		n.lower = m.origin
		n.meta.Store(true)
	}
	u.add(n, place{})
	return nil
}
