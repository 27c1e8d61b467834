package layer_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/laminafs/lamina/layer"
)

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

func readFile(t testing.TB, path string) []byte {
	b, err := os.ReadFile(path)
	check(t, err)
	return b
}

// TestOpenTable: files that are no tables.
func TestOpenTable(t *testing.T) {
	s, _ := open(t, packGzip(6, 0)(t, randomTar(t, 1, 10, twoSpans)), false)
	dir := t.TempDir()
	path := filepath.Join(dir, "chunks")
	check(t, s.Table.Write(path))
	good := readFile(t, path)
	for name, b := range map[string][]byte{
		"empty":  {},
		"short":  good[:100],
		"cut":    good[:len(good)-1],
		"longer": append(bytes.Clone(good), 0),
		"magic":  append([]byte("X"), good[1:]...),
		"header": append(append(bytes.Clone(good[:50]), good[50]^1), good[51:]...),
	} {
		check(t, os.WriteFile(path, b, 0o600))
		if _, err := layer.OpenTable(path); !errors.Is(err, layer.ErrTable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good[len(good)-1] ^= 1
	check(t, os.WriteFile(path, good, 0o600))
	table, err := layer.OpenTable(path)
	check(t, err)
	if err := table.Check(); !errors.Is(err, layer.ErrTable) {
		t.Errorf("Check of a damaged table: %v", err)
	}
	check(t, table.Close())
	if _, err := layer.OpenTable(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

// manyFiles is like a python image: 23,000 small files.
func manyFiles(t testing.TB, n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 1))
	var hs []th
	for i := range n {
		if i%12 == 0 {
			hs = append(hs, th{Name: fmt.Sprintf("usr/lib/python3/dist-packages/package%d/", i/12)})
		}
		hs = append(hs, th{Name: fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module_%d.cpython-311.pyc", i/12, rnd.IntN(1e9)), ModTime: fixedTime})
	}
	return tarOf(t, hs...)
}

func BenchmarkLoadTOC(b *testing.B) {
	in := manyFiles(b, 21_000)
	for _, f := range formats {
		if !f.lazy {
			continue
		}
		src := f.pack(b, in)
		b.Run(f.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := loadTOC(src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkJSON is what encoding/json takes for the JSON alone.
func BenchmarkJSON(b *testing.B) {
	var toc estargz.JTOC
	for i := range 23_000 {
		toc.Entries = append(toc.Entries, &estargz.TOCEntry{
			Name: fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module_%d.cpython-311.pyc", i/12, i), Type: "reg", Size: 1000,
			ModTime3339: "2024-01-02T03:04:05Z", Mode: 0o644, Offset: int64(i), Digest: hash, ChunkDigest: hash,
		})
	}
	p, err := json.MarshalIndent(&toc, "", "\t")
	check(b, err)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		var toc estargz.JTOC
		check(b, json.Unmarshal(p, &toc))
	}
}

func BenchmarkStream(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 1))
	var in []byte
	for i := range 400 {
		in = append(in, rawEntry('0', fmt.Sprintf("f%d", i), content(rnd, 500_000))...)
	}
	in = append(in, make([]byte, 1024)...)
	for _, f := range formats[:9] {
		src := f.pack(b, in)
		b.Run(f.name, func(b *testing.B) {
			b.SetBytes(int64(len(in)))
			path := filepath.Join(b.TempDir(), "data")
			for b.Loop() {
				data, err := os.Create(path)
				check(b, err)
				s, err := layer.Stream(context.Background(), src, bytes.NewReader(src.Blob.(*memBlob).b), data)
				check(b, err)
				check(b, data.Close())
				check(b, s.Table.Write(path+".chunks"))
				b.ReportMetric(float64(len(readFile(b, path+".chunks")))*100/float64(len(src.Blob.(*memBlob).b)), "%table")
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	in := randomTar(b, 1, 400, twoSpans)
	for _, f := range formats {
		src := f.pack(b, in)
		s, _ := open(b, src, f.lazy)
		off, n := s.Table.Span(0, s.Table.Len())
		blob := src.Blob.(*memBlob).b[off : off+n]
		b.Run(f.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(s.Table.DataSize())
			for b.Loop() {
				check(b, s.Table.Decode(bytes.NewReader(blob), 0, s.Table.Len(), func(int, []byte) error { return nil }))
			}
		})
	}
}
