package cache_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

func TestStreamed(t *testing.T) {
	f := gzipFixture(t, files(1, 100, 40<<10))
	dir := t.TempDir()
	var last atomic.Int64
	s := openStore(t, dir, cache.Options{})
	l, err := s.Layer(t.Context(), f.src, func(done, total int64) {
		if done < last.Swap(done) || total != f.blob.Size() {
			t.Errorf("progress %d of %d", done, total)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if last.Load() != f.blob.Size() {
		t.Errorf("progress ended at %d of %d", last.Load(), f.blob.Size())
	}
	if err := f.checkAll(t.Context(), l, 100_000); err != nil {
		t.Error(err)
	}
	if n := f.blob.requests(); n != 1 {
		t.Errorf("%d requests", n)
	}
	if path, ok := l.DataFile(); !ok || !sameFile(t, path, f.data) {
		t.Errorf("data file %s, %v", path, ok)
	}
	if l.Complete() {
		t.Error("complete before the data was synced")
	}
	if err := l.Settle(); err != nil || !l.Complete() {
		t.Errorf("not complete: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "layers", l.Key(), "blob.partial")); err == nil {
		t.Error("the partial blob is still there")
	}
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	// Warm, after a restart of the machine, without a source.
	f.src.Blob = nil
	l = openLayer(t, dir, cache.WithBoot(cache.Options{}, "another"), f)
	if _, ok := l.DataFile(); !ok || !l.Complete() {
		t.Error("not complete any more")
	}
	if err := f.checkAll(t.Context(), l, 128<<10); err != nil {
		t.Error(err)
	}
}

func sameFile(t *testing.T, path string, want []byte) bool {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.HasPrefix(got, want) && len(bytes.Trim(got[len(want):], "\x00")) == 0
}

func TestLazy(t *testing.T) {
	f := estargzFixture(t, files(2, 200, 20<<10))
	l := openLayer(t, t.TempDir(), cache.Options{}, f)
	if l.Complete() {
		t.Error("complete before anything was read")
	}
	if _, ok := l.DataFile(); ok {
		t.Error("the data file is given out")
	}
	if err := f.checkAll(t.Context(), l, 30_001); err != nil {
		t.Fatal(err)
	}
	st := l.Stats()
	if st.Present != st.Chunks || st.Fetched > f.blob.Size() || st.Misses == 0 || st.Hits == 0 {
		t.Errorf("stats %+v", st)
	}
	if len(st.Slowest) == 0 {
		t.Error("no slow reads")
	}
	if err := l.Settle(); err != nil || !l.Complete() {
		t.Errorf("not complete: %v", err)
	}
	if err := f.check(t.Context(), l, l.Size()-5, 5); err != nil {
		t.Error(err)
	}
	for _, r := range [][2]int64{{-1, 1}, {l.Size(), 1}, {0, l.Size() + 1}, {1 << 62, 1}} {
		if err := l.ReadAt(t.Context(), make([]byte, r[1]), r[0]); !errors.Is(err, cache.ErrRange) {
			t.Errorf("%d bytes at %d: %v", r[1], r[0], err)
		}
	}
}

func TestTwoStores(t *testing.T) {
	f := estargzFixture(t, files(3, 300, 20<<10))
	f.blob.rtt = 3 * time.Millisecond
	f.blob.bps = 50e6
	dir := t.TempDir()
	var wg sync.WaitGroup
	layers := make([]*cache.Layer, 3)
	for i := range layers {
		layers[i] = openLayer(t, dir, cache.Options{}, f)
	}
	before := f.blob.got.Load()
	for i, l := range layers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range 200 {
				if err := f.check(t.Context(), l, rnd.Int64N(l.Size()), 50_000); err != nil {
					t.Error(err)
					return
				}
			}
			if err := f.checkAll(t.Context(), l, 1<<20); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	// Small gaps of what is present are fetched again where that spares a
	// request; whole downloads are not.
	if n := f.blob.got.Load() - before; n > f.blob.Size()*11/10 {
		t.Errorf("%d bytes fetched of %d", n, f.blob.Size())
	}
}

func TestWrongBytes(t *testing.T) {
	for name, always := range map[string]bool{"once": false, "always": true} {
		t.Run(name, func(t *testing.T) {
			f := estargzFixture(t, files(4, 50, 50<<10))
			l := openLayer(t, t.TempDir(), cache.Options{}, f)
			f.blob.mu.Lock()
			first := len(f.blob.reads)
			f.blob.corrupt = func(n int, _ int64, p []byte) {
				if always || n == first {
					p[len(p)/2] ^= 1
				}
			}
			f.blob.mu.Unlock()
			err := f.checkAll(t.Context(), l, 64<<10)
			if always != errors.Is(err, layer.ErrDigest) || !always && err != nil {
				t.Error(err)
			}
			f.blob.mu.Lock()
			rejected := f.blob.rejected
			f.blob.corrupt = nil
			f.blob.mu.Unlock()
			if rejected == 0 || l.Stats().Rejected == 0 {
				t.Error("no range was rejected")
			}
			// What was fetched ahead meanwhile fails for those who join it, rightly.
			for l.Flights() > 0 {
				time.Sleep(time.Millisecond)
			}
			if err := f.checkAll(t.Context(), l, 64<<10); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStreamWrongBytes(t *testing.T) {
	for name, lies := range map[string]int{"once": 1, "always": 99} {
		t.Run(name, func(t *testing.T) {
			f := gzipFixture(t, files(5, 50, 50<<10))
			f.blob.corrupt = func(n int, _ int64, p []byte) {
				if n < lies {
					p[len(p)/2] ^= 0x10
				}
			}
			s := openStore(t, t.TempDir(), cache.Options{})
			defer func() { _ = s.Close() }()
			l, err := s.Layer(t.Context(), f.src, nil)
			if lies > 1 {
				if err == nil || f.blob.requests() != 2 {
					t.Errorf("%d requests: %v", f.blob.requests(), err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			if err := f.checkAll(t.Context(), l, 1<<20); err != nil || f.blob.rejected == 0 {
				t.Errorf("%d rejected: %v", f.blob.rejected, err)
			}
		})
	}
}

func TestStreamResumes(t *testing.T) {
	f := gzipFixture(t, files(6, 100, 50<<10))
	half := f.blob.Size() / 2
	broken := errors.New("broken")
	f.blob.fail = func(n int) (int64, error) {
		if n == 0 {
			return half, broken
		}
		return 0, nil
	}
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	if _, err := s.Layer(t.Context(), f.src, nil); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	l := openLayer(t, dir, cache.Options{}, f)
	if err := f.checkAll(t.Context(), l, 1<<20); err != nil {
		t.Error(err)
	}
	if n := f.blob.got.Load(); n > f.blob.Size()+32<<10 {
		t.Errorf("%d bytes fetched of %d", n, f.blob.Size())
	}
	if f.blob.reads[1][0] < half {
		t.Errorf("went on from %d, not %d", f.blob.reads[1][0], half)
	}
}

func TestStreamResumesFromGarbage(t *testing.T) {
	f := gzipFixture(t, files(7, 50, 50<<10))
	dir := t.TempDir()
	path := filepath.Join(dir, "layers", layer.DiffKey(f.src))
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "blob.partial"), bytes.Repeat([]byte{7}, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	l := openLayer(t, dir, cache.Options{}, f)
	if err := f.checkAll(t.Context(), l, 1<<20); err != nil {
		t.Error(err)
	}
	if f.blob.rejected > 0 {
		t.Error("the source was blamed for what was in the file")
	}
}

func TestReboot(t *testing.T) {
	f := estargzFixture(t, files(8, 100, 20<<10))
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.place(t, l)
	if err := f.check(t.Context(), l, 0, l.Size()/2); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, l)
	key := l.Key()
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	// The crash lost some of the data, and not its marks.
	data, err := os.OpenFile(filepath.Join(dir, "layers", key, "data"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := data.WriteAt(make([]byte, 100_000), 200_000); err != nil {
		t.Fatal(err)
	}
	if err := data.Close(); err != nil {
		t.Fatal(err)
	}
	before := f.blob.got.Load()
	l = openLayer(t, dir, cache.WithBoot(cache.Options{}, "another"), f)
	if n := l.Stats().Present; n != 0 {
		t.Errorf("%d chunks trusted", n)
	}
	if err := f.check(t.Context(), l, 0, l.Size()/2); err != nil {
		t.Error(err)
	}
	if n := f.blob.got.Load() - before; n == 0 || n > f.blob.Size()/2 {
		t.Errorf("%d bytes fetched of %d", n, f.blob.Size())
	}
}

func waitIdle(t *testing.T, l *cache.Layer) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); l.Flights() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d chunks still in flight", l.Flights())
		}
	}
}

func TestCancel(t *testing.T) {
	f := estargzFixture(t, files(9, 50, 20<<10))
	dir := t.TempDir()
	l := openLayer(t, dir, cache.Options{}, f)
	f.blob.rtt = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := f.check(ctx, l, 0, 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	// Another process waits for the same chunks, and can be interrupted too.
	other := openLayer(t, dir, cache.Options{}, f)
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := f.check(ctx, other, 0, 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	f := estargzFixture(t, files(10, 50, 20<<10))
	s := openStore(t, t.TempDir(), cache.Options{})
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Layer(t.Context(), f.src, nil)
	if err != nil || again != l {
		t.Fatalf("opened twice: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	f.place(t, l)
	f.blob.rtt = time.Hour
	done := make(chan error)
	for range 4 {
		go func() { done <- f.check(t.Context(), l, 0, 1000) }()
	}
	for l.Flights() == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for range 4 {
		if err := <-done; !errors.Is(err, cache.ErrClosed) {
			t.Error(err)
		}
	}
	if n := s.Budget(); n != 0 {
		t.Errorf("%d bytes of speculation were not given back", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// Those that ended may take a moment to be gone.
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	if _, err := s.Layer(t.Context(), f.src, nil); !errors.Is(err, cache.ErrClosed) {
		t.Error(err)
	}
}

func TestInPlace(t *testing.T) {
	list := files(11, 30, 20<<10)
	f := gzipFixture(t, list)
	for _, base := range []int64{0, 777} {
		path := filepath.Join(t.TempDir(), "layer.tar")
		if err := os.WriteFile(path, append(bytes.Repeat([]byte{1}, int(base)), append(f.data, 1, 2, 3)...), 0o600); err != nil {
			t.Fatal(err)
		}
		g := &fixture{data: f.data, list: list, src: f.src}
		g.src.Desc.MediaType = "application/vnd.oci.image.layer.v1.tar"
		g.src.Desc.Digest, g.src.Desc.Size = f.src.DiffID, int64(len(f.data))
		g.src.Blob = fetch.OpenFile(path, base, int64(len(f.data)), f.src.DiffID)
		dir := t.TempDir()
		l := openLayer(t, dir, cache.Options{}, g)
		if err := g.checkAll(t.Context(), l, 10_000); err != nil {
			t.Error(err)
		}
		if got, ok := l.DataFile(); ok != (base == 0) || ok && got != path {
			t.Errorf("data file %s, %v", got, ok)
		}
		if _, err := os.Stat(filepath.Join(dir, "layers", l.Key(), "data")); err == nil {
			t.Error("the data was copied")
		}
		_ = openLayer(t, dir, cache.Options{}, g) // warm
	}
}

// full is a data file on a full disk.
type full struct {
	cache.DataFile
	on *atomic.Bool
}

func (f full) WriteAt(p []byte, off int64) (int, error) {
	if f.on.Load() {
		return 0, unix.ENOSPC
	}
	return f.DataFile.WriteAt(p, off)
}

func TestDiskFull(t *testing.T) {
	f := estargzFixture(t, files(12, 100, 20<<10))
	var on atomic.Bool
	on.Store(true)
	o := cache.WithData(cache.Options{}, func(d cache.DataFile) cache.DataFile { return full{d, &on} })
	l := openLayer(t, t.TempDir(), o, f)
	for range 2 {
		if err := f.checkAll(t.Context(), l, 50_000); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Stats().Present; n != 0 {
		t.Errorf("%d chunks present", n)
	}
	waitIdle(t, l)
	on.Store(false)
	if err := f.checkAll(t.Context(), l, 50_000); err != nil {
		t.Fatal(err)
	}
	if st := l.Stats(); st.Present != st.Chunks {
		t.Errorf("%d of %d chunks present", st.Present, st.Chunks)
	}
}

func TestDamage(t *testing.T) {
	type layerFiles = func(t *testing.T, dir string)
	truncate := func(name string, n int64) layerFiles {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, name), n); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) layerFiles {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	fixtures := []*fixture{gzipFixture(t, files(13, 40, 20<<10)), estargzFixture(t, files(13, 40, 20<<10))}
	for name, damage := range map[string]layerFiles{
		"no bitmap":      remove("bitmap"),
		"short bitmap":   truncate("bitmap", 5000),
		"no data":        remove("data"),
		"short data":     truncate("data", 70_000),
		"no chunks":      remove("chunks"),
		"short chunks":   truncate("chunks", 100),
		"no index":       remove("index.erofs"),
		"empty index":    truncate("index.erofs", 0),
		"garbage bitmap": garbage,
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range fixtures {
				f := f.again()
				dir := t.TempDir()
				s := openStore(t, dir, cache.Options{})
				l, err := s.Layer(t.Context(), f.src, nil)
				if err != nil {
					t.Fatal(err)
				}
				f.place(t, l)
				if err := f.check(t.Context(), l, 0, l.Size()/2); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(l.Close(), s.Close()); err != nil {
					t.Fatal(err)
				}
				damage(t, filepath.Join(dir, "layers", l.Key()))
				if err := f.checkAll(t.Context(), openLayer(t, dir, cache.Options{}, f), 99_999); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// garbage writes random bytes to the bitmap's marks and flags.
func garbage(t *testing.T, dir string) {
	path := filepath.Join(dir, "bitmap")
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := 72; i < len(p); i++ {
		p[i] = byte(rnd.Uint32())
	}
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}
