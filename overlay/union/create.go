package union

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// New describes a file to be made.
type New struct {
	// Mode is st_mode, with the type; Umask is taken off it unless the directory
	// has a default ACL.
	Mode, Umask uint32
	Rdev        uint32 // of a device, as index.Makedev has it
	Target      string // of a symbolic link
	Owner       Owner
}

func (f *New) isDir() bool { return f.Mode&unix.S_IFMT == unix.S_IFDIR }

// at makes the file where w leads to, with all permissions that it may have.
func (f *New) at(w where, mode uint32) error {
	switch f.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return unix.Mkdirat(w.fd, w.path, mode&0o7777)
	case unix.S_IFLNK:
		return unix.Symlinkat(f.Target, w.fd, w.path)
	default:
		return unix.Mknodat(w.fd, w.path, f.Mode&unix.S_IFMT|mode&0o7777, int(device(f.Rdev)))
	}
}

// Create makes the file f, called name in dir, fills a with its attributes and
// counts it as known. EEXIST: there is something.
func (u *Union) Create(dir ID, name string, f New, a *Attr) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	if f.Mode&unix.S_IFMT == unix.S_IFCHR && f.Rdev == 0 {
		return unix.EPERM // it would be a whiteout
	}
	u.names.Lock()
	defer u.names.Unlock()
	d, err := u.parent(dir)
	if err != nil {
		return err
	}
	s, err := u.slot(d, name)
	if err != nil {
		return err
	}
	defer s.w.close()
	if s.taken {
		return unix.EEXIST
	}
	if s.whiteout {
		err = u.createOver(d, s, &f)
	} else {
		err = u.createAt(d, s.w, &f)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(s.w.fd, s.w.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	n := &node{id: u.base + ID(st.Ino), ino: st.Ino, typ: st.Mode & unix.S_IFMT, lookups: 1}
	n.caps.Store(capsNone) // nobody has given it any
	u.add(n, place{d, name})
	u.fill(n, &st, a)
	return nil
}

// parent returns the directory that something in it is about to change, with names
// locked.
func (u *Union) parent(id ID) (*node, error) {
	n, err := u.get(id)
	if err != nil {
		return nil, err
	}
	if n == nil {
		n, err = u.raiseDir(u.nid(id))
	}
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, index.ErrNotDir
	}
	if n.dead {
		return nil, index.ErrNotExist
	}
	return n, nil
}

// slot is a name in a directory.
type slot struct {
	w        where
	whiteout bool // there is a whiteout
	taken    bool // there is a file
	covers   bool // a file of the lower tree shows if nothing is there
}

// slot looks at name in d, with names locked.
func (u *Union) slot(d *node, name string) (s slot, err error) {
	if s.w, err = u.findIn(d, name); err != nil {
		return s, err
	}
	if d.lower != 0 {
		switch _, err := u.lower.Lookup(d.lower, name); {
		case err == nil:
			s.covers = true
		case !errors.Is(err, index.ErrNotExist):
			s.w.close()
			return s, err
		}
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(s.w.fd, s.w.path, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == unix.ENOENT:
		s.taken = s.covers
	case err != nil:
		s.w.close()
		return s, err
	case isWhiteout(&st):
		s.whiteout = true
	default:
		s.taken = true
	}
	return s, nil
}

// mode is what a file made in d gets, its default ACL aside.
func (u *Union) mode(d *node, f *New) (uint32, error) {
	acl, err := u.defaultACL(d)
	if err != nil || acl {
		return f.Mode & 0o7777, err
	}
	return f.Mode &^ f.Umask & 0o7777, nil
}

// defaultACL tells whether d has a default ACL.
func (u *Union) defaultACL(d *node) (bool, error) {
	if d.acl.Load() == aclUnknown {
		w, err := u.find(d)
		if err != nil {
			return false, err
		}
		defer w.close()
		switch _, err := unix.Lgetxattr(w.x(), aclDefault, nil); err {
		case nil:
			d.acl.Store(aclSome)
		case unix.ENODATA, unix.ENOTSUP:
			d.acl.Store(aclNone)
		default:
			return false, err
		}
	}
	return d.acl.Load() == aclSome, nil
}

// createAt makes f in its place, where the filesystem itself does what the directory
// asks of a new file: group, set-gid bit, ACL.
func (u *Union) createAt(d *node, w where, f *New) error {
	mode, err := u.mode(d, f)
	if err != nil {
		return err
	}
	if f.Owner.isSelf() {
		return u.createIn(w, f, mode, d.acl.Load() == aclSome)
	}
	// Permission to search what is above the upper directory is this process's.
	in, err := u.openDir(d)
	if err != nil {
		return err
	}
	defer in.close()
	at := where{fd: in.fd, path: w.path[lastSlash(w.path)+1:]}
	return u.createIn(at, f, mode, d.acl.Load() == aclSome)
}

// openDir opens d, if what leads to it has several names.
func (u *Union) openDir(d *node) (where, error) {
	if d == u.root {
		return where{fd: u.top}, nil
	}
	w, err := u.find(d)
	if err != nil {
		return w, err
	}
	defer w.close()
	fd, err := unix.Openat(w.fd, w.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	return where{fd: fd, own: true}, err
}

func lastSlash(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return i
		}
	}
	return -1
}

// createIn makes f at w as its owner, and corrects what the filesystem or the
// process's own umask made different.
func (u *Union) createIn(w where, f *New, mode uint32, acl bool) error {
	owned, err := f.Owner.as(func() error { return f.at(w, mode) })
	if err != nil {
		return err
	}
	if owned && (acl || f.Mode&unix.S_IFMT == unix.S_IFLNK) {
		return nil
	}
	if err := u.correct(w, f, mode, owned, acl); err != nil {
		flags := 0
		if f.isDir() {
			flags = unix.AT_REMOVEDIR
		}
		_ = unix.Unlinkat(w.fd, w.path, flags)
		return err
	}
	return nil
}

func (u *Union) correct(w where, f *New, mode uint32, owned, acl bool) error {
	var st unix.Stat_t
	if err := unix.Fstatat(w.fd, w.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if !owned {
		gid := int(f.Owner.GID)
		if inherited, err := u.inherits(w); err != nil || inherited {
			gid = -1
		}
		if err := unix.Fchownat(w.fd, w.path, int(f.Owner.UID), gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if f.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	want := mode
	if f.isDir() {
		want |= st.Mode & unix.S_ISGID // from the directory
	}
	if acl {
		want = st.Mode & 0o7777 // which the list has a part in
	}
	if st.Mode&0o7777 == want && (owned || want&(unix.S_ISUID|unix.S_ISGID) == 0) {
		return nil
	}
	return unix.Fchmodat(w.fd, w.path, want, 0)
}

// inherits says that the directory which w is in gives its group to new files.
func (u *Union) inherits(w where) (bool, error) {
	var st unix.Stat_t
	dir := w.path[:lastSlash(w.path)+1] + "."
	err := unix.Fstatat(w.fd, dir, &st, 0)
	return st.Mode&unix.S_ISGID != 0, err
}

// createOver makes f where a whiteout is, at once in its place.
func (u *Union) createOver(d *node, s slot, f *New) error {
	mode, err := u.mode(d, f)
	if err != nil {
		return err
	}
	in, done, err := u.likeDir(d)
	if err != nil {
		return err
	}
	defer done()
	tmp := where{fd: u.work, path: in + "/" + u.temp()}
	if err := u.createIn(tmp, f, mode, d.acl.Load() == aclSome); err != nil {
		return err
	}
	if err := u.replaceWhiteout(tmp, s.w, f.isDir()); err != nil {
		_ = unix.Unlinkat(u.work, tmp.path, 0)
		_ = unix.Unlinkat(u.work, tmp.path, unix.AT_REMOVEDIR)
		return err
	}
	return nil
}

// replaceWhiteout moves from, which is in ownDir, to where a whiteout is. A
// directory is made opaque.
func (u *Union) replaceWhiteout(from, to where, dir bool) error {
	if !dir {
		return unix.Renameat(from.fd, from.path, to.fd, to.path)
	}
	if err := u.setOpaque(from); err != nil {
		return err
	}
	if err := unix.Renameat2(from.fd, from.path, to.fd, to.path, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	return unix.Unlinkat(from.fd, from.path, 0)
}

func (u *Union) setOpaque(w where) error {
	return unix.Lsetxattr(w.x(), u.upper.Xattr(overlay.MarkOpaque), []byte("y"), 0)
}

// plainDir is where files are made that d has nothing to say about.
const plainDir = "plain"

// likeDir returns a directory in ownDir in which new files get what they would get
// in d, and a function that removes it.
func (u *Union) likeDir(d *node) (string, func(), error) {
	w, err := u.find(d)
	if err != nil {
		return "", nil, err
	}
	defer w.close()
	var st unix.Stat_t
	if err := unix.Fstatat(w.fd, w.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", nil, err
	}
	if st.Mode&unix.S_ISGID == 0 && d.acl.Load() == aclNone {
		switch err = unix.Mkdirat(u.work, plainDir, 0o777); err {
		case nil:
			err = unix.Fchmodat(u.work, plainDir, 0o777, 0)
		case unix.EEXIST:
			err = nil
		}
		return plainDir, func() {}, err
	}
	tmp := u.temp()
	if err := unix.Mkdirat(u.work, tmp, 0o777); err != nil {
		return "", nil, err
	}
	err = unix.Fchownat(u.work, tmp, 0, int(st.Gid), 0)
	if err == nil && d.acl.Load() == aclSome {
		value := make([]byte, 64<<10)
		var n int
		if n, err = unix.Lgetxattr(w.x(), aclDefault, value); err == nil {
			err = unix.Lsetxattr(xpath(u.work, tmp), aclDefault, value[:n], 0)
		}
	}
	if err == nil {
		err = unix.Fchmodat(u.work, tmp, st.Mode&unix.S_ISGID|0o777, 0)
	}
	if err != nil {
		u.discard(tmp)
		return "", nil, err
	}
	return tmp, func() { u.discard(tmp) }, nil
}

// CreateUnnamed makes the regular file f, which has no name until Link gives it one,
// as it would be made in dir.
func (u *Union) CreateUnnamed(dir ID, f New, a *Attr) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	u.names.Lock()
	defer u.names.Unlock()
	d, err := u.parent(dir)
	if err != nil {
		return err
	}
	mode, err := u.mode(d, &f)
	if err != nil {
		return err
	}
	in, done, err := u.likeDir(d)
	if err != nil {
		return err
	}
	defer done()
	tmp := where{fd: u.work, path: in + "/" + u.temp()}
	if err := u.createIn(tmp, &f, mode, d.acl.Load() == aclSome); err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(u.work, tmp.path, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		err = unix.Renameat(u.work, tmp.path, u.work, orphanName(st.Ino))
	}
	if err != nil {
		_ = unix.Unlinkat(u.work, tmp.path, 0)
		return err
	}
	n := &node{id: u.base + ID(st.Ino), ino: st.Ino, typ: unix.S_IFREG, lookups: 1, orphan: true}
	n.caps.Store(capsNone)
	u.add(n, place{})
	u.fill(n, &st, a)
	return nil
}

// Link gives the file id another name, in dir, fills a with its attributes and
// counts it as known.
func (u *Union) Link(ctx context.Context, id, dir ID, name string, a *Attr) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	n, err := u.raise(ctx, id, noData)
	if err != nil {
		return err
	}
	u.names.Lock()
	defer u.names.Unlock()
	d, err := u.parent(dir)
	if err != nil {
		return err
	}
	s, err := u.slot(d, name)
	if err != nil {
		return err
	}
	defer s.w.close()
	if s.taken {
		return unix.EEXIST
	}
	if err := u.linkTo(n, d, s); err != nil {
		return err
	}
	if n.orphan {
		if err := unix.Unlinkat(u.work, orphanName(n.ino), 0); err != nil {
			return err
		}
		n.orphan = false
		u.move(n, place{d, name})
	}
	u.table.Lock()
	n.lookups++
	u.table.Unlock()
	return u.attr(n, a)
}

func (u *Union) linkTo(n, d *node, s slot) error {
	w, err := u.find(n)
	if err != nil {
		return err
	}
	defer w.close()
	if err := u.follow(n, d, w); err != nil {
		return err
	}
	if !s.whiteout {
		return unix.Linkat(w.fd, w.path, s.w.fd, s.w.path, 0)
	}
	tmp := u.temp()
	if err := unix.Linkat(w.fd, w.path, u.work, tmp, 0); err != nil {
		return err
	}
	if err := unix.Renameat(u.work, tmp, s.w.fd, s.w.path); err != nil {
		u.discard(tmp)
		return err
	}
	return nil
}

// follow marks n, which w leads to, so that it may be at another place, in d.
func (u *Union) follow(n, d *node, w where) error {
	if n.id < u.base {
		if err := u.setImpure(d); err != nil {
			return err
		}
	}
	if n.isDir() && n.lower != 0 || n.meta.Load() {
		return u.redirect(w, n.lower)
	}
	return nil
}
