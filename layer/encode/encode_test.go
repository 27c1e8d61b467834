package encode_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"errors"
	"io"
	"runtime"
	"strconv"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/encode"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParseFormat(t *testing.T) {
	for _, f := range formats {
		if got, err := encode.ParseFormat(f.String()); err != nil || got != f {
			t.Errorf("%v: %v, %v", f, got, err)
		}
	}
	for _, name := range []string{"", "tar", "Gzip", "zstd:", "estargz "} {
		if _, err := encode.ParseFormat(name); !errors.Is(err, encode.ErrFormat) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := encode.NewWriter(io.Discard, layer.Tar); !errors.Is(err, encode.ErrFormat) {
		t.Errorf("tar: %v", err)
	}
}

// unpack decompresses a blob with what others use.
func unpack(t testing.TB, f layer.Format, blob []byte) []byte {
	t.Helper()
	var r io.Reader
	if f == layer.Gzip || f == layer.EStargz {
		z, err := stdgzip.NewReader(bytes.NewReader(blob))
		check(t, err)
		if !z.ModTime.IsZero() || z.OS != 255 || z.Name != "" {
			t.Errorf("gzip header %+v", z.Header)
		}
		r = z
	} else {
		z, err := zstd.NewReader(bytes.NewReader(blob), zstd.WithDecoderMaxWindow(8<<20))
		check(t, err)
		defer z.Close()
		r = z
	}
	p, err := io.ReadAll(r)
	check(t, err)
	return p
}

// TestRoundTrip sends a tar through every format and lamina's own reader.
func TestRoundTrip(t *testing.T) {
	all, strange := everything(t, 5<<20), everything(t, 100<<10)
	all.lower()
	strange.strange()
	tars := []struct {
		name  string
		b     []byte
		exact bool
	}{
		{"everything", all.bytes(), true},
		{"strange names", strange.bytes(), false},
		{"many files", manyFiles(t, 200, 7000), true},
		{"empty", make([]byte, 1024), true},
		{"padded", make([]byte, 10240), true},
		{"nothing", nil, false},
	}
	for _, f := range formats {
		for _, in := range tars {
			if lazy(f) && len(in.b) == 0 {
				continue // see TestBadTar
			}
			t.Run(f.String()+" "+in.name, func(t *testing.T) {
				t.Parallel()
				roundTrip(t, f, in.b, lazy(f) && in.exact)
			})
		}
	}
}

// roundTrip compares a tar with what becomes of it. toc: the blob shall be
// mountable from its table of contents.
func roundTrip(t *testing.T, f layer.Format, b []byte, toc bool) {
	blob, r := encoded(t, f, b, 1<<20)
	media := ocispec.MediaTypeImageLayerGzip
	if f == layer.Zstd || f == layer.ZstdChunked {
		media = ocispec.MediaTypeImageLayerZstd
	}
	if d := r.Desc; d.Digest != digest.FromBytes(blob) || d.Size != int64(len(blob)) || d.MediaType != media {
		t.Errorf("descriptor %+v", d)
	}
	raw := unpack(t, f, blob)
	if r.DiffID != digest.FromBytes(raw) || r.Size != int64(len(raw)) {
		t.Errorf("diff ID %s and size %d, want %s and %d", r.DiffID, r.Size, digest.FromBytes(raw), len(raw))
	}
	if f == layer.EStargz && !bytes.HasPrefix(raw, b) || f != layer.EStargz && !bytes.Equal(raw, b) {
		t.Error("the tar has changed")
	}
	src := layer.Source{Desc: r.Desc, DiffID: r.DiffID, Blob: memBlob(blob)}
	if _, got, lazy := layer.Key(src); lazy != toc || toc && got != f {
		t.Errorf("recognised as %v, lazy %v", got, lazy)
	}
	s, data := read(t, src)
	diff(t, dump(t, s.Tree, data, false), want(t, b, false))
	if !s.Table.Seekable() {
		t.Error("not seekable")
	}
	if !toc {
		if len(r.Desc.Annotations) > 0 {
			t.Errorf("annotations %v", r.Desc.Annotations)
		}
		return
	}
	if got := r.Desc.Annotations["io.containers.estargz.uncompressed-size"]; got != strconv.Itoa(len(raw)) {
		t.Errorf("size annotation %s, want %d", got, len(raw))
	}
	s, err := layer.LoadTOC(context.Background(), src)
	check(t, err)
	check(t, s.Table.Check())
	diff(t, dump(t, s.Tree, decoded(t, blob, s.Table), true), want(t, b, true))
	for i := range s.Table.Len() {
		if c := s.Table.Chunk(i); c.Len > 1<<20 {
			t.Errorf("chunk of %d bytes", c.Len)
		}
	}
}

// TestZstdFrames: a layer can be entered in its middle, with little memory.
func TestZstdFrames(t *testing.T) {
	b := everything(t, 8<<20).bytes()
	blob, r := encoded(t, layer.Zstd, b, 1<<20)
	s, _ := read(t, layer.Source{Desc: r.Desc, DiffID: r.DiffID, Blob: memBlob(blob)})
	starts := map[int64]bool{}
	for i := range s.Table.Len() {
		starts[s.Table.Chunk(i).BlobOff] = true
	}
	if want := (len(b) + 4<<20 - 1) / (4 << 20); len(starts) != want {
		t.Errorf("%d frames, want %d", len(starts), want)
	}
}

// TestSame: the same tar gives the same blob.
func TestSame(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	big, many := everything(t, 2<<20).bytes(), manyFiles(t, 700, 100)
	few := manyFiles(t, 50, 10)
	for _, c := range []struct {
		name  string
		b     []byte
		steps []int
	}{
		{"big", big, []int{1 << 20, 7000}},
		{"many", many, []int{1 << 20, 777}},
		{"few", few, []int{1 << 20, 7, 1}},
	} {
		for _, f := range formats {
			var first digest.Digest
			for _, cpus := range []int{1, 2, 8} {
				runtime.GOMAXPROCS(cpus)
				for _, step := range c.steps {
					_, r := encoded(t, f, c.b, step)
					if first == "" {
						first = r.Desc.Digest
					}
					if r.Desc.Digest != first {
						t.Errorf("%v of %s differs with %d CPUs and writes of %d bytes", f, c.name, cpus, step)
					}
				}
			}
		}
	}
}
