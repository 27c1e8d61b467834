package cache_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

// blob is a fetch.Blob in memory that counts, delays and lies.
type blob struct {
	dgst digest.Digest
	data []byte
	rtt  time.Duration
	bps  float64 // 0: no bound
	link sync.Mutex
	free time.Time // when the link is; guarded by link

	mu       sync.Mutex
	reads    [][2]int64 // offset and length
	rejected int
	// corrupt, if not nil, may change the bytes of request n, which begin at off.
	corrupt func(n int, off int64, p []byte)
	// fail, if not nil, may end request n with an error after some bytes.
	fail func(n int) (after int64, err error)
	got  atomic.Int64
}

func newBlob(data []byte) *blob {
	return &blob{dgst: digest.FromBytes(data), data: data}
}

func (b *blob) Digest() digest.Digest { return b.dgst }
func (b *blob) Size() int64           { return int64(len(b.data)) }

func (b *blob) ReadRange(ctx context.Context, off, n int64) (fetch.Stream, error) {
	if off < 0 || n < 0 || off+n > b.Size() {
		return nil, fetch.ErrRange
	}
	b.mu.Lock()
	k := len(b.reads)
	b.reads = append(b.reads, [2]int64{off, n})
	p := bytes.Clone(b.data[off : off+n])
	if b.corrupt != nil {
		b.corrupt(k, off, p)
	}
	s := &stream{ctx: ctx, blob: b, p: p, cut: -1}
	if b.fail != nil {
		s.cut, s.err = b.fail(k)
	}
	b.mu.Unlock()
	if err := pause(ctx, b.rtt); err != nil {
		return nil, err
	}
	return s, nil
}

// requests returns how many ranges were asked for.
func (b *blob) requests() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.reads)
}

func pause(ctx context.Context, d time.Duration) error {
	if d < time.Millisecond { // timers are not that exact
		return ctx.Err()
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type stream struct {
	ctx  context.Context
	blob *blob
	p    []byte
	cut  int64
	err  error
}

func (s *stream) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, context.Cause(s.ctx)
	}
	if s.err != nil && s.cut <= 0 {
		return 0, s.err
	}
	if len(s.p) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 16<<10)], s.p)
	if s.blob.bps > 0 {
		// The link is free again when all before us, and we, are through.
		s.blob.link.Lock()
		if now := time.Now(); s.blob.free.Before(now) {
			s.blob.free = now
		}
		s.blob.free = s.blob.free.Add(time.Duration(float64(n) / s.blob.bps * 1e9))
		free := s.blob.free
		s.blob.link.Unlock()
		if err := pause(s.ctx, time.Until(free)); err != nil {
			return 0, err
		}
	}
	s.p = s.p[n:]
	s.cut -= int64(n)
	s.blob.got.Add(int64(n))
	return n, nil
}

func (s *stream) Close() error { return nil }

func (s *stream) Reject(error) {
	s.blob.mu.Lock()
	defer s.blob.mu.Unlock()
	s.blob.rejected++
}

// file is one file of a test layer.
type file struct {
	name string
	data []byte
}

// files makes n files of about size bytes, half of which compress.
func files(seed uint64, n, size int) []file {
	src := rand.NewChaCha8([32]byte{byte(seed)})
	rnd := rand.New(src)
	var list []file
	for i := range n {
		p := bytes.Repeat([]byte{byte(i)}, size/2+rnd.IntN(size))
		_, _ = src.Read(p[:len(p)/2])
		list = append(list, file{fmt.Sprintf("dir%03d/file%04d", i/50, i), p})
	}
	return list
}

func tarOf(t testing.TB, list []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	dir := ""
	for _, f := range list {
		if d, _, _ := strings.Cut(f.name, "/"); d+"/" != dir {
			dir = d + "/"
			if err := w.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fixture is a layer with what its data must be.
type fixture struct {
	src  layer.Source
	blob *blob
	data []byte // nil until the tree was seen, for eStargz
	list []file
	offs []int64 // of the files in data; nil until the tree was seen
}

func gzipFixture(t testing.TB, list []file) *fixture {
	t.Helper()
	f := gzipOf(t, tarOf(t, list))
	f.list = list
	return f
}

// gzipOf is a layer of the tar p.
func gzipOf(t testing.TB, p []byte) *fixture {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	f := &fixture{blob: newBlob(b.Bytes()), data: p}
	f.src = layer.Source{
		Desc:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: f.blob.dgst, Size: f.blob.Size()},
		DiffID: digest.FromBytes(p), Blob: f.blob,
	}
	return f
}

// recycled is gzip that uses its writers again: every chunk gets one, and under
// the race detector to make one takes longer than to compress a small file.
type recycled struct {
	*estargz.GzipCompressor
	*estargz.GzipDecompressor
	free chan *recycledWriter
}

type recycledWriter struct {
	*gzip.Writer
	free chan *recycledWriter
}

func recycle() *recycled {
	return &recycled{estargz.NewGzipCompressorWithLevel(gzip.BestSpeed), &estargz.GzipDecompressor{}, make(chan *recycledWriter, 8)}
}

func (r *recycled) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	select {
	case z := <-r.free:
		z.Reset(w)
		return z, nil
	default:
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		return &recycledWriter{z, r.free}, err
	}
}

func (w *recycledWriter) Close() error {
	err := w.Writer.Close()
	select {
	case w.free <- w:
	default:
	}
	return err
}

func estargzFixture(t testing.TB, list []file, options ...estargz.Option) *fixture {
	t.Helper()
	p := tarOf(t, list)
	options = append(options, estargz.WithCompression(recycle()))
	b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p))), options...)
	if err != nil {
		t.Fatal(err)
	}
	q, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	f := &fixture{blob: newBlob(q), list: list}
	f.src = layer.Source{
		Desc: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: f.blob.dgst, Size: f.blob.Size(),
			Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: b.TOCDigest().String()},
		},
		DiffID: b.DiffID(), Blob: f.blob,
	}
	return f
}

// again is f with another source, which was not asked for anything.
func (f *fixture) again() *fixture {
	g := *f
	g.blob = &blob{dgst: f.blob.dgst, data: f.blob.data}
	g.src.Blob = g.blob
	return &g
}

// fileIn returns the file called name, of a folder in the root.
func fileIn(t *index.Tree, name string) *index.Node {
	dir, base, _ := strings.Cut(name, "/")
	return t.Root.Child(dir).Child(base)
}

// place notes where l has each file, and puts its content there, so that f.data is
// the truth.
func (f *fixture) place(t testing.TB, l *cache.Layer) {
	t.Helper()
	if f.offs != nil || len(f.list) == 0 {
		return
	}
	tree, err := l.Index().Tree()
	if err != nil {
		t.Fatal(err)
	}
	known := f.data != nil
	if !known {
		f.data = make([]byte, l.Size())
	}
	f.offs = make([]int64, len(f.list))
	for i, x := range f.list {
		n := fileIn(tree, x.name)
		if n == nil || n.Size != int64(len(x.data)) {
			t.Fatalf("file %s is not in the index", x.name)
		}
		if len(n.Extents) == 0 {
			continue
		}
		f.offs[i] = n.Extents[0].Off
		if !known {
			copy(f.data[f.offs[i]:], x.data)
		}
	}
}

// at returns the data offset of file i.
func (f *fixture) at(t testing.TB, l *cache.Layer, i int) int64 {
	t.Helper()
	f.place(t, l)
	return f.offs[i]
}

func openStore(t testing.TB, dir string, o cache.Options) *cache.Store {
	t.Helper()
	s, err := cache.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openLayer opens f in a store of its own, which ends with the test.
func openLayer(t testing.TB, dir string, o cache.Options, f *fixture) *cache.Layer {
	t.Helper()
	s := openStore(t, dir, o)
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	f.place(t, l)
	return l
}

// check reads n bytes at off and compares.
func (f *fixture) check(ctx context.Context, l *cache.Layer, off, n int64) error {
	n = min(n, int64(len(f.data))-off)
	p := make([]byte, n)
	if err := l.ReadAt(ctx, p, off); err != nil {
		return err
	}
	if !bytes.Equal(p, f.data[off:off+n]) {
		for i := range p {
			if p[i] != f.data[off+int64(i)] {
				return fmt.Errorf("wrong byte at %d: %d, want %d", off+int64(i), p[i], f.data[off+int64(i)])
			}
		}
	}
	return nil
}

// checkAll reads everything, step bytes at a time.
func (f *fixture) checkAll(ctx context.Context, l *cache.Layer, step int64) error {
	for off := int64(0); off < int64(len(f.data)); off += step {
		if err := f.check(ctx, l, off, step); err != nil {
			return err
		}
	}
	return nil
}
