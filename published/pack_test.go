package published_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/published"
)

func unpack(b []byte, want ocispec.Descriptor) (*layer.Scanned, error) {
	return published.Unpack(context.Background(), bytes.NewReader(b), want)
}

// TestRoundTrip reads a layer's data through what came out of its pack.
func TestRoundTrip(t *testing.T) {
	f := newFixture(t, 1)
	p := f.pack(t)
	if !bytes.Equal(p, f.pack(t)) {
		t.Error("two packs of the same files differ")
	}
	s, err := unpack(p, f.desc)
	check(t, err)

	if d := s.Tree.Devices; len(d) != 1 || d[0].Tag != f.desc.Digest.Encoded() || d[0].Size != int64(len(f.data)) {
		t.Errorf("devices %+v", d)
	}
	s.Tree.Devices[0].Tag = f.diffID.Encoded()
	again, err := s.Tree.Encode()
	check(t, err)
	if !bytes.Equal(again, f.index) {
		t.Error("the index written anew differs from the one packed")
	}
	if s.Table.BlobDigest() != f.desc.Digest || s.Table.Format() != layer.Gzip || s.DiffID != "" || s.Prefetch != nil {
		t.Errorf("table of %s, %s; diff ID %q", s.Table.BlobDigest(), s.Table.Format(), s.DiffID)
	}

	path := filepath.Join(t.TempDir(), "blob")
	check(t, os.WriteFile(path, f.blob, 0o600))
	blob := fetch.OpenFile(path, 0, f.desc.Size, f.desc.Digest)
	copied := 0
	for i := range s.Table.Len() {
		c := s.Table.Chunk(i)
		want := f.data[c.Off : c.Off+c.Len]
		switch c.Kind {
		case layer.Copied:
			copied++
			p := make([]byte, c.Len)
			check(t, s.Table.Compose(i, p, func(p []byte, off int64) error {
				copy(p, f.data[off:])
				return nil
			}))
			if !bytes.Equal(p, want) {
				t.Errorf("chunk %d is wrong", i)
			}
		default:
			off, n := s.Table.Span(i, i+1)
			r, err := blob.ReadRange(context.Background(), off, n)
			check(t, err)
			check(t, s.Table.Decode(r, i, i+1, func(_ int, p []byte) error {
				if !bytes.Equal(p, want) {
					t.Errorf("chunk %d is wrong", i)
				}
				return nil
			}))
		}
	}
	if copied == 0 {
		t.Error("the layer has no copied chunks: the test misses them")
	}
}

func TestPackFails(t *testing.T) {
	f := newFixture(t, 1)
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	check(t, os.WriteFile(big, nil, 0o600))
	check(t, os.Truncate(big, 1<<30))
	index, chunks := filepath.Join(f.dir, indexName), filepath.Join(f.dir, chunksName)
	if err := published.Pack(io.Discard, index, big); !errors.Is(err, published.ErrTooBig) {
		t.Errorf("too big: %v", err)
	}
	if err := published.Pack(io.Discard, filepath.Join(dir, "none"), chunks); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := published.Pack(fullDisk{}, index, chunks); !errors.Is(err, errFull) {
		t.Errorf("full: %v", err)
	}
}

var errFull = errors.New("full")

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errFull }

// TestUnpackInvalid: packs that are no packs, or not of that layer.
func TestUnpackInvalid(t *testing.T) {
	f := newFixture(t, 1)
	good := f.pack(t)
	idx, chunks := file(indexName, f.index), file(chunksName, f.chunks)
	zeros := func(n int64) func(io.Writer) {
		return func(w io.Writer) { _, _ = io.CopyN(w, zeroReader{}, n) }
	}
	sparse := idx // 1 TB of holes
	sparse.Header = tar.Header{Typeflag: tar.TypeReg, Name: indexName, Size: 1 << 40}
	tests := map[string][]byte{
		"nothing":      nil,
		"html":         []byte("<!doctype html>"),
		"empty tar":    packOf(t),
		"index only":   packOf(t, idx),
		"chunks only":  packOf(t, chunks),
		"index twice":  packOf(t, idx, idx, chunks),
		"a third file": packOf(t, idx, chunks, file("bitmap", nil)),
		"a path":       packOf(t, file("./"+indexName, f.index), chunks),
		"a symlink":    packOf(t, member{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: indexName, Linkname: "/etc/passwd"}}, chunks),
		"a folder":     packOf(t, member{Header: tar.Header{Typeflag: tar.TypeDir, Name: chunksName}}, idx),
		"swapped":      packOf(t, file(indexName, f.chunks), file(chunksName, f.index)),
		"no zstd":      f.blob,
		"bomb of zeros": compressed(t, func(w io.Writer) {
			_, _ = w.Write(good) // no tar either
			zeros(700 << 20)(w)
		}),
		"bomb in a file": compressed(t, func(w io.Writer) {
			h := tar.NewWriter(w)
			check(t, h.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: indexName, Size: 1 << 32}))
		}),
		"bomb behind":    append(bytes.Clone(good), compressed(t, zeros(600<<20))...),
		"garbage behind": append(bytes.Clone(good), "garbage"...),
		"empty index":    packOf(t, file(indexName, nil), chunks),
		"empty chunks":   packOf(t, idx, file(chunksName, nil)),
	}
	for i := 1; i < len(good); i += 1 + len(good)/50 {
		tests[fmt.Sprintf("cut at %d", i)] = good[:i]
	}
	for name, b := range tests {
		s, err := unpack(b, f.desc)
		if !errors.Is(err, published.ErrInvalid) || s != nil {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than a line: %v", name, err)
		}
	}
	other := newFixture(t, 2)
	if _, err := unpack(good, other.desc); !errors.Is(err, published.ErrInvalid) {
		t.Errorf("of another layer: %v", err)
	}
}

// TestUnpackedLimit: what is unpacked is bounded by the size of the layer's blob,
// and an index of a million files fits nevertheless.
func TestUnpackedLimit(t *testing.T) {
	f := newFixture(t, 1)
	body := make([]byte, 60<<20) // of zeros: a small pack
	big := packOf(t, file(indexName, f.index), file(chunksName, body))
	_, err := unpack(big, f.desc)
	if !errors.Is(err, published.ErrInvalid) || !strings.Contains(err.Error(), "at most") {
		t.Errorf("60 MB for a blob of %d: %v", f.desc.Size, err)
	}
	large := f.desc
	large.Size = 5 << 20 // of a million empty files
	if _, err := unpack(big, large); !errors.Is(err, published.ErrInvalid) || strings.Contains(err.Error(), "at most") {
		t.Errorf("60 MB for a blob of 5 MB: %v", err)
	}
	million := packOf(t, file(indexName, make([]byte, 130<<20)), file(chunksName, f.chunks))
	if _, err := unpack(million, large); !errors.Is(err, published.ErrInvalid) || strings.Contains(err.Error(), "at most") {
		t.Errorf("an index of 130 MB for a blob of 5 MB: %v", err)
	}

	// What cannot be unpacked is not packed.
	path := filepath.Join(t.TempDir(), indexName)
	check(t, os.WriteFile(path, nil, 0o600))
	check(t, os.Truncate(path, 60<<20))
	if err := published.Pack(io.Discard, path, filepath.Join(f.dir, chunksName)); !errors.Is(err, published.ErrTooBig) {
		t.Errorf("pack of 60 MB for a blob of %d: %v", f.desc.Size, err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Offsets in a chunk table's file; see the package comment of layer.
const (
	atFormat, atChunks, atPoints, atCopies = 12, 16, 24, 32
	atDataSize, atBlobSize, atDigest       = 48, 56, 64
	headerSize, recordSize, pointSize      = 256, 72, 32
)

// seal makes the checksums of a table right.
func seal(b []byte) []byte {
	sum := sha256.Sum256(b[headerSize:])
	copy(b[216:], sum[:])
	binary.LittleEndian.PutUint32(b[252:], crc32.Checksum(b[:252], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// TestUnpackWrongTable: tables whose checksums are right and that lie.
func TestUnpackWrongTable(t *testing.T) {
	f := newFixture(t, 1)
	le := binary.LittleEndian
	chunks, points := int(le.Uint64(f.chunks[atChunks:])), int(le.Uint64(f.chunks[atPoints:]))
	firstCopy := headerSize + chunks*recordSize + points*pointSize
	if n := le.Uint64(f.chunks[atCopies:]); n == 0 {
		t.Fatal("no copies")
	}
	add := func(b []byte, at int, n int64) { le.PutUint64(b[at:], le.Uint64(b[at:])+uint64(n)) }
	for name, change := range map[string]func(b []byte){
		"format with contents": func(b []byte) { b[atFormat] = byte(layer.EStargz) },
		"unknown format":       func(b []byte) { b[atFormat] = 9 },
		"more data":            func(b []byte) { add(b, atDataSize, 512) },
		"odd data":             func(b []byte) { add(b, atDataSize, 1) },
		"less data":            func(b []byte) { add(b, atDataSize, -512) },
		"larger blob":          func(b []byte) { add(b, atBlobSize, 1) },
		"smaller blob":         func(b []byte) { add(b, atBlobSize, -1) },
		"another blob":         func(b []byte) { b[atDigest+10]++ },
		"no blob":              func(b []byte) { b[atDigest] = 0 },
		"copied first":         func(b []byte) { b[headerSize+35] = byte(layer.Copied) << 6 },
		"copy of itself":       func(b []byte) { copy(b[firstCopy+8:], b[firstCopy:firstCopy+8]) },
		"copy from beyond":     func(b []byte) { add(b, firstCopy+8, 1<<40) },
		"copy from before":     func(b []byte) { le.PutUint64(b[firstCopy+8:], 1<<64-8) },
	} {
		b := bytes.Clone(f.chunks)
		change(b)
		_, err := unpack(packOf(t, file(indexName, f.index), file(chunksName, seal(b))), f.desc)
		if !errors.Is(err, published.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnpackWrongTree: indexes that lead to what the layer does not have.
func TestUnpackWrongTree(t *testing.T) {
	f := newFixture(t, 1)
	size := int64(len(f.data))
	for name, c := range map[string]struct {
		devices []int64
		extent  index.Extent
		good    bool
	}{
		"fitting":        {[]int64{size}, index.Extent{Len: 512, Off: size - 512, Device: 1}, true},
		"past the data":  {[]int64{size}, index.Extent{Len: 1024, Off: size - 512, Device: 1}, false},
		"far past":       {[]int64{size}, index.Extent{Len: 512, Off: 1 << 40, Device: 1}, false},
		"larger device":  {[]int64{size + 512}, index.Extent{Len: 512, Device: 1}, false},
		"second device":  {[]int64{size, size}, index.Extent{Len: 512, Device: 2}, false},
		"spare device":   {[]int64{size, size}, index.Extent{Len: 512, Device: 1}, false},
		"without device": {nil, index.Extent{}, false},
	} {
		root := &index.Node{Mode: 0o40755}
		child := &index.Node{Mode: 0o100644, Size: c.extent.Len}
		if c.extent.Len > 0 {
			child.Extents = []index.Extent{c.extent}
		}
		root.SetChild("f", child)
		tree := &index.Tree{Root: root}
		for _, n := range c.devices {
			tree.Devices = append(tree.Devices, index.Device{Tag: "x", Size: n})
		}
		b, err := tree.Encode()
		if err != nil {
			continue // such an index cannot be made
		}
		_, err = unpack(packOf(t, file(indexName, b), file(chunksName, f.chunks)), f.desc)
		if c.good && err != nil || !c.good && !errors.Is(err, published.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnpackFlipped damages single bytes: what is accepted can be written anew
// and speaks of the layer's data only.
func TestUnpackFlipped(t *testing.T) {
	f := newFixture(t, 1)
	rnd := rand.New(rand.NewPCG(5, 5))
	for range 400 {
		idx, chunks := bytes.Clone(f.index), bytes.Clone(f.chunks)
		if rnd.IntN(2) == 0 {
			idx[1536+rnd.IntN(len(idx)-1536)] ^= 1 << rnd.IntN(8)
		} else {
			chunks[headerSize+rnd.IntN(len(chunks)-headerSize)] ^= 1 << rnd.IntN(8)
			seal(chunks)
		}
		s, err := unpack(packOf(t, file(indexName, idx), file(chunksName, chunks)), f.desc)
		sound(t, s, err, f.desc)
	}
}

// sound checks the outcome of an Unpack.
func sound(t *testing.T, s *layer.Scanned, err error, want ocispec.Descriptor) {
	t.Helper()
	switch {
	case err != nil:
		if !errors.Is(err, published.ErrInvalid) {
			t.Errorf("%v", err)
		}
		return
	case s.Table.BlobDigest() != want.Digest || s.Table.BlobSize() != want.Size || len(s.Tree.Devices) != 1:
		t.Errorf("table of %s, %d devices", s.Table.BlobDigest(), len(s.Tree.Devices))
	}
	for i := range s.Table.Len() {
		if s.Table.Chunk(i).Kind == layer.Copied {
			_ = s.Table.Compose(i, make([]byte, s.Table.Chunk(i).Len), func(p []byte, off int64) error {
				if off < 0 || off+int64(len(p)) > s.Table.DataSize() {
					t.Errorf("copy of %d bytes from %d", len(p), off)
				}
				return nil
			})
		}
	}
	_, _ = s.Tree.Encode() // must not panic
}

func TestUnpackSourceFails(t *testing.T) {
	f := newFixture(t, 1)
	broken := errors.New("line is cut")
	r := io.MultiReader(bytes.NewReader(f.pack(t)[:1000]), iotest.ErrReader(broken))
	if _, err := published.Unpack(context.Background(), r, f.desc); !errors.Is(err, broken) || errors.Is(err, published.ErrInvalid) {
		t.Errorf("broken source: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := published.Unpack(ctx, bytes.NewReader(f.pack(t)), f.desc); !errors.Is(err, context.Canceled) || errors.Is(err, published.ErrInvalid) {
		t.Errorf("canceled: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	x := newFixture(f, 1)
	f.Add(x.index, x.chunks, []byte(nil))
	f.Add([]byte(nil), []byte(nil), x.pack(f))
	f.Add([]byte(nil), []byte(nil), []byte("<html>"))
	f.Fuzz(func(t *testing.T, idx, chunks, pack []byte) {
		if len(pack) == 0 {
			if len(chunks) >= headerSize {
				chunks = seal(bytes.Clone(chunks))
			}
			pack = packOf(t, file(indexName, idx), file(chunksName, chunks))
		}
		s, err := unpack(pack, x.desc)
		sound(t, s, err, x.desc)
	})
}
