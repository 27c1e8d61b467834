package checkpoint_test

import (
	"archive/tar"
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/laminafs/lamina/layer/checkpoint"
)

// sourceTar is a tar of this machine's Go source tree, or its first size bytes.
var sourceTar = sync.OnceValues(func() ([]byte, error) {
	const size = 32 << 20 // of tests and benchmarks, the most
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	root := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		h := &tar.Header{Name: path[len(root)+1:], Mode: 0o644, Size: int64(len(data))}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		if b.Len() >= size {
			return fs.SkipAll
		}
		return nil
	})
	return b.Bytes()[:min(b.Len(), size)], err
})

func source(tb testing.TB, n int) []byte {
	tb.Helper()
	b, err := sourceTar()
	if err != nil {
		tb.Fatal(err)
	}
	return b[:min(n, len(b))]
}

// compress returns data as one member; flush > 0: with a flush, as pigz makes
// them, after so many bytes each.
func compress(tb testing.TB, data []byte, level, flush int) []byte {
	tb.Helper()
	var b bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&b, level)
	if err != nil {
		tb.Fatal(err)
	}
	for flush > 0 && len(data) > flush {
		if _, err := w.Write(data[:flush]); err != nil {
			tb.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			tb.Fatal(err)
		}
		data = data[flush:]
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// skewed is data whose literal codes have every length up to the longest, and
// whose matches lie at all distances.
func skewed(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+300)
	for len(b) < n {
		if len(b) > 40000 && rnd.IntN(20) == 0 {
			dist, length := 1+rnd.IntN(1<<(1+rnd.IntN(15))), 3+rnd.IntN(1<<(1+rnd.IntN(8)))
			for range length {
				b = append(b, b[len(b)-dist])
			}
			continue
		}
		sym := 0
		for sym < 40 && rnd.IntN(2) == 0 {
			sym++
		}
		b = append(b, byte(sym*6+rnd.IntN(3)))
	}
	return b[:n]
}

func noise(n int) []byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func concat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// bitWriter writes deflate streams by hand.
type bitWriter struct {
	b []byte
	n uint
}

// put writes the n low bits of v, the lowest first.
func (w *bitWriter) put(v, n uint) {
	for i := range n {
		if w.n&7 == 0 {
			w.b = append(w.b, 0)
		}
		w.b[w.n>>3] |= byte(v>>i&1) << (w.n & 7)
		w.n++
	}
}

// code writes a Huffman code, its highest bit first.
func (w *bitWriter) code(v, n uint) {
	for i := range n {
		w.put(v>>(n-1-i)&1, 1)
	}
}

// dynamic writes the header of a last block with these code lengths, each given
// as it is: all nineteen codes for code lengths are five bits but 0 to 12, four.
func (w *bitWriter) dynamic(lits, dists []uint) {
	w.put(1, 1)
	w.put(2, 2)
	w.put(uint(len(lits)-257), 5)
	w.put(uint(len(dists)-1), 5)
	w.put(15, 4)
	for _, sym := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15} {
		if sym <= 12 {
			w.put(4, 3)
		} else {
			w.put(5, 3)
		}
	}
	for _, n := range append(append([]uint(nil), lits...), dists...) {
		if n <= 12 {
			w.code(n, 4)
		} else {
			w.code(26+n-13, 5)
		}
	}
}

// member wraps deflated in a gzip member that says it holds data.
func member(deflated, data []byte) []byte {
	b := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}, deflated...)
	for _, v := range []uint32{crc32.ChecksumIEEE(data), uint32(len(data))} {
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	return b
}

// reference decodes blob with compress/gzip, member by member, but takes zeros
// after the last one.
func reference(blob []byte) ([]byte, error) {
	r := bytes.NewReader(blob)
	z, err := stdgzip.NewReader(r)
	var out bytes.Buffer
	for {
		if err != nil {
			return out.Bytes(), err
		}
		z.Multistream(false)
		if _, err := io.Copy(&out, z); err != nil {
			return out.Bytes(), err
		}
		rest := blob[len(blob)-r.Len():]
		if len(bytes.Trim(rest, "\x00")) == 0 {
			return out.Bytes(), nil
		}
		err = z.Reset(r)
	}
}

// readers are used again: half a megabyte for each of many small streams costs
// more than decoding them.
var readers = sync.Pool{New: func() any { return checkpoint.NewReader(nil, 0, nil) }}

// pass decodes r whole and returns the checkpoints, having checked that each
// came in its time.
func pass(tb testing.TB, r io.Reader, span int64) ([]byte, []checkpoint.Checkpoint, error) {
	tb.Helper()
	var out bytes.Buffer
	var cs []checkpoint.Checkpoint
	z := readers.Get().(*checkpoint.Reader)
	defer readers.Put(z)
	z.Reset(r, span, func(c checkpoint.Checkpoint) error {
		if c.Out != int64(out.Len()) {
			tb.Errorf("checkpoint at %d reported after %d bytes", c.Out, out.Len())
		}
		if n := len(cs); n > 0 && (c.Out <= cs[n-1].Out || c.In*8+int64(c.Bits) <= cs[n-1].In*8+int64(cs[n-1].Bits)) {
			tb.Errorf("checkpoint %+v is not behind %+v", c, cs[n-1])
		}
		cs = append(cs, c)
		return nil
	})
	n, err := z.WriteTo(&out)
	if n != int64(out.Len()) {
		tb.Errorf("WriteTo returned %d, wrote %d", n, out.Len())
	}
	if _, again := z.Read(make([]byte, 1)); err == nil && again != io.EOF || err != nil && again != err {
		tb.Errorf("error %v became %v", err, again)
	}
	if err != nil && !errors.Is(err, checkpoint.ErrCorrupt) && err != io.ErrUnexpectedEOF {
		tb.Errorf("error is no sentinel: %v", err)
	}
	return out.Bytes(), cs, err
}
