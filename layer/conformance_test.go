package layer_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// open opens src in the way that Key says, or streams it. It returns the data
// file too when it streamed.
func open(t testing.TB, src layer.Source, lazy bool) (*layer.Scanned, *os.File) {
	t.Helper()
	if lazy {
		s, err := layer.LoadTOC(context.Background(), src)
		check(t, err)
		return s, nil
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "data"))
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	r, err := src.Blob.ReadRange(context.Background(), 0, src.Blob.Size())
	check(t, err)
	s, err := layer.Stream(context.Background(), src, r, f)
	check(t, err)
	return s, f
}

// kept writes the table and opens it again.
func kept(t testing.TB, s *layer.Scanned) *layer.Table {
	t.Helper()
	path := filepath.Join(t.TempDir(), "chunks")
	check(t, s.Table.Write(path))
	table, err := layer.OpenTable(path)
	check(t, err)
	t.Cleanup(func() { check(t, table.Close()) })
	check(t, table.Check())
	table.Release()
	return table
}

// decodeAll makes all data from the blob, in spans of random length.
func decodeAll(t testing.TB, src layer.Source, table *layer.Table, rnd *rand.Rand) []byte {
	t.Helper()
	data := make([]byte, table.DataSize())
	decoded := table.Len()
	for decoded > 0 && table.Chunk(decoded-1).Kind == layer.Copied {
		decoded--
	}
	var starts []int
	for i := 0; i < decoded; i += 1 + rnd.IntN(12) {
		starts = append(starts, i)
	}
	starts = append(starts, decoded)
	for _, k := range rnd.Perm(len(starts) - 1) {
		i, j := starts[k], starts[k+1]
		off, n := table.Span(i, j)
		r, err := src.Blob.ReadRange(context.Background(), off, n)
		check(t, err)
		next := i
		check(t, table.Decode(r, i, j, func(i int, p []byte) error {
			if i != next {
				t.Fatalf("chunk %d, expected %d", i, next)
			}
			next++
			copy(data[table.Chunk(i).Off:], p)
			return table.Verify(i, p)
		}))
		if next != j {
			t.Fatalf("Decode emitted %d of %d chunks", next-i, j-i)
		}
	}
	for i := decoded; i < table.Len(); i++ {
		c := table.Chunk(i)
		check(t, table.Compose(i, data[c.Off:c.Off+c.Len], func(p []byte, off int64) error {
			copy(p, data[off:off+int64(len(p))])
			return nil
		}))
	}
	return data
}

// TestFormats runs one random tree through every format: the tree must be the
// same, and all data must come back from ranged reads alone.
func TestFormats(t *testing.T) {
	long, short := randomTar(t, 0, 80, twoSpans), randomTar(t, 1, 80, oneSpan)
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			testFormat(t, f, long, rand.New(rand.NewPCG(0, 1)))
			testFormat(t, f, short, rand.New(rand.NewPCG(1, 1)))
		})
	}
}

func testFormat(t *testing.T, f format, tarBytes []byte, rnd *rand.Rand) {
	ref, _ := open(t, packTar(t, tarBytes), false)
	want := dump(t, ref.Tree, inTar(tarBytes), f.lossy)
	src := f.pack(t, tarBytes)
	key, got, lazy := layer.Key(src)
	if got != f.want || lazy != f.lazy {
		t.Fatalf("Key: %s %v %v", key, got, lazy)
	}
	if lazy == (key == layer.DiffKey(src)) {
		t.Errorf("key %s, diff key %s", key, layer.DiffKey(src))
	}
	for _, lazy := range []bool{false, f.lazy} {
		s, file := open(t, src, lazy)
		table := kept(t, s)
		if table.BlobDigest() != src.Desc.Digest || table.BlobSize() != src.Desc.Size {
			t.Errorf("table is for %d bytes, %s", table.BlobSize(), table.BlobDigest())
		}
		data := decodeAll(t, src, table, rnd)
		lossy := f.lossy // a lossless read of a lossy format is compared as lossy
		diff(t, f.name, dump(t, s.Tree, inTar(data), lossy), want)
		if _, err := s.Tree.Encode(); err != nil {
			t.Errorf("encode: %v", err)
		}
		if s.Tree.Devices[0].Size != table.DataSize() || table.DataSize()%512 != 0 {
			t.Errorf("device of %d bytes, data of %d", s.Tree.Devices[0].Size, table.DataSize())
		}
		if file != nil {
			stored := make([]byte, table.DataSize())
			_, err := file.ReadAt(stored, 0)
			check(t, err)
			if !bytes.Equal(stored, data) {
				t.Error("stored data differs from decoded data")
			}
			if s.DiffID != src.DiffID {
				t.Errorf("diff ID %s", s.DiffID)
			}
		}
		finds(t, table)
	}
}

// finds checks Find against the list of chunks.
func finds(t *testing.T, table *layer.Table) {
	t.Helper()
	for i := range table.Len() {
		c := table.Chunk(i)
		for _, off := range []int64{c.Off, c.Off + c.Len/2, c.Off + c.Len - 1} {
			if k, ok := table.Find(off); k != i || !ok {
				t.Fatalf("Find(%d) = %d, %v, want %d", off, k, ok, i)
			}
		}
		if k, ok := table.Find(c.Off + c.Len); k != i+1 || ok && table.Chunk(i+1).Off != c.Off+c.Len {
			t.Fatalf("Find behind chunk %d = %d, %v", i, k, ok)
		}
	}
}

// TestCorrupt flips bytes of every format: what comes out is right or refused.
func TestCorrupt(t *testing.T) {
	tarBytes := randomTar(t, 9, 20, 2<<20)
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			src := f.pack(t, bytes.Clone(tarBytes)) // a blob may be the tar itself
			s, _ := open(t, src, f.lazy)
			rnd := rand.New(rand.NewPCG(3, 4))
			b := src.Blob.(*memBlob).b
			for range 8 {
				at := rnd.IntN(len(b))
				was := b[at]
				b[at] ^= 1 << rnd.IntN(8)
				decodeCorrupt(t, src, s.Table)
				bad := src
				bad.Blob = &memBlob{b: b}
				r, err := bad.Blob.ReadRange(context.Background(), 0, int64(len(b)))
				check(t, err)
				if _, err := layer.Stream(context.Background(), bad, r, discard{}); !errors.Is(err, layer.ErrDigest) {
					t.Fatalf("Stream with byte %d changed: %v", at, err)
				}
				b[at] = was
			}
		})
	}
}

// decodeCorrupt decodes all chunks of a damaged blob; what is emitted is right.
func decodeCorrupt(t *testing.T, src layer.Source, table *layer.Table) {
	t.Helper()
	for i := 0; i < table.Len(); i += 5 {
		j := min(i+5, table.Len())
		off, n := table.Span(i, j)
		r, err := src.Blob.ReadRange(context.Background(), off, n)
		check(t, err)
		err = table.Decode(r, i, j, table.Verify)
		if err != nil && !errors.Is(err, layer.ErrDigest) {
			t.Fatalf("Decode: %v", err)
		}
	}
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// TestDecodeErrors: errors of the source and of emit come back as they are.
func TestDecodeErrors(t *testing.T) {
	tarBytes := randomTar(t, 5, 40, oneSpan)
	boom := errors.New("boom")
	for _, f := range formats {
		src := f.pack(t, tarBytes)
		s, _ := open(t, src, f.lazy)
		off, n := s.Table.Span(0, s.Table.Len())
		r, err := src.Blob.ReadRange(context.Background(), off, n)
		check(t, err)
		if err := s.Table.Decode(r, 0, s.Table.Len(), func(int, []byte) error { return boom }); err != boom {
			t.Errorf("%s: emit's error became %v", f.name, err)
		}
		cut := &failing{b: src.Blob.(*memBlob).b[off : off+n/2], err: boom}
		if err := s.Table.Decode(cut, 0, s.Table.Len(), func(int, []byte) error { return nil }); err != boom {
			t.Errorf("%s: the source's error became %v", f.name, err)
		}
		cut = &failing{b: src.Blob.(*memBlob).b[off : off+n/2], err: nil}
		if err := s.Table.Decode(cut, 0, s.Table.Len(), func(int, []byte) error { return nil }); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: a short source gives %v", f.name, err)
		}
		if err := s.Table.Decode(cut, 0, s.Table.Len()+1, nil); !errors.Is(err, layer.ErrTable) {
			t.Errorf("%s: chunks that are not there: %v", f.name, err)
		}
	}
}

// failing yields b and then err, io.EOF if that is nil.
type failing struct {
	b   []byte
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	if len(f.b) == 0 {
		if f.err == nil {
			return bytes.NewReader(nil).Read(p)
		}
		return 0, f.err
	}
	n := copy(p, f.b)
	f.b = f.b[n:]
	return n, nil
}

var _ fetch.Blob = (*memBlob)(nil)
