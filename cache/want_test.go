package cache_test

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"sync"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/laminafs/lamina/cache"
)

// begun collects what Options.Began is told.
type begun struct {
	mu    sync.Mutex
	times map[int64]int    // by data offset
	heads map[int64][]byte // the last of each
}

func (b *begun) options() cache.Options {
	b.times, b.heads = make(map[int64]int), make(map[int64][]byte)
	return cache.Options{Began: func(_ *cache.Layer, off int64, head []byte) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.times[off]++
		b.heads[off] = bytes.Clone(head)
	}}
}

// expect checks that exactly files list have begun, each once.
func (b *begun) expect(t *testing.T, f *fixture, l *cache.Layer, list ...int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	want := make(map[int64]int)
	for _, i := range list {
		off, data := f.at(t, l, i), f.list[i].data
		want[off] = 1
		if head := b.heads[off]; !bytes.Equal(head, data[:min(64, len(data))]) {
			t.Errorf("file %s at %d: %d bytes that are not its first", f.list[i].name, off, len(head))
		}
	}
	if !maps.Equal(b.times, want) {
		t.Errorf("files have begun at %v, want %v", b.times, want)
	}
}

// wanted is a layer of files without groups, in chunks of 32 KB.
func wanted(t *testing.T) *fixture {
	var list named
	list.add("usrbin/program", 300<<10)
	list.add("usrbin/short", 10)
	list.add("usrbin/library", 320<<10)
	list.add("usrbin/exact", 64<<10)
	list.add("usrbin/one", 20<<10)
	return estargzFixture(t, list, estargz.WithChunkSize(32<<10))
}

// TestWant: small files are fetched whole, of large ones the beginning and the
// end, and nothing else.
func TestWant(t *testing.T) {
	const chunk = 32 << 10
	var list named
	list.add("usrbin/program", 2<<20)
	list.add("usrbin/short", 10)
	list.add("usrbin/library", 320<<10)
	list.add("usrbin/exact", 2*chunk)
	f := estargzFixture(t, list, estargz.WithChunkSize(chunk))
	l := openLayer(t, t.TempDir(), cache.Options{}, f)
	for i, most := range []int{2, 1, 0, 1} { // requests
		if most == 0 {
			continue
		}
		before := f.blob.requests()
		off, n := f.at(t, l, i), int64(len(f.list[i].data))
		l.Want(off, n)
		waitIdle(t, l)
		l.Want(off, n) // it is there
		waitIdle(t, l)
		last := (n - 1) / chunk
		for k := range last + 1 {
			// 500 kB are what the link carries in a round trip.
			if got, want := l.Has(off+k*chunk), (k+1)*(chunk+100) < 500_000 || k == last; got != want {
				t.Errorf("%s: chunk %d of %d: %v", f.list[i].name, k, last, got)
			}
		}
		if got := f.blob.requests() - before; got < 1 || got > most {
			t.Errorf("%s: %d requests", f.list[i].name, got)
		}
	}
	if l.Has(f.at(t, l, 2)) {
		t.Error("a file came that nobody wanted")
	}
	if err := f.checkAll(t.Context(), l, 50_000); err != nil {
		t.Error(err)
	}
}

// TestWantNothing: what makes no sense is ignored.
func TestWantNothing(t *testing.T) {
	f := wanted(t)
	s := openStore(t, t.TempDir(), cache.Options{})
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := f.blob.requests()
	for _, r := range [][2]int64{
		{0, 0},
		{0, -1},
		{-1, 10},
		{0, l.Size() + 1},
		{l.Size(), 1},
		{l.Size() - 1, 2},
		{math.MaxInt64, 1},
		{1, math.MaxInt64},
		{math.MaxInt64, math.MaxInt64},
		{math.MinInt64, math.MinInt64},
		{f.atHole(t, l), 1},
	} {
		l.Want(r[0], r[1])
	}
	waitIdle(t, l)
	if n := f.blob.requests() - before; n != 0 {
		t.Errorf("%d requests", n)
	}
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	l.Want(0, 100)
	if n := f.blob.requests() - before; n != 0 {
		t.Errorf("%d requests after Close", n)
	}
}

// atHole returns a data offset of no chunk: behind the end of the short file.
func (f *fixture) atHole(t *testing.T, l *cache.Layer) int64 {
	t.Helper()
	return f.at(t, l, f.find(t, "usrbin/short")) + 100
}

// TestWantWhileClosing: Want and Close at once.
func TestWantWhileClosing(t *testing.T) {
	f := wanted(t)
	for range 20 {
		var b begun
		s := openStore(t, t.TempDir(), b.options())
		l, err := s.Layer(t.Context(), f.src, nil)
		if err != nil {
			t.Fatal(err)
		}
		size := l.Size()
		var wg sync.WaitGroup
		for g := range int64(4) {
			wg.Go(func() {
				for i := range int64(100) {
					off := (g*100 + i) * 512 % size
					l.Want(off, size-off)
				}
			})
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
}

// TestBegan: told once of each file of which the first chunk is read or wanted.
func TestBegan(t *testing.T) {
	f := wanted(t)
	var b begun
	o := b.options()
	o.Link = linked(f).Link
	f.blob.rtt, f.blob.bps = 0, 0
	l := openLayer(t, t.TempDir(), o, f)
	read := func(i int, off, n int64) {
		t.Helper()
		if err := f.check(t.Context(), l, f.at(t, l, i)+off, n); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
	}
	want := func(i int) {
		l.Want(f.at(t, l, i), int64(len(f.list[i].data)))
		waitIdle(t, l)
	}
	b.expect(t, f, l)
	read(0, 100<<10, 10) // a middle chunk, and the rest comes along
	b.expect(t, f, l)
	read(0, 0, 1)
	b.expect(t, f, l, 0)
	read(0, 0, 300<<10)
	b.expect(t, f, l, 0)
	want(0)
	b.expect(t, f, l, 0)
	want(2)
	b.expect(t, f, l, 0, 2)
	read(2, 310<<10, 100) // the last chunk, which is there
	read(2, 0, 5)         // the first
	read(2, 0, 320<<10)
	want(2)
	b.expect(t, f, l, 0, 2)
	read(1, 0, 10)
	read(1, 3, 5)
	b.expect(t, f, l, 0, 1, 2)
	if err := f.checkAll(t.Context(), l, 10_000); err != nil {
		t.Fatal(err)
	}
	b.expect(t, f, l, 0, 1, 2, 3, 4)
}

// TestBeganTogether: once, though many read and want the file at once.
func TestBeganTogether(t *testing.T) {
	f := wanted(t)
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	off := f.at(t, l, 2)
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			if g%2 == 0 {
				l.Want(off, 320<<10)
			}
			if err := f.check(t.Context(), l, off, 1+int64(g)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	waitIdle(t, l)
	b.expect(t, f, l, 2)
}

// TestBeganAhead: what comes on speculation has not begun until it is read.
func TestBeganAhead(t *testing.T) {
	var list named
	for _, name := range []string{"a.py", "b.py", "c.py"} {
		list.add("dir000/"+name, 4<<10)
	}
	f := estargzFixture(t, list)
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	f.read(t, l, "dir000/b.py")
	if n := len(f.brought(t, l)); n != 3 {
		t.Fatalf("%d files came", n)
	}
	b.expect(t, f, l, 1)
	f.read(t, l, "dir000/c.py")
	f.read(t, l, "dir000/c.py")
	b.expect(t, f, l, 1, 2)
}

// TestBeganUnknown: a layer without a table of contents does not tell files.
func TestBeganUnknown(t *testing.T) {
	f := gzipFixture(t, files(60, 20, 4<<10))
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	if err := f.checkAll(t.Context(), l, 10_000); err != nil {
		t.Fatal(err)
	}
	l.Want(0, l.Size())
	b.expect(t, f, l)
}
