package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked: another process, or another part of this one, has the lock.
var errLocked = errors.New("locked")

// A flock is a lock on a file of the store's locks directory. It is gone when
// its process is.
type flock struct {
	f    *os.File
	turn *turn // of waitFlock
}

// turns are the locks for which parts of this process wait, by path. Waiting
// here, and not at the file, they go on the moment the lock is given back.
var turns = struct {
	mu sync.Mutex // guards the map and the counts
	m  map[string]*turn
}{m: make(map[string]*turn)}

// A turn is held by who has, or polls for, the lock at a path.
type turn struct {
	path  string
	held  chan struct{} // has room for one
	users int
}

func turnAt(path string) *turn {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	t := turns.m[path]
	if t == nil {
		t = &turn{path: path, held: make(chan struct{}, 1)}
		turns.m[path] = t
	}
	t.users++
	return t
}

// leave undoes turnAt.
func (t *turn) leave() {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	if t.users--; t.users == 0 {
		delete(turns.m, t.path)
	}
}

// take waits until it is t's turn, calling waiting, if not nil, every now and
// then, or until ctx ends.
func (t *turn) take(ctx context.Context, waiting func()) error {
	tick := time.NewTicker(maxPause)
	defer tick.Stop()
	for {
		select {
		case t.held <- struct{}{}:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if waiting != nil {
				waiting()
			}
		}
	}
}

// tryFlock takes the lock at path, shared or exclusive, or returns errLocked.
// The file is made if need be and stays: removing it would let two processes
// lock two files of one name.
func tryFlock(path string, shared bool) (*flock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	for {
		switch err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			return &flock{f: f}, nil
		case errors.Is(err, unix.EINTR):
			continue
		}
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
}

// maxPause is how long at the most a lock is left alone while it is waited for.
const maxPause = 50 * time.Millisecond

// waitFlock takes the exclusive lock at path; while others have it, it calls
// waiting, if not nil, every now and then. For other processes it polls, so that
// ctx can end it.
func waitFlock(ctx context.Context, path string, waiting func()) (*flock, error) {
	t := turnAt(path)
	if err := t.take(ctx, waiting); err != nil {
		t.leave()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	l, err := pollFlock(ctx, path, waiting)
	if err != nil {
		<-t.held
		t.leave()
		return nil, err
	}
	l.turn = t
	return l, nil
}

func pollFlock(ctx context.Context, path string, waiting func()) (*flock, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		l, err := tryFlock(path, false)
		if !errors.Is(err, errLocked) {
			return l, err
		}
		if waiting != nil {
			waiting()
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
}

// unlock gives the lock back.
func (l *flock) unlock() {
	_ = l.f.Close()
	if l.turn != nil {
		<-l.turn.held
		l.turn.leave()
	}
}

// sleep waits for d, or until ctx ends, whose cause it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
