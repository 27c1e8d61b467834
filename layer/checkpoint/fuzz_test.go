package checkpoint_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"testing"

	"github.com/laminafs/lamina/layer/checkpoint"
)

// FuzzReader holds the Reader against compress/gzip, and what is read from each
// checkpoint against the whole.
func FuzzReader(f *testing.F) {
	text, empty := source(f, 1<<20)[100_000:], compress(f, nil, 6, 0)
	for _, blob := range [][]byte{
		nil, empty, concat(empty, empty, make([]byte, 9)),
		compress(f, text[:2000], 6, 300),
		compress(f, text[:1000], stdgzip.HuffmanOnly, 0),
		compress(f, skewed(2000), 9, 0),
		compress(f, make([]byte, 80_000), 9, 40_000),
		concat(compress(f, noise(300), 6, 0), compress(f, text[:300], 1, 0)),
		compress(f, concat(bytes.Repeat(text[:100], 400), text[:500]), 6, 38_000),
	} {
		f.Add(blob)
	}
	again := checkpoint.NewReader(nil, 0, nil)
	f.Fuzz(func(t *testing.T, blob []byte) {
		compare(t, blob)
		want, cs, err := pass(t, bytes.NewReader(blob), 0)
		for _, c := range cs[:min(len(cs), 4)] {
			rerr := again.Resume(bytes.NewReader(blob[c.In:]), c)
			if rerr != nil {
				t.Fatal(rerr)
			}
			got, rerr := io.ReadAll(io.LimitReader(again, int64(len(want))+1))
			if !bytes.Equal(got, want[c.Out:]) && err == nil || err == nil && rerr != nil {
				t.Fatalf("from %d: %d bytes, %v; want %d: %x", c.Out, len(got), rerr, len(want)-int(c.Out), blob)
			}
		}
	})
}

// FuzzResume takes checkpoints from foreign hands: never a panic, never more
// than the input can hold.
func FuzzResume(f *testing.F) {
	blob := compress(f, source(f, 100_000), 6, 0)
	_, cs, err := pass(f, bytes.NewReader(blob), 0)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range cs {
		f.Add(blob[c.In:], c.Bits, c.Window)
	}
	z := checkpoint.NewReader(nil, 0, nil)
	f.Fuzz(func(t *testing.T, blob []byte, bits uint8, window []byte) {
		err := z.Resume(bytes.NewReader(blob), checkpoint.Checkpoint{Bits: bits, Window: window})
		if err != nil {
			return
		}
		n, _ := io.Copy(io.Discard, z)
		if n > int64(len(blob)+1)*1032 {
			t.Fatalf("%d bytes out of %d", n, len(blob))
		}
	})
}
