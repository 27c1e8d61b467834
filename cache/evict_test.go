package cache_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/laminafs/lamina/cache"
)

// onDisk is what the data files of a store take on the disk.
func onDisk(t *testing.T, dir string) int64 {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "layers", "*", "data"))
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		sum += fi.Sys().(*syscall.Stat_t).Blocks * 512
	}
	return sum
}

// clock is a time that only moves when told.
type clock struct{ sec atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(1_700_000_000+c.sec.Load(), 0) }

func TestEvictOldest(t *testing.T) {
	f := estargzFixture(t, files(20, 100, 64<<10))
	var c clock
	dir := t.TempDir()
	l := openLayer(t, dir, cache.WithClock(cache.Options{}, c.now), f)
	for i := range f.list { // one after the other, each 100 s later
		c.sec.Add(100)
		if err := f.check(t.Context(), l, f.at(t, l, i), int64(len(f.list[i].data))); err != nil {
			t.Fatal(err)
		}
	}
	waitIdle(t, l)
	c.sec.Add(100)
	// The first is used again.
	if err := f.check(t.Context(), l, f.at(t, l, 0), 10); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(); err != nil {
		t.Fatal(err)
	}
	limit := onDisk(t, dir) / 2
	s := openStore(t, dir, cache.WithClock(cache.Options{Limit: limit}, c.now))
	defer func() { _ = s.Close() }()
	if err := s.Evict(); err != nil {
		t.Fatal(err)
	}
	if n := onDisk(t, dir); n > limit || n < limit*8/10 {
		t.Errorf("%d bytes on the disk, limit %d", n, limit)
	}
	if l.Complete() {
		t.Error("still complete")
	}
	before := f.blob.requests()
	for _, i := range []int{0, len(f.list) - 1, len(f.list) - 20} {
		if err := f.check(t.Context(), l, f.at(t, l, i), int64(len(f.list[i].data))); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.blob.requests() - before; n != 0 {
		t.Errorf("%d requests for what was used last", n)
	}
	if err := f.checkAll(t.Context(), l, 64<<10); err != nil {
		t.Error(err)
	}
}

func TestEvictSpares(t *testing.T) {
	held := map[string]bool{}
	made := gzipFixture(t, files(21, 50, 64<<10))
	for name, setup := range map[string]func(l *cache.Layer) func(){
		"nothing":   func(*cache.Layer) func() { return func() {} },
		"hold":      func(l *cache.Layer) func() { _ = l.Hold(); return l.Unhold },
		"data file": func(l *cache.Layer) func() { _, _ = l.DataFile(); return l.Unhold },
		"kernel":    func(l *cache.Layer) func() { held[l.Key()] = true; return func() { delete(held, l.Key()) } },
	} {
		t.Run(name, func(t *testing.T) {
			f := made.again()
			dir := t.TempDir()
			l := openLayer(t, dir, cache.Options{}, f)
			undo := setup(l)
			before := onDisk(t, dir)
			s := openStore(t, dir, cache.Options{
				Limit: before / 3,
				Held:  func() (map[string]bool, error) { return held, nil },
			})
			defer func() { _ = s.Close() }()
			if err := s.Evict(); err != nil {
				t.Fatal(err)
			}
			if n := onDisk(t, dir); name != "nothing" && n != before {
				t.Errorf("%d bytes left of %d", n, before)
			}
			undo()
			if err := s.Evict(); err != nil {
				t.Fatal(err)
			}
			if n := onDisk(t, dir); n > before/3 {
				t.Errorf("%d bytes left of %d, not held", n, before)
			}
			if _, ok := l.DataFile(); ok {
				t.Error("data file is given out with holes")
			}
			if err := f.checkAll(t.Context(), l, 64<<10); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHandedOver: while somebody is about to take data away, and has just asked what the
// kernel reads, another process opens the layer, gives its data to the kernel and ends.
func TestHandedOver(t *testing.T) {
	for name, take := range map[string]func(s *cache.Store, key string) error{
		"evict": func(s *cache.Store, _ string) error { return s.Evict() },
		"drop": func(s *cache.Store, key string) error {
			_, err := s.DropData(t.Context(), key)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := gzipFixture(t, files(25, 20, 64<<10))
			dir := t.TempDir()
			key := makeLayer(t, dir, f)
			before := onDisk(t, dir)
			var direct atomic.Bool // the kernel has it
			done := make(chan error, 1)
			mount := func() error {
				s := openStore(t, dir, cache.Options{})
				l, err := s.Layer(t.Context(), f.src, nil)
				if err != nil {
					return errors.Join(err, s.Close())
				}
				_, ok := l.DataFile()
				direct.Store(ok)
				return errors.Join(l.Close(), s.Close())
			}
			asked := false
			s := openStore(t, dir, cache.Options{
				Limit: before / 3,
				Held: func() (map[string]bool, error) {
					held := map[string]bool{key: direct.Load()}
					if asked {
						return held, nil
					}
					asked = true
					go func() { done <- mount() }()
					select {
					case err := <-done: // before anything was taken
						done <- err
					case <-time.After(300 * time.Millisecond): // it waits for us
					}
					return held, nil
				},
			})
			defer func() { _ = s.Close() }()
			if err := take(s, key); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			switch after := onDisk(t, dir); {
			case !asked:
				t.Error("nobody asked what the kernel reads")
			case direct.Load() && after != before:
				t.Errorf("the kernel reads a file of which %d bytes of %d are left", after, before)
			}
		})
	}
}

// TestEvictUnderReaders: several stores of one directory, all much too small,
// evict all the time while all of it is read.
func TestEvictUnderReaders(t *testing.T) {
	for name, f := range map[string]*fixture{
		"gzip":    gzipFixture(t, files(22, 60, 64<<10)),
		"estargz": estargzFixture(t, files(22, 60, 64<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it takes the time it is given
			dir := t.TempDir()
			o := cache.Options{Limit: 1 << 20}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			var reads atomic.Int64
			var layers []*cache.Layer
			for i := range 2 {
				l := openLayer(t, dir, o, f)
				layers = append(layers, l)
				for k := range 3 {
					wg.Go(func() {
						rnd := rand.New(rand.NewPCG(uint64(i), uint64(k)))
						for ctx.Err() == nil {
							err := f.check(ctx, l, rnd.Int64N(l.Size()), 1+rnd.Int64N(200_000))
							if err != nil && ctx.Err() == nil {
								t.Error(err)
								return
							}
							reads.Add(1)
						}
					})
				}
			}
			s := openStore(t, dir, o)
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := s.Evict(); err != nil && !errors.Is(err, cache.ErrLocked) {
						t.Error(err)
						return
					}
				}
			})
			wg.Wait()
			for _, l := range layers {
				waitIdle(t, l)
			}
			// A run holds its range lock for a moment longer than its chunks are
			// in flight, and what is locked is evicted later.
			err := s.Evict()
			for end := time.Now().Add(2 * time.Second); errors.Is(err, cache.ErrLocked) ||
				err == nil && onDisk(t, dir) > o.Limit && time.Now().Before(end); err = s.Evict() {
				time.Sleep(time.Millisecond)
			}
			if err = errors.Join(err, s.Close()); err != nil {
				t.Error(err)
			}
			if n := onDisk(t, dir); n > o.Limit {
				t.Errorf("%d bytes on the disk", n)
			}
			t.Logf("%d reads, %d requests", reads.Load(), f.blob.requests())
		})
	}
}

func TestFill(t *testing.T) {
	f := estargzFixture(t, files(23, 100, 64<<10))
	f.blob.rtt = time.Millisecond
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	f.place(t, l)
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 1))
		for range 50 {
			if err := f.check(t.Context(), l, rnd.Int64N(l.Size()), 9999); err != nil {
				t.Error(err)
			}
		}
	})
	if err := s.Fill(t.Context(), []*cache.Layer{l}); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if !l.Complete() {
		t.Error("not complete")
	}
	if path, ok := l.DataFile(); !ok || !sameFile(t, path, f.data) {
		t.Errorf("data file %s, %v", path, ok)
	}
}

func TestFillFullDisk(t *testing.T) {
	f := estargzFixture(t, files(25, 50, 64<<10))
	var on atomic.Bool
	on.Store(true)
	s := openStore(t, t.TempDir(), cache.WithData(cache.Options{}, func(d cache.DataFile) cache.DataFile { return full{d, &on} }))
	defer func() { _ = s.Close() }()
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := s.Fill(t.Context(), []*cache.Layer{l}); !errors.Is(err, cache.ErrFull) {
		t.Fatal(err)
	}
}

// TestPrefetch: what the image names as needed first is there before it is read.
func TestPrefetch(t *testing.T) {
	list := files(26, 100, 64<<10)
	f := estargzFixture(t, list, estargz.WithPrioritizedFiles([]string{list[70].name, list[20].name}))
	dir := t.TempDir()
	for range 2 { // as made, and as kept
		l := openLayer(t, dir, cache.Options{}, f)
		l.Prefetch()
		for end := time.Now().Add(10 * time.Second); l.Stats().Present < 2 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		waitIdle(t, l)
		st := l.Stats()
		for _, i := range []int{70, 20} {
			if err := f.check(t.Context(), l, f.at(t, l, i), int64(len(list[i].data))); err != nil {
				t.Error(err)
			}
		}
		if n := l.Stats().Misses - st.Misses; n != 0 || st.Present > 10 {
			t.Errorf("%d misses; %d chunks were prefetched", n, st.Present)
		}
	}
}

func TestFillBeyondLimit(t *testing.T) {
	f := estargzFixture(t, files(24, 100, 64<<10))
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{Limit: 3 << 19})
	defer func() { _ = s.Close() }()
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := s.Fill(t.Context(), []*cache.Layer{l}); !errors.Is(err, cache.ErrFull) {
		t.Fatal(err)
	}
	if got := f.blob.got.Load(); got > f.blob.Size()/2 {
		t.Errorf("%d bytes of %d were fetched", got, f.blob.Size())
	}
}

// TestEvictRemoved: what a removal that was killed has left goes with an eviction.
func TestEvictRemoved(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{Limit: 1 << 30})
	defer func() { _ = s.Close() }()
	var left []string
	for _, kind := range []string{"layers", "chains"} {
		path := filepath.Join(dir, kind, ".removed-0123")
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "data"), make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		left = append(left, path)
	}
	if err := s.Evict(); err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
