package union

import (
	"context"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

const ioSize = 4096

// Attr fills a with the attributes of id.
func (u *Union) Attr(id ID, a *Attr) error {
	n, err := u.get(id)
	if err != nil {
		return err
	}
	if n == nil {
		return u.lowerAttr(u.nid(id), a)
	}
	u.names.RLock()
	defer u.names.RUnlock()
	return u.attr(n, a)
}

// attr is Attr of a node, with names locked for reading at least.
func (u *Union) attr(n *node, a *Attr) error {
	if n.dead && n.held == 0 {
		*a = *n.last
		return nil
	}
	var st unix.Stat_t
	w, err := u.find(n)
	if err != nil {
		return err
	}
	defer w.close()
	if err := u.lstat(w.fd, w.path, &st); err != nil {
		return err
	}
	u.fill(n, &st, a)
	if n.dead {
		a.Nlink = 0
	}
	return nil
}

// lowerAttr fills a with the attributes of a file of the lower tree.
func (u *Union) lowerAttr(nid index.NID, a *Attr) error {
	var l index.Attr
	if err := u.lower.Attr(nid, &l); err != nil {
		return err
	}
	t := unix.Timespec{Sec: l.Mtime, Nsec: int64(l.MtimeNsec)}
	*a = Attr{
		ID: ID(nid), Mode: l.Mode, UID: l.UID, GID: l.GID, Nlink: l.Nlink, Rdev: l.Rdev,
		Size: l.Size, Blocks: (l.Size + 511) / 512, Atime: t, Mtime: t, Ctime: t, PreferredIO: ioSize,
	}
	return nil
}

// fill makes of st, what the upper directory shows of n, what the union does.
func (u *Union) fill(n *node, st *unix.Stat_t, a *Attr) {
	*a = Attr{
		ID: n.id, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink),
		Rdev: index.Makedev(unix.Major(st.Rdev), unix.Minor(st.Rdev)),
		Size: st.Size, Blocks: st.Blocks, Atime: st.Atim, Mtime: st.Mtim, Ctime: st.Ctim, PreferredIO: ioSize,
	}
	switch {
	case n.isDir() && n.lower != 0:
		a.Nlink = 1 // as overlayfs says of what is merged: nobody counted
	case n.orphan:
		a.Nlink--
	}
	if n.meta.Load() {
		a.Blocks = (st.Size + 511) / 512
	}
}

// Readlink returns the target of a symbolic link.
func (u *Union) Readlink(id ID) ([]byte, error) {
	n, err := u.get(id)
	if err != nil {
		return nil, err
	}
	u.names.RLock()
	defer u.names.RUnlock()
	if n == nil || n.dead {
		return u.lower.Readlink(u.nid(id))
	}
	w, err := u.find(n)
	if err != nil {
		return nil, err
	}
	defer w.close()
	b := make([]byte, unix.PathMax)
	c, err := unix.Readlinkat(w.fd, w.path, b)
	if err != nil {
		return nil, err
	}
	return b[:c], nil
}

// Change says which attributes Set changes.
type Change struct {
	Mode         *uint32 // permissions and set-id bits
	UID, GID     *uint32
	Size         *int64
	Atime, Mtime *unix.Timespec // Nsec may be UTIME_NOW
	// Chown says that it is chown(2), even if neither UID nor GID changes: of a
	// file that is no directory that takes the set-id bits.
	Chown bool
	// Empty says that nothing is to change: of what is no regular file that is Chown.
	Empty bool
	// Owns tells whether who calls may change files of uid as their owner may. It is
	// asked where the kernel has not seen that something changes.
	Owns func(uid uint32) bool
	// By, unless nil, is who changes the size or owners, and loses set-id bits by it.
	By Caller
}

func timeOr(t *unix.Timespec) unix.Timespec {
	if t == nil {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return *t
}

func idOr(id *uint32) int {
	if id == nil {
		return -1
	}
	return int(*id)
}

// Set changes attributes of id and fills a with what they are then.
func (u *Union) Set(ctx context.Context, id ID, c *Change, a *Attr) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	size := noData
	if c.Size != nil {
		size = *c.Size
	}
	n, err := u.raise(ctx, id, size)
	if err != nil {
		return err
	}
	if c.Size != nil {
		if err := u.truncate(n, c); err != nil {
			return err
		}
	}
	u.names.RLock()
	defer u.names.RUnlock()
	if err := u.set(n, c); err != nil {
		return err
	}
	return u.attr(n, a)
}

// set changes what is in the inode.
func (u *Union) set(n *node, c *Change) error {
	w, err := u.find(n)
	if err != nil {
		return err
	}
	defer w.close()
	if c.Chown || c.Empty && n.typ != unix.S_IFREG {
		if err := c.chown(w); err != nil {
			return err
		}
	}
	if c.Mode != nil {
		if n.typ == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if err := unix.Fchmodat(w.fd, w.path, *c.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if c.Atime != nil || c.Mtime != nil {
		n.times.Lock()
		defer n.times.Unlock()
		ts := []unix.Timespec{timeOr(c.Atime), timeOr(c.Mtime)}
		return unix.UtimesNanoAt(w.fd, w.path, ts, unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// chown is chown(2) of what w leads to, with what it does to set-id bits: some the
// filesystem does not take away, as it is not the caller whom it sees.
func (c *Change) chown(w where) error {
	var st unix.Stat_t
	if err := unix.Fstatat(w.fd, w.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	drop := uint32(0)
	if typ := st.Mode & unix.S_IFMT; typ != unix.S_IFDIR && typ != unix.S_IFLNK {
		drop = dropped(&st, c.By)
	}
	// Of chown(2) of neither the kernel has not seen that it changes something.
	if drop != 0 && c.UID == nil && c.GID == nil && !c.Owns(st.Uid) {
		return unix.EPERM
	}
	if err := unix.Fchownat(w.fd, w.path, idOr(c.UID), idOr(c.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if drop&unix.S_ISGID == 0 || st.Mode&unix.S_IXGRP != 0 {
		return nil
	}
	return unix.Fchmodat(w.fd, w.path, st.Mode&^drop&0o7777, 0)
}

// dropped returns the set-id bits that a file which st describes loses when by changes
// it: set-group-ID means something else where the group may not execute, and members
// of the group may keep it then.
func dropped(st *unix.Stat_t, by Caller) uint32 {
	drop := st.Mode & unix.S_ISUID
	if st.Mode&unix.S_ISGID == 0 || by == nil {
		return drop
	}
	if st.Mode&unix.S_IXGRP != 0 {
		return drop | unix.S_ISGID
	}
	if privileged, member := by(st.Gid); !privileged && !member {
		drop |= unix.S_ISGID
	}
	return drop
}

func (u *Union) truncate(n *node, c *Change) error {
	f, err := u.file(n)
	if err != nil {
		return err
	}
	defer u.files.release(f)
	u.preserve(n)
	if err := dropSetID(f.fd, c.By); err != nil {
		return err
	}
	n.times.Lock()
	defer n.times.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if err := unix.Ftruncate(f.fd, *c.Size); err != nil || c.Mtime != nil {
		return err
	}
	// Who did not say when it was does not take it for a change.
	return setMtime(f.fd, st.Mtim)
}

// Caller says of who changes the data of a file of the group gid whether it may
// leave set-id bits on it (CAP_FSETID), and whether it is in that group.
type Caller func(gid uint32) (privileged, member bool)

// dropSetID takes from a file the set-id bits that it may not keep when by changes
// its data; nil is somebody who may.
func dropSetID(fd int, by Caller) error {
	if by == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return nil
	}
	if privileged, _ := by(st.Gid); privileged {
		return nil
	}
	drop := dropped(&st, by)
	if drop == 0 {
		return nil
	}
	return unix.Fchmod(fd, st.Mode&^drop&0o7777)
}
