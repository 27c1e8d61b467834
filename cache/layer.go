package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

// dataFile is what a layer needs of its data file.
type dataFile interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Close() error
}

// A Layer is one opened layer of the store: its index, and its data at any
// offset. All methods may be called concurrently, except that nothing may be
// called after Close, nor the Index be used.
type Layer struct {
	store *Store
	key   string
	blob  fetch.Blob // nil: nothing can be fetched
	use   *flock     // says so to who would remove the layer
	index *index.Index
	table *layer.Table
	tail  int // the chunk from which on none is in the blob
	skips skips
	data  dataFile
	// inPlace: the data is a local tar that begins at byte base of path; there
	// is no bitmap, and nothing to fetch or evict.
	inPlace bool
	path    string
	base    int64
	end     int64 // where it ends, in that file
	size    int64
	// diffID is what the data is compared with once it is whole, because the
	// index was made elsewhere; refused is set when that fails.
	diffID  digest.Digest
	refused atomic.Bool
	bm      *bitmap
	prior   []layer.Range // what the image asks to be fetched early
	ahead   readAhead
	pages   pages
	// marked has a bit for every chunk that was fetched on speculation by this
	// process and not read yet.
	marked []atomic.Uint32
	// starts tells where files begin if the chunks do not; nil until it is known.
	starts atomic.Pointer[starts]
	// told has a bit for every chunk of which Options.Began was told.
	told  []atomic.Uint32
	count counters

	refs    int          // handed out and not closed; guarded by Store.mu
	readers atomic.Int64 // running ReadAt calls, which the mappings must outlive
	closed  atomic.Bool

	ctx    context.Context // of everything the layer does by itself
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // goroutines; Add only under mu with !closing
	kick   chan struct{}  // tells settle that chunks came

	// mu guards what follows. readAhead.mu, budget.mu or starts.mu may be taken
	// under it, and Store.mu never. No system call that can wait is made under it.
	mu      sync.Mutex
	closing bool
	flights map[int]*flight // chunks being fetched by this process
	cursor  int             // every chunk before it was present once

	holdMu sync.Mutex // guards hold and holds; outside of mu, and waits
	hold   *flock
	holds  int
}

// ReadAt fills p with the data from off on: all of it, verified, or an error.
// Offsets that no chunk covers read as zeros. It waits for what is missing until
// ctx ends, and returns its cause then. Errors wrap ErrRange for bytes outside
// [0, Size), ErrClosed, layer.ErrDigest when no host has the right bytes, and
// the sentinels of fetch. A read of what is present waits for no lock and allocates
// nothing, but for the first one of what was fetched ahead.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	l.readers.Add(1)
	defer l.readers.Add(-1)
	if l.closed.Load() {
		return fmt.Errorf("read layer %s: %w", l.key, ErrClosed)
	}
	if l.refused.Load() {
		return fmt.Errorf("read layer %s: %w", l.key, ErrIndex)
	}
	if off < 0 || int64(len(p)) > l.size-off {
		return fmt.Errorf("read layer %s: %w: %d bytes at %d of %d", l.key, ErrRange, len(p), off, l.size)
	}
	if l.readPresent(p, off) {
		l.count.hits.Add(1)
		l.wasReadAt(p, off)
		return nil
	}
	began := time.Now()
	err := l.readMissing(ctx, p, off)
	l.count.misses.Add(1)
	l.count.slow(SlowRead{Off: off, Len: int64(len(p)), Took: time.Since(began), At: began})
	if err != nil {
		return fmt.Errorf("read layer %s: %d bytes at %d: %w", l.key, len(p), off, err)
	}
	l.wasReadAt(p, off)
	return nil
}

// wasReadAt notes that p was read at off.
func (l *Layer) wasReadAt(p []byte, off int64) {
	l.count.served.Add(int64(len(p)))
	if s := l.starts.Load(); s != nil {
		s.read(l, p, off)
	}
}

// readPresent fills p if all of it is in the data file.
func (l *Layer) readPresent(p []byte, off int64) bool {
	if l.inPlace {
		return l.readTar(p, off) == nil
	}
	for {
		gen := l.bm.generation()
		if l.bm.whole() {
			l.bm.touchAll(l.store.now())
		} else if !l.usable(off, off+int64(len(p))) {
			return false
		}
		n, _ := l.pread(p, off)
		if l.bm.generation() != gen {
			continue // an eviction may have taken what was read
		}
		return n == len(p)
	}
}

// Peek fills p with the data from off on if all of it is here, as ReadAt would. It
// fetches nothing and is not taken for a read: who guesses what will be read may
// look at what has come. It must not be called after Close.
func (l *Layer) Peek(p []byte, off int64) bool {
	l.readers.Add(1)
	defer l.readers.Add(-1)
	if l.closed.Load() || l.refused.Load() || off < 0 || int64(len(p)) > l.size-off {
		return false
	}
	return l.peek(p, off)
}

func (l *Layer) peek(p []byte, off int64) bool {
	if l.inPlace {
		return l.readTar(p, off) == nil
	}
	gen := l.bm.generation()
	if !l.bm.whole() {
		i, j := l.span(off, off+int64(len(p)))
		for ; i < j; i++ {
			if c := l.table.Chunk(i); !l.bm.has(i, &c.Digest) {
				return false
			}
		}
	}
	n, _ := l.data.ReadAt(p, off)
	return n == len(p) && l.bm.generation() == gen
}

// pread reads the data file, and what is likely to be read next into the page
// cache.
func (l *Layer) pread(p []byte, off int64) (int, error) {
	if f, ok := l.data.(*os.File); ok {
		return l.pages.read(f, p, off)
	}
	return l.data.ReadAt(p, off)
}

// readTar fills p from the local tar that the data is. The data may be a little
// longer, to the end of the last block, and is zeros there.
func (l *Layer) readTar(p []byte, off int64) error {
	n := max(0, min(int64(len(p)), l.end-l.base-off))
	clear(p[n:])
	if _, err := l.pread(p[:n], l.base+off); err != nil && n > 0 {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	return nil
}

// usable tells whether every chunk in data [off, end) is present, and notes the
// use of those that are.
func (l *Layer) usable(off, end int64) bool {
	now := l.store.now()
	first, ahead := l.first(off), false
	i := first
	for ; i < l.table.Len(); i++ {
		c := l.table.Chunk(i)
		if c.Off >= end {
			break
		}
		if !l.bm.has(i, &c.Digest) {
			return false
		}
		l.bm.touch(i, now)
		ahead = ahead || l.isMarked(i)
	}
	if ahead {
		l.readMarked(first, i)
	}
	return true
}

// first returns the first chunk that ends after off, or the number of chunks.
func (l *Layer) first(off int64) int {
	i, _ := l.table.Find(off)
	return i
}

// span returns the chunks [i, j) that data [off, end) touches.
func (l *Layer) span(off, end int64) (i, j int) {
	i, j = l.first(off), l.first(end)
	if j < l.table.Len() && l.table.Chunk(j).Off < end {
		j++
	}
	return i, j
}

// errAgain ends the fetch of a chunk that was given up, not failed: whoever
// waits for it asks anew.
var errAgain = errors.New("fetch given up")

const (
	// keepAfter is the number of times that a read may find chunks evicted
	// between their arrival and its look at them, before it keeps copies.
	keepAfter = 2
	// maxTurns bounds the attempts of one read; each but the first few makes
	// progress, so it is reached only when something is badly wrong.
	maxTurns = 1000
)

// readMissing fills p, fetching what is missing.
func (l *Layer) readMissing(ctx context.Context, p []byte, off int64) error {
	if l.inPlace {
		return l.readTar(p, off) // for its error
	}
	end := off + int64(len(p))
	i, j := l.span(off, end)
	kept := make(map[int][]byte) // chunks that are not in the data file
	for turn := range maxTurns {
		flights, err := l.request(i, j, turn > keepAfter, kept)
		if err != nil {
			return err
		}
		for _, f := range flights {
			switch err := l.await(ctx, f); {
			case errors.Is(err, errAgain):
			case err != nil:
				return err
			case f.data != nil:
				kept[f.chunk] = f.data
			}
		}
		if done, err := l.assemble(p, off, i, j, kept); done || err != nil {
			l.readMarked(i, j) // what came on speculation just when we looked
			return err
		}
	}
	return fmt.Errorf("%w: evicted again and again", ErrBusy)
}

// assemble fills p from the data file and from the kept chunks. It reports
// false when chunks are missing from both.
func (l *Layer) assemble(p []byte, off int64, i, j int, kept map[int][]byte) (bool, error) {
	gen := l.bm.generation()
	for k := i; k < j; k++ {
		c := l.table.Chunk(k)
		if kept[k] == nil && !l.bm.has(k, &c.Digest) {
			return false, nil
		}
	}
	n, err := l.data.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if n < len(p) {
		clear(p[n:])
		if l.distrust(off+int64(n), off+int64(len(p)), kept) {
			return false, nil
		}
	}
	if l.bm.generation() != gen {
		return false, nil
	}
	for k, data := range kept {
		c := l.table.Chunk(k)
		if from := c.Off - off; from >= 0 {
			copy(p[min(from, int64(len(p))):], data)
		} else if -from < int64(len(data)) {
			copy(p, data[-from:])
		}
	}
	return true, nil
}

// distrust is called when the data file ends before data [off, end) does:
// chunks there that claim to be present were lost. It reports whether there
// were any.
func (l *Layer) distrust(off, end int64, kept map[int][]byte) bool {
	i, j := l.span(off, end)
	lost := false
	for k := i; k < j; k++ {
		if c := l.table.Chunk(k); kept[k] == nil && l.bm.has(k, &c.Digest) {
			lost = true
		}
	}
	if !lost {
		return false
	}
	l.store.log.Error("data file of layer is cut short", "layer", l.key, "offset", off)
	if err := l.bm.clearWhole(); err != nil {
		l.store.log.Error("cannot mark layer incomplete", "layer", l.key, "error", err)
	}
	for k := i; k < j; k++ {
		l.bm.clear(k)
	}
	l.bm.bump()
	return true
}

// Key is the name of the layer's directory in the store: see layer.Key.
func (l *Layer) Key() string { return l.key }

// Index is the layer's tree, with its whiteouts. It belongs to the layer.
func (l *Layer) Index() *index.Index { return l.index }

// Seekable reports whether every chunk can be had by reading a small part of the
// blob: see layer.Table.
func (l *Layer) Seekable() bool { return l.table.Seekable() }

// Release gives the resident pages of the layer's index and chunk table back to
// the kernel. They come back as they are needed.
func (l *Layer) Release() {
	l.index.Release()
	l.table.Release()
}

// Size is the length of the layer's data in bytes.
func (l *Layer) Size() int64 { return l.size }

// Complete reports whether all data is present, verified and safe on the disk.
func (l *Layer) Complete() bool { return l.inPlace || l.bm.complete() }

// DataFile returns the path of a file whose byte n is the layer's data offset
// n, when there is one: all data is present and verified, or is a local tar
// that begins where its file does. The file may then be given to the kernel: it
// is not evicted until Close, and afterwards not while Hold, or what
// Options.Held tells, says so.
func (l *Layer) DataFile() (path string, ok bool) {
	if l.inPlace {
		return l.path, l.base == 0
	}
	if !l.bm.whole() || l.Hold() != nil {
		return "", false
	}
	// The hold came after the look: an eviction may have been in between.
	if !l.bm.whole() {
		l.Unhold()
		return "", false
	}
	l.bm.touchAll(l.store.now())
	return l.path, true
}

// Hold keeps the layer's data from being evicted until as many calls of Unhold,
// or Close, by this process. It waits for an eviction that is under way. A hold
// ends with its process; what must outlive it is for Options.Held to tell.
func (l *Layer) Hold() error {
	l.holdMu.Lock()
	defer l.holdMu.Unlock()
	if l.hold == nil && !l.inPlace {
		// An eviction has this lock for a moment only.
		for pause := time.Millisecond; l.hold == nil; pause = min(2*pause, 50*time.Millisecond) {
			f, err := tryFlock(l.store.lockPath("hold", l.key), true)
			if err != nil && !errors.Is(err, errLocked) {
				return fmt.Errorf("hold layer %s: %w", l.key, err)
			}
			if l.hold = f; f == nil {
				if err := sleep(l.ctx, pause); err != nil {
					return fmt.Errorf("hold layer %s: %w", l.key, err)
				}
			}
		}
	}
	l.holds++
	return nil
}

// Unhold undoes one Hold.
func (l *Layer) Unhold() {
	l.holdMu.Lock()
	defer l.holdMu.Unlock()
	if l.holds--; l.holds <= 0 && l.hold != nil {
		l.hold.unlock()
		l.hold, l.holds = nil, 0
	}
}

// Stats returns the layer's counters; counting what is present takes time
// proportional to the number of chunks.
func (l *Layer) Stats() Stats {
	s := l.count.snapshot()
	s.Size, s.Complete = l.size, l.Complete()
	if l.table != nil {
		s.Chunks = l.table.Len()
	}
	if l.inPlace || l.bm.whole() {
		s.Present = s.Chunks
		return s
	}
	for i := range s.Chunks {
		c := l.table.Chunk(i)
		if l.bm.has(i, &c.Digest) {
			s.Present++
		}
	}
	return s
}

// Close gives the layer back. The last Close of as many as there were calls of
// Store.Layer ends what runs for it, reads included, and waits for that.
func (l *Layer) Close() error {
	if !l.store.release(l) {
		return nil
	}
	return l.shut()
}

// shut closes the layer, which nobody can get any more.
func (l *Layer) shut() error {
	l.mu.Lock()
	l.closing = true
	l.mu.Unlock()
	l.closed.Store(true)
	l.cancel(ErrClosed)
	l.wg.Wait()
	for pause := time.Microsecond; l.readers.Load() > 0; pause = min(2*pause, time.Millisecond) {
		time.Sleep(pause)
	}
	l.refundMarked()
	l.holdMu.Lock()
	if l.hold != nil {
		l.hold.unlock()
		l.hold = nil
	}
	l.holdMu.Unlock()
	return l.free()
}

// free closes the files of a layer on which nothing runs.
func (l *Layer) free() error {
	var errs []error
	if l.index != nil {
		errs = append(errs, l.index.Close())
	}
	if l.table != nil {
		errs = append(errs, l.table.Close())
	}
	if l.bm != nil {
		errs = append(errs, l.bm.close())
	}
	if l.data != nil {
		errs = append(errs, l.data.Close())
	}
	if l.use != nil {
		l.use.unlock()
	}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("close layer %s: %w", l.key, err)
	}
	return nil
}
