package cache

import (
	"context"
	"io"
	"time"
)

// DataFile is what WithData wraps.
type DataFile = interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

// WithBoot returns o for a machine with another boot ID.
func WithBoot(o Options, id string) Options { o.boot = id; return o }

// WithClock returns o with another clock.
func WithClock(o Options, now func() time.Time) Options { o.clock = now; return o }

// WithData returns o with another way to open data files.
func WithData(o Options, wrap func(DataFile) DataFile) Options {
	open := openDataFile
	o.openData = func(path string) (dataFile, error) {
		f, err := open(path)
		if err != nil {
			return nil, err
		}
		return wrap(f), nil
	}
	return o
}

// Evict runs an eviction and waits for it. ErrLocked: it could not do all.
func (s *Store) Evict() error {
	left, err := s.evict(false)
	if left && err == nil {
		err = errLocked
	}
	return err
}

// Settle makes l complete if it is whole, without waiting.
func (l *Layer) Settle() error { return l.finalize(l.ctx) }

// Flights is the number of chunks in flight.
func (l *Layer) Flights() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.flights)
}

// Budget is what was speculated on and not read, in compressed bytes.
func (s *Store) Budget() int64 {
	s.budget.mu.Lock()
	defer s.budget.mu.Unlock()
	return s.budget.unused
}

// ErrLocked is what Evict returns when another eviction runs.
var ErrLocked = errLocked

// Has tells whether the chunk with the byte at data offset off is present.
func (l *Layer) Has(off int64) bool {
	i, ok := l.table.Find(off)
	c := l.table.Chunk(i)
	return ok && l.bm.has(i, &c.Digest)
}

// Allowance is how much may be speculated on and not read, in compressed bytes.
func (s *Store) Allowance() int64 { return s.Budget() + s.budget.room() }

// Overdraw counts n bytes as speculated on.
func (s *Store) Overdraw(n int64) { s.budget.take(n) }

// WaitFlock is waitFlock; the function it returns gives the lock back.
func WaitFlock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	l, err := waitFlock(ctx, path, waiting)
	if err != nil {
		return nil, err
	}
	return l.unlock, nil
}

// Turns is the number of locks that somebody has or waits for.
func Turns() int {
	turns.mu.Lock()
	defer turns.mu.Unlock()
	return len(turns.m)
}

// WaitStarts waits until it is known where the layer's files begin.
func (l *Layer) WaitStarts() {
	for l.starts.Load() == nil {
		time.Sleep(time.Millisecond)
	}
}

// Scanning is how many blobs are being decoded as a whole now, Scans how many may be.
func (s *Store) Scanning() int { return len(s.scans) }
func (s *Store) Scans() int    { return cap(s.scans) }
