package union

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

const (
	// noData and allData say how much of a file's data a change needs.
	noData  int64 = -1
	allData int64 = 1<<63 - 1

	copyStep = 1 << 20
)

// raise returns the node of id, which is in the upper directory then, with as much
// of its data as size says.
func (u *Union) raise(ctx context.Context, id ID, size int64) (*node, error) {
	n, err := u.get(id)
	if err != nil {
		return nil, err
	}
	if n == nil || n.isLower() {
		if n, err = u.copyUp(ctx, id, size); err != nil {
			return nil, err
		}
	}
	if n.isDir() {
		return n, u.raiseDead(n)
	}
	if size != noData && n.meta.Load() {
		return n, u.copyData(ctx, n, size)
	}
	return n, nil
}

// raiseDead makes n, if it is a directory of the lower tree that was removed, one that
// can be changed: it has attributes for as long as somebody has it open.
func (u *Union) raiseDead(n *node) error {
	lost := func() bool { return n.isDir() && n.dead && n.held == 0 }
	u.names.RLock()
	needed := lost()
	u.names.RUnlock()
	if !needed {
		return nil
	}
	u.names.Lock()
	defer u.names.Unlock()
	if !lost() {
		return nil
	}
	var a index.Attr
	if err := u.lower.Attr(n.lower, &a); err != nil {
		return err
	}
	tmp := u.temp()
	if err := unix.Mkdirat(u.work, tmp, 0o700); err != nil {
		return err
	}
	err := u.copyAttr(n, tmp, &a)
	if err == nil {
		n.held, err = unix.Openat(u.work, tmp, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		n.held = 0
	}
	return errors.Join(err, unix.Unlinkat(u.work, tmp, unix.AT_REMOVEDIR))
}

// copyUp copies a file of the lower tree up.
func (u *Union) copyUp(ctx context.Context, id ID, size int64) (*node, error) {
	lock := &u.copying[id%ID(len(u.copying))]
	lock.Lock()
	defer lock.Unlock()
	if n, err := u.get(id); err != nil || n != nil && !n.isLower() {
		return n, err // another did
	}
	nid := u.nid(id)
	var a index.Attr
	if err := u.lower.Attr(nid, &a); err != nil {
		return nil, err
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		u.names.Lock()
		defer u.names.Unlock()
		return u.raiseDir(nid)
	}
	names, err := u.lowerNames(nid, &a)
	if err != nil {
		return nil, err
	}
	tmp := u.temp()
	if len(names) > 1 {
		tmp = namesPrefix + tmp
	}
	n := &node{id: id, typ: a.Mode & unix.S_IFMT, lower: nid}
	if err := u.copyFile(ctx, n, tmp, &a, size, len(names) > 1); err != nil {
		u.discard(tmp)
		return nil, err
	}
	u.names.Lock()
	defer u.names.Unlock()
	if err := u.install(n, tmp, names); err != nil {
		u.discard(tmp)
		return nil, err
	}
	return n, nil
}

// copyFile makes what n is to be in ownDir, called tmp.
func (u *Union) copyFile(ctx context.Context, n *node, tmp string, a *index.Attr, size int64, linked bool) error {
	var err error
	switch n.typ {
	case unix.S_IFREG:
		err = u.copyRegular(ctx, n, tmp, a, size, linked)
	case unix.S_IFLNK:
		var target []byte
		if target, err = u.lower.Readlink(n.lower); err == nil {
			err = unix.Symlinkat(string(target), u.work, tmp)
		}
	default:
		err = unix.Mknodat(u.work, tmp, n.typ|0o600, int(device(a.Rdev)))
	}
	if err != nil {
		return err
	}
	return u.copyAttr(n, tmp, a)
}

// device turns an index's device number into the one that system calls take.
func device(rdev uint32) uint64 {
	return unix.Mkdev(rdev>>8&0xfff, rdev&0xff|rdev>>12&0xfff00)
}

func (u *Union) copyRegular(ctx context.Context, n *node, tmp string, a *index.Attr, size int64, linked bool) error {
	fd, err := unix.Openat(u.work, tmp, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if size == noData && a.Size > 0 {
		n.meta.Store(true)
		if err := unix.Fsetxattr(fd, u.upper.Xattr(overlay.MarkMetacopy), nil, 0); err != nil {
			return err
		}
		if linked {
			if err := u.redirect(where{fd: u.work, path: tmp}, n.lower); err != nil {
				return err
			}
		}
		return unix.Ftruncate(fd, a.Size)
	}
	size = min(size, a.Size)
	if size <= 0 {
		return nil
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	if err := u.copyExtents(ctx, n.lower, fd, size); err != nil {
		return err
	}
	return unix.Fsync(fd)
}

// copyExtents copies the first size bytes of a lower file, but for its holes.
func (u *Union) copyExtents(ctx context.Context, nid index.NID, fd int, size int64) error {
	var extents []index.Extent
	err := u.lower.Extents(nid, 0, size, func(e index.Extent) bool {
		extents = append(extents, e)
		return true
	})
	if err != nil {
		return err
	}
	buf := make([]byte, min(size, copyStep))
	for _, e := range extents {
		for off, end := e.FileOff, min(e.FileOff+e.Len, size); off < end; {
			n, err := u.readLower(ctx, nid, buf[:min(int64(len(buf)), end-off)], off)
			if err == nil && n == 0 {
				err = fmt.Errorf("copy up: data of node %d ends at %d: %w", nid, off, index.ErrCorrupt)
			}
			if err == nil {
				_, err = writeFull(fd, buf[:n], off)
			}
			if err != nil {
				return err
			}
			off += int64(n)
		}
	}
	return nil
}

func (u *Union) readLower(ctx context.Context, nid index.NID, p []byte, off int64) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	return u.lower.Read(ctx, nid, p, off)
}

// copyAttr gives what is called tmp in ownDir the attributes of n's lower file, and
// the origin.
func (u *Union) copyAttr(n *node, tmp string, a *index.Attr) error {
	if err := unix.Fchownat(u.work, tmp, int(a.UID), int(a.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	path := xpath(u.work, tmp)
	var failed error
	err := u.lower.Xattrs(n.lower, func(name string, value []byte) bool {
		if err := unix.Lsetxattr(path, u.escape(name), value, 0); err != nil {
			failed = fmt.Errorf("copy up xattr %s: %w", name, err)
		}
		return failed == nil
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	err = unix.Lsetxattr(path, u.upper.Xattr(overlay.MarkOrigin), overlay.Origin(n.lower), 0)
	if err != nil && (!u.upper.UserXattr || err != unix.EPERM) { // user xattrs are for files and directories alone
		return err
	}
	if n.typ != unix.S_IFLNK {
		if err := unix.Fchmodat(u.work, tmp, a.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	t := unix.Timespec{Sec: a.Mtime, Nsec: int64(a.MtimeNsec)}
	return unix.UtimesNanoAt(u.work, tmp, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

// redirect marks what w leads to with the path of nid in the lower tree.
func (u *Union) redirect(w where, nid index.NID) error {
	var a index.Attr
	if err := u.lower.Attr(nid, &a); err != nil {
		return err
	}
	names, err := u.lowerNames(nid, &a)
	if err != nil {
		return err
	}
	path := names[0].Name
	for dir := names[0].Dir; dir != u.lower.Root(); {
		up, name, err := u.lower.Parent(dir)
		if err != nil {
			return err
		}
		dir, path = up, string(name)+"/"+path
	}
	return unix.Lsetxattr(w.x(), u.upper.Xattr(overlay.MarkRedirect), []byte("/"+path), 0)
}

// copyData copies up the data of n, which has only its attributes in the upper
// directory: as much as size says, after which it is cut there.
func (u *Union) copyData(ctx context.Context, n *node, size int64) error {
	n.data.Lock()
	defer n.data.Unlock()
	if !n.meta.Load() {
		return nil
	}
	f, err := u.file(n)
	if err != nil {
		return err
	}
	defer u.files.release(f)
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	if size = min(size, st.Size); size > 0 {
		// The size stays, and with it what shows of the file, until all is there.
		if err := keeping(f, func() error { return u.copyExtents(ctx, n.lower, f.fd, size) }); err != nil {
			return err
		}
		if err := unix.Fsync(f.fd); err != nil {
			return err
		}
	}
	if size < st.Size {
		err = u.cutOff(n, f, size)
	} else {
		err = u.unmark(f.fd)
	}
	if err != nil {
		return err
	}
	n.meta.Store(false)
	return nil
}

// lowerNames returns the names that the lower tree has for the file nid.
func (u *Union) lowerNames(nid index.NID, a *index.Attr) ([]index.Link, error) {
	if a.Nlink > 1 && a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return u.links.of(u.lower, nid)
	}
	dir, name, err := u.lower.Parent(nid)
	if err != nil {
		return nil, fmt.Errorf("parent of node %d: %w", nid, err)
	}
	return []index.Link{{Dir: dir, Name: string(name)}}, nil
}

// linkTable has the names of the lower files that have several. It takes a walk
// through the whole index, at the first change of one of them.
type linkTable struct {
	once  sync.Once
	links map[index.NID][]index.Link
	err   error
}

func (t *linkTable) of(lower *overlay.Tree, nid index.NID) ([]index.Link, error) {
	t.once.Do(func() { t.links, t.err = lower.Linked() })
	if t.err != nil {
		return nil, t.err
	}
	if len(t.links[nid]) == 0 {
		return nil, fmt.Errorf("names of node %d: %w", nid, index.ErrCorrupt)
	}
	return t.links[nid], nil
}

// install puts n, made in ownDir as tmp, in the place of its lower file, at all
// names that it still has, with names locked.
func (u *Union) install(n *node, tmp string, names []index.Link) error {
	var st unix.Stat_t
	if err := unix.Fstatat(u.work, tmp, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	n.ino = st.Ino
	var at []place
	for _, l := range names {
		d, err := u.raiseDir(l.Dir)
		if errors.Is(err, errStale) {
			continue // it was removed with all that was in it
		}
		if err != nil {
			return err
		}
		live, err := u.isLive(d, l.Name)
		if err != nil {
			return err
		}
		if live {
			at = append(at, place{d, l.Name})
		}
	}
	if len(names) > 1 {
		if err := unix.Lsetxattr(xpath(u.work, tmp), u.upper.Xattr(markAll), nil, 0); err != nil {
			return err
		}
	}
	if err := u.installAt(n, tmp, at); err != nil {
		return err
	}
	if len(at) == 0 {
		n.orphan = true
		at = []place{{}}
	}
	u.table.Lock()
	defer u.table.Unlock()
	if gone := u.nodes[n.id]; gone != nil { // it was unlinked before it was copied up
		n.lookups = gone.lookups
	}
	u.addLocked(n, at[0])
	return nil
}

// installAt moves what is called tmp in ownDir to all of at, or among the orphans.
// The directories' times of change stay: nothing in them has changed.
func (u *Union) installAt(n *node, tmp string, at []place) error {
	if len(at) == 0 {
		return unix.Renameat(u.work, tmp, u.work, orphanName(n.ino))
	}
	for i, p := range at {
		w, err := u.findIn(p.dir, p.name)
		if err != nil {
			return err
		}
		err = u.setImpure(p.dir)
		if err == nil {
			err = u.keepTime(p.dir, func() error {
				if i < len(at)-1 {
					return unix.Linkat(u.work, tmp, w.fd, w.path, 0)
				}
				return unix.Renameat2(u.work, tmp, w.fd, w.path, unix.RENAME_NOREPLACE)
			})
		}
		w.close()
		if err != nil {
			return errors.Join(err, u.takeBack(at[:i]))
		}
	}
	return nil
}

// isLive says that name in d is still that of the lower tree.
func (u *Union) isLive(d *node, name string) (bool, error) {
	if d.lower == 0 {
		return false, nil
	}
	w, err := u.findIn(d, name)
	if err != nil {
		return false, err
	}
	defer w.close()
	var st unix.Stat_t
	err = unix.Fstatat(w.fd, w.path, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return true, nil
	}
	return false, err
}

// keepTime does what changes the directory d, and not its time of change.
func (u *Union) keepTime(d *node, do func() error) error {
	w, err := u.find(d)
	if err != nil {
		return err
	}
	defer w.close()
	var st unix.Stat_t
	if err := unix.Fstatat(w.fd, w.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	return unix.UtimesNanoAt(w.fd, w.path, times, unix.AT_SYMLINK_NOFOLLOW)
}

// setImpure marks the directory d as one that has entries with an origin.
func (u *Union) setImpure(d *node) error {
	if d.impure {
		return nil
	}
	w, err := u.find(d)
	if err != nil {
		return err
	}
	defer w.close()
	if err := unix.Lsetxattr(w.x(), u.upper.Xattr(overlay.MarkImpure), []byte("y"), 0); err != nil {
		return err
	}
	d.impure = true
	return nil
}

// raiseDir returns the node of the lower directory nid, which it copies up with all
// above it if need be, with names locked. ESTALE: it was removed.
func (u *Union) raiseDir(nid index.NID) (*node, error) {
	n, err := u.get(ID(nid))
	if err != nil || n != nil {
		if n != nil && n.dead {
			return nil, errStale
		}
		return n, err
	}
	up, name, err := u.lower.Parent(nid)
	if err != nil {
		return nil, fmt.Errorf("parent of node %d: %w", nid, err)
	}
	d, err := u.raiseDir(up)
	if err != nil {
		return nil, err
	}
	c, err := u.child(d, string(name), false)
	switch {
	case err == nil && c.n == nil && c.nid == nid:
		return u.copyDir(d, string(name), nid)
	case err == nil && c.n != nil && c.n.id == ID(nid):
		return c.n, nil
	case err != nil && !errors.Is(err, index.ErrNotExist):
		return nil, err
	}
	// It was moved in an earlier life of the union, or removed.
	if err := u.load(); err != nil {
		return nil, err
	}
	u.table.Lock()
	defer u.table.Unlock()
	if n := u.nodes[ID(nid)]; n != nil && !n.dead {
		return n, nil
	}
	return nil, errStale
}

func (u *Union) copyDir(d *node, name string, nid index.NID) (*node, error) {
	var a index.Attr
	if err := u.lower.Attr(nid, &a); err != nil {
		return nil, err
	}
	n := &node{id: ID(nid), typ: unix.S_IFDIR, lower: nid}
	tmp := u.temp()
	if err := unix.Mkdirat(u.work, tmp, 0o700); err != nil {
		return nil, err
	}
	err := u.copyAttr(n, tmp, &a)
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstatat(u.work, tmp, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = u.installAt(n, tmp, []place{{d, name}})
	}
	if err != nil {
		u.discard(tmp)
		return nil, err
	}
	n.ino = st.Ino
	u.add(n, place{d, name})
	return n, nil
}
