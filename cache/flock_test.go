package cache_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/laminafs/lamina/cache"
)

// One at a time, all in the end, and nothing is left of the queue.
func TestWaitFlock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside, done atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 50 {
				unlock, err := cache.WaitFlock(t.Context(), path, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have the lock", n)
				}
				done.Add(1)
				inside.Add(-1)
				unlock()
			}
		})
	}
	wg.Wait()
	if done.Load() != 16*50 {
		t.Errorf("%d of %d turns", done.Load(), 16*50)
	}
	if n := cache.Turns(); n != 0 {
		t.Errorf("%d locks are still in the table", n)
	}
}

// Who waits is told so, can give up, and does not keep the others waiting.
func TestWaitFlockGivesUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := cache.WaitFlock(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	if _, err := cache.WaitFlock(ctx, path, func() { cancel(enough) }); !errors.Is(err, enough) {
		t.Errorf("gave up with %v", err)
	}
	got := make(chan func())
	go func() {
		unlock, err := cache.WaitFlock(t.Context(), path, nil)
		if err != nil {
			t.Error(err)
		}
		got <- unlock
	}()
	select {
	case <-got:
		t.Fatal("two have the lock")
	case <-time.After(50 * time.Millisecond):
	}
	unlock()
	(<-got)()
	if n := cache.Turns(); n != 0 {
		t.Errorf("%d locks are still in the table", n)
	}
}
