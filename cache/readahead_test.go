package cache_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/laminafs/lamina/cache"
)

// A link as in the issue: 20 ms and 200 Mbit/s.
const (
	linkRTT = 20 * time.Millisecond
	linkBPS = 25e6
)

func linked(f *fixture) cache.Options {
	f.blob.rtt, f.blob.bps = linkRTT, linkBPS
	return cache.Options{Link: func() (time.Duration, float64) { return linkRTT, linkBPS }}
}

// instant is linked, with a source that does not take the time that the link
// would: what is fetched ahead then depends on nothing but the reads.
func instant(f *fixture) cache.Options {
	o := linked(f)
	f.blob.rtt, f.blob.bps = 0, 0
	return o
}

// TestReadAhead reads the same layer in different orders. Nobody computes much:
// they wait side by side.
func TestReadAhead(t *testing.T) {
	f := estargzFixture(t, files(50, 1500, 16<<10))
	for name, read := range map[string]func(*testing.T, *fixture){
		"in order":         readInOrder,
		"shuffled folders": readShuffledFolders,
		"start, most":      readStart(0.7),
		"start, half":      readStart(0.5),
		"start, few":       readStart(0.15),
		"start, scattered": readStart(0.02),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			read(t, f.again())
		})
	}
}

// readInOrder: a reader of one small file after the other, as tar is, gets what
// the link carries.
func readInOrder(t *testing.T, f *fixture) {
	l := openLayer(t, t.TempDir(), linked(f), f)
	size := f.blob.Size()
	began := time.Now()
	for off := int64(0); off < l.Size(); off += 16 << 10 {
		if err := f.check(t.Context(), l, off, 16<<10); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	ideal := time.Duration(float64(size) / linkBPS * float64(time.Second))
	st := l.Stats()
	t.Logf("%d bytes in %v, %v at link speed; %d requests, %d misses", size, took, ideal, st.Requests, st.Misses)
	// Machines that test are busy: requests tell more than the time.
	if st.Requests > size/(100<<10) {
		t.Errorf("%d requests for %d bytes", st.Requests, size)
	}
	if st.Fetched > size*21/20 {
		t.Errorf("%d bytes fetched of %d", st.Fetched, size)
	}
}

// readShuffledFolders: the folders come in another order than in the tar, as when
// the tree is walked by name.
func readShuffledFolders(t *testing.T, f *fixture) {
	l := openLayer(t, t.TempDir(), linked(f), f)
	var offs []int64
	for _, d := range rand.New(rand.NewPCG(3, 3)).Perm(len(f.list) / 50) {
		for i := range 50 {
			offs = append(offs, f.at(t, l, 50*d+i), int64(len(f.list[50*d+i].data)))
		}
	}
	began := time.Now()
	for i := 0; i < len(offs); i += 2 {
		if err := f.check(t.Context(), l, offs[i], offs[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	ideal := time.Duration(float64(f.blob.Size()) / linkBPS * float64(time.Second))
	st := l.Stats()
	t.Logf("%d bytes in %v, %v at link speed; %d requests, %d misses", f.blob.Size(), took, ideal, st.Requests, st.Misses)
	if st.Fetched > f.blob.Size()*21/20 {
		t.Errorf("%d bytes fetched of %d", st.Fetched, f.blob.Size())
	}
}

// readStart: a program that starts reads some files of some folders. What is
// fetched for it is at most what it reads, three quarters of that, and the
// megabyte to start with; and little to spare requests.
func readStart(share float64) func(*testing.T, *fixture) {
	return func(t *testing.T, f *fixture) {
		l := openLayer(t, t.TempDir(), linked(f), f)
		before := f.blob.got.Load()
		rnd := rand.New(rand.NewPCG(9, 9))
		began := time.Now()
		for _, d := range rnd.Perm(len(f.list) / 50)[:15] {
			for i := range 50 {
				if rnd.Float64() > share {
					continue
				}
				n := 50*d + i
				if err := f.check(t.Context(), l, f.at(t, l, n), int64(len(f.list[n].data))); err != nil {
					t.Fatal(err)
				}
			}
		}
		took := time.Since(began)
		waitIdle(t, l)
		st := l.Stats()
		fetched := f.blob.got.Load() - before
		t.Logf("%d bytes read, %d fetched, %.2f times, in %v (%v at link speed); %d requests, %d misses",
			st.Used, fetched, float64(fetched)/float64(st.Used), took,
			time.Duration(float64(st.Used)/linkBPS*1e9), st.Requests, st.Misses)
		if fetched > st.Used*9/5+1<<20 {
			t.Errorf("%d bytes fetched for %d", fetched, st.Used)
		}
	}
}

// folders is three folders of 40 files of one kind, in the order of the blob.
func folders() (list named) {
	for i := range 120 {
		list.add(fmt.Sprintf("dir%03d/f%02d.py", i/40, i%40), 8<<10)
	}
	return list
}

// TestReadAheadWithinGroup: who reads the files of a folder in order gets those
// of that folder, until it has gone on to the next one.
func TestReadAheadWithinGroup(t *testing.T) {
	f := estargzFixture(t, folders())
	l := openLayer(t, t.TempDir(), instant(f), f)
	misses := make([]int64, 3)
	for i, x := range f.list {
		dir := x.name[:6]
		before := l.Stats().Misses
		f.read(t, l, x.name)
		misses[i/40] += l.Stats().Misses - before
		have := f.brought(t, l)
		if dir == "dir000" {
			for name := range have {
				if !strings.HasPrefix(name, dir) {
					t.Fatalf("%s brought %s", x.name, name)
				}
			}
		}
		if x.name == "dir001/f39.py" && !have["dir002/f00.py"] {
			t.Error("the third folder did not come ahead of who went on to the second")
		}
	}
	// The first folder: a miss, and one more for what the first did not bring.
	// The second begins with a miss, as nobody could know; the third without.
	if misses[0] > 2 || misses[1] != 1 || misses[2] != 0 {
		t.Errorf("misses by folder: %v", misses)
	}
}

// TestReadAheadKinds: who reads the files of one kind in order, most of what is
// there, gets none of another kind that lie between them, and still the next
// ones of its own.
func TestReadAheadKinds(t *testing.T) {
	var list named
	for i := range 40 { // the others are too large to be fetched for nothing
		list.add(fmt.Sprintf("dir000/f%02d.js", i), 100<<10)
		list.add(fmt.Sprintf("dir000/f%02d.map", i), 40<<10)
	}
	// The last is too large to come ahead, and nothing follows it.
	list.add("dir000/last.js", 600<<10)
	f := estargzFixture(t, list)
	l := openLayer(t, t.TempDir(), instant(f), f)
	misses := l.Stats().Misses
	for i := 0; i < len(list); i += 2 {
		f.read(t, l, list[i].name)
		for name := range f.brought(t, l) {
			if strings.HasSuffix(name, ".map") {
				t.Fatalf("%s brought %s", list[i].name, name)
			}
		}
	}
	if misses = l.Stats().Misses - misses; misses > 20 {
		t.Errorf("%d misses of 40 files", misses)
	}
}

// TestReadAheadOnce: what many wait for was read once, and is no sign of a reader
// that reads most of what he passes.
func TestReadAheadOnce(t *testing.T) {
	var list named
	for i := range 12 { // too large to come along with others
		list.add(fmt.Sprintf("dir000/f%02d.py", i), 200<<10)
	}
	f := estargzFixture(t, list)
	l := openLayer(t, t.TempDir(), linked(f), f)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { f.read(t, l, list[0].name) })
	}
	wg.Wait()
	f.read(t, l, list[3].name)
	f.read(t, l, list[6].name)
	if have := f.brought(t, l); len(have) != 3 {
		t.Errorf("it brought %v", have)
	}
}

// TestReadAheadLibraries: the next library comes once eight were read in order,
// however many read them at once.
func TestReadAheadLibraries(t *testing.T) {
	const loose = 8
	var list named
	for i := range 24 {
		list.add(fmt.Sprintf("lib/lib%02d.so.1", i), 40<<10)
	}
	f := estargzFixture(t, list)
	l := openLayer(t, t.TempDir(), linked(f), f)
	for i := range loose {
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { f.read(t, l, list[i].name) })
		}
		wg.Wait()
		if n := len(f.brought(t, l)); i < loose-1 && n != i+1 || i == loose-1 && n == loose {
			t.Errorf("%d are there after %d were read", n, i+1)
		}
	}
}

// TestReadAheadWithinFile: of a large file that is read from some place on to its
// end all comes ahead of its reader, and of the next file nothing.
func TestReadAheadWithinFile(t *testing.T) {
	const chunk = 64 << 10
	var list named
	list.add("bin/before", 200<<10)
	list.add("bin/program", 8<<20)
	list.add("bin/after", 200<<10)
	f := estargzFixture(t, list, estargz.WithChunkSize(chunk))
	for name, from := range map[string]int64{"all": 0, "from the middle": 4 << 20} {
		t.Run(name, func(t *testing.T) {
			f := f.again()
			l := openLayer(t, t.TempDir(), instant(f), f)
			misses := l.Stats().Misses
			for off := from; off < 8<<20; off += chunk {
				if off == from+1<<20 {
					misses = l.Stats().Misses
				}
				if err := f.check(t.Context(), l, f.at(t, l, 1)+off, chunk); err != nil {
					t.Fatal(err)
				}
				waitIdle(t, l)
			}
			if n := l.Stats().Misses - misses; n != 0 {
				t.Errorf("%d misses after the first megabyte", n)
			}
			for name := range f.brought(t, l) {
				if name != "bin/program" {
					t.Errorf("%s came with it", name)
				}
			}
		})
	}
}
