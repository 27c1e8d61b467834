package cache_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/checkpoint"
	"github.com/laminafs/lamina/layer/tarscan"
)

// assembled returns what layer.Assembly makes of the layer of f, whose table has
// digests of the blob only. change may make those wrong, and more is what its tar has
// too few bytes for.
func assembled(t *testing.T, f *fixture, more int64, change func(i int, sum *[32]byte)) func(context.Context) (*layer.Scanned, error) {
	t.Helper()
	var points []checkpoint.Checkpoint
	r := checkpoint.NewReader(strings.NewReader(string(f.blob.data)), 1<<20, func(c checkpoint.Checkpoint) error {
		points = append(points, c)
		return nil
	})
	scan, err := layer.NewAssembly(f.src.Desc, int64(len(f.data))+more)
	if err != nil {
		t.Fatal(err)
	}
	headers := tarscan.New(scan.Entry)
	if _, err := io.Copy(headers, r); err != nil {
		t.Fatal(err)
	}
	for i, c := range points {
		end := int64(len(f.blob.data))
		if i+1 < len(points) {
			if end = points[i+1].In; points[i+1].Bits > 0 {
				end++
			}
		}
		sum := sha256.Sum256(f.blob.data[c.In:end])
		if change != nil {
			change(i, &sum)
		}
		if err := scan.Span(c, sum); err != nil {
			t.Fatal(err)
		}
	}
	s, err := scan.Finish()
	return func(context.Context) (*layer.Scanned, error) { return s, err }
}

// TestAssembled: a layer is read by a table with digests of the blob, and verified
// once it is whole. What was not by then is fetched again after a restart, as nobody
// can tell whether it is right, and a check says so.
func TestAssembled(t *testing.T) {
	f := compressed(t)
	load := assembled(t, f, 0, nil)
	dir := t.TempDir()
	open := func(boot string) (*cache.Store, *cache.Layer) {
		s := openStore(t, dir, cache.WithBoot(cache.Options{}, boot))
		l, err := s.Indexed(t.Context(), f.src, load)
		if err != nil {
			t.Fatal(err)
		}
		return s, l
	}
	finish := func(s *cache.Store, l *cache.Layer) {
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
	read := func(l *cache.Layer, want bool) {
		t.Helper()
		before := f.blob.requests()
		if err := f.check(t.Context(), l, 5<<20, 1000); err != nil {
			t.Fatal(err)
		}
		waitIdle(t, l)
		if got := f.blob.requests() > before; got != want {
			t.Errorf("asked for the blob: %t", got)
		}
	}
	s, l := open("one")
	read(l, true)
	finish(s, l)
	s, l = open("one")
	read(l, false)
	finish(s, l)

	var unverified []string
	s = openStore(t, dir, cache.WithBoot(cache.Options{}, "one"))
	found, err := s.Check(t.Context(), cache.CheckOptions{Unverified: func(o string) { unverified = append(unverified, o) }})
	if err != nil || len(found) != 0 || len(unverified) != 1 {
		t.Errorf("check: %v, %v, %v", found, unverified, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}

	s, l = open("two")
	read(l, true)
	if err := f.checkAll(t.Context(), l, 100_000); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(); err != nil || !l.Complete() {
		t.Errorf("whole: %t, %v", l.Complete(), err)
	}
	finish(s, l)
	s, l = open("three")
	read(l, false)
	finish(s, l)
}

// TestAssembledWrong: where the index is to blame, or may be, for bytes that cannot
// be had, the next mount streams.
func TestAssembledWrong(t *testing.T) {
	for name, c := range map[string]struct {
		more   int64
		change func(i int, sum *[32]byte)
	}{
		"digest": {0, func(i int, sum *[32]byte) { sum[0] ^= byte(i) }},
		"size":   {1 << 20, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := compressed(t)
			s, l, err := openIndexed(t, t.TempDir(), f, assembled(t, f, c.more, c.change))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.check(t.Context(), l, 0, 100); err != nil {
				t.Errorf("the first chunk is right: %v", err)
			}
			failed := false
			for off := int64(0); off < l.Size(); off += 1 << 20 {
				err := l.ReadAt(t.Context(), make([]byte, 1), off)
				failed = failed || err != nil
			}
			if !failed || s.HasIndexed(f.src) {
				t.Errorf("a read failed: %t, the index is offered again: %t", failed, s.HasIndexed(f.src))
			}
		})
	}
}
