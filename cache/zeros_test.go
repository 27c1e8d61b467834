package cache_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/layer"
)

// holed is a zstd:chunked layer of count files of one folder and kind, each of which
// has a chunk of 100 bytes at its beginning and at its end, and between them zeros
// chunks of one zero each: the blob has nothing of them, the table of contents all.
func holed(t *testing.T, count, zeros int) *fixture {
	t.Helper()
	const end = 100
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	var blob, data []byte
	size := 2*end + zeros
	entries := []map[string]any{{"type": "dir", "name": "lib/", "mode": 0o755}}
	for i := range count {
		name := fmt.Sprintf("lib/file%d.py", i)
		content := noise(i, size)
		clear(content[end : size-end])
		add := func(typ string, at, n int) {
			c := map[string]any{
				"type": typ, "name": name, "offset": len(blob), "chunkSize": n, "chunkOffset": at,
				"chunkDigest": digest.FromBytes(content[at : at+n]),
			}
			if typ == "reg" {
				c["size"], c["mode"], c["digest"] = size, 0o644, digest.FromBytes(content)
			}
			if n < end {
				c["chunkType"] = "zeros"
			} else {
				blob = enc.EncodeAll(content[at:at+n], blob)
			}
			entries = append(entries, c)
		}
		if i == 0 {
			blob = enc.EncodeAll([]byte("header"), blob) // no chunk is at the beginning
		}
		add("reg", 0, end)
		for k := range zeros {
			add("chunk", end+k, 1)
		}
		add("chunk", size-end, end)
		data = append(append(data, content...), make([]byte, -size&511)...)
	}
	toc, err := json.Marshal(map[string]any{"version": 1, "entries": entries})
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(toc, nil)
	blob = append(blob, 0x50, 0x2a, 0x4d, 0x18) // a skippable frame
	blob = binary.LittleEndian.AppendUint32(blob, uint32(len(packed)))
	off := len(blob)
	f := &fixture{blob: newBlob(append(blob, packed...)), data: data}
	f.src = layer.Source{
		Desc: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerZstd, Digest: f.blob.dgst, Size: f.blob.Size(),
			Annotations: map[string]string{
				"io.github.containers.zstd-chunked.manifest-checksum": digest.FromBytes(packed).String(),
				"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", off, len(packed), len(toc)),
			},
		},
		DiffID: digest.FromString("nobody looks"), Blob: f.blob,
	}
	return f
}

// TestZeros: runs of chunks of zeros, which a table of contents may have any number
// of, cost a reader and whoever waits for the layer's locks little.
func TestZeros(t *testing.T) {
	const zeros = 20_000
	for name, c := range map[string]struct {
		count int
		use   func(l *cache.Layer, f *fixture) error
	}{
		"read the first bytes": {1, func(l *cache.Layer, f *fixture) error { return f.check(t.Context(), l, 0, 100) }},
		"read the last bytes":  {1, func(l *cache.Layer, f *fixture) error { return f.check(t.Context(), l, zeros, 150) }},
		"read zeros":           {1, func(l *cache.Layer, f *fixture) error { return f.check(t.Context(), l, zeros/2, 100) }},
		"read all":             {3, func(l *cache.Layer, f *fixture) error { return f.checkAll(t.Context(), l, 10_000) }},
		"read here and there": {3, func(l *cache.Layer, f *fixture) error {
			for off := int64(len(f.data)) - 300; off > 0; off -= 7000 {
				if err := f.check(t.Context(), l, off, 10); err != nil {
					return err
				}
			}
			return nil
		}},
		"read in one group": {40, func(l *cache.Layer, f *fixture) error { return f.check(t.Context(), l, int64(len(f.data))/2, 100) }},
		"wish for it": {1, func(l *cache.Layer, f *fixture) error {
			for _, ends := range []bool{true, false} {
				for _, sure := range []bool{true, false} {
					w := cache.Wish{Len: int64(len(f.data)), Ends: ends, Sure: sure}
					l.Want(w)
					list := make([]cache.Wish, 1000)
					for i := range list {
						list[i] = w
					}
					l.Want(list...)
				}
			}
			return f.check(t.Context(), l, 0, 100)
		}},
		"fill it": {3, func(l *cache.Layer, f *fixture) error {
			l.Prefetch()
			return f.checkAll(t.Context(), l, 1<<20)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := holed(t, c.count, zeros/c.count)
			l := openLayer(t, t.TempDir(), instant(f), f)
			began := time.Now()
			if err := c.use(l, f); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%v", took)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := f.check(ctx, l, int64(len(f.data))-500, 100); err != nil { // nobody holds the locks
				t.Error(err)
			}
		})
	}
}
