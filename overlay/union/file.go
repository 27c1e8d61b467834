package union

import (
	"container/list"
	"context"
	"errors"
	"io"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxFiles is how many files of the upper directory are kept open for the next
// request: requests name files, not descriptors.
const maxFiles = 256

// file is an open file of the upper directory.
type file struct {
	n    *node
	fd   int
	refs int
	elem *list.Element // nil: to be closed after use
}

// fileCache has the files used last.
type fileCache struct {
	mu  sync.Mutex
	of  map[*node]*file
	lru list.List // of *file, the one used last in front
}

func (c *fileCache) init() { c.of = make(map[*node]*file) }

// use returns the open file of n, for release; nil if there is none.
func (c *fileCache) use(n *node) *file {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.of[n]
	if f == nil {
		return nil
	}
	f.refs++
	c.lru.MoveToFront(f.elem)
	return f
}

// put takes the open file fd of n over, and returns it as use does. It may be
// another, opened meanwhile.
func (c *fileCache) put(n *node, fd int) *file {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.of[n]; f != nil {
		_ = unix.Close(fd)
		f.refs++
		return f
	}
	f := &file{n: n, fd: fd, refs: 1}
	f.elem = c.lru.PushFront(f)
	c.of[n] = f
	for e := c.lru.Back(); e != nil && c.lru.Len() > maxFiles; {
		prev := e.Prev()
		if old, ok := e.Value.(*file); ok && old.refs == 0 {
			c.removeLocked(old)
		}
		e = prev
	}
	return f
}

func (c *fileCache) release(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.refs--
	if f.refs == 0 && f.elem == nil {
		_ = unix.Close(f.fd)
	}
}

func (c *fileCache) removeLocked(f *file) {
	c.lru.Remove(f.elem)
	f.elem = nil
	delete(c.of, f.n)
	if f.refs == 0 {
		_ = unix.Close(f.fd)
	}
}

// drop closes the file of n, if there is one, after its last use.
func (c *fileCache) drop(n *node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.of[n]; f != nil {
		c.removeLocked(f)
	}
}

func (c *fileCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.of {
		c.removeLocked(f)
	}
}

// file returns the open upper file of n, for u.files.release.
func (u *Union) file(n *node) (*file, error) {
	if f := u.files.use(n); f != nil {
		return f, nil
	}
	if n.typ != unix.S_IFREG {
		return nil, unix.EINVAL
	}
	u.names.RLock()
	defer u.names.RUnlock()
	w, err := u.find(n)
	if err != nil {
		return nil, err
	}
	defer w.close()
	fd, err := unix.Openat(w.fd, w.path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_LARGEFILE, 0)
	if err != nil {
		return nil, err
	}
	return u.files.put(n, fd), nil
}

// Read fills p with bytes of the regular file id at off and returns how many there
// are: fewer than len(p) only at the end of the file. What is in the lower tree is
// read as ctx allows.
func (u *Union) Read(ctx context.Context, id ID, p []byte, off int64) (int, error) {
	n, err := u.get(id)
	if err != nil {
		return 0, err
	}
	if n == nil || n.isLower() {
		return u.lower.Read(ctx, u.nid(id), p, off)
	}
	if n.meta.Load() {
		return u.lower.Read(ctx, n.lower, p, off)
	}
	f, err := u.file(n)
	if err != nil {
		return 0, err
	}
	defer u.files.release(f)
	return readFull(f.fd, p, off)
}

func readFull(fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return done, err
		}
		done += n
	}
	return done, nil
}

func writeFull(fd int, p []byte, off int64) (done int, err error) {
	for done < len(p) {
		n, err := unix.Pwrite(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.ErrShortWrite
		}
		done += n
	}
	return done, nil
}

// writable returns the open upper file of id with all its data, which is about to
// be changed, for u.files.release.
func (u *Union) writable(ctx context.Context, id ID) (*file, error) {
	n, err := u.raise(ctx, id, allData)
	if err != nil {
		return nil, err
	}
	u.preserve(n)
	return u.file(n)
}

// WriteFlags say what else a write does.
type WriteFlags struct {
	// By, unless nil, is who writes, and loses set-id bits by it.
	By Caller
	// Late says that who wrote did so before, and the kernel has kept it until now.
	// The time of change and the capabilities, which a write takes from a file, stay
	// as they are: the kernel has seen to them then.
	Late bool
}

// Write writes p to the regular file id at off and returns how much it wrote, which
// is less than len(p) only if there was no more to be had.
func (u *Union) Write(ctx context.Context, id ID, p []byte, off int64, flags WriteFlags) (int, error) {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	f, err := u.writable(ctx, id)
	if err != nil {
		return 0, err
	}
	defer u.files.release(f)
	if err := dropSetID(f.fd, flags.By); err != nil {
		return 0, err
	}
	if flags.Late {
		var n int
		err := keeping(f, func() (err error) {
			n, err = writeFull(f.fd, p, off)
			return err
		})
		return n, err
	}
	n, err := writeFull(f.fd, p, off)
	if n > 0 {
		return n, nil // as write(2): the error comes with the next one
	}
	return n, err
}

// capability is the xattr with a file's capabilities.
const capability = "security.capability"

// keeping does what changes the data of f, but neither its time of change nor its
// capabilities.
func keeping(f *file, do func() error) error {
	f.n.times.Lock() // who comes meanwhile would put back the time of what this does
	defer f.n.times.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return err
	}
	var caps []byte
	if f.n.caps.Load() != capsNone {
		b := make([]byte, 64)
		switch n, err := unix.Fgetxattr(f.fd, capability, b); err {
		case nil:
			caps = b[:n]
		case unix.ENODATA, unix.ENOTSUP:
			f.n.caps.CompareAndSwap(capsUnknown, capsNone)
		default:
			return err
		}
	}
	err := do()
	if caps != nil {
		err = errors.Join(err, unix.Fsetxattr(f.fd, capability, caps, 0))
	}
	return errors.Join(err, setMtime(f.fd, st.Mtim))
}

// setMtime is futimens(2), which leaves the time of access as it is.
func setMtime(fd int, t unix.Timespec) error {
	ts := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, t}
	if _, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

// Allocate is fallocate(2) of id, for by.
func (u *Union) Allocate(ctx context.Context, id ID, mode uint32, off, size int64, by Caller) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	f, err := u.writable(ctx, id)
	if err != nil {
		return err
	}
	defer u.files.release(f)
	if err := dropSetID(f.fd, by); err != nil {
		return err
	}
	return unix.Fallocate(f.fd, mode, off, size)
}

// Range is a part of a regular file, from Off on.
type Range struct {
	ID  ID
	Off int64
}

// CopyRange is copy_file_range(2), for by.
func (u *Union) CopyRange(ctx context.Context, from, to Range, size int, by Caller) (int, error) {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	dst, err := u.writable(ctx, to.ID)
	if err != nil {
		return 0, err
	}
	defer u.files.release(dst)
	if err := dropSetID(dst.fd, by); err != nil {
		return 0, err
	}
	n, err := u.get(from.ID)
	if err != nil {
		return 0, err
	}
	if n == nil || n.isLower() || n.meta.Load() {
		return u.copyLower(ctx, from, dst.fd, to.Off, size)
	}
	src, err := u.file(n)
	if err != nil {
		return 0, err
	}
	defer u.files.release(src)
	return unix.CopyFileRange(src.fd, &from.Off, dst.fd, &to.Off, size, 0)
}

// copyLower is CopyRange of what the lower tree has; as copy_file_range(2) it may
// copy less than it was asked for.
func (u *Union) copyLower(ctx context.Context, from Range, fd int, off int64, size int) (int, error) {
	p := make([]byte, min(size, copyStep))
	n, err := u.Read(ctx, from.ID, p, from.Off)
	if err != nil {
		return 0, err
	}
	return writeFull(fd, p[:n], off)
}

// Sync writes what id has in the upper directory to the disk; with data alone what
// is needed to read it.
func (u *Union) Sync(id ID, dataOnly bool) error {
	n, err := u.get(id)
	if err != nil || n == nil || n.dead {
		return err
	}
	if n.isDir() {
		return u.syncDir(n)
	}
	f, err := u.file(n)
	if err != nil {
		return err
	}
	defer u.files.release(f)
	if dataOnly {
		return unix.Fdatasync(f.fd)
	}
	return unix.Fsync(f.fd)
}

func (u *Union) syncDir(n *node) error {
	u.names.RLock()
	w, err := u.find(n)
	fd := -1
	if err == nil {
		fd, err = unix.Openat(w.fd, w.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		w.close()
	}
	u.names.RUnlock()
	if err != nil {
		return err
	}
	return errors.Join(unix.Fsync(fd), unix.Close(fd))
}

// Seek is lseek(2) with SEEK_DATA or SEEK_HOLE.
func (u *Union) Seek(id ID, off int64, whence int) (int64, error) {
	n, err := u.get(id)
	if err != nil {
		return 0, err
	}
	if n == nil || n.isLower() || n.meta.Load() {
		nid := u.nid(id)
		if n != nil && n.lower != 0 {
			nid = n.lower
		}
		return u.lower.Seek(nid, off, whence)
	}
	f, err := u.file(n)
	if err != nil {
		return 0, err
	}
	defer u.files.release(f)
	// The descriptor's own position is nobody's.
	return unix.Seek(f.fd, off, whence)
}
