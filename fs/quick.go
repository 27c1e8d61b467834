package fs

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// One reader that asks for one small thing after the other, as a walk of cached
// files does, spends most of its time waiting for two processors to be woken: the
// server's for the request, its own for the reply. A virtual processor takes tens
// of microseconds to wake. So while requests come one at a time, soon after one
// another, and are answered at once, a single worker takes them all, and looks
// for the next one for a moment before it sleeps.
const (
	// spinFor is how long a worker looks for the next request before it sleeps.
	spinFor = 50 * time.Microsecond
	// calmEnough requests of that kind begin it. Fewer than calmLeft, of the
	// last ones, end it; one of another kind counts as calmLost of them.
	calmEnough = 32
	calmLeft   = 16
	calmMost   = 64
	calmLost   = 8
	// quickTick is how often it is seen whether the one worker is stuck in a
	// request, so that another has to wait for the next one. After idleTicks
	// without a request there is no need to look any more.
	quickTick = time.Millisecond
	idleTicks = 20
)

// soon is what a request may take, and how soon the next one has to come: a change of
// a file takes some 100 us, and now and then three times as much. Tests change it.
var soon = 500 * time.Microsecond

// quick is a session's state of having one worker that does not sleep.
type quick struct {
	never bool // one processor: its time is the reader's
	on    atomic.Bool
	calm  atomic.Int32
	last  atomic.Int64 // when the last request was answered, in nanoseconds
}

// spin looks for a request on fd for a moment. It reports whether there was one
// at once: then there are several readers.
func (q *quick) spin(fd int) (pending bool) {
	p := unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	var atOnce unix.Timespec
	began := time.Now()
	for first := true; ; first = false {
		// It does not wait, so the scheduler need not know of it.
		n, _, _ := unix.RawSyscall(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, uintptr(unsafe.Pointer(&atOnce)))
		if n != 0 {
			return first
		}
		if time.Since(began) > spinFor {
			return false
		}
	}
}

// note takes down one request, and reports whether it is time to be quick.
func (q *quick) note(came, done time.Time, alone bool) (begin bool) {
	before := q.last.Swap(done.UnixNano())
	if alone && done.Sub(came) < soon && came.UnixNano()-before < int64(soon) {
		// Others count at the same time, and one of two may be lost: whoever finds
		// enough begins, not only who counts the last one that is needed.
		n := q.calm.Load()
		if n < calmMost {
			n++
			q.calm.Store(n)
		}
		return n >= calmEnough && !q.never && !q.on.Load() && q.on.CompareAndSwap(false, true)
	}
	q.calm.Store(max(0, q.calm.Load()-calmLost))
	return false
}

// watchQuick ends being quick when that is no longer right, and sees to it that
// somebody hears the kernel when the one worker does not.
func (s *session) watchQuick() {
	defer s.workers.Done()
	tick := time.NewTicker(quickTick)
	defer tick.Stop()
	handled := s.handled.Load()
	for idle := 0; idle < idleTicks && s.quick.calm.Load() >= calmLeft; idle++ {
		select {
		case <-s.ended:
			idle = idleTicks
		case <-tick.C:
		}
		if n := s.handled.Load(); n != handled {
			handled, idle = n, 0
		} else if s.waiting.Load() <= 0 {
			break
		}
	}
	s.quick.calm.Store(0)
	s.quick.on.Store(false)
	// A worker that took a request before this relies on us.
	if s.waiting.Load() <= 0 {
		s.addWorker()
	}
}

// addWorker starts one more. The caller is one of those that workers counts.
func (s *session) addWorker() {
	s.waiting.Add(1)
	s.workers.Add(1)
	go s.work()
}
