package union

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// Entry is an entry of a directory.
type Entry struct {
	Name []byte // of the caller of the function it is given to
	Type uint8  // DT_*
	ID   ID
	Next uint64 // the cookie of the entry after it
}

// A listing has two parts. First come the names that the lower directory has, unless
// they were removed, then those that the upper directory alone has. Which part a
// name is in does not change while entries come and go, so that a listing which is
// interrupted goes on where it was: every name that is there all the time is told of
// once.
//
// A cookie of the first part is the index's. One of the second is the upper
// filesystem's with upperSmall added, if it is small, else with its last bit cut
// off to make room for upperLarge: ext4 makes 63 bits of a hash, and of names whose
// hashes differ in the last bit alone one may come twice.
const (
	upperSmall = 1 << 60
	upperLarge = 1 << 62
)

func packCookie(off int64) uint64 {
	if off < upperSmall {
		return upperSmall | uint64(off)
	}
	return upperLarge | uint64(off)>>1
}

func unpackCookie(c uint64) int64 {
	if c&upperLarge != 0 {
		return int64((c &^ upperLarge) << 1)
	}
	return int64(c &^ upperSmall)
}

// ReadDir calls fn with the entries of dir, "." and ".." among them, from the one at
// cookie on: 0 or the Next of an entry. fn returns false to stop, and keeps nothing.
// With attr, a is that of the entry, which fn counts as known unless it returns
// false; those of "." and ".." are not.
func (u *Union) ReadDir(dir ID, cookie uint64, attr bool, fn func(e *Entry, a *Attr) bool) error {
	n, err := u.get(dir)
	if err != nil {
		return err
	}
	u.names.RLock()
	defer u.names.RUnlock()
	l := &listing{u: u, fn: fn, attr: attr}
	if n == nil {
		return l.lower(nil, u.nid(dir), cookie)
	}
	if !n.isDir() {
		return index.ErrNotDir
	}
	if n.dead {
		return nil
	}
	l.n = n
	if cookie < upperSmall && n.lower != 0 {
		if err := l.lower(n, n.lower, cookie); err != nil || l.stopped {
			return err
		}
		cookie = 0
	}
	if cookie < upperSmall {
		cookie = upperSmall
	}
	return l.upper(unpackCookie(cookie))
}

// listing is one call of ReadDir.
type listing struct {
	u       *Union
	n       *node
	fn      func(e *Entry, a *Attr) bool
	attr    bool
	stopped bool
	e       Entry
	a       Attr
}

func isDots(name []byte) bool {
	return len(name) == 1 && name[0] == '.' || len(name) == 2 && name[0] == '.' && name[1] == '.'
}

// lower lists the names of the lower directory nid, which n merges, if it is not nil.
func (l *listing) lower(n *node, nid index.NID, cookie uint64) error {
	var failed error
	err := l.u.lower.ReadDir(nid, cookie, func(d *index.Dirent) bool {
		l.e = Entry{Name: d.Name, Type: d.Type, ID: ID(d.NID), Next: d.Next}
		var c child
		switch {
		case isDots(d.Name):
			if n != nil && len(d.Name) == 2 && n.at.dir != nil {
				l.e.ID = n.at.dir.id
			} else if n != nil {
				l.e.ID = n.id
			}
		case n != nil:
			c, failed = l.u.child(n, string(d.Name), l.attr)
			if errors.Is(failed, index.ErrNotExist) {
				failed = nil
				return true
			}
			if failed != nil {
				return false
			}
			if c.n != nil {
				l.e.ID, l.e.Type = c.n.id, uint8(c.n.typ>>12)
			}
		}
		failed = l.tell(&c)
		return failed == nil && !l.stopped
	})
	return errors.Join(err, failed)
}

// tell calls fn with the entry at hand, which c describes, unless it is a dot.
func (l *listing) tell(c *child) error {
	if l.attr && !isDots(l.e.Name) {
		if c.n != nil {
			l.u.fill(c.n, &c.st, &l.a)
		} else if err := l.u.lowerAttr(index.NID(l.e.ID), &l.a); err != nil {
			return err
		}
	}
	if !l.fn(&l.e, &l.a) {
		l.stopped = true
		if c.n != nil && l.attr {
			l.u.uncount(c.n)
		}
	}
	return nil
}

// uncount takes back that n was told of, with names locked.
func (u *Union) uncount(n *node) {
	u.table.Lock()
	defer u.table.Unlock()
	n.lookups--
	u.dropLocked(n)
}

// upper lists the names that the upper directory alone has.
func (l *listing) upper(off int64) error {
	return l.u.listUpper(l.n, off, func(d *dirent) (bool, error) {
		l.e = Entry{Name: []byte(d.name), Type: d.typ, Next: packCookie(d.next)}
		if isDots(l.e.Name) {
			if l.n.lower != 0 {
				return true, nil
			}
			l.e.ID = l.n.id
			if len(d.name) == 2 && l.n.at.dir != nil {
				l.e.ID = l.n.at.dir.id
			}
			err := l.tell(&child{})
			return !l.stopped, err
		}
		if l.n.lower != 0 {
			switch _, err := l.u.lower.Lookup(l.n.lower, d.name); {
			case err == nil:
				return true, nil // it was in the first part
			case !errors.Is(err, index.ErrNotExist):
				return false, err
			}
		}
		c, err := l.entry(d)
		if errors.Is(err, index.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		l.e.ID, l.e.Type = c.n.id, uint8(c.n.typ>>12)
		err = l.tell(&c)
		return !l.stopped, err
	})
}

// entry looks at what d is. The node is in the table only if it is told of with its
// attributes.
func (l *listing) entry(d *dirent) (c child, err error) {
	if l.attr || l.n.impure || d.typ == unix.DT_CHR || d.typ == unix.DT_UNKNOWN || d.typ == unix.DT_DIR {
		if c, err = l.u.child(l.n, d.name, l.attr); err != nil {
			return c, err
		}
		if c.n == nil {
			return c, index.ErrNotExist
		}
		if !l.attr {
			// Told of by its number alone: nobody will forget it.
			n := &node{id: c.n.id, typ: c.n.typ}
			l.u.table.Lock()
			l.u.dropLocked(c.n)
			l.u.table.Unlock()
			c.n = n
		}
		return c, nil
	}
	l.u.table.Lock()
	defer l.u.table.Unlock()
	if c.n = l.u.byIno[d.ino]; c.n == nil {
		c.n = &node{id: l.u.base + ID(d.ino), typ: uint32(d.typ) << 12}
	}
	return c, nil
}

// dirent is an entry of a directory of the upper directory.
type dirent struct {
	name string
	typ  uint8
	ino  uint64
	next int64
	fd   int // the directory, open
}

// Offsets in struct linux_dirent64.
const (
	direntOff  = 8
	direntLen  = 16
	direntType = 18
	direntName = 19
)

// listUpper calls fn with the entries of the directory n of the upper directory from
// off on, until it returns false.
func (u *Union) listUpper(n *node, off int64, fn func(*dirent) (bool, error)) error {
	w, err := u.find(n)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(w.fd, w.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	w.close()
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if off != 0 {
		if _, err := unix.Seek(fd, off, unix.SEEK_SET); err != nil {
			return err
		}
	}
	return eachEntry(fd, fn)
}

// eachEntry calls fn with what the open directory fd has still to tell, until it
// returns false.
func eachEntry(fd int, fn func(*dirent) (bool, error)) error {
	buf := make([]byte, 32<<10)
	for {
		c, err := unix.Getdents(fd, buf)
		if err != nil || c == 0 {
			return err
		}
		for b := buf[:c]; len(b) > direntName; {
			size := int(binary.NativeEndian.Uint16(b[direntLen:]))
			name, _, _ := bytes.Cut(b[direntName:size], []byte{0})
			e := dirent{
				name: string(name), typ: b[direntType], ino: binary.NativeEndian.Uint64(b),
				next: int64(binary.NativeEndian.Uint64(b[direntOff:])), fd: fd,
			}
			if more, err := fn(&e); err != nil || !more {
				return err
			}
			b = b[size:]
		}
	}
}
