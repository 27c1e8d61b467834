package cache

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/layer"
)

// An eviction keeps the data of all layers within Options.Limit. It takes the
// chunks that were not used for longest, of all layers that nobody holds:
// first the mark goes, then the generation is raised, then the bytes. A reader
// that looked at the mark before sees the generation change after it read, and
// looks again. Every step is under the chunk's range lock, so that nobody
// fetches a chunk while it goes.

// evictStep is the part of the limit, 1/evictStep, that may be added between
// two looks at it. Eviction begins one step below the limit, and ends three.
const evictStep = 32

// An eviction that had to leave out layers that were locked for a moment comes
// back to them: after evictPause, evictTurns times in all.
const (
	evictTurns = 5
	evictPause = time.Second
)

// added is told that n bytes of data were added.
func (s *Store) added(n int64) {
	if s.opts.Limit > 0 && s.grown.Add(n) >= s.opts.Limit/evictStep {
		s.grown.Store(0)
		s.startEvict(false)
	}
}

// startEvict runs an eviction, unless this process is at it already. full: the
// disk is, so that some data has to go whatever the limit.
func (s *Store) startEvict(full bool) {
	if !s.evicting.CompareAndSwap(false, true) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		s.evicting.Store(false)
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer s.evicting.Store(false)
		for range evictTurns {
			left, err := s.evict(full)
			if err != nil && !errors.Is(err, errLocked) {
				s.log.Error("cannot evict layer data", "error", err)
			}
			if !left || sleep(s.ctx, evictPause) != nil {
				return
			}
		}
	}()
}

// candidate is a layer of the store, whether open or not, as eviction sees it.
type candidate struct {
	key    string
	blocks int64 // bytes of data on the disk
	table  *layer.Table
	bm     *bitmap
	data   *os.File
	whole  uint32 // last use as a whole, 0 if that says nothing
	locks  []*flock
}

// evict brings the data on the disk below the limit, if it is not. left reports
// that it could not, because of locks that are held for a moment only.
func (s *Store) evict(full bool) (left bool, err error) {
	lock, err := tryFlock(s.lockPath("evict", "all"), false)
	if err != nil {
		return false, err // another process is at it
	}
	defer lock.unlock()
	// What a removal that was killed has left counts nowhere.
	for _, kind := range []string{"layers", "chains"} {
		if err := s.sweepRemoved(kind); err != nil {
			s.log.Error("cannot delete what a removal has left", "error", err)
		}
	}
	sum, keys, err := s.usage()
	if err != nil {
		return false, err
	}
	limit := s.opts.Limit
	if full && (limit == 0 || limit > sum) {
		limit = sum
	}
	step := limit / evictStep
	if limit == 0 || sum <= limit-step {
		return false, nil
	}
	var all []*candidate
	defer func() {
		for _, c := range all {
			c.close()
		}
	}()
	for key := range keys {
		if n, ok := s.sweep(key); ok {
			sum -= n
			continue
		}
		c, busy, err := s.candidate(key)
		if err != nil {
			return false, err
		}
		left = left || busy
		if c != nil {
			all = append(all, c)
		}
	}
	// All of their locks are taken.
	held, err := s.held()
	if err != nil {
		return false, err
	}
	free := slices.DeleteFunc(slices.Clone(all), func(c *candidate) bool { return held[c.key] })
	still, err := evictOldest(free, sum-(limit-3*step))
	return left && still > 0, err
}

// usage returns the bytes of data on the disk, in sum and by layer.
func (s *Store) usage() (sum int64, keys map[string]int64, err error) {
	dirs, err := os.ReadDir(filepath.Join(s.root, "layers"))
	if err != nil {
		return 0, nil, fmt.Errorf("list layers: %w", err)
	}
	keys = make(map[string]int64)
	for _, d := range dirs {
		if !isKey(d.Name()) {
			continue // being removed
		}
		n := blocks(s.layerPath(d.Name(), dataName)) + blocks(s.layerPath(d.Name(), partialName))
		keys[d.Name()] = n
		sum += n
	}
	return sum, keys, nil
}

// blocks is what the file at path takes on the disk, in bytes; 0 if there is none.
func blocks(path string) int64 {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// partialAge is how old what was downloaded of a layer must be to be given up.
const partialAge = 24 * time.Hour

// sweep removes what an interrupted first mount left behind, if key is no
// layer. It reports so, and how much went.
func (s *Store) sweep(key string) (n int64, ok bool) {
	if s.Has(key) {
		return 0, false
	}
	lock, err := tryFlock(s.lockPath("layer", key), false)
	if err != nil {
		return 0, true // being made now
	}
	defer lock.unlock()
	if s.Has(key) {
		return 0, false
	}
	data := s.layerPath(key, dataName)
	size := blocks(data)
	if os.Remove(data) == nil {
		n += size
	}
	partial := s.layerPath(key, partialName)
	if fi, err := os.Stat(partial); err == nil && s.opts.clock().Sub(fi.ModTime()) > partialAge {
		size = blocks(partial)
		if os.Remove(partial) == nil {
			n += size
		}
	}
	return n, true
}

// candidate opens the layer called key for eviction, or returns nil when that
// is in use in a way that forbids it; busy: for a moment.
func (s *Store) candidate(key string) (c *candidate, busy bool, err error) {
	c = &candidate{key: key}
	defer func() {
		if c != nil && (err != nil || c.bm == nil || c.data == nil) {
			c.close()
			c = nil
		}
	}()
	for _, kind := range []string{"layer", "hold"} {
		lock, err := tryFlock(s.lockPath(kind, key), false)
		if errors.Is(err, errLocked) {
			return c, kind == "layer", nil
		}
		if err != nil {
			return c, false, err
		}
		c.locks = append(c.locks, lock)
	}
	if !exists(s.layerPath(key, dataName)) || !exists(s.layerPath(key, bitmapName)) {
		return c, false, nil // in place, or gone
	}
	if c.table, err = layer.OpenTable(s.layerPath(key, tableName)); err != nil {
		return c, false, nil // damaged: whoever opens it makes it anew
	}
	if c.bm, err = openBitmap(s.layerPath(key, bitmapName), shapeOf(c.table), s.opts.boot, true); err != nil {
		return c, false, err
	}
	if c.bm.whole() {
		c.whole = c.bm.lastUseAll()
	}
	c.blocks = blocks(s.layerPath(key, dataName))
	if c.data, err = os.OpenFile(s.layerPath(key, dataName), os.O_RDWR, 0); err != nil {
		return c, false, fmt.Errorf("evict: %w", err)
	}
	return c, false, nil
}

func (c *candidate) close() {
	if c.data != nil {
		_ = c.data.Close()
	}
	if c.bm != nil {
		_ = c.bm.close()
	}
	if c.table != nil {
		_ = c.table.Close()
	}
	for _, l := range c.locks {
		l.unlock()
	}
}

// lastUse is when chunk i was used last.
func (c *candidate) lastUse(i int) uint32 { return max(c.bm.lastUse(i), c.whole) }

// evictOldest frees at least want bytes, of the chunks that were used longest
// ago, and returns how many it could not. Two passes, one that counts bytes by
// time and one that evicts up to the time found, need no list of all chunks.
func evictOldest(all []*candidate, want int64) (int64, error) {
	for want > 0 { // a pass may free less than it counted: blocks are shared, marks doubtful
		byTime := make(map[uint32]int64)
		for _, c := range all {
			for i := range c.table.Len() {
				if c.bm.marked(i) {
					byTime[c.lastUse(i)] += c.table.Chunk(i).Len
				}
			}
		}
		until, ok := oldest(byTime, want)
		if !ok {
			return want, nil
		}
		var freed, dropped int64
		for _, strict := range []bool{true, false} { // what is older than until goes first
			for _, c := range all {
				if freed >= want {
					break
				}
				n, m, err := c.evict(until, strict, want-freed)
				if err != nil {
					return want, fmt.Errorf("evict layer %s: %w", c.key, err)
				}
				freed, dropped = freed+n, dropped+m
			}
		}
		want -= freed
		if dropped == 0 {
			break
		}
	}
	return want, nil
}

// oldest returns the time up to which chunks must go to free want bytes.
func oldest(byTime map[uint32]int64, want int64) (until uint32, ok bool) {
	times := make([]uint32, 0, len(byTime))
	for t := range byTime {
		times = append(times, t)
	}
	slices.Sort(times)
	for _, t := range times {
		until, ok = t, true
		if want -= byTime[t]; want <= 0 {
			break
		}
	}
	return until, ok
}

// evict frees about want bytes of chunks last used at or before until, or
// strictly before. It returns how many were freed on the disk, and how many
// chunks went for it.
func (c *candidate) evict(until uint32, strict bool, want int64) (freed, dropped int64, err error) {
	before := fileBlocks(c.data)
	var sum int64
	for i := 0; i < c.table.Len() && sum < want; {
		j := i
		var size int64
		for ; j < c.table.Len() && sum+size < want && c.bm.marked(j); j++ {
			if t := c.lastUse(j); t > until || strict && t == until {
				break
			}
			size += c.table.Chunk(j).Len
		}
		if j == i {
			i++
			continue
		}
		n, err := c.drop(i, j)
		if err != nil {
			return 0, 0, err
		}
		dropped += int64(n)
		sum += size
		i = j
	}
	return max(0, before-fileBlocks(c.data)), dropped, nil
}

// drop takes chunks [i, j) out of the data file, and returns how many went:
// those that are being fetched stay.
func (c *candidate) drop(i, j int) (int, error) {
	ok, ci, cj, err := c.bm.locks.try(i, j)
	if err != nil {
		return 0, err
	}
	if !ok {
		n, m := 0, 0
		if i < ci {
			n, err = c.drop(i, ci)
		}
		if cj < j && err == nil {
			m, err = c.drop(cj, j)
		}
		return n + m, err
	}
	defer c.bm.locks.unlock(i, j)
	if err := c.bm.clearWhole(); err != nil {
		return 0, err
	}
	for k := i; k < j; k++ {
		c.bm.clear(k)
	}
	c.bm.bump()
	first, last := c.table.Chunk(i), c.table.Chunk(j-1)
	return j - i, punch(c.data, first.Off, last.Off+last.Len-first.Off)
}

// punch makes n bytes of f from off on a hole.
func punch(f *os.File, off, n int64) error {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(f.Fd()), mode, off, n); err != nil {
		return fmt.Errorf("punch hole in %s: %w", f.Name(), err)
	}
	return nil
}

func fileBlocks(f *os.File) int64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// room is how much data may be added before something has to be evicted for it.
func (s *Store) room() int64 {
	if s.opts.Limit == 0 {
		return math.MaxInt64
	}
	sum, _, err := s.usage()
	if err != nil {
		return 0
	}
	return s.opts.Limit - 2*(s.opts.Limit/evictStep) - sum
}
