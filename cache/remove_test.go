package cache_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/layer"
)

// openReadClose reads a little of f in a store of its own.
func openReadClose(ctx context.Context, dir string, f *fixture) error {
	s, err := cache.Open(dir, cache.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	g := f.again() // nothing is shared with those who do the same
	l, err := s.Layer(ctx, g.src, nil)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if f.data == nil {
		return l.ReadAt(ctx, make([]byte, 1000), rand.Int64N(l.Size()-1000))
	}
	return f.check(ctx, l, rand.Int64N(l.Size()), 50_000)
}

// removeAll removes all layers that nobody has open, until ctx ends.
func removeAll(ctx context.Context, t *testing.T, dir string) (removed int) {
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	for ctx.Err() == nil {
		all, err := s.Layers()
		if err != nil {
			t.Error(err)
			return removed
		}
		for _, l := range all {
			switch n, err := s.RemoveLayer(ctx, l.Key); {
			case err == nil && n > 0:
				removed++
			case err != nil && !errors.Is(err, cache.ErrInUse) && ctx.Err() == nil:
				t.Error(err)
				return removed
			}
		}
	}
	return removed
}

func TestRemoveLayer(t *testing.T) {
	for name, f := range map[string]*fixture{
		"gzip":     gzipFixture(t, files(80, 20, 20<<10)),
		"estargz":  estargzFixture(t, files(80, 20, 20<<10)),
		"in place": tarFixture(t, files(80, 20, 20<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			key := makeLayer(t, dir, f)
			other := makeLayer(t, dir, gzipFixture(t, files(81, 2, 1000)))
			s := openStore(t, dir, cache.Options{})
			defer func() { _ = s.Close() }()
			disk := filesOnDisk(t, filepath.Join(dir, "layers", key))
			for _, want := range []int64{disk, 0} { // the second time there is none
				if n, err := s.RemoveLayer(t.Context(), key); err != nil || n != want {
					t.Fatalf("%d bytes freed, not %d: %v", n, want, err)
				}
			}
			if entries, err := os.ReadDir(filepath.Join(dir, "layers")); err != nil || len(entries) != 1 || entries[0].Name() != other {
				t.Errorf("%v are left: %v", entries, err)
			}
			l := openLayer(t, dir, cache.Options{}, f)
			if err := f.checkAll(t.Context(), l, 30_000); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRemoveRefuses(t *testing.T) {
	f := estargzFixture(t, files(82, 20, 20<<10))
	dir := t.TempDir()
	held := map[string]bool{}
	s := openStore(t, dir, cache.Options{Held: func() (map[string]bool, error) { return held, nil }})
	defer func() { _ = s.Close() }()
	other := openStore(t, dir, cache.Options{})
	defer func() { _ = other.Close() }()
	l, err := other.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.place(t, l)
	refused := func(what string) {
		t.Helper()
		if n, err := s.RemoveLayer(t.Context(), l.Key()); !errors.Is(err, cache.ErrInUse) || n != 0 {
			t.Errorf("%s: %d bytes freed: %v", what, n, err)
		}
		if !s.Has(l.Key()) {
			t.Fatalf("%s: gone", what)
		}
	}
	refused("open")
	if err := f.checkAll(t.Context(), l, 30_000); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	held[l.Key()] = true
	refused("held")
	clear(held)
	if n, err := s.RemoveLayer(t.Context(), l.Key()); err != nil || n == 0 {
		t.Errorf("%d bytes freed: %v", n, err)
	}
	for _, name := range []string{"", ".", "..", "../locks", "/", ".removed-1"} {
		if _, err := s.RemoveLayer(t.Context(), name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("layer %q: %v", name, err)
		}
		if _, err := s.RemoveChain(t.Context(), name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("chain %q: %v", name, err)
		}
	}
}

// TestRemoveProcess: a layer that another process has open stays until that is
// killed.
func TestRemoveProcess(t *testing.T) {
	j := jobOf(t, estargzFixture(t, files(83, 40, 40<<10)))
	j.Pause = 20 * time.Millisecond
	p := j.start(t, 1)
	if line, err := p.out.ReadString('\n'); err != nil || line != "open\n" {
		t.Fatalf("%q, %v", line, err)
	}
	s := openStore(t, j.Store, cache.Options{})
	defer func() { _ = s.Close() }()
	all, err := s.Layers()
	if err != nil || len(all) != 1 {
		t.Fatalf("%d layers: %v", len(all), err)
	}
	if _, err := s.RemoveLayer(t.Context(), all[0].Key); !errors.Is(err, cache.ErrInUse) {
		t.Error(err)
	}
	p.kill()
	if n, err := s.RemoveLayer(t.Context(), all[0].Key); err != nil || n == 0 {
		t.Errorf("%d bytes freed: %v", n, err)
	}
}

// TestRemoveMade: a layer that is being made is in use, and nobody waits for it.
func TestRemoveMade(t *testing.T) {
	f := gzipFixture(t, files(84, 20, 20<<10))
	f.blob.rtt = time.Hour
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		s := openStore(t, dir, cache.Options{})
		defer func() { _ = s.Close() }()
		if _, err := s.Layer(ctx, f.src, nil); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	partial := filepath.Join(dir, "layers", layer.DiffKey(f.src), "blob.partial")
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(partial); err == nil {
			break
		}
	}
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	if _, err := s.RemoveLayer(t.Context(), layer.DiffKey(f.src)); !errors.Is(err, cache.ErrInUse) {
		t.Error(err)
	}
	cancel()
	wg.Wait()
	if _, err := s.RemoveLayer(t.Context(), layer.DiffKey(f.src)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(partial)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what was downloaded is still there")
	}
}

// TestRemoveInterrupted: the next removal ends one that was killed, and leaves one
// that is at work.
func TestRemoveInterrupted(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	for _, kind := range []string{"layers", "chains"} {
		killed, working := filepath.Join(dir, kind, ".removed-1"), filepath.Join(dir, kind, ".removed-2")
		for _, path := range []string{killed, working} {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(path, "data"), []byte("data"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		lock, err := os.Open(working)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		remove := s.RemoveLayer
		if kind == "chains" {
			remove = s.RemoveChain
		}
		if n, err := remove(t.Context(), "none"); err != nil || n != 0 {
			t.Errorf("%d bytes freed: %v", n, err)
		}
		if _, err := os.Stat(killed); err == nil {
			t.Errorf("%s is still there", killed)
		}
		if _, err := os.Stat(filepath.Join(working, "data")); err != nil {
			t.Errorf("not left alone: %v", err)
		}
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := s.Layers(); err != nil || len(all) != 0 {
		t.Errorf("%d layers: %v", len(all), err)
	}
}

// TestRemoveMeanwhile: layers are removed all the time while others open and read
// them.
func TestRemoveMeanwhile(t *testing.T) {
	for name, f := range map[string]*fixture{
		"gzip":    gzipFixture(t, files(85, 20, 20<<10)),
		"estargz": estargzFixture(t, files(85, 20, 20<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			_ = openLayer(t, t.TempDir(), cache.Options{}, f)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					for ctx.Err() == nil {
						if err := openReadClose(ctx, dir, f); err != nil && ctx.Err() == nil {
							t.Error(err)
							return
						}
					}
				})
			}
			for range 2 {
				wg.Go(func() { t.Logf("%d removed", removeAll(ctx, t, dir)) })
			}
			wg.Wait()
		})
	}
}

func TestRemoveChain(t *testing.T) {
	f := gzipFixture(t, files(86, 10, 1000))
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for range 2 {
		c, err := s.Chain(t.Context(), []*cache.Layer{l})
		if err != nil {
			t.Fatal(err)
		}
		disk := filesOnDisk(t, filepath.Dir(c.Path))
		other := openStore(t, dir, cache.Options{})
		if _, err := other.RemoveChain(t.Context(), c.ID); !errors.Is(err, cache.ErrInUse) {
			t.Error(err)
		}
		if err := errors.Join(other.Close(), c.Close()); err != nil {
			t.Fatal(err)
		}
		if n, err := s.RemoveChain(t.Context(), c.ID); err != nil || n != disk || n == 0 {
			t.Errorf("%d bytes freed, not %d: %v", n, disk, err)
		}
		if _, err := os.Stat(c.Path); err == nil {
			t.Error("still there")
		}
	}
}

// TestDropData: data is decoded again when it is read, and is not taken away from who
// has the layer open.
func TestDropData(t *testing.T) {
	for name, f := range map[string]*fixture{
		"gzip":     gzipFixture(t, files(83, 20, 20<<10)),
		"estargz":  estargzFixture(t, files(83, 20, 20<<10)),
		"in place": tarFixture(t, files(83, 20, 20<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			key := makeLayer(t, dir, f)
			other := openStore(t, dir, cache.Options{})
			l, err := other.Layer(t.Context(), f.src, nil)
			if err != nil {
				t.Fatal(err)
			}
			f.place(t, l)
			if err := f.checkAll(t.Context(), l, 30_000); err != nil {
				t.Fatal(err)
			}
			held := map[string]bool{key: true}
			s := openStore(t, dir, cache.Options{Held: func() (map[string]bool, error) { return held, nil }})
			defer func() { _ = s.Close() }()
			if n, err := s.DropData(t.Context(), key); !errors.Is(err, cache.ErrInUse) || n != 0 {
				t.Fatalf("%d bytes freed of a layer that is open: %v", n, err)
			}
			if err := errors.Join(l.Close(), other.Close()); err != nil {
				t.Fatal(err)
			}
			if n, err := s.DropData(t.Context(), key); err != nil || n != 0 {
				t.Fatalf("%d bytes freed of a layer that is held: %v", n, err)
			}
			clear(held)
			before := filesOnDisk(t, filepath.Join(dir, "layers", key))
			n, err := s.DropData(t.Context(), key)
			if after := filesOnDisk(t, filepath.Join(dir, "layers", key)); err != nil || n != before-after || n == 0 && name != "in place" {
				t.Errorf("%d bytes freed of %d, %d are left: %v", n, before, after, err)
			}
			if err := f.checkAll(t.Context(), openLayer(t, dir, cache.Options{}, f), 30_000); err != nil {
				t.Errorf("opened again: %v", err)
			}
		})
	}
	s := openStore(t, t.TempDir(), cache.Options{})
	defer func() { _ = s.Close() }()
	if _, err := s.DropData(t.Context(), "../x"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a key that is none: %v", err)
	}
}
