package layer_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"testing"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/checkpoint"
	"github.com/laminafs/lamina/layer/tarscan"
)

// TestAssembly: what is assembled from headers and places of a layer is what Stream
// makes of it, and stays so in a file. Package published/soci tests more of it.
func TestAssembly(t *testing.T) {
	tarBytes := randomTar(t, 11, 40, 3<<20)
	src := packGzip(6, 1<<20)(t, tarBytes)
	blob := src.Blob.(*memBlob).b
	a, err := layer.NewAssembly(src.Desc, int64(len(tarBytes)))
	check(t, err)
	var points []checkpoint.Checkpoint
	var scan bytes.Buffer
	r := checkpoint.NewReader(bytes.NewReader(blob), 256<<10, func(c checkpoint.Checkpoint) error {
		points = append(points, c)
		return nil
	})
	_, err = r.WriteTo(&scan)
	check(t, err)
	headers := tarscan.New(func(h *tarscan.Header) error {
		if h.Sparse {
			if err := a.Entry(h); !errors.Is(err, layer.ErrFormat) {
				t.Errorf("sparse entry: %v", err)
			}
			return nil
		}
		return a.Entry(h)
	})
	_, err = headers.Write(scan.Bytes())
	check(t, err)
	for i, c := range points {
		end := int64(len(blob))
		if i+1 < len(points) {
			end = points[i+1].In + int64(min(points[i+1].Bits, 1))
		}
		check(t, a.Span(c, sha256.Sum256(blob[c.In:end])))
	}
	s, err := a.Finish()
	check(t, err)
	path := filepath.Join(t.TempDir(), "chunks")
	check(t, s.Table.Write(path))
	table, err := layer.OpenTable(path)
	check(t, err)
	defer func() { check(t, table.Close()) }()
	check(t, table.Check())
	if table.Comparable() || table.Len() != len(points) || table.Format() != layer.Gzip {
		t.Errorf("%d chunks of %d places", table.Len(), len(points))
	}
	off, n := table.Span(0, table.Len())
	var got []byte
	check(t, table.Decode(bytes.NewReader(blob[off:off+n]), 0, table.Len(), func(i int, p []byte) error {
		got = append(got, p...)
		return table.Verify(i, p)
	}))
	if !bytes.Equal(got, tarBytes) {
		t.Error("other data")
	}
	if err := table.Verify(0, got[:5]); !errors.Is(err, layer.ErrDigest) {
		t.Errorf("too short: %v", err)
	}
	// Only gzip has such tables, and only those flags are known.
	raw := readFile(t, path)
	for name, change := range map[string]func(b []byte){
		"format": func(b []byte) { b[12] = byte(layer.Zstd) },
		"flags":  func(b []byte) { b[13] = 2 },
	} {
		b := bytes.Clone(raw)
		change(b)
		fixSum(b)
		if _, err := layer.NewTable(b); !errors.Is(err, layer.ErrTable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAssemblyWrong: nothing that does not fit the layer is taken.
func TestAssemblyWrong(t *testing.T) {
	src := packGzip(6, 1<<20)(t, make([]byte, 4096))
	make := func() *layer.Assembly {
		a, err := layer.NewAssembly(src.Desc, 4096)
		check(t, err)
		return a
	}
	for name, err := range map[string]error{
		"no spans":        func() error { _, err := make().Finish(); return err }(),
		"starts late":     make().Span(checkpoint.Checkpoint{In: 10, Out: 1}, [32]byte{}),
		"beyond the blob": make().Span(checkpoint.Checkpoint{In: src.Desc.Size}, [32]byte{}),
		"before the blob": make().Span(checkpoint.Checkpoint{In: -1}, [32]byte{}),
		"window":          make().Span(checkpoint.Checkpoint{In: 10, Window: []byte("x")}, [32]byte{}),
		"beyond the data": make().Entry(&tarscan.Header{Name: "x", Type: tarscan.TypeReg, Size: 4096, Data: 512}),
		"within a block":  make().Entry(&tarscan.Header{Name: "x", Type: tarscan.TypeReg, Size: 1, Data: 5}),
		"path":            make().Entry(&tarscan.Header{Name: "../x", Type: tarscan.TypeDir}),
	} {
		if !errors.Is(err, layer.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
