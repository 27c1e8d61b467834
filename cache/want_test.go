package cache_test

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/laminafs/lamina/cache"
)

// wish is for all of file i.
func (f *fixture) wish(t *testing.T, l *cache.Layer, i int, sure bool) cache.Wish {
	t.Helper()
	return cache.Wish{Off: f.at(t, l, i), Len: int64(len(f.list[i].data)), Sure: sure}
}

// ends is for the ends of file i, for certain.
func (f *fixture) ends(t *testing.T, l *cache.Layer, i int) cache.Wish {
	t.Helper()
	w := f.wish(t, l, i, true)
	w.Ends = true
	return w
}

// wanted is a layer of files without groups, in chunks of 32 KB.
func wanted(t *testing.T) *fixture {
	var list named
	list.add("bin/program", 300<<10)
	list.add("bin/short", 10)
	list.add("bin/library", 320<<10)
	list.add("bin/exact", 64<<10)
	list.add("bin/one", 20<<10)
	return estargzFixture(t, list, estargz.WithChunkSize(32<<10))
}

// TestWant: of large files the beginning and the end are fetched, and what is
// between them if that is little; small files whole, and nothing else. What is
// sure is no speculation.
func TestWant(t *testing.T) {
	const (
		chunk = 16 << 10
		trip  = 500_000 // what the link carries meanwhile
		begin = 15      // chunks in a half of that
		end   = 3       // and in an eighth
	)
	var list named
	list.add("bin/large", 60*chunk)
	list.add("bin/close", (begin+end+1)*chunk)
	list.add("bin/small", begin*chunk)
	list.add("bin/alone", 2*chunk)
	list.add("bin/short", 10)
	f := estargzFixture(t, list, estargz.WithChunkSize(chunk))
	l := openLayer(t, t.TempDir(), cache.Options{}, f)
	for i, most := range []int{2, 1, 1, 0, 1} { // requests
		if most == 0 {
			continue
		}
		name := list[i].name
		before, bets := f.blob.requests(), l.Stats().Speculated
		l.Want(f.ends(t, l, i))
		waitIdle(t, l)
		l.Want(f.ends(t, l, i)) // it is there
		waitIdle(t, l)
		n := int64(len(list[i].data)+chunk-1) / chunk
		for k := range n {
			want := k < begin || k >= n-end || name != "bin/large"
			if got := l.Has(f.at(t, l, i) + k*chunk); got != want {
				t.Errorf("%s: chunk %d of %d: %v", name, k, n, got)
			}
		}
		if got := f.blob.requests() - before; got != most {
			t.Errorf("%s: %d requests", name, got)
		}
		if got := l.Stats().Speculated - bets; (got > 0) != (name == "bin/close") || got > trip/16 {
			t.Errorf("%s: %d bytes of speculation", name, got)
		}
	}
	if l.Has(f.at(t, l, 3)) {
		t.Error("a file came that nobody wanted")
	}
	if err := f.checkAll(t.Context(), l, 50_000); err != nil {
		t.Error(err)
	}
}

// TestWantNeighbours: what lies side by side comes in one request, in whatever
// order it is wished for, and a little that nobody wished for with it.
func TestWantNeighbours(t *testing.T) {
	var list named
	for i := range 12 {
		list.add(fmt.Sprintf("bin/f%02d", i), 20<<10)
		if i == 5 {
			list.add("bin/large", 60<<10)
		}
	}
	f := estargzFixture(t, list)
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	before := f.blob.requests()
	// Not number 2, which is small enough to spare a request, a sixteenth of
	// what the link carries in a round trip; nor number 6, which is not.
	var wishes []cache.Wish
	for n, i := range []int{12, 0, 9, 4, 11, 3, 7, 1, 10, 5, 8} {
		wishes = append(wishes, f.wish(t, l, i, n%2 == 0))
	}
	l.Want(wishes...)
	waitIdle(t, l)
	if n := f.blob.requests() - before; n != 2 {
		t.Errorf("%d requests", n)
	}
	if have := f.brought(t, l); len(have) != 12 || have["bin/large"] {
		t.Errorf("it brought %v", have)
	}
	b.expect(t, f, l, 0, 1, 3, 4, 5, 7, 8, 9, 10, 11, 12)
	for n, i := range []int{12, 0, 9, 4, 11, 3, 7, 1, 10, 5, 8} {
		if sure := b.isSure(t, f, l, i); sure != (n%2 == 0) {
			t.Errorf("%s: sure %v", list[i].name, sure)
		}
	}
}

// TestWantBudget: wishes that are not sure go as far as the speculation of the
// store, sure ones beyond, still with their neighbours.
func TestWantBudget(t *testing.T) {
	var list named
	for i := range 80 {
		list.add(fmt.Sprintf("bin/f%02d", i), 30<<10)
	}
	f := estargzFixture(t, list)
	s := openStore(t, t.TempDir(), cache.Options{})
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
	wish := func(sure bool, from, to int) (requests int) {
		t.Helper()
		before := f.blob.requests()
		var wishes []cache.Wish
		for i := from; i < to; i++ {
			wishes = append(wishes, f.wish(t, l, i, sure))
		}
		l.Want(wishes...)
		waitIdle(t, l)
		return f.blob.requests() - before
	}
	const start = 1 << 20 // what is allowed before anything was read
	for range 2 {         // it does not become more by asking again
		wish(false, 0, 60)
		got, most := s.Budget(), s.Allowance()
		if n := len(f.brought(t, l)); most != start || got > most || got < most-31<<10 || n != start/(31<<10) {
			t.Fatalf("%d files came; %d bytes of speculation, %d allowed", n, got, most)
		}
	}
	if n := wish(true, 60, 65); n != 1 {
		t.Errorf("%d requests for what is sure", n)
	}
	// What was wished for without doubt is as good as read: it allows for more.
	if got, most := s.Budget(), s.Allowance(); got > most || most < start+5*30<<10*3/4 {
		t.Errorf("%d bytes of speculation, %d allowed", got, most)
	}
	s.Overdraw(10 << 20) // as layers do that bet at the same time
	if n := wish(false, 65, 70); n != 0 {
		t.Errorf("%d requests for bets without a budget", n)
	}
	if n := wish(true, 70, 80); n != 1 {
		t.Errorf("%d requests for what is sure without a budget", n)
	}
	for i := 60; i < 80; i++ {
		if got, want := l.Has(f.at(t, l, i)), i < 65 || i >= 70; got != want {
			t.Errorf("%s: %v", list[i].name, got)
		}
	}
	s.Overdraw(-10 << 20)
	if err := f.checkAll(t.Context(), l, 100_000); err != nil {
		t.Error(err)
	}
	if got := s.Budget(); got != 0 {
		t.Errorf("%d bytes of speculation after all was read", got)
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
		w := cache.Wish{Off: r[0], Len: r[1]}
		l.Want(w)
		w.Sure, w.Ends = true, true
		l.Want(w, w)
	}
	l.Want()
	waitIdle(t, l)
	if n := f.blob.requests() - before; n != 0 {
		t.Errorf("%d requests", n)
	}
	// It does not spoil what does make sense.
	l.Want(cache.Wish{Len: -1}, f.wish(t, l, 0, true), cache.Wish{Off: l.Size(), Len: 1})
	waitIdle(t, l)
	if n := f.blob.requests() - before; n != 1 || !l.Has(f.at(t, l, 0)) {
		t.Errorf("%d requests", n)
	}
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	l.Want(cache.Wish{Len: 100})
	if n := f.blob.requests() - before; n != 1 {
		t.Errorf("%d requests after Close", n)
	}
}

// atHole returns a data offset of no chunk: behind the end of the short file.
func (f *fixture) atHole(t *testing.T, l *cache.Layer) int64 {
	t.Helper()
	return f.at(t, l, f.find(t, "bin/short")) + 100
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
					l.Want(cache.Wish{Off: off, Len: size - off, Ends: i%2 == 0, Sure: i%3 == 0})
				}
			})
		}
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}
}

// TestWantAlone: of a file that is wished for alone nobody is told until it is wished
// for in another way or read, be it under way then or here.
func TestWantAlone(t *testing.T) {
	var list named
	for i := range 6 {
		list.add(fmt.Sprintf("bin/f%02d", i), 20<<10)
	}
	f := estargzFixture(t, list)
	var b begun
	l := openLayer(t, t.TempDir(), b.options(), f)
	alone := func(i int) cache.Wish {
		w := f.wish(t, l, i, false)
		w.Alone = true
		return w
	}
	before := f.blob.requests()
	l.Want(alone(0), alone(1), alone(2), f.wish(t, l, 2, false))
	waitIdle(t, l)
	if have := f.brought(t, l); len(have) != 3 {
		t.Errorf("it brought %v", have)
	}
	b.expect(t, f, l, 2)
	l.Want(f.wish(t, l, 0, true), alone(1))
	b.expect(t, f, l, 0, 2)
	if !b.isSure(t, f, l, 0) || b.isSure(t, f, l, 2) {
		t.Error("a guess was said to be certain, or the other way round")
	}
	p := make([]byte, 100)
	if err := l.ReadAt(t.Context(), p, f.at(t, l, 1)); err != nil {
		t.Fatal(err)
	}
	b.expect(t, f, l, 0, 1, 2)
	waitIdle(t, l)
	if got := f.blob.requests() - before; got != 1 {
		t.Errorf("%d requests", got)
	}
}
