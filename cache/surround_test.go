package cache_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/laminafs/lamina/cache"
)

// noise returns n bytes that do not compress, so that sizes in the blob are known.
func noise(seed, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1}).Read(p)
	return p
}

// named makes files of given names and sizes.
type named []file

func (n *named) add(name string, size int) {
	*n = append(*n, file{name, noise(len(*n), size)})
}

// brought lists the files that begin with a chunk that is present.
func (f *fixture) brought(t *testing.T, l *cache.Layer) map[string]bool {
	t.Helper()
	have := make(map[string]bool)
	for i, x := range f.list {
		if len(x.data) > 0 && l.Has(f.at(t, l, i)) {
			have[x.name] = true
		}
	}
	return have
}

func (f *fixture) find(t *testing.T, name string) int {
	t.Helper()
	for i, x := range f.list {
		if x.name == name {
			return i
		}
	}
	t.Fatalf("no file %s", name)
	return 0
}

// read reads the file called name, and waits for what comes with it.
func (f *fixture) read(t *testing.T, l *cache.Layer, name string) {
	t.Helper()
	i := f.find(t, name)
	if err := f.check(t.Context(), l, f.at(t, l, i), int64(len(f.list[i].data))); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, l)
}

// modules is a folder of small .py files in runs of twenty, parted by what is not
// to be fetched with them and too large to be fetched for nothing.
func modules() (list named) {
	for run := range 8 {
		for i := range 20 {
			list.add(fmt.Sprintf("dir000/m%d-%02d.py", run, i), 4<<10)
			if i == 19 {
				list.add(fmt.Sprintf("dir000/large%02d.py", run), 140<<10)
			}
		}
		for i := range 3 {
			list.add(fmt.Sprintf("dir000/t%02d%d.txt", run, i), 20<<10)
		}
	}
	for i := range 20 {
		list.add(fmt.Sprintf("dir001/other%d.py", i), 40<<10)
	}
	return list
}

// TestSurround: what comes with a miss is small, and of the folder and suffix
// of what was missed; each of them that is read brings more.
func TestSurround(t *testing.T) {
	f := estargzFixture(t, modules())
	const trip = 250_000
	l := openLayer(t, t.TempDir(), cache.Options{
		Link: func() (time.Duration, float64) { return 10 * time.Millisecond, 100 * trip },
	}, f)
	before, last := 0, 0
	for n, name := range []string{"dir000/m3-10.py", "dir000/m6-10.py", "dir000/m0-00.py"} {
		if l.Has(f.at(t, l, f.find(t, name))) {
			t.Fatalf("%s is there already", name)
		}
		f.read(t, l, name)
		have := f.brought(t, l)
		for name := range have {
			if !strings.HasPrefix(name, "dir000/m") {
				t.Errorf("read %d brought %s", n, name)
			}
		}
		got := len(have) - before
		before = len(have)
		t.Logf("read %d brought %d files", n, got)
		switch {
		case n == 0 && (got < 10 || got > trip/2/4096):
			t.Errorf("the first read brought %d files", got)
		case n == 1 && got <= last:
			t.Errorf("the second read brought %d files, the first %d", got, last)
		case n == 2 && got < 5:
			t.Errorf("the third read brought %d files", got)
		}
		last = got
	}
	if err := f.checkAll(t.Context(), l, 50_000); err != nil {
		t.Error(err)
	}
}

// TestSurroundAlone: programs and libraries with a version bring none.
func TestSurroundAlone(t *testing.T) {
	var list named
	for i := range 30 {
		list.add(fmt.Sprintf("bin/tool%d", i), 4<<10)
		list.add(fmt.Sprintf("bin/lib%d.so.1", i), 4<<10)
	}
	f := estargzFixture(t, list)
	l := openLayer(t, t.TempDir(), linked(f), f)
	for n, name := range []string{"bin/tool12", "bin/lib20.so.1"} {
		f.read(t, l, name)
		if have := f.brought(t, l); len(have) != n+1 {
			t.Errorf("%s brought %v", name, have)
		}
	}
}

// TestSurroundFile: what is near in the same file comes along, what follows behind
// what is waited for in the same request.
func TestSurroundFile(t *testing.T) {
	var list named
	list.add("bin/before", 100<<10)
	list.add("bin/program", 400<<10)
	list.add("bin/after", 100<<10)
	f := estargzFixture(t, list, estargz.WithChunkSize(32<<10))
	l := openLayer(t, t.TempDir(), linked(f), f)
	requests := f.blob.requests()
	off := f.at(t, l, 1)
	if err := f.check(t.Context(), l, off+40<<10, 10); err != nil { // its second chunk
		t.Fatal(err)
	}
	waitIdle(t, l)
	for i := range int64(400 / 32) {
		// A half of what a round trip carries, 500 kB, and the chunk before.
		if got, want := l.Has(off+i*32<<10), i < 9; got != want {
			t.Errorf("chunk %d: %v", i, got)
		}
	}
	if have := f.brought(t, l); len(have) != 1 || !have["bin/program"] {
		t.Errorf("it brought %v", have)
	}
	if n := f.blob.requests() - requests; n != 2 {
		t.Errorf("%d requests", n)
	}
	// Of a long file more comes along, the more of it was read.
	list = nil
	list.add("bin/huge", 8<<20)
	f = estargzFixture(t, list, estargz.WithChunkSize(32<<10))
	l = openLayer(t, t.TempDir(), linked(f), f)
	if err := f.check(t.Context(), l, 0, 10); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, l)
	first := l.Stats().Speculated
	if first < 150<<10 || first > 250_000 {
		t.Errorf("%d bytes of speculation", first)
	}
	for i := range int64(8) { // what came along is read now, and so is evidence
		if err := f.check(t.Context(), l, i*32<<10, 10); err != nil {
			t.Fatal(err)
		}
	}
	waitIdle(t, l)
	before := l.Stats().Speculated
	if err := f.check(t.Context(), l, 4<<20, 10); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, l)
	if more := l.Stats().Speculated - before; more <= first {
		t.Errorf("%d bytes of speculation after 9 chunks were read, %d after one", more, first)
	}
}

// TestSurroundGroupFile: of a file that belongs to a group, which is mostly read
// from front to back, four round trips' worth come with its beginning; of others
// half a round trip's.
func TestSurroundGroupFile(t *testing.T) {
	const (
		chunk = 32 << 10
		trip  = 128 << 10 // the least there is
	)
	for name, most := range map[string]int64{"dir000/data.bin": 4 * trip, "bin/program": trip / 2} {
		var list named
		list.add(name, 1<<20)
		f := estargzFixture(t, list, estargz.WithChunkSize(chunk))
		l := openLayer(t, t.TempDir(), cache.Options{
			Link: func() (time.Duration, float64) { return time.Millisecond, 1e6 },
		}, f)
		if err := f.check(t.Context(), l, f.at(t, l, 0), 10); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
		if got := l.Stats().Speculated; got > most || got < most-chunk-100 {
			t.Errorf("%s: %d bytes of speculation, %d allowed", name, got, most)
		}
		for i := range int64(1<<20) / chunk {
			// In the blob a chunk takes some bytes more than in the file.
			if got, want := l.Has(f.at(t, l, 0)+i*chunk), i*(chunk+100) <= most; got != want {
				t.Errorf("%s: chunk %d: %v", name, i, got)
			}
		}
	}
}

// TestSurroundNoHoles: of what is near in the same file, that comes which is
// contiguous: beyond a chunk that is too large nothing does.
func TestSurroundNoHoles(t *testing.T) {
	const chunk = 256 << 10
	// What is blank compresses to little; the rest does not, and is more than
	// half of what the link carries in a round trip.
	data := noise(1, 9*chunk)
	for _, i := range []int{1, 3, 4, 5, 7} {
		clear(data[i*chunk : (i+1)*chunk])
		copy(data[i*chunk:], fmt.Sprint(i)) // not all zeros: those come without a blob
	}
	f := estargzFixture(t, []file{{"bin/program", data}}, estargz.WithChunkSize(chunk))
	for at, want := range map[int64][]bool{
		0: {true, true},
		4: {3: true, 4: true, 5: true},
		8: {7: true, 8: true},
	} {
		f := f.again()
		l := openLayer(t, t.TempDir(), instant(f), f)
		requests := f.blob.requests()
		if err := f.check(t.Context(), l, f.at(t, l, 0)+at*chunk, 10); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
		for i := range int64(9) {
			if got := l.Has(f.at(t, l, 0) + i*chunk); got != (i < int64(len(want)) && want[i]) {
				t.Errorf("after chunk %d, chunk %d: %v", at, i, got)
			}
		}
		if n := f.blob.requests() - requests; n > 2 { // what is before comes by itself
			t.Errorf("chunk %d: %d requests", at, n)
		}
	}
}

// TestSurroundUsed: files up to what the link carries in a round trip come along
// once most of what was fetched of their group was read, small ones before.
func TestSurroundUsed(t *testing.T) {
	for _, c := range []struct {
		small, used int
		more        bool
	}{
		{12, 1, false},
		{12, 5, false},
		{12, 6, true},
		{12, 12, true},
		{2, 2, false}, // all, and still too few to say anything
		{3, 3, true},
	} {
		var list named
		for i := range c.small {
			list.add(fmt.Sprintf("dir000/small%02d.py", i), 4<<10)
		}
		for i := range 6 { // a round trip carries 500 kB
			list.add(fmt.Sprintf("dir000/large%02d.py", i), 200<<10)
		}
		f := estargzFixture(t, list)
		l := openLayer(t, t.TempDir(), instant(f), f)
		for i := range c.used {
			f.read(t, l, list[i].name)
		}
		if n := len(f.brought(t, l)); n != c.small {
			t.Fatalf("%d files came with the first", n)
		}
		f.read(t, l, "dir000/large03.py")
		if n := len(f.brought(t, l)); (n > c.small+1) != c.more {
			t.Errorf("%d files are there after %d of %d small ones were read", n, c.used, c.small)
		}
	}
}

// TestSurroundSameRequest: what follows in the group comes in the same request as
// what is waited for, a few bytes of others between the files included.
func TestSurroundSameRequest(t *testing.T) {
	var list named
	for i := range 20 {
		list.add(fmt.Sprintf("dir000/f%02d.py", i), 4<<10)
		list.add(fmt.Sprintf("dir000/f%02d.txt", i), 1<<10)
	}
	f := estargzFixture(t, list)
	l := openLayer(t, t.TempDir(), linked(f), f)
	requests := f.blob.requests()
	f.read(t, l, "dir000/f00.py")
	if have := f.brought(t, l); len(have) < 39 {
		t.Errorf("%d files of 40", len(have))
	}
	if n := f.blob.requests() - requests; n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestSurroundBudget: what was fetched on speculation and not read stays within
// the allowance, what lies between the chosen chunks included.
func TestSurroundBudget(t *testing.T) {
	gaps, mixed := named{}, named{}
	for i := range 250 {
		gaps.add(fmt.Sprintf("dir000/f%03d.py", i), 1<<10)
		gaps.add(fmt.Sprintf("dir000/f%03d.txt", i), 28<<10)
		mixed.add(fmt.Sprintf("dir%03d/f%03d.%d", i/80, i, i%3), 1<<10+i*7919%(60<<10))
	}
	for name, list := range map[string]named{"gaps": gaps, "mixed": mixed, "runs": modules()} {
		t.Run(name, func(t *testing.T) {
			f := estargzFixture(t, list, estargz.WithChunkSize(32<<10))
			o := linked(f)
			f.blob.rtt, f.blob.bps = 0, 0
			s := openStore(t, t.TempDir(), o)
			l, err := s.Layer(t.Context(), f.src, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := errors.Join(l.Close(), s.Close()); err != nil {
					t.Error(err)
				}
			}()
			f.place(t, l)
			rnd := rand.New(rand.NewPCG(4, 4))
			for n := range 40 {
				off := rnd.Int64N(l.Size())
				if n%2 == 0 { // small files too
					off = f.at(t, l, rnd.IntN(len(f.list)))
				}
				if err := f.check(t.Context(), l, off, 1000); err != nil {
					t.Fatal(err)
				}
				waitIdle(t, l)
				if got, most := s.Budget(), s.Allowance(); got > most {
					t.Fatalf("read %d: %d bytes of speculation, %d allowed", n, got, most)
				}
			}
			if err := f.checkAll(t.Context(), l, 100_000); err != nil {
				t.Error(err)
			}
			waitIdle(t, l)
			if n := s.Budget(); n != 0 {
				t.Errorf("%d bytes of speculation after all was read", n)
			}
		})
	}
}

// TestSurroundTogether: many readers and wishes at once get the right bytes, and
// no chunk is fetched over and over.
func TestSurroundTogether(t *testing.T) {
	f := estargzFixture(t, modules(), estargz.WithChunkSize(16<<10))
	l := openLayer(t, t.TempDir(), cache.Options{Began: func(*cache.Layer, cache.Begun) {}}, f)
	before := f.blob.got.Load()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 7))
			for range 200 {
				off := rnd.Int64N(l.Size())
				l.Want(cache.Wish{Off: off, Len: rnd.Int64N(1 << 20), Ends: g%2 == 0, Sure: g%3 == 0})
				if err := f.check(t.Context(), l, rnd.Int64N(l.Size()), rnd.Int64N(40_000)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	waitIdle(t, l)
	if n := f.blob.got.Load() - before; n > f.blob.Size()*3/2 {
		t.Errorf("%d bytes fetched of %d", n, f.blob.Size())
	}
	if err := f.checkAll(t.Context(), l, 64<<10); err != nil {
		t.Error(err)
	}
}

// TestSurroundSmallFiles: a large file is not small for being cut into small
// chunks, wherever the reader comes from.
func TestSurroundSmallFiles(t *testing.T) {
	const chunk = 16 << 10
	var list named
	list.add("dir000/large0.js", 1<<20)
	list.add("dir000/small0.js", chunk)
	list.add("dir000/read.js", 10)
	list.add("dir000/small1.js", chunk)
	list.add("dir000/large1.js", 1<<20)
	f := estargzFixture(t, list, estargz.WithChunkSize(chunk))
	l := openLayer(t, t.TempDir(), instant(f), f)
	f.read(t, l, "dir000/read.js")
	for name, want := range map[string]bool{"small0.js": true, "small1.js": true, "large0.js": false, "large1.js": false} {
		i := f.find(t, "dir000/"+name)
		for off := 0; off < len(f.list[i].data); off += chunk {
			if got := l.Has(f.at(t, l, i) + int64(off)); got != want {
				t.Errorf("%s at %d: %v", name, off, got)
			}
		}
	}
}
