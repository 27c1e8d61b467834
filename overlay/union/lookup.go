package union

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// Attr is what stat shows of a file.
type Attr struct {
	ID                  ID // also the inode number
	Mode, UID, GID      uint32
	Nlink, Rdev         uint32 // Rdev as index.Makedev has it
	Size, Blocks        int64  // bytes, and units of 512 bytes
	Atime, Mtime, Ctime unix.Timespec
	PreferredIO         uint32 // bytes
}

// Lookup fills a with the attributes of what is called name in dir and counts it as
// known, until Forget. The error is index.ErrNotExist, as it is, if there is nothing;
// "." and ".." are names as well.
func (u *Union) Lookup(dir ID, name string, a *Attr) error {
	if len(name) > nameMax {
		return unix.ENAMETOOLONG
	}
	d, err := u.get(dir)
	if err != nil {
		return err
	}
	if d == nil {
		nid := u.nid(dir)
		if name != "." {
			if nid, err = u.lower.Lookup(nid, name); err != nil {
				return err
			}
		}
		// Of directories that nobody touched only ".." can be touched.
		if !u.touched.has(uint64(nid)) {
			return u.lowerAttr(nid, a)
		}
	}
	u.names.RLock()
	defer u.names.RUnlock()
	if d == nil || name == "." || name == ".." {
		return u.lookupDots(dir, d, name, a)
	}
	c, err := u.child(d, name, true)
	if err != nil {
		return err
	}
	if c.n == nil {
		return u.lowerAttr(c.nid, a)
	}
	u.fill(c.n, &c.st, a)
	return nil
}

// lookupDots is Lookup of "." and "..", which are asked for by NFS handles alone.
func (u *Union) lookupDots(dir ID, d *node, name string, a *Attr) error {
	switch {
	case d == nil:
		parent, err := u.lower.Lookup(u.nid(dir), name)
		if err != nil {
			return err
		}
		if d, err = u.get(ID(parent)); err != nil {
			return err
		}
	case name == ".." && d.at.dir != nil:
		d = d.at.dir
	}
	if err := u.attr(d, a); err != nil {
		return err
	}
	u.table.Lock()
	d.lookups++
	u.table.Unlock()
	return nil
}

// child is what a name in a directory leads to: a node and its attributes in the
// upper directory or, if n is nil, a file of the lower tree.
type child struct {
	n   *node
	st  unix.Stat_t
	nid index.NID
}

func (c *child) isDir(u *Union) (bool, error) {
	if c.n != nil {
		return c.n.isDir(), nil
	}
	var a index.Attr
	err := u.lower.Attr(c.nid, &a)
	return a.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// child returns what name in d leads to, with names locked for reading at least.
// With count the kernel is told of it. index.ErrNotExist: nothing.
func (u *Union) child(d *node, name string, count bool) (c child, err error) {
	if !d.isDir() {
		return c, index.ErrNotDir
	}
	if d.dead {
		return c, index.ErrNotExist
	}
	w, err := u.findIn(d, name)
	if err != nil {
		return c, err
	}
	defer w.close()
	err = u.lstat(w.fd, w.path, &c.st)
	switch {
	case err == unix.ENOENT:
		if d.lower == 0 {
			return c, index.ErrNotExist
		}
		c.nid, err = u.lower.Lookup(d.lower, name)
		return c, err
	case err != nil:
		return c, err
	case isWhiteout(&c.st):
		return c, index.ErrNotExist
	}
	c.n, err = u.known(d, name, w, &c.st, count)
	return c, err
}

func isWhiteout(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 }

// known returns the node of the entry name of d, which w leads to and st describes,
// and makes it if there is none.
func (u *Union) known(d *node, name string, w where, st *unix.Stat_t, count bool) (*node, error) {
	u.table.Lock()
	if n := u.byIno[st.Ino]; n != nil {
		defer u.table.Unlock()
		u.found(n, place{d, name}, st, count)
		return n, nil
	}
	u.table.Unlock()
	n, err := u.identify(d, name, w, st)
	if err != nil {
		return nil, err
	}
	u.table.Lock()
	defer u.table.Unlock()
	if other := u.byIno[st.Ino]; other != nil {
		n = other
	} else {
		if other := u.nodes[n.id]; other != nil {
			n.id = u.base + ID(st.Ino) // two files that claim one origin
		}
		u.addLocked(n, place{d, name})
	}
	u.found(n, place{d, name}, st, count)
	return n, nil
}

// found notes that n, which st describes, was found at a place, with table locked.
// It needs its name among the orphans no more.
func (u *Union) found(n *node, at place, st *unix.Stat_t, count bool) {
	if count {
		n.lookups++
	}
	if n.at.dir != nil || n == u.root || n.dead {
		return
	}
	u.moveLocked(n, at)
	if n.orphan && unix.Unlinkat(u.work, orphanName(n.ino), 0) == nil {
		st.Nlink--
	}
	n.orphan = false
}

// marks are overlayfs's xattrs of an entry.
type marks struct {
	opaque, metacopy, impure bool
	redirect                 string
	origin                   index.NID
	all                      bool
}

// markAll is on a copied-up file with several names in the lower tree all of which
// lead to it. It is lamina's own.
const markAll = "lamina.all"

// readMarks reads the marks of what w leads to.
func (u *Union) readMarks(w where) (m marks, err error) {
	var list [1024]byte
	path := w.x()
	n, err := unix.Llistxattr(path, list[:])
	names := list[:max(n, 0)]
	if err == unix.ERANGE {
		names = make([]byte, 64<<10)
		if n, err = unix.Llistxattr(path, names); err == nil {
			names = names[:n]
		}
	}
	if err != nil {
		if err == unix.ENOTSUP {
			err = nil
		}
		return m, err
	}
	prefix := []byte(u.upper.Xattr(""))
	for name := range bytes.SplitSeq(names, []byte{0}) {
		mark, ours := bytes.CutPrefix(name, prefix)
		if !ours {
			continue
		}
		if err := u.readMark(&m, path, string(name), string(mark)); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (u *Union) readMark(m *marks, path, name, mark string) error {
	switch mark {
	case overlay.MarkMetacopy:
		m.metacopy = true
		return nil
	case markAll:
		m.all = true
		return nil
	case overlay.MarkOpaque, overlay.MarkImpure, overlay.MarkRedirect, overlay.MarkOrigin:
	default:
		return nil
	}
	value := make([]byte, 4096)
	n, err := unix.Lgetxattr(path, name, value)
	if err != nil {
		return fmt.Errorf("xattr %s: %w", name, err)
	}
	value = value[:n]
	switch mark {
	case overlay.MarkOpaque:
		m.opaque = string(value) == "y"
	case overlay.MarkImpure:
		m.impure = string(value) == "y"
	case overlay.MarkRedirect:
		m.redirect = string(value)
	case overlay.MarkOrigin:
		m.origin, _ = overlay.ParseOrigin(value)
	}
	return nil
}

// identify makes the node of an entry of the upper directory, which is not put into
// the table.
func (u *Union) identify(d *node, name string, w where, st *unix.Stat_t) (*node, error) {
	n := &node{id: u.base + ID(st.Ino), ino: st.Ino, typ: st.Mode & unix.S_IFMT}
	m, err := u.readMarks(w)
	if err != nil {
		return nil, err
	}
	n.impure = m.impure
	switch n.typ {
	case unix.S_IFDIR:
		if m.opaque {
			return n, nil
		}
		n.lower, err = u.below(d, name, m.redirect, unix.S_IFDIR)
		if n.lower != 0 {
			n.id = ID(n.lower)
		}
		return n, err
	case unix.S_IFREG:
		if m.metacopy {
			if n.lower, err = u.below(d, name, m.redirect, unix.S_IFREG); err != nil {
				return nil, err
			}
			if n.lower == 0 {
				return nil, fmt.Errorf("%w: %s has no data in the lower tree: %w", overlay.ErrUpper, w.path, unix.EIO)
			}
			n.meta.Store(true)
		}
	}
	if u.from(m, n.typ) {
		n.id = ID(m.origin)
	}
	return n, nil
}

// from says whether the inode number of a file is that of its origin.
func (u *Union) from(m marks, typ uint32) bool {
	var a index.Attr
	if m.origin == 0 || ID(m.origin) >= u.base || u.lower.Attr(m.origin, &a) != nil || a.Mode&unix.S_IFMT != typ {
		return false
	}
	return a.Nlink == 1 || m.all
}

// below returns the file of type typ of the lower tree that the entry name of d
// continues: that of its name, unless it is redirected. 0: there is none.
func (u *Union) below(d *node, name, redirect string, typ uint32) (index.NID, error) {
	at := d.lower
	path := []string{name}
	if redirect != "" {
		path = []string{redirect}
		if strings.HasPrefix(redirect, "/") {
			at, path = u.lower.Root(), strings.Split(redirect[1:], "/")
		}
	}
	if at == 0 {
		return 0, nil
	}
	for _, name := range path {
		var err error
		at, err = u.lower.Lookup(at, name)
		if errors.Is(err, index.ErrNotExist) || errors.Is(err, index.ErrNotDir) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
	}
	var a index.Attr
	if err := u.lower.Attr(at, &a); err != nil {
		return 0, err
	}
	if a.Mode&unix.S_IFMT != typ {
		return 0, nil
	}
	return at, nil
}
