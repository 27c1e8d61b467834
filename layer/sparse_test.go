package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
)

// piece is a data range of a sparse file.
type piece struct{ off, len int64 }

// randomPieces returns ordered pieces of a file of the given size, aligned to
// unit.
func randomPieces(rnd *rand.Rand, size, unit int64) []piece {
	var out []piece
	for at := int64(0); at < size; {
		at += rnd.Int64N(1+size/8/unit) * unit
		n := (1 + rnd.Int64N(1+size/16/unit)) * unit
		if n = min(n, size-at); n <= 0 {
			break
		}
		out = append(out, piece{at, n})
		at += n
	}
	return out
}

// sparseEntry returns the tar entry of a PAX 1.0 or 0.1 sparse file.
func sparseEntry(name string, size int64, pieces []piece, data []byte, v1 bool) []byte {
	pax := map[string]string{"GNU.sparse.name": name, "GNU.sparse.realsize": fmt.Sprint(size), "GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
	list, body := fmt.Sprintf("%d\n", len(pieces)), []byte(nil)
	comma := ""
	for i, p := range pieces {
		list += fmt.Sprintf("%d\n%d\n", p.off, p.len)
		if i > 0 {
			comma += ","
		}
		comma += fmt.Sprintf("%d,%d", p.off, p.len)
		body = append(body, data[p.off:p.off+p.len]...)
	}
	if v1 {
		body = append(append([]byte(list), make([]byte, -len(list)&511)...), body...)
	} else {
		pax = map[string]string{"GNU.sparse.size": fmt.Sprint(size), "GNU.sparse.numblocks": fmt.Sprint(len(pieces)), "GNU.sparse.map": comma}
	}
	records := ""
	for k, v := range pax {
		records += record(k, v)
	}
	out := rawEntry('x', "pax", []byte(records))
	return append(out, rawEntry('0', name, body)...)
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

// TestSparse streams sparse files of all alignments. What the index gives must
// be what archive/tar gives, from the data file and from ranged reads.
func TestSparse(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	var b []byte
	for i := range 36 { // thrice each alignment in both formats
		size := 1 + rnd.Int64N(300_000)
		unit := []int64{1, 100, 512, 4096}[i%4]
		pieces := randomPieces(rnd, size, unit)
		if len(pieces) == 0 {
			continue
		}
		data := make([]byte, size)
		for _, p := range pieces {
			copy(data[p.off:], content(rnd, int(p.len)))
		}
		b = append(b, sparseEntry(fmt.Sprintf("f%02d", i), size, pieces, data, i%3 != 0)...)
	}
	b = append(b, make([]byte, 1024)...)
	want := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		want[h.Name], err = io.ReadAll(r)
		check(t, err)
	}
	for _, f := range formats[:9] {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			src := f.pack(t, b)
			s, file := open(t, src, false)
			table := kept(t, s)
			data := decodeAll(t, src, table, rand.New(rand.NewPCG(8, 9)))
			stored := make([]byte, len(data))
			_, err := file.ReadAt(stored, 0)
			check(t, err)
			if !bytes.Equal(stored, data) {
				t.Fatal("stored data differs")
			}
			if table.DataSize() <= int64(len(b)) {
				t.Error("nothing is stored again")
			}
			compareFiles(t, f.name, s.Tree, data, want)
		})
	}
}

// compareFiles compares files through the tree, and through the index as the
// kernel would read it.
func compareFiles(t *testing.T, what string, tree *index.Tree, data []byte, want map[string][]byte) {
	t.Helper()
	image, err := tree.Encode()
	check(t, err)
	x, err := index.New(image)
	check(t, err)
	again, err := x.Tree()
	check(t, err)
	for _, tr := range []*index.Tree{tree, again} {
		n := 0
		for name, node := range tr.Root.Children() {
			n++
			if got := fileData(t, node, inTar(data)); !bytes.Equal(got, want[name]) {
				t.Errorf("%s: %s differs", what, name)
			}
		}
		if n != len(want) {
			t.Errorf("%s: %d files, want %d", what, n, len(want))
		}
	}
}

// TestSparseBounds: maps that would need too much are refused, huge ones that
// need little are not.
func TestSparseBounds(t *testing.T) {
	var scattered []piece
	for i := range int64(20_000) {
		scattered = append(scattered, piece{i<<24 + 1, 1})
	}
	tests := []struct {
		name   string
		size   int64
		pieces []piece
		ok     bool
	}{
		{"a terabyte with one block", 1 << 40, []piece{{1 << 39, 512}}, true},
		{"lastlog", 292_296_000_000, []piece{{0, 292}, {292_292_000_000, 4_000_000 - 500_000}}, true},
		{"scattered bytes", 20_000 << 24, scattered, false},
		{"exabytes", 1 << 61, []piece{{0, 512}, {1 << 60, 512}}, false},
	}
	for _, tt := range tests {
		var list strings.Builder
		var body []byte
		n := int64(0)
		for i, p := range tt.pieces {
			if i > 0 {
				list.WriteByte(',')
			}
			fmt.Fprintf(&list, "%d,%d", p.off, p.len)
			n += p.len
		}
		body = make([]byte, n)
		b := rawEntry('x', "pax", []byte(record("GNU.sparse.size", fmt.Sprint(tt.size))+
			record("GNU.sparse.numblocks", fmt.Sprint(len(tt.pieces)))+record("GNU.sparse.map", list.String())))
		b = append(append(b, rawEntry('0', "f", body)...), make([]byte, 1024)...)
		src := packTar(t, b)
		r, err := src.Blob.ReadRange(context.Background(), 0, int64(len(b)))
		check(t, err)
		f, err := os.Create(filepath.Join(t.TempDir(), "data"))
		check(t, err)
		s, err := layer.Stream(context.Background(), src, r, f)
		check(t, f.Close())
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if err == nil {
			image, err := s.Tree.Encode()
			if err != nil || len(image) > 9<<20 || s.Table.DataSize() > 64<<20 {
				t.Errorf("%s: index of %d bytes, data of %d, %v", tt.name, len(image), s.Table.DataSize(), err)
			}
		}
	}
}

// TestScanTar opens a plain tar in place, inside another file.
func TestScanTar(t *testing.T) {
	b := randomTar(t, 4, 60, oneSpan)
	path := filepath.Join(t.TempDir(), "archive")
	outer := append(make([]byte, 1536), b...)
	check(t, os.WriteFile(path, append(outer, make([]byte, 512)...), 0o600))
	src := packTar(t, b)
	want, _ := open(t, src, false)
	src.Blob = fetch.OpenFile(path, 1536, int64(len(b)), digest.FromBytes(b))
	key, f, lazy := layer.Key(src)
	if f != layer.Tar || !lazy || key == layer.DiffKey(src) {
		t.Fatalf("Key: %s %v %v", key, f, lazy)
	}
	got, err := layer.ScanTar(context.Background(), src)
	check(t, err)
	diff(t, "in place", dump(t, got.Tree, inTar(b), false), dump(t, want.Tree, inTar(b), false))
	if got.Table.Len() != 0 || got.Table.DataSize() != int64(len(b)) {
		t.Errorf("table of %d chunks, %d bytes", got.Table.Len(), got.Table.DataSize())
	}
	check(t, os.Chtimes(path, fixedTime, fixedTime))
	if again, _, _ := layer.Key(src); again == key {
		t.Error("key does not change with the file")
	}
}
