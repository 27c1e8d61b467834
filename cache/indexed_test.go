package cache_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

// indexOf returns what a store that streamed the layer of f has made of it.
func indexOf(t *testing.T, f *fixture) func(context.Context) (*layer.Scanned, error) {
	t.Helper()
	dir := t.TempDir()
	l := openLayer(t, dir, cache.Options{}, f)
	key := l.Key()
	return func(context.Context) (*layer.Scanned, error) {
		x, err := index.Open(filepath.Join(dir, "layers", key, "index.erofs"))
		if err != nil {
			return nil, err
		}
		defer func() { _ = x.Close() }()
		tree, err := x.Tree()
		if err != nil {
			return nil, err
		}
		table, err := layer.OpenTable(filepath.Join(dir, "layers", key, "chunks"))
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = table.Close() })
		return &layer.Scanned{Tree: tree, Table: table}, nil
	}
}

// compressed is a gzip layer of several chunks.
func compressed(t *testing.T) *fixture {
	t.Helper()
	var list named
	for i := range 8 {
		list.add(fmt.Sprintf("dir000/file%d", i), 3<<20)
	}
	return gzipFixture(t, list)
}

// openIndexed opens the layer of f in dir by an index.
func openIndexed(t *testing.T, dir string, f *fixture, load func(context.Context) (*layer.Scanned, error)) (*cache.Store, *cache.Layer, error) {
	t.Helper()
	s, err := cache.Open(dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	l, err := s.Indexed(t.Context(), f.src, load)
	if err == nil {
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return s, l, err
}

// TestIndexed: a gzip layer is read lazily by an index made elsewhere, is
// verified once it is whole, and found again without the index.
func TestIndexed(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	dir := t.TempDir()
	s, l, err := openIndexed(t, dir, f, load)
	if err != nil {
		t.Fatal(err)
	}
	if n := f.blob.requests(); n != 0 {
		t.Errorf("%d requests to open it", n)
	}
	if err := f.check(t.Context(), l, 5<<20, 1000); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, l)
	if got := l.Stats(); got.Present == got.Chunks || l.Complete() {
		t.Errorf("all of %d chunks came for one read", got.Chunks)
	}
	if !s.HasIndexed(f.src) {
		t.Error("the index is not kept")
	}
	again, err := s.AnyLayer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Key() != l.Key() {
		t.Errorf("opened as %s", again.Key())
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := f.checkAll(t.Context(), l, 100_000); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(); err != nil {
		t.Fatal(err)
	}
	if !l.Complete() {
		t.Error("it is not complete with all chunks present")
	}
}

// TestIndexedWrong: an index that leads to other data than the diff ID names is
// found out when all was read, and refused from then on.
func TestIndexedWrong(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	f.src.DiffID = digest.FromString("something else")
	dir := t.TempDir()
	s, l, err := openIndexed(t, dir, f, load)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < l.Size(); off += 1 << 20 {
		if err := l.ReadAt(t.Context(), make([]byte, min(1<<20, l.Size()-off)), off); err != nil && !errors.Is(err, cache.ErrIndex) {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := l.ReadAt(t.Context(), make([]byte, 1), 0); errors.Is(err, cache.ErrIndex) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("wrong data is served for ever")
		}
	}
	if l.Complete() {
		t.Error("it is complete")
	}
	if s.HasIndexed(f.src) {
		t.Error("the index is offered again")
	}
	if _, err := s.Indexed(t.Context(), f.src, load); !errors.Is(err, cache.ErrIndex) {
		t.Errorf("opened again: %v", err)
	}
}

// TestIndexedOther: the index of another blob is not taken.
func TestIndexedOther(t *testing.T) {
	load := indexOf(t, compressed(t))
	var list named
	list.add("dir000/other", 1<<20)
	if _, _, err := openIndexed(t, t.TempDir(), gzipFixture(t, list), load); !errors.Is(err, cache.ErrIndex) {
		t.Errorf("error %v", err)
	}
}

// TestIndexedBegan: where a layer's chunks know nothing of files, its index does:
// a file is told of once, when its beginning is read, or has come after a wish,
// or is there already when it is wished for.
func TestIndexedBegan(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	var b begun
	o := b.options()
	s, err := cache.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Indexed(t.Context(), f.src, load)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}()
	l.WaitStarts()
	read := func(i int, off, n int64) {
		t.Helper()
		if err := f.check(t.Context(), l, f.at(t, l, i)+off, n); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
	}
	read(0, 1000, 10)
	b.expect(t, f, l)
	read(0, 0, 10)
	read(0, 0, 100)
	b.expect(t, f, l, 0)
	l.Want(f.wish(t, l, 5, true))
	waitIdle(t, l)
	b.expect(t, f, l, 0, 5)
	if !b.isSure(t, f, l, 5) {
		t.Error("what is wished for as sure is not told as such")
	}
	read(3, 100, 10) // its beginning comes along
	b.expect(t, f, l, 0, 5)
	l.Want(f.wish(t, l, 3, false))
	waitIdle(t, l)
	b.expect(t, f, l, 0, 3, 5)
}
