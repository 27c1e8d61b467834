package cache

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// lockBase keeps the range locks, one byte per chunk, off the bitmap's bytes.
const lockBase = int64(1) << 40

// rangeLocks are exclusive locks on ranges of chunks, held against everybody
// else who opened the same file, in this process or another. They end with the
// process. Within one rangeLocks, they do not exclude each other: flights do.
type rangeLocks struct {
	f *os.File

	mu   sync.Mutex
	held [][2]int // what try took and unlock did not give back; guarded by mu
}

// try takes the locks of chunks [i, j), without waiting. When others hold some
// of them, it takes none, and returns the first chunks [ci, cj) that they hold.
func (r *rangeLocks) try(i, j int) (ok bool, ci, cj int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		_, err = r.fcntl(unix.F_OFD_SETLK, unix.F_WRLCK, i, j)
		if err == nil {
			r.held = append(r.held, [2]int{i, j})
			return true, 0, 0, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			return false, 0, 0, fmt.Errorf("lock chunks of %s: %w", r.f.Name(), err)
		}
		held, err := r.fcntl(unix.F_OFD_GETLK, unix.F_WRLCK, i, j)
		if err != nil {
			return false, 0, 0, fmt.Errorf("lock chunks of %s: %w", r.f.Name(), err)
		}
		if held.Type == unix.F_UNLCK {
			continue // it has gone meanwhile
		}
		ci, cj = max(i, int(held.Start-lockBase)), j
		if held.Len != 0 {
			cj = min(j, int(held.Start+held.Len-lockBase))
		}
		return false, ci, cj, nil
	}
}

// unlock gives back what try(i, j) took. Chunks that another try took too, and
// still holds, stay locked.
func (r *rangeLocks) unlock(i, j int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, h := range r.held {
		if h == [2]int{i, j} {
			r.held[k] = r.held[len(r.held)-1]
			r.held = r.held[:len(r.held)-1]
			break
		}
	}
	for i < j {
		end, next := j, j
		for _, h := range r.held {
			switch {
			case h[0] <= i && i < h[1]: // locked by h: skip it
				end, next = i, h[1]
			case i < h[0] && h[0] < end:
				end, next = h[0], h[0]
			}
			if end == i {
				break
			}
		}
		if end > i {
			// It can fail only for want of kernel memory to split a lock, which
			// then lives until the file is closed; others that find the chunks
			// present do not need it.
			_, _ = r.fcntl(unix.F_OFD_SETLK, unix.F_UNLCK, i, end)
		}
		i = next
	}
}

func (r *rangeLocks) fcntl(cmd int, kind int16, i, j int) (unix.Flock_t, error) {
	lk := unix.Flock_t{Type: kind, Start: lockBase + int64(i), Len: int64(j - i)}
	for {
		err := unix.FcntlFlock(r.f.Fd(), cmd, &lk)
		if !errors.Is(err, unix.EINTR) {
			return lk, err
		}
	}
}
