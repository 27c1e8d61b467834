package published_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/published"
)

const (
	indexName  = "index.erofs"
	chunksName = "chunks"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture is a gzip layer and what layer.Stream derives from it.
type fixture struct {
	blob          []byte
	data          []byte // by data offset
	desc          ocispec.Descriptor
	diffID        digest.Digest
	dir           string // has index.erofs and chunks
	index, chunks []byte
}

// newFixture makes a layer with folders, links, files of all sizes and a sparse
// file, whose table has copied chunks.
func newFixture(t testing.TB, seed uint64) *fixture {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		check(t, w.WriteHeader(&h))
		_, err := w.Write(body)
		check(t, err)
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755}, nil)
	for i := range 40 {
		body := make([]byte, rnd.IntN(1<<(i/3)+1))
		for k := range body {
			body[k] = byte(rnd.IntN(20)) // something to compress
		}
		if i == 30 {
			body = bytes.Repeat(body, 1+5<<20/(1+len(body))) // several resume points
		}
		add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d/f%02d", i), Mode: 0o644}, body)
	}
	add(tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "d/f03"}, nil)
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "soft", Linkname: "d"}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "d/.wh.gone"}, nil)
	check(t, w.Flush())
	b.Write(sparse("sparse", bytes.Repeat([]byte("s"), 700)))
	check(t, w.Close())

	var z bytes.Buffer
	g := gzip.NewWriter(&z)
	_, err := g.Write(b.Bytes())
	check(t, err)
	check(t, g.Close())
	return stream(t, z.Bytes(), digest.FromBytes(b.Bytes()))
}

// stream derives index and table of a blob.
func stream(t testing.TB, blob []byte, diffID digest.Digest) *fixture {
	t.Helper()
	f := &fixture{
		blob: blob, diffID: diffID, dir: t.TempDir(),
		desc: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(blob), Size: int64(len(blob))},
	}
	data, err := os.Create(filepath.Join(f.dir, "data"))
	check(t, err)
	defer func() { check(t, data.Close()) }()
	s, err := layer.Stream(context.Background(), layer.Source{Desc: f.desc, DiffID: diffID}, bytes.NewReader(blob), data)
	check(t, err)
	check(t, s.Tree.Write(filepath.Join(f.dir, indexName)))
	check(t, s.Table.Write(filepath.Join(f.dir, chunksName)))
	f.data = make([]byte, s.Table.DataSize())
	_, err = data.ReadAt(f.data, 0)
	check(t, err)
	f.index, err = os.ReadFile(filepath.Join(f.dir, indexName))
	check(t, err)
	f.chunks, err = os.ReadFile(filepath.Join(f.dir, chunksName))
	check(t, err)
	return f
}

// sparse is a PAX 1.0 sparse file of two pieces of body, neither of which begins
// at a block boundary.
func sparse(name string, body []byte) []byte {
	n := int64(len(body))
	list := fmt.Sprintf("2\n100\n%d\n5000\n%d\n", n, n)
	pax := record("GNU.sparse.name", name) + record("GNU.sparse.realsize", fmt.Sprint(9000)) +
		record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")
	content := append([]byte(list), make([]byte, -len(list)&511)...)
	content = append(append(content, body...), body...)
	return append(rawEntry('x', "pax", []byte(pax)), rawEntry('0', name, content)...)
}

func rawEntry(typ byte, name string, body []byte) []byte {
	b := make([]byte, 512, 1024+len(body))
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", len(body)))
	copy(b[257:], "ustar\x0000")
	b[156] = typ
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	b = append(b, body...)
	return append(b, make([]byte, -len(body)&511)...)
}

func record(k, v string) string {
	n := len(k) + len(v) + 3
	for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
		n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
	}
	return fmt.Sprintf("%d %s=%s\n", n, k, v)
}

// pack returns what Pack makes of f.
func (f *fixture) pack(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	check(t, published.Pack(&b, filepath.Join(f.dir, indexName), filepath.Join(f.dir, chunksName)))
	return b.Bytes()
}

// packed writes the pack of f and returns it as Push wants it.
func (f *fixture) packed(t testing.TB) published.PackedLayer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pack")
	check(t, os.WriteFile(path, f.pack(t), 0o600))
	return published.PackedLayer{Layer: f.desc.Digest, DiffID: f.diffID, Path: path}
}

// member is a file of a pack made by hand.
type member struct {
	tar.Header
	body []byte
}

func file(name string, body []byte) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body))}, body}
}

func packOf(t testing.TB, ms ...member) []byte {
	t.Helper()
	return compressed(t, func(z io.Writer) {
		w := tar.NewWriter(z)
		for _, m := range ms {
			check(t, w.WriteHeader(&m.Header))
			_, err := w.Write(m.body)
			check(t, err)
		}
		check(t, w.Close())
	})
}

func compressed(t testing.TB, write func(w io.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	check(t, err)
	write(z)
	check(t, z.Close())
	return b.Bytes()
}
