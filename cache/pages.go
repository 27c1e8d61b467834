package cache

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel reads a file ahead for who reads it without gaps. Readers of a tree
// come to a layer's data file from file to file, with gaps and steps back, which
// to the kernel looks like chance: each small file would be a read of the disk of
// its own. So a read that the page cache cannot answer asks for what is around
// it too, the more of it the longer its neighbourhood is being read.
const (
	// minPages and maxPages bound how far ahead is asked for, in bytes. Reads
	// that are minPages apart are near one another; for one that is near no
	// other nothing is asked.
	minPages = 128 << 10
	maxPages = 512 << 10
	// pageWindows is how many readers are told apart in one data file.
	pageWindows = 8
	// pagesKept is how long pages that were asked for are believed to be there
	// or on their way.
	pagesKept = 500 * time.Millisecond
)

// pages asks the kernel for pages of one data file ahead of its readers.
type pages struct {
	none atomic.Bool // the file system cannot tell what it has cached
	// While a read in [low, high) finds its pages, the window that ends at high
	// is followed by the next one.
	low, high atomic.Int64

	mu      sync.Mutex // guards the rest
	windows [pageWindows]pageWindow
}

// pageWindow is a neighbourhood: what was asked for last.
type pageWindow struct {
	off, end int64
	asked    time.Time
}

// read fills p with bytes of f at off. It returns what ReadAt of f would.
func (a *pages) read(f *os.File, p []byte, off int64) (int, error) {
	if len(p) == 0 || a.none.Load() {
		return f.ReadAt(p, off)
	}
	n, err := readCached(f, p, off)
	switch {
	case n == len(p):
		if end := off + int64(n); end > a.low.Load() && off < a.high.Load() {
			a.ask(f, off, end, false)
		}
		return n, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		a.none.Store(true)
	default:
		a.ask(f, off, off+int64(len(p)), true)
	}
	return f.ReadAt(p, off)
}

// ask has the kernel read what is likely to be read after [off, end). missed says
// that these bytes are not there yet.
func (a *pages) ask(f *os.File, off, end int64, missed bool) {
	if !a.mu.TryLock() {
		return // it is a hint: no reader waits for another one's
	}
	now := time.Now()
	w, near := a.window(off)
	if !near {
		*w = pageWindow{off: off, end: end, asked: now}
		a.mu.Unlock()
		return
	}
	size := min(max(2*(w.end-w.off), 4*(end-off), minPages), maxPages)
	from := off
	if now.Sub(w.asked) < pagesKept && off >= w.off {
		if missed && end <= w.end-(w.end-w.off)/2 {
			a.mu.Unlock()
			return // on its way, and as much again behind it
		}
		from = max(off, w.end)
	}
	*w = pageWindow{off: from, end: from + size, asked: now}
	a.low.Store(from + size/2)
	a.high.Store(from + size)
	a.mu.Unlock()
	// A hint: what comes of it is seen when it is read.
	_ = unix.Fadvise(int(f.Fd()), from, size, unix.FADV_WILLNEED)
}

// window returns the window that a read at off is in or near, or the oldest. mu
// must be held.
func (a *pages) window(off int64) (w *pageWindow, near bool) {
	w = &a.windows[0]
	for i := range a.windows {
		v := &a.windows[i]
		if slack := max(v.end-v.off, minPages); v.end > 0 && off >= v.off-slack && off <= v.end+slack {
			return v, true
		}
		if v.asked.Before(w.asked) {
			w = v
		}
	}
	return w, false
}

// readCached is pread of what is in the page cache: EAGAIN if none of it is.
func readCached(f *os.File, p []byte, off int64) (int, error) {
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, f.Fd(), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), uintptr(off>>32), unix.RWF_NOWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
