package cache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

const (
	// fillPiece is how much of a blob the background fill asks for at a time.
	fillPiece = 4 << 20
	// fillParallel is how many such requests run for one call.
	fillParallel = 2
	// fillRetries is how often in a row a fill may fail, with pauses that
	// double up to fillPause, before it gives up.
	fillRetries = 8
	fillPause   = 30 * time.Second
)

// Fill fetches all that is missing of the layers, one after the other, at
// Background priority: behind what anybody reads. It returns when they are
// complete. Errors that may pass are retried for some minutes; the others are
// those of ctx, ErrFull when the limit or the disk has no room for all, and
// those that Layer.ReadAt has.
func (s *Store) Fill(ctx context.Context, layers []*Layer) error {
	for _, l := range layers {
		if err := l.fetchAll(ctx); err != nil {
			return fmt.Errorf("fill layer %s: %w", l.key, err)
		}
	}
	return nil
}

// fetchAll makes l complete.
func (l *Layer) fetchAll(ctx context.Context) error {
	pause := time.Second
	for failures := 0; !l.Complete(); {
		missing, err := l.fetchRanges(ctx, []layer.Range{{Off: 0, Len: l.size}}, fetch.Background)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case isFull(err):
			return fmt.Errorf("%w: %w", ErrFull, err)
		case errors.Is(err, ErrFull), errors.Is(err, ErrClosed),
			errors.Is(err, fetch.ErrNotFound), errors.Is(err, fetch.ErrDenied),
			errors.Is(err, layer.ErrDigest):
			return err
		case err != nil && !errors.Is(err, errAgain):
			if failures++; failures == fillRetries {
				return err
			}
		case missing:
			// Others are at it, or took it back.
		default:
			if err := l.finalize(ctx); err != nil && !errors.Is(err, errLocked) {
				return err
			}
			failures, pause = 0, 10*time.Millisecond
		}
		if l.Complete() {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, fillPause)
	}
	return nil
}

// Prefetch begins to fetch what the image asks to be fetched early, if it does,
// behind what anybody waits for. It returns at once; Close ends it.
func (l *Layer) Prefetch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.prior) == 0 || l.closing || l.bm.whole() {
		return
	}
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		// What fails is fetched when it is read.
		_, _ = l.fetchRanges(l.ctx, l.prior, fetch.Prefetch)
	}()
}

// fetchRanges fetches the chunks in ranges that are missing, a few requests at
// a time. missing reports that some were left to others who fetch them now.
func (l *Layer) fetchRanges(ctx context.Context, ranges []layer.Range, prio fetch.Priority) (missing bool, err error) {
	var running []*flight // the last chunk of each run
	var coming int64      // data that runs may still add
	wait := func(n int) error {
		for len(running) > n {
			f := running[0]
			running = running[1:]
			coming -= f.run.size
			if e := l.await(ctx, f); e != nil && err == nil {
				err = e
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		return err
	}
	for _, r := range ranges {
		i, j := l.span(r.Off, min(r.Off+r.Len, l.size))
		for i < j {
			if err := wait(fillParallel - 1); err != nil {
				return true, err
			}
			run, next, skipped, err := l.nextRun(i, j, prio, l.store.room()-coming)
			if err != nil {
				return true, errors.Join(err, wait(0))
			}
			missing = missing || skipped
			if run != nil {
				running = append(running, &run.flights[len(run.flights)-1])
				coming += run.size
			}
			i = next
		}
	}
	return missing, wait(0)
}

// nextRun starts a run of the first missing chunks of [i, j) that nobody
// fetches, of at most room bytes of data, and returns the chunk after them.
// skipped: it passed some that somebody fetches. ErrFull: room is too little.
func (l *Layer) nextRun(i, j int, prio fetch.Priority, room int64) (r *run, next int, skipped bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return nil, j, false, ErrClosed
	}
	first := -1
	var size int64
	k := i
	for ; k < j; k++ {
		c := l.table.Chunk(k)
		flying, has := l.flights[k] != nil, l.bm.has(k, &c.Digest)
		if first >= 0 && (flying || has || !l.inRun(k) || l.blobAt(k)-l.blobAt(first) >= fillPiece) {
			break
		}
		takes := c.Len
		if c.Kind == layer.Zeros {
			takes = 0 // a hole
		}
		if first >= 0 && size+takes > room {
			break
		}
		skipped = skipped || flying && !has
		if first < 0 && !flying && !has {
			if first = k; takes > room {
				return nil, k, skipped, ErrFull
			}
			if !l.inRun(k) {
				size = takes
				k++
				break
			}
		}
		if first >= 0 {
			size += takes
		}
	}
	if first < 0 {
		return nil, j, skipped, nil
	}
	r = l.newRun(first, k, prio)
	r.size = size
	l.launch(r)
	return r, k, skipped, nil
}
