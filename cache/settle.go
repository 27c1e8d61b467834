package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// settleAfter is how long settle waits for more chunks to come, before it
	// looks whether all are there.
	settleAfter = time.Second
	// lookAfter is how often a layer that was opened by an index is looked at for
	// what other processes have found out of it.
	lookAfter = 2 * time.Second
	// syncStep is how much data is written to the disk at a time, so that a
	// Close does not wait for all of it.
	syncStep = 32 << 20
)

// nudge tells settle that chunks came.
func (l *Layer) nudge() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// settle marks the layer complete once all its chunks are present, whoever
// fetched them. It runs until the layer is closed, or its index is refused.
func (l *Layer) settle() {
	var look <-chan time.Time
	failed := false // to make it complete
	if l.diffID != "" {
		t := time.NewTicker(lookAfter)
		defer t.Stop()
		look = t.C
	}
	for {
		select {
		case <-l.kick:
		case <-look:
			switch {
			case l.bm.complete():
				look = nil
			case l.isRefused():
				l.store.log.Error("index of layer was found wrong by another process", "layer", l.key)
				return
			case !failed && l.allPresent(): // another process fetched the last ones
				l.nudge()
			}
			continue
		case <-l.ctx.Done():
			return
		}
		if l.bm.complete() {
			continue
		}
		if sleep(l.ctx, settleAfter) != nil {
			return
		}
		err := l.finalize(l.ctx)
		failed = err != nil
		switch {
		case errors.Is(err, errLocked):
			l.nudge() // an eviction has the lock, or another process that does the same
		case err != nil && !isGone(err) && !errors.Is(err, ErrClosed):
			l.store.log.Error("cannot make layer durable", "layer", l.key, "error", err)
		}
		if l.refused.Load() {
			return
		}
	}
}

// finalize marks the layer complete if every chunk is present: after its data
// was written to the disk. Every chunk's digest was verified since this boot,
// else its mark would not say so. ErrIndex: the layer's index is not the layer's.
// errLocked: others have the layer's lock, for a moment.
func (l *Layer) finalize(ctx context.Context) error {
	switch {
	case l.bm.complete():
		return nil
	case l.isRefused():
		return ErrIndex
	case !l.allPresent():
		return nil
	}
	// Neither an eviction nor another process that does the same may come
	// between the look at the marks and the flag.
	lock, err := tryFlock(l.store.lockPath("layer", l.key), false)
	if err != nil {
		return err
	}
	defer lock.unlock()
	if l.isRefused() { // meanwhile
		return ErrIndex
	}
	l.mu.Lock()
	l.cursor = 0
	l.mu.Unlock()
	if l.bm.complete() || !l.allPresent() {
		return nil
	}
	if err := l.verifyIndexed(ctx); err != nil {
		return err
	}
	l.bm.setWhole()
	if err := l.sync(ctx); err != nil {
		return fmt.Errorf("sync data of layer %s: %w", l.key, err)
	}
	return l.bm.setComplete()
}

// allPresent reports whether every chunk is present. It looks at each only once
// while the answer is no.
func (l *Layer) allPresent() bool {
	l.mu.Lock()
	k := l.cursor
	l.mu.Unlock()
	for ; k < l.table.Len(); k++ {
		if c := l.table.Chunk(k); !l.bm.has(k, &c.Digest) {
			break
		}
	}
	l.mu.Lock()
	l.cursor = k
	l.mu.Unlock()
	return k == l.table.Len()
}

// sync writes the data to the disk, in steps between which ctx can end it.
func (l *Layer) sync(ctx context.Context) error {
	if f, ok := l.data.(*os.File); ok {
		const flags = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		for off := int64(0); off < l.size; off += syncStep {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := unix.SyncFileRange(int(f.Fd()), off, syncStep, flags); err != nil {
				break // not every file system can; Sync below tells errors
			}
		}
	}
	return l.data.Sync()
}
