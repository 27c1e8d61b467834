package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errLocked: another process, or another part of this one, has the lock.
var errLocked = errors.New("locked")

// A flock is a lock on a file of the store's locks directory. It is gone when
// its process is.
type flock struct{ f *os.File }

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
			return &flock{f}, nil
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

// waitFlock takes the exclusive lock at path; while others have it, it calls
// waiting, if not nil, every now and then. It polls, so ctx can end it.
func waitFlock(ctx context.Context, path string, waiting func()) (*flock, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
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
func (l *flock) unlock() { _ = l.f.Close() }

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
