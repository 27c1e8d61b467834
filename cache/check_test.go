package cache_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/laminafs/lamina/cache"
)

// checkStore checks the store in dir and returns its problems.
func checkStore(t *testing.T, dir string, o cache.Options, repair bool) []cache.Problem {
	t.Helper()
	s := openStore(t, dir, o)
	defer func() { _ = s.Close() }()
	var last, total int64
	found, err := s.Check(t.Context(), cache.CheckOptions{Repair: repair, Progress: func(n, of int64) {
		if n < last || n > of {
			t.Errorf("progress %d of %d after %d", n, of, last)
		}
		last, total = n, of
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != total {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	for _, p := range found {
		if p.Object == "" || p.What == "" || p.Repaired && (p.Err != nil || !repair) || !repair && p.Err != nil {
			t.Errorf("%+v", p)
		}
	}
	return found
}

// flip changes n bytes of the file at path from off on.
func flip(t *testing.T, path string, off, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, n)
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] ^= 0x55
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func TestCheckClean(t *testing.T) {
	dir := t.TempDir()
	holes, _ := sparseTar(t)
	for _, f := range []*fixture{
		gzipOf(t, holes), gzipFixture(t, files(90, 30, 30<<10)), estargzFixture(t, files(91, 30, 30<<10)), tarFixture(t, files(92, 30, 30<<10)),
	} {
		makeLayer(t, dir, f)
	}
	// One that is not complete, and one that is not made.
	f := estargzFixture(t, files(93, 30, 30<<10))
	l := openLayer(t, dir, cache.Options{}, f)
	if err := f.check(t.Context(), l, f.at(t, l, 3), 10); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "layers", strings.Repeat("0", 64)), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]cache.Options{"now": {}, "restarted": cache.WithBoot(cache.Options{}, "another")} {
		if found := checkStore(t, dir, o, true); len(found) != 0 {
			t.Errorf("%s: %+v", name, found)
		}
	}
	if !l.Has(f.at(t, l, 3)) {
		t.Error("what was present is not any more")
	}
}

// TestCheckChunks: wrong bytes are found, and repaired while the layer is read,
// whether it is held or not.
func TestCheckChunks(t *testing.T) {
	for name, make := range map[string]func(testing.TB, []file) *fixture{
		"gzip":    gzipFixture,
		"estargz": func(t testing.TB, list []file) *fixture { return estargzFixture(t, list) },
	} {
		for _, held := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				f := make(t, files(94, 60, 40<<10))
				dir := t.TempDir()
				key := makeLayer(t, dir, f)
				l := openLayer(t, dir, cache.Options{}, f)
				if held {
					if _, ok := l.DataFile(); !ok {
						t.Fatal("not whole")
					}
				}
				data := filepath.Join(dir, "layers", key, "data")
				at := f.at(t, l, 10)
				flip(t, data, at+100, 3)
				disk := filesOnDisk(t, filepath.Dir(data))
				if found := checkStore(t, dir, cache.Options{}, false); len(found) != 1 || found[0].Repaired ||
					found[0].Object != filepath.Join("layers", key, "data") {
					t.Fatalf("%+v", found)
				}
				if !l.Has(at) || !l.Complete() {
					t.Error("repaired without being told to")
				}
				if found := checkStore(t, dir, cache.Options{}, true); len(found) != 1 || !found[0].Repaired {
					t.Fatalf("%+v", found)
				}
				if l.Has(at) || l.Complete() || !l.Has(f.at(t, l, 59)) {
					t.Errorf("chunk present %v, layer complete %v, another chunk present %v", l.Has(at), l.Complete(), l.Has(f.at(t, l, 59)))
				}
				if n := filesOnDisk(t, filepath.Dir(data)); held != (n == disk) {
					t.Errorf("%d bytes of %d left on the disk", n, disk)
				}
				before := f.blob.requests()
				if err := f.checkAll(t.Context(), l, 64<<10); err != nil {
					t.Error(err)
				}
				if n := f.blob.requests() - before; n != 1 {
					t.Errorf("%d requests for one chunk", n)
				}
				if found := checkStore(t, dir, cache.Options{}, true); len(found) != 0 {
					t.Errorf("%+v", found)
				}
				if !sameFile(t, data, f.data) {
					t.Error("the data file is not right again")
				}
			})
		}
	}
}

// TestCheckManyChunks: damage is reported by the range, and what a data file that
// was cut short lost is damage.
func TestCheckManyChunks(t *testing.T) {
	f := estargzFixture(t, files(95, 60, 40<<10))
	dir := t.TempDir()
	key := makeLayer(t, dir, f)
	l := openLayer(t, dir, cache.Options{}, f)
	data := filepath.Join(dir, "layers", key, "data")
	flip(t, data, f.at(t, l, 10), f.at(t, l, 20)-f.at(t, l, 10))
	if err := os.Truncate(data, f.at(t, l, 50)); err != nil {
		t.Fatal(err)
	}
	if found := checkStore(t, dir, cache.Options{}, true); len(found) != 3 || !found[0].Repaired || !found[1].Repaired || !found[2].Repaired {
		t.Fatalf("%+v", found)
	}
	if err := f.checkAll(t.Context(), l, 64<<10); err != nil {
		t.Error(err)
	}
	waitIdle(t, l)
	if found := checkStore(t, dir, cache.Options{}, true); len(found) != 0 {
		t.Errorf("%+v", found)
	}
	if err := f.checkAll(t.Context(), openLayer(t, dir, cache.Options{}, f), 64<<10); err != nil {
		t.Error(err)
	}
}

// TestCheckFiles: every file of a layer damaged in some way.
func TestCheckFiles(t *testing.T) {
	made := gzipFixture(t, files(96, 30, 30<<10))
	for _, x := range []struct {
		name, file string
		damage     func(t *testing.T, path string)
		removed    bool // what is left is not enough
		mapped     bool // those who have it open would be killed
	}{
		{"short index", "index.erofs", cut(100), true, true},
		{"no index", "index.erofs", cut(0), true, true},
		{"index superblock", "index.erofs", flipped(1024, 4), true, false},
		{"index inodes", "index.erofs", flipped(2048, 2048), true, false},
		{"short table", "chunks", cut(300), true, true},
		{"table header", "chunks", flipped(20, 1), true, false},
		{"table records", "chunks", flipped(300, 1), true, false},
		{"lost table", "chunks", lost, true, false},
		{"lost data", "data", lost, true, false},
		{"bitmap header", "bitmap", flipped(3, 1), false, false},
		{"short bitmap", "bitmap", cut(1000), false, true},
		{"lost bitmap", "bitmap", lost, false, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			f := made.again()
			dir := t.TempDir()
			key := makeLayer(t, dir, f)
			object := filepath.Join("layers", key, x.file)
			if !x.mapped {
				s := openStore(t, dir, cache.Options{})
				defer func() { _ = s.Close() }()
				l, err := s.Layer(t.Context(), f.src, nil)
				if err != nil {
					t.Fatal(err)
				}
				x.damage(t, filepath.Join(dir, object))
				found := checkStore(t, dir, cache.Options{}, true)
				if len(found) != 1 || found[0].Object != object {
					t.Fatalf("open: %+v", found)
				}
				inPlace := x.name == "bitmap header"
				if found[0].Repaired != inPlace || errors.Is(found[0].Err, cache.ErrInUse) == inPlace {
					t.Errorf("open: %+v", found)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if inPlace {
					x.damage(t, filepath.Join(dir, object))
				}
			} else {
				x.damage(t, filepath.Join(dir, object))
			}
			for _, repair := range []bool{false, true} {
				found := checkStore(t, dir, cache.Options{}, repair)
				if len(found) != 1 || found[0].Object != object || found[0].Repaired != repair {
					t.Fatalf("repair %v: %+v", repair, found)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, "layers", key)); errors.Is(err, fs.ErrNotExist) != x.removed {
				t.Errorf("layer removed: %v, want %v", err, x.removed)
			}
			if found := checkStore(t, dir, cache.Options{}, true); len(found) != 0 {
				t.Errorf("again: %+v", found)
			}
			before := f.blob.requests()
			l := openLayer(t, dir, cache.Options{}, f)
			if err := f.checkAll(t.Context(), l, 64<<10); err != nil {
				t.Error(err)
			}
			if n := f.blob.requests() - before; x.removed != (n > 0) {
				t.Errorf("%d requests", n)
			}
		})
	}
}

func cut(n int64) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
	}
}

func flipped(off, n int64) func(*testing.T, string) {
	return func(t *testing.T, path string) { flip(t, path, off, min(n, size(t, path)-off)) }
}

func lost(t *testing.T, path string) {
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestCheckChain(t *testing.T) {
	f := gzipFixture(t, files(97, 10, 1000))
	dir := t.TempDir()
	l := openLayer(t, dir, cache.Options{}, f)
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	c, err := s.Chain(t.Context(), []*cache.Layer{l})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, c.Path, 2048, size(t, c.Path)-2048)
	for _, repair := range []bool{false, true} {
		found := checkStore(t, dir, cache.Options{}, repair)
		if len(found) != 1 || found[0].Object != filepath.Join("chains", c.ID, "merged.erofs") || found[0].Repaired != repair {
			t.Fatalf("repair %v: %+v", repair, found)
		}
	}
	if c, err = s.Chain(t.Context(), []*cache.Layer{l}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if found := checkStore(t, dir, cache.Options{}, true); len(found) != 0 {
		t.Errorf("again: %+v", found)
	}
}

// TestCheckStrays: what lamina left behind goes, what others put there stays.
func TestCheckStrays(t *testing.T) {
	f := gzipFixture(t, files(98, 5, 1000))
	dir := t.TempDir()
	key := makeLayer(t, dir, f)
	ours := map[string]bool{
		"layers/.removed-1/data":        true,
		"layers/" + key + "/.chunks-17": true,
		"layers/" + key + "/.index-17":  true,
		"chains/.removed-1/x":           true,
		"chains/0/.index-1":             true,
		"layers/notes":                  false,
		"layers/.hidden/x":              false,
		"layers/" + key + "/data.bak":   false,
		"chains/0/more":                 false,
	}
	for name := range ours {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if found := checkStore(t, dir, cache.Options{}, false); len(found) != len(ours) {
		t.Errorf("%d problems, not %d: %+v", len(found), len(ours), found)
	}
	for _, p := range checkStore(t, dir, cache.Options{}, true) {
		mine := false
		for name, our := range ours {
			mine = mine || our && strings.HasPrefix(name, p.Object)
		}
		if p.Repaired != mine || (p.Err == nil) != mine {
			t.Errorf("%+v", p)
		}
	}
	for name, our := range ours {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) != our {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCheckMeanwhile: nothing that others do is a problem, and no repair hurts
// them.
func TestCheckMeanwhile(t *testing.T) {
	f := estargzFixture(t, files(99, 40, 40<<10))
	dir := t.TempDir()
	o := cache.Options{Limit: 600 << 10}
	l := openLayer(t, dir, o, f)
	passing := gzipFixture(t, files(100, 10, 20<<10))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for off := int64(0); ctx.Err() == nil; off = (off + 30_000) % l.Size() {
			if err := f.check(ctx, l, off, 30_000); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := openReadClose(ctx, dir, passing); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	})
	wg.Go(func() { removeAll(ctx, t, dir) })
	wg.Go(func() {
		s := openStore(t, dir, o)
		defer func() { _ = s.Close() }()
		for ctx.Err() == nil {
			if err := s.Evict(); err != nil && !errors.Is(err, cache.ErrLocked) {
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	rounds := 0
	for ; ctx.Err() == nil; rounds++ {
		if found := checkStore(t, dir, o, true); len(found) != 0 {
			t.Fatalf("round %d: %+v", rounds, found)
		}
	}
	t.Logf("%d rounds", rounds)
}

// TestCheckRepairMeanwhile: bytes go wrong and are repaired again and again, in a
// layer that others read. Once repaired, nobody reads wrong bytes.
func TestCheckRepairMeanwhile(t *testing.T) {
	f := estargzFixture(t, files(101, 20, 40<<10))
	dir := t.TempDir()
	key := makeLayer(t, dir, f)
	l := openLayer(t, dir, cache.Options{}, f)
	data := filepath.Join(dir, "layers", key, "data")
	from, until := f.at(t, l, 8), f.at(t, l, 9)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, off := range []int64{0, until} { // on both sides of the damage
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := f.check(ctx, l, off, min(from, l.Size()-until)); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		if err := f.check(t.Context(), l, from, until-from); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
		flip(t, data, from, 10)
		if found := checkStore(t, dir, cache.Options{}, true); len(found) != 1 || !found[0].Repaired {
			t.Fatalf("%+v", found)
		}
	}
}

func TestCheckCancel(t *testing.T) {
	dir := t.TempDir()
	makeLayer(t, dir, gzipFixture(t, files(102, 10, 20<<10)))
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Check(ctx, cache.CheckOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
