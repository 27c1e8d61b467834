package cache_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/laminafs/lamina/cache"
)

// begun collects what Options.Began is told.
type begun struct {
	mu   sync.Mutex
	all  map[int64][]cache.Begun // by data offset
	sure map[int64]bool          // what was said of the last of each
}

func (b *begun) options() cache.Options {
	b.all, b.sure = make(map[int64][]cache.Begun), make(map[int64]bool)
	return cache.Options{Began: func(_ *cache.Layer, f cache.Begun) {
		b.mu.Lock()
		defer b.mu.Unlock()
		f.Head = bytes.Clone(f.Head)
		b.all[f.Off] = append(b.all[f.Off], f)
		b.sure[f.Off] = f.Sure
	}}
}

func (b *begun) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.all)
}

// expect checks that exactly files list have begun, each once.
func (b *begun) expect(t *testing.T, f *fixture, l *cache.Layer, list ...int) {
	t.Helper()
	// Who waits for a chunk may be served a moment before we are told of it.
	for end := time.Now().Add(5 * time.Second); b.count() < len(list) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	want := make(map[int64]bool)
	for _, i := range list {
		off, data := f.at(t, l, i), f.list[i].data
		want[off] = true
		for _, got := range b.all[off] {
			if got.Len != int64(len(data)) || !bytes.Equal(got.Head, data[:min(64, len(data))]) {
				t.Errorf("file %s of %d bytes: told of %d bytes that begin with %x", f.list[i].name, len(data), got.Len, got.Head)
			}
		}
	}
	for off, told := range b.all {
		if !want[off] || len(told) != 1 {
			t.Errorf("told %d times of what is at %d", len(told), off)
		}
	}
	if len(b.all) != len(want) {
		t.Errorf("%d files have begun, want %d", len(b.all), len(want))
	}
}

// isSure tells what Began was told of file i, which has begun.
func (b *begun) isSure(t *testing.T, f *fixture, l *cache.Layer, i int) bool {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	sure, ok := b.sure[f.at(t, l, i)]
	if !ok {
		t.Errorf("file %s has not begun", f.list[i].name)
	}
	return sure
}

// TestBegan: told once of each file of which the first chunk is read or wanted,
// with all of its length.
func TestBegan(t *testing.T) {
	f := wanted(t)
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	read := func(i int, off, n int64) {
		t.Helper()
		if err := f.check(t.Context(), l, f.at(t, l, i)+off, n); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
	}
	want := func(i int) {
		l.Want(f.ends(t, l, i))
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

// TestBeganSure: sure is what is read, or was wished for as such, be it that the
// chunk is on its way already; and what is only likely may come to be read.
func TestBeganSure(t *testing.T) {
	var list named
	for i := range 4 {
		list.add(fmt.Sprintf("bin/f%d", i), 40<<10)
	}
	f := estargzFixture(t, list, estargz.WithChunkSize(32<<10))
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	want := func(i int, sure ...bool) {
		t.Helper()
		f.blob.rtt = 20 * time.Millisecond
		for _, sure := range sure {
			l.Want(f.wish(t, l, i, sure))
		}
		waitIdle(t, l)
	}
	want(0, false)
	b.expect(t, f, l, 0)
	want(1, true)
	b.expect(t, f, l, 0, 1)
	want(2, false, true)
	f.read(t, l, list[3].name)
	b.expect(t, f, l, 0, 1, 2, 3)
	for i, want := range []bool{false, true, true, true} {
		if got := b.isSure(t, f, l, i); got != want {
			t.Errorf("%s: sure %v", list[i].name, got)
		}
	}
	f.read(t, l, list[0].name)
	b.expect(t, f, l, 0, 1, 2, 3) // once is enough
}

// TestBeganOnItsWay: what is wished for while it comes on speculation has begun
// when it is there, as what is wished for before.
func TestBeganOnItsWay(t *testing.T) {
	var list named
	for _, name := range []string{"a.py", "b.py", "c.py"} {
		list.add("dir000/"+name, 4<<10)
	}
	f := estargzFixture(t, list)
	f.blob.rtt = 50 * time.Millisecond
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.check(t.Context(), l, f.at(t, l, 1), 10); err != nil {
			t.Error(err)
		}
	})
	for l.Flights() < 3 {
		time.Sleep(time.Millisecond)
	}
	l.Want(f.wish(t, l, 2, false))
	wg.Wait()
	waitIdle(t, l)
	b.expect(t, f, l, 1, 2)
	if b.isSure(t, f, l, 2) {
		t.Error("the wish was not sure")
	}
}

// TestBeganOrderly: who reads file after file in the order of the blob, and has
// gone on from folder to folder, is told of to nobody; who reads the same files
// here and there is.
func TestBeganOrderly(t *testing.T) {
	var list named
	for i := range 100 {
		list.add(fmt.Sprintf("dir%03d/f%02d.so", i/20, i%20), 8<<10)
	}
	f := estargzFixture(t, list)
	order := rand.New(rand.NewPCG(6, 6)).Perm(len(list))
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	// Not all of them: who has read most of a layer reads in order what is left.
	for _, i := range order[:50] {
		f.read(t, l, list[i].name)
	}
	b.expect(t, f, l, order[:50]...)

	var c begun
	f = f.again()
	l = openLayer(t, t.TempDir(), c.options(), f)
	for i := range list {
		f.read(t, l, list[i].name)
	}
	// The first folder, for he may be one who reads no more than that, and two
	// files more: it takes as many to be believed.
	told := make([]int, 22)
	for i := range told {
		told[i] = i
	}
	c.expect(t, f, l, told...)
	// A wish is none of his, but in the way all the same.
	f = f.again()
	l = openLayer(t, t.TempDir(), c.options(), f)
	for i := range list[:41] {
		f.read(t, l, list[i].name)
	}
	l.Want(f.wish(t, l, 99, true))
	waitIdle(t, l)
	if !l.Has(f.at(t, l, 99)) {
		t.Error("the wish did not come true")
	}
	c.expect(t, f, l, told...)
}

// TestBeganAfterOrderly: who reads here and there after somebody who read in
// order is believed after some reads.
func TestBeganAfterOrderly(t *testing.T) {
	const most = 10
	var list named
	for i := range 60 {
		list.add(fmt.Sprintf("dir%03d/f%02d.so", i/20, i%20), 8<<10)
	}
	for i := range most { // so far apart that nobody reads them in one go
		list.add(fmt.Sprintf("bin/program%d", i), 8<<10)
		list.add(fmt.Sprintf("dir003/data%d", i), 600<<10)
	}
	f := estargzFixture(t, list)
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	for i := range 60 {
		f.read(t, l, list[i].name)
	}
	n := b.count()
	for i := range most {
		f.read(t, l, fmt.Sprintf("bin/program%d", (i*3)%most))
	}
	if b.count() == n {
		t.Errorf("nobody was told of %d programs", most)
	}
}

// TestBeganTogether: once, though many read and want the file at once.
func TestBeganTogether(t *testing.T) {
	f := wanted(t)
	f.blob.rtt = 5 * time.Millisecond
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	off := f.at(t, l, 2)
	var wg sync.WaitGroup
	for g := range 10 {
		wg.Go(func() {
			if g%2 == 0 {
				l.Want(f.ends(t, l, 2))
			}
			if err := f.check(t.Context(), l, off, 1+int64(g)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	waitIdle(t, l)
	b.expect(t, f, l, 2)
	if !b.isSure(t, f, l, 2) {
		t.Error("it is not sure")
	}
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

// TestBeganUnknown: a layer without a table of contents does not tell files, nor
// when it is fetched again.
func TestBeganUnknown(t *testing.T) {
	f := gzipFixture(t, files(60, 20, 4<<10))
	var b begun
	dir := t.TempDir()
	l := openLayer(t, dir, b.options(), f)
	for range 2 {
		if err := f.checkAll(t.Context(), l, 10_000); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, dir, cache.Options{Limit: 1})
		var err error
		// What a run has locked, a moment longer than it needs, is evicted later.
		for end := time.Now().Add(5 * time.Second); l.Stats().Present > 0 && time.Now().Before(end); {
			err = s.Evict()
		}
		if err = errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.Stats().Present; n != 0 {
		t.Errorf("%d chunks were not evicted", n)
	}
	l.Want(cache.Wish{Len: l.Size(), Sure: true})
	waitIdle(t, l)
	if n := l.Stats().Present; n == 0 {
		t.Error("nothing came of the wish")
	}
	b.expect(t, f, l)
}

// TestCame: every chunk that comes and begins no file is shown once, as it is.
func TestCame(t *testing.T) {
	f := wanted(t)
	var mu sync.Mutex
	shown := map[int64][]byte{}
	o := instant(f)
	o.Came = func(_ *cache.Layer, off int64, p []byte) {
		mu.Lock()
		defer mu.Unlock()
		if shown[off] != nil {
			t.Errorf("%d: again", off)
		}
		shown[off] = bytes.Clone(p)
	}
	l := openLayer(t, t.TempDir(), o, f)
	for range 2 {
		if err := f.check(t.Context(), l, f.at(t, l, 0)+100<<10, 10); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
	}
	if len(shown) == 0 {
		t.Error("nothing shown")
	}
	begin, data := f.at(t, l, 0), f.list[0].data
	for off, p := range shown {
		if off <= begin || off >= begin+int64(len(data)) || !bytes.HasPrefix(data[off-begin:], p) {
			t.Errorf("%d: %d bytes that are not its own", off, len(p))
		}
	}
}
