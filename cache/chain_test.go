package cache_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

func TestChain(t *testing.T) {
	low, high := gzipFixture(t, files(60, 10, 1000)), gzipFixture(t, files(61, 5, 1000))
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	var layers []*cache.Layer
	for _, f := range []*fixture{low, high} {
		l, err := s.Layer(t.Context(), f.src, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		layers = append(layers, l)
	}
	want := fmt.Sprintf("%x", sha256.Sum256([]byte(low.src.DiffID+" "+high.src.DiffID)))
	for _, state := range []string{"new", "warm", "damaged"} {
		path := filepath.Join(dir, "chains", want, "merged.erofs")
		if state == "damaged" {
			if err := os.Truncate(path, 100); err != nil {
				t.Fatal(err)
			}
		}
		c, err := s.Chain(t.Context(), layers)
		if err != nil {
			t.Fatal(err)
		}
		if c.ID != want || c.Path != path || len(c.Index.Devices()) != 2 {
			t.Errorf("%s: chain %s at %s, %d devices", state, c.ID, c.Path, len(c.Index.Devices()))
		}
		for i, x := range append(high.list, low.list[5:]...) {
			d, err := c.Index.Lookup(c.Index.Root(), x.name[:6])
			if err != nil {
				t.Fatal(err)
			}
			n, err := c.Index.Lookup(d, x.name[7:])
			if err != nil {
				t.Fatal(err)
			}
			var e index.Extent
			if err := c.Index.Extents(n, 0, 1, func(x index.Extent) bool { e = x; return true }); err != nil {
				t.Fatal(err)
			}
			from := 2
			if i >= 5 {
				from = 1
			}
			got := make([]byte, 1)
			if err := layers[e.Device-1].ReadAt(t.Context(), got, e.Off); err != nil || int(e.Device) != from || got[0] != x.data[0] {
				t.Errorf("%s: file %s is %d of device %d: %v", state, x.name, got[0], e.Device, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if c, err := s.Chain(t.Context(), layers[:1]); err != nil || c.ID != low.src.DiffID.Encoded() {
		t.Errorf("chain of one layer: %v", err)
	} else if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestOtherBlob: two images compress the same layer in two ways.
func TestOtherBlob(t *testing.T) {
	f := gzipFixture(t, files(62, 40, 64<<10))
	var b bytes.Buffer
	w := gzip.NewWriter(&b) // another level
	if _, err := w.Write(f.data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	g := &fixture{blob: newBlob(b.Bytes()), data: f.data, list: f.list, src: f.src}
	g.src.Blob, g.src.Desc.Digest, g.src.Desc.Size = g.blob, g.blob.dgst, g.blob.Size()
	dir := t.TempDir()
	_ = openLayer(t, dir, cache.Options{}, f)

	// Whole: no blob is needed, and nothing may be evicted.
	l := openLayer(t, dir, cache.Options{}, g)
	s := openStore(t, dir, cache.Options{Limit: 1 << 20})
	defer func() { _ = s.Close() }()
	if err := s.Evict(); err != nil {
		t.Fatal(err)
	}
	if err := g.checkAll(t.Context(), l, 64<<10); err != nil || g.blob.requests() != 0 {
		t.Errorf("%d requests: %v", g.blob.requests(), err)
	}
	l.Unhold()
	if err := s.Evict(); err != nil {
		t.Fatal(err)
	}

	// Not whole: it gets a place of its own.
	l = openLayer(t, dir, cache.Options{}, g)
	if l.Key() == layer.DiffKey(g.src) {
		t.Errorf("key %s", l.Key())
	}
	if err := g.checkAll(t.Context(), l, 64<<10); err != nil {
		t.Error(err)
	}
}

// TestSparse: data that is in the blob once and in the layer twice.
func TestSparse(t *testing.T) {
	p, want := sparseTar(t)
	f := gzipOf(t, p)
	dir := t.TempDir()
	l := openLayer(t, dir, cache.Options{}, f)
	for _, state := range []string{"streamed", "evicted"} {
		tree, err := l.Index().Tree()
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		for _, e := range tree.Root.Child("sparse").Extents {
			if err := l.ReadAt(t.Context(), got[e.FileOff:e.FileOff+e.Len], e.Off); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: wrong content", state)
		}
		s := openStore(t, dir, cache.Options{Limit: 1})
		if err := errors.Join(s.Evict(), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// sparseTar makes a tar with one PAX 0.1 sparse file, the parts of which do not
// begin at block boundaries, and returns what the file contains.
func sparseTar(t *testing.T) (p, want []byte) {
	t.Helper()
	want = make([]byte, 300_000)
	var packed []byte
	layout := ""
	for i, off := range []int{100, 70_001, 200_300} {
		part := bytes.Repeat([]byte{byte('a' + i)}, 5000+i)
		copy(want[off:], part)
		packed = append(packed, part...)
		layout += fmt.Sprintf(",%d,%d", off, len(part))
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	// archive/tar does not write sparse files, so the extended header is made
	// by hand, as a file of type x.
	pax := func(k, v string) string {
		n := len(k) + len(v) + 3
		for n != len(fmt.Sprintf("%d %s=%s\n", n, k, v)) {
			n = len(fmt.Sprintf("%d %s=%s\n", n, k, v))
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	records := pax("GNU.sparse.size", fmt.Sprint(len(want))) + pax("GNU.sparse.numblocks", "3") + pax("GNU.sparse.map", layout[1:])
	for _, e := range []struct {
		typ  byte
		name string
		data []byte
	}{{'0', "xhead", []byte(records)}, {'0', "sparse", packed}} {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Typeflag: e.typ, Mode: 0o644, Size: int64(len(e.data)), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p = b.Bytes()
	p[156] = 'x' // the type of the first header; then its checksum
	copy(p[148:156], "        ")
	sum := 0
	for _, c := range p[:512] {
		sum += int(c)
	}
	copy(p[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return p, want
}

func TestNoSource(t *testing.T) {
	f := estargzFixture(t, files(63, 40, 10_000))
	dir := t.TempDir()
	_ = openLayer(t, dir, cache.Options{}, f)
	f.src.Blob = nil
	l := openLayer(t, dir, cache.Options{}, f)
	_ = l
	g := gzipFixture(t, files(64, 4, 100))
	g.src.Blob = nil
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	if _, err := s.Layer(t.Context(), g.src, nil); !errors.Is(err, fetch.ErrUnavailable) {
		t.Error(err)
	}
}
