package difftest

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a directory that operations run in, with the descriptors they keep. Its
// methods and Exec may be called by one goroutine at a time.
type Root struct {
	name   string
	dir    int // the directory itself
	shared int // the directory that all workers read, or -1
	proc   int // /proc/self/fd: there is no /proc below dir
	out    int // the root that the thread had, or -1
	slots  [Slots + 1]slot
	// handles has the stats carry file handles, which tell apart files that had
	// one inode number after another.
	handles bool
	calls   chan func()
	ended   chan struct{}
}

// slot is a kept descriptor; the zero slot is an empty one.
type slot struct {
	used bool
	fd   int
	list *listing
}

// OpenRoot makes the directory dir the root of a thread of its own. The name is
// for reports. The caller closes the root.
func OpenRoot(name, dir string) (*Root, error) {
	return openRoot(name, dir, "")
}

func openRoot(name, dir, shared string) (*Root, error) {
	r := &Root{name: name, dir: -1, shared: -1, proc: -1, out: -1, calls: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	go r.thread(dir, shared, ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("open root %s: %w", dir, err)
	}
	return r, nil
}

// thread runs what comes from calls. It never unlocks its thread, which no other
// goroutine may ever run on, so that the thread ends with it.
func (r *Root) thread(dir, shared string, ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// What the main thread's root is shows in /proc/self, and it never ends.
		other := make(chan struct{})
		go func() {
			defer close(other)
			r.thread(dir, shared, ready)
		}()
		<-other
		return
	}
	defer close(r.ended)
	debug.SetPanicOnFault(true)
	if err := r.enter(dir, shared); err != nil {
		r.leave()
		ready <- err
		return
	}
	ready <- nil
	for f := range r.calls {
		f()
	}
	r.leave()
}

func (r *Root) enter(dir, shared string) (err error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	if r.proc, err = unix.Open("/proc/self/fd", flags, 0); err != nil {
		return err
	}
	if r.dir, err = unix.Open(dir, flags, 0); err != nil {
		return err
	}
	if shared != "" {
		if r.shared, err = unix.Open(shared, flags, 0); err != nil {
			return err
		}
	}
	// Signals, with which Go asks for a goroutine to pause, would interrupt
	// requests to FUSE, and EINTR is nobody's fault.
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	for _, s := range []unix.Signal{unix.SIGBUS, unix.SIGSEGV, unix.SIGFPE, unix.SIGILL} {
		all.Val[(s-1)/64] &^= 1 << ((s - 1) % 64)
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	unix.Umask(0o022)
	if r.out, err = unix.Open("/", flags, 0); err != nil {
		return err
	}
	if err := unix.Fchdir(r.dir); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
		return e
	}
	return nil
}

func (r *Root) leave() {
	for i := range r.slots {
		r.drop(int64(i))
	}
	if r.out >= 0 {
		// The thread may live a little longer, and must not keep the mount busy.
		_ = unix.Fchdir(r.out)
		_ = unix.Chroot(".")
	}
	for _, fd := range []int{r.dir, r.shared, r.proc, r.out} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// Close closes all descriptors, so that the file system can be unmounted.
func (r *Root) Close() {
	close(r.calls)
	<-r.ended
}

// call runs f on the root's thread.
func (r *Root) call(f func()) {
	done := make(chan struct{})
	r.calls <- func() {
		defer close(done)
		f()
	}
	<-done
}

// Exec runs an operation. It never fails: what went wrong is in the result.
func Exec(r *Root, op Op) (res Result) {
	r.call(func() { res = r.do(op) })
	return res
}

func (r *Root) do(op Op) (res Result) {
	r.touch(op)
	run := executor(op.Kind)
	if run == nil {
		res.fail(unix.ENOSYS)
		return res
	}
	if err := become(op.As); err != nil {
		res.broken("become %d: %v", op.As, err)
		return res
	}
	r.guard(func() { run(r, op, &res) }, &res)
	if err := become(0); err != nil {
		panic("cannot be root again: " + err.Error())
	}
	if op.Look > 0 {
		r.look(op, &res)
	}
	return res
}

// guard has SIGBUS, which a mapping gives where there is no file, be an error.
func (r *Root) guard(f func(), res *Result) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if _, ok := p.(interface{ Addr() uintptr }); !ok {
			panic(p)
		}
		res.Errno = unix.EFAULT
	}()
	f()
}

// become changes the user and group of this thread alone: the functions of
// package syscall change those of all threads.
func become(id int64) error {
	uid := uintptr(id)
	steps := [][2]uintptr{{unix.SYS_SETRESGID, uid}, {unix.SYS_SETRESUID, uid}}
	if id == 0 {
		if unix.Geteuid() == 0 {
			return nil
		}
		steps[0], steps[1] = steps[1], steps[0]
	}
	for _, s := range steps {
		if _, _, e := unix.RawSyscall(s[0], s[1], s[1], 0); e != 0 {
			return e
		}
	}
	return nil
}

// at is the directory that an operation's paths are relative to.
func (r *Root) at(op Op) int {
	if op.Shared != 0 {
		return r.shared
	}
	return r.dir
}

func (r *Root) slot(n int64) *slot {
	if n < 0 || n > Slots {
		n = 0
	}
	return &r.slots[n]
}

func (r *Root) fd(n int64) int {
	if s := r.slot(n); s.used {
		return s.fd
	}
	return -1
}

// drop empties a slot.
func (r *Root) drop(n int64) {
	s := r.slot(n)
	if s.used {
		_ = unix.Close(s.fd)
	}
	*s = slot{}
}

// keep puts a descriptor into a slot, or closes it where the slot is 0.
func (r *Root) keep(n int64, fd int, l *listing) {
	r.drop(n)
	if n == 0 {
		_ = unix.Close(fd)
		return
	}
	*r.slot(n) = slot{true, fd, l}
}

// file returns a descriptor for what an operation says "file", and what closes it.
func (r *Root) file(op Op, flags int) (int, func(), error) {
	if op.Slot != 0 {
		return r.fd(op.Slot), func() {}, nil
	}
	fd, err := unix.Openat(r.at(op), op.Path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, uint32(op.Mode))
	if err != nil {
		return -1, nil, err
	}
	return fd, func() { _ = unix.Close(fd) }, nil
}

// look takes down the files that an operation names.
func (r *Root) look(op Op, res *Result) {
	if op.Slot != 0 && r.slot(op.Slot).used {
		r.stat(res, "fd", r.fd(op.Slot), "", unix.AT_EMPTY_PATH)
	}
	if op.Slot2 != 0 && r.slot(op.Slot2).used {
		r.stat(res, "fd2", r.fd(op.Slot2), "", unix.AT_EMPTY_PATH)
	}
	if op.Path != "" {
		r.stat(res, "path", r.at(op), op.Path, unix.AT_SYMLINK_NOFOLLOW)
	}
	if op.Path2 != "" {
		r.stat(res, "path2", r.dir, op.Path2, unix.AT_SYMLINK_NOFOLLOW)
	}
	if op.Look < 2 {
		return
	}
	if op.Path != "" {
		r.stat(res, "dir", r.at(op), parent(op.Path), unix.AT_SYMLINK_NOFOLLOW)
	}
	if op.Path2 != "" {
		r.stat(res, "dir2", r.dir, parent(op.Path2), unix.AT_SYMLINK_NOFOLLOW)
	}
}

func (r *Root) stat(res *Result, what string, dir int, p string, flags int) {
	s := Stat{What: what}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, p, &st, flags); err != nil {
		s.Errno = errno(err)
	} else {
		s.set(&st)
		if r.handles {
			s.handle = handle(dir, p, flags)
		}
	}
	res.Stats = append(res.Stats, s)
}

// handle is what tells a file from all others, also from those that had or will
// have its inode number; "" where the file system has no such thing.
func handle(dir int, p string, flags int) string {
	if flags&(unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW) == 0 {
		flags |= unix.AT_SYMLINK_FOLLOW // unlike stat, it says so
	}
	h, _, err := unix.NameToHandleAt(dir, p, flags&^unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return ""
	}
	return strconv.Itoa(int(h.Type())) + ":" + string(h.Bytes())
}

func errno(err error) unix.Errno {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

// parent is the directory part of a path as the kernel sees it: nothing is
// resolved.
func parent(p string) string {
	p = strings.TrimRight(p, "/")
	i := strings.LastIndexByte(p, '/')
	if i <= 0 {
		return "."
	}
	return p[:i]
}

// remove removes p and all below it, and gives its directory a time from the
// clock, which it may have had anyway.
func (r *Root) remove(p string) {
	p = strings.TrimRight(p, "/")
	if err := unix.Unlinkat(r.dir, p, 0); err != nil {
		names, _, _ := list(r.dir, p, unix.O_NOFOLLOW)
		for n := range names {
			r.remove(p + "/" + n)
		}
		_ = unix.Unlinkat(r.dir, p, unix.AT_REMOVEDIR)
	}
	_ = unix.UtimesNanoAt(r.dir, parent(p), nil, 0)
}

func base(p string) string { return path.Base(p) }
