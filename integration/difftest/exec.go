package difftest

import (
	"encoding/binary"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// executor is what does operations of a kind; nil if there is no such kind.
func executor(k Kind) func(*Root, Op, *Result) {
	if f := nameExecutor(k); f != nil {
		return f
	}
	switch k {
	case Open:
		return doOpen
	case Close:
		return doClose
	case Write:
		return doWrite
	case Read:
		return doRead
	case Truncate:
		return doTruncate
	case MapShared:
		return doMapShared
	case MapOwn:
		return doMapOwn
	case Tmpfile:
		return doTmpfile
	case Fallocate:
		return doFallocate
	case Holes:
		return doHoles
	case Copy:
		return doCopy
	case Sync:
		return doSync
	case Flock:
		return doFlock
	case Lock:
		return doLock
	case Opendir:
		return doOpendir
	case Readdir:
		return doReaddir
	case Rewind:
		return doRewind
	case List:
		return doList
	}
	return nil
}

// fill makes the bytes that a seed stands for.
func fill(seed, n int64) []byte {
	b := make([]byte, max(0, n)+8)
	if seed != 0 {
		r := rand.NewPCG(uint64(seed), 0)
		for i := int64(0); i < n; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], r.Uint64())
		}
	}
	return b[:max(0, n)]
}

func doOpen(r *Root, op Op, res *Result) {
	r.drop(op.Slot)
	flags := int(op.Flags) | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY
	fd, err := unix.Openat(r.at(op), op.Path, flags, uint32(op.Mode))
	if err != nil {
		res.fail(err)
		return
	}
	r.keep(op.Slot, fd, nil)
}

func doTmpfile(r *Root, op Op, res *Result) {
	op.Flags |= unix.O_TMPFILE | unix.O_RDWR
	doOpen(r, op, res)
}

func doClose(r *Root, op Op, res *Result) {
	if !r.slot(op.Slot).used {
		res.fail(unix.EBADF)
	}
	r.drop(op.Slot)
}

func doWrite(r *Root, op Op, res *Result) {
	fd, done, err := r.file(op, int(op.Flags)|unix.O_WRONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	n := 0
	if op.Off < 0 {
		n, err = unix.Write(fd, fill(op.Seed, op.Len))
	} else {
		n, err = unix.Pwrite(fd, fill(op.Seed, op.Len), op.Off)
	}
	res.N = int64(n)
	res.fail(err)
}

func doRead(r *Root, op Op, res *Result) {
	fd, done, err := r.file(op, int(op.Flags)|unix.O_RDONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	b := make([]byte, op.Len)
	n := 0
	if op.Off < 0 {
		n, err = unix.Read(fd, b)
	} else {
		n, err = unix.Pread(fd, b, op.Off)
	}
	res.fail(err)
	res.N, res.Data = int64(n), b[:max(0, n)]
}

func doTruncate(r *Root, op Op, res *Result) {
	if op.Slot != 0 {
		res.fail(unix.Ftruncate(r.fd(op.Slot), op.Len))
		return
	}
	var st unix.Stat_t
	same := unix.Stat(op.Path, &st) == nil && st.Size == op.Len
	err := unix.Truncate(op.Path, op.Len)
	if err == nil && same {
		// Whether that changed the time, POSIX leaves open. To set both times to the
		// clock's takes no more rights than to truncate.
		err = unix.UtimesNanoAt(unix.AT_FDCWD, op.Path, nil, 0)
	}
	res.fail(err)
}

// mapped maps the part of a file that an operation names, as far as the file goes.
// The part is part of the mapping.
func mapped(fd int, op Op, flags int) (mapping, part []byte, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil, unix.ENODEV
	}
	end := min(op.Off+op.Len, st.Size)
	if op.Off < 0 || end <= op.Off {
		return nil, nil, unix.EINVAL
	}
	page := int64(unix.Getpagesize())
	start := op.Off / page * page
	m, err := unix.Mmap(fd, start, int(end-start), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, nil, err
	}
	return m, m[op.Off-start:], nil
}

func doMapShared(r *Root, op Op, res *Result) {
	fd, done, err := r.file(op, unix.O_RDWR)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	m, part, err := mapped(fd, op, unix.MAP_SHARED)
	if err != nil {
		res.fail(err)
		return
	}
	defer func() { _ = unix.Munmap(m) }()
	copy(part, fill(op.Seed, int64(len(part))))
	// What is mapped and what is read is one thing, before it is written back too.
	res.Data = make([]byte, len(part))
	if _, err := unix.Pread(fd, res.Data, op.Off); err != nil {
		res.fail(err)
	}
	res.fail(unix.Msync(m, unix.MS_SYNC))
	res.N = int64(len(part))
}

func doMapOwn(r *Root, op Op, res *Result) {
	fd, done, err := r.file(op, unix.O_RDONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	m, part, err := mapped(fd, op, unix.MAP_PRIVATE)
	if err != nil {
		res.fail(err)
		return
	}
	defer func() { _ = unix.Munmap(m) }()
	res.Data = append(res.Data, part...)
	copy(part, fill(op.Seed, int64(len(part))))
	after := make([]byte, len(part))
	if _, err := unix.Pread(fd, after, op.Off); err != nil {
		res.fail(err)
	} else if string(after) != string(res.Data) {
		res.broken("what a private mapping had, or what was written to it, is not what the file has")
	}
}

func doFallocate(r *Root, op Op, res *Result) {
	mode := op.Mode
	op.Mode = 0
	fd, done, err := r.file(op, unix.O_WRONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	res.fail(unix.Fallocate(fd, uint32(mode), op.Off, op.Len))
}

// doHoles leaves the descriptor at 0, as where holes are is not compared.
func doHoles(r *Root, op Op, res *Result) {
	fd, done, err := r.file(op, unix.O_RDONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		res.fail(err)
		return
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		res.fail(unix.ENODEV)
		return
	}
	if _, err := unix.Seek(fd, st.Size, unix.SEEK_DATA); err != nil {
		res.fail(err)
	}
	list, bad := holes(fd, st.Size)
	res.Broken = append(res.Broken, bad...)
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		res.fail(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE == unix.O_WRONLY {
		return
	}
	for _, h := range list {
		b := make([]byte, min(h[1]-h[0], 1<<20))
		n, err := unix.Pread(fd, b, h[0])
		res.fail(err)
		if i := notZero(b[:max(0, n)]); i >= 0 {
			res.broken("the hole from %d to %d has data at %d", h[0], h[1], h[0]+int64(i))
		}
	}
}

// holes returns where the holes begin and end, and what is wrong with that.
func holes(fd int, size int64) (list [][2]int64, bad []string) {
	for at := int64(0); at < size; {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return append(list, [2]int64{at, size}), nil
		}
		if err != nil {
			return list, []string{"SEEK_DATA: " + err.Error()}
		}
		if data > at {
			list = append(list, [2]int64{at, min(data, size)})
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return list, []string{"SEEK_HOLE: " + err.Error()}
		}
		if data < at || hole <= data || hole > size {
			return list, []string{"SEEK_DATA and SEEK_HOLE lead nowhere, or beyond the end"}
		}
		at = hole
	}
	return list, nil
}

// notZero returns where the first byte is that is not 0; -1 if none is.
func notZero(b []byte) int {
	for i, c := range b {
		if c != 0 {
			return i
		}
	}
	return -1
}

func doCopy(r *Root, op Op, res *Result) {
	from, done, err := r.file(op, unix.O_RDONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	to, done2, err := r.file(Op{Slot: op.Slot2, Path: op.Path2}, unix.O_WRONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done2()
	off, off2 := op.Off, op.Off2
	// It may copy less than it was asked for without anything being wrong.
	for res.N < op.Len {
		n, err := unix.CopyFileRange(from, &off, to, &off2, int(op.Len-res.N), 0)
		if err != nil || n == 0 {
			res.fail(err)
			return
		}
		res.N += int64(n)
	}
}

func doSync(r *Root, op Op, res *Result) {
	mode := op.Mode
	op.Mode = 0
	fd, done, err := r.file(op, unix.O_RDONLY)
	if err != nil {
		res.fail(err)
		return
	}
	defer done()
	if mode == 1 {
		res.fail(unix.Fdatasync(fd))
		return
	}
	res.fail(unix.Fsync(fd))
}

func doFlock(r *Root, op Op, res *Result) {
	res.fail(unix.Flock(r.fd(op.Slot), int(op.Mode)|unix.LOCK_NB))
}

func doLock(r *Root, op Op, res *Result) {
	l := unix.Flock_t{Type: int16(op.Mode), Start: op.Off, Len: op.Len}
	res.fail(unix.FcntlFlock(uintptr(r.fd(op.Slot)), unix.F_OFD_SETLK, &l))
}
