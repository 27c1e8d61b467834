package encode_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
)

// TestStargzReads: stargz-snapshotter's reader takes what was written.
func TestStargzReads(t *testing.T) {
	b := everything(t, 5<<20).bytes()
	for _, f := range []layer.Format{layer.EStargz, layer.ZstdChunked} {
		blob, res := encoded(t, f, b, 1<<20)
		r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))),
			estargz.WithDecompressors(&zstdchunked.Decompressor{}))
		check(t, err)
		_, err = r.VerifyTOC(digest.Digest(res.Desc.Annotations[estargz.TOCJSONDigestAnnotation]))
		check(t, err)
		for _, name := range []string{"d/small", "zeros", "chunk", "big"} {
			e, ok := r.Lookup(name)
			if !ok {
				t.Fatalf("%v: no %s", f, name)
			}
			sr, err := r.OpenFile(name)
			check(t, err)
			p, err := io.ReadAll(sr)
			check(t, err)
			if got := digest.FromBytes(p); got.String() != e.Digest || int64(len(p)) != e.Size {
				t.Errorf("%v: %s has %d bytes, %s; want %d, %s", f, name, len(p), got, e.Size, e.Digest)
			}
		}
	}
}
