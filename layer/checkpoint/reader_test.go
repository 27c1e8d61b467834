package checkpoint_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/laminafs/lamina/layer/checkpoint"
)

// streams are whole blobs, named for what is odd about them.
func streams(tb testing.TB) map[string][]byte {
	text := source(tb, 1<<20)
	empty := compress(tb, nil, 6, 0)
	return map[string][]byte{
		"empty member":      empty,
		"one byte":          compress(tb, []byte("x"), 6, 0),
		"level 1":           compress(tb, text, 1, 0),
		"level 6":           compress(tb, text, 6, 0),
		"level 9":           compress(tb, text, 9, 0),
		"huffman only":      compress(tb, text, stdgzip.HuffmanOnly, 0),
		"stored":            compress(tb, text, 0, 0),
		"flushed":           compress(tb, text, 6, 100_001),
		"flushed often":     compress(tb, text[:200_000], 6, 11),
		"noise":             compress(tb, noise(1<<20), 6, 0),
		"long codes":        compress(tb, skewed(1<<20), 6, 0),
		"zeros":             compress(tb, make([]byte, 3<<20), 9, 0),
		"two members":       concat(compress(tb, text[:300_000], 6, 0), compress(tb, text[300_000:], 6, 0)),
		"empty among":       concat(empty, compress(tb, text, 6, 0), empty, empty, compress(tb, text, 1, 0), empty),
		"tiny members":      bytes.Repeat(compress(tb, text[:1000], 6, 0), 300),
		"only empty":        bytes.Repeat(empty, 5),
		"mixed blocks":      compress(tb, concat(text[:200_000], noise(200_000), skewed(200_000), make([]byte, 200_000)), 6, 77_777),
		"zero padding":      concat(compress(tb, text[:1000], 6, 0), make([]byte, 70_000)),
		"single zero after": concat(compress(tb, text[:1000], 6, 0), []byte{0}),
	}
}

func TestWholeStreams(t *testing.T) {
	for name, blob := range streams(t) {
		t.Run(name, func(t *testing.T) {
			want, err := reference(blob)
			if err != nil {
				t.Fatal(err)
			}
			got, cs, err := pass(t, bytes.NewReader(blob), 64<<10)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("got %d bytes, %v; want %d", len(got), err, len(want))
			}
			if len(want) > 0 && (len(cs) == 0 || cs[0].Out != 0 || len(cs[0].Window) != 0) {
				t.Error("no checkpoint for the start")
			}
			if n := len(cs); n > 0 && cs[n-1].Out >= int64(len(want)) {
				t.Error("a checkpoint has no data behind it")
			}
			one, more, err := pass(t, iotest.OneByteReader(bytes.NewReader(blob)), 64<<10)
			if err != nil || !bytes.Equal(one, want) || len(more) != len(cs) {
				t.Errorf("byte by byte: %d bytes, %d checkpoints, %v", len(one), len(more), err)
			}
			z := checkpoint.NewReader(iotest.DataErrReader(bytes.NewReader(blob)), 0, nil)
			if err := iotest.TestReader(z, want); err != nil && len(want) < 1<<20 {
				t.Error(err)
			}
			if z.InputOffset() != int64(len(blob)) {
				t.Errorf("used %d of %d bytes", z.InputOffset(), len(blob))
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	var b bytes.Buffer
	w := stdgzip.NewWriter(&b)
	w.Name, w.Comment, w.Extra = "name", strings.Repeat("c", 400), make([]byte, 60_000)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	tail := compress(t, []byte("data"), 6, 0)[10:]
	head := func(flags byte, fields string) []byte {
		return concat([]byte{0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255}, []byte(fields), tail)
	}
	for _, c := range []struct {
		name string
		blob []byte
		want error
	}{
		{"all fields", b.Bytes(), nil},
		{"long name", head(8, strings.Repeat("n", 1<<20)+"\x00"), nil}, // compress/gzip: at most 511
		{"header sum", head(2, "\x85\x3d"), checkpoint.ErrCorrupt},
		{"name without end", head(8, "n")[:12], io.ErrUnexpectedEOF},
		{"extra cut", head(4, "\xff\xff"), io.ErrUnexpectedEOF},
		{"method", concat([]byte{0x1f, 0x8b, 7}, head(0, "")[3:]), checkpoint.ErrCorrupt},
		{"no gzip", []byte("PK\x03\x04 and so on"), checkpoint.ErrCorrupt},
		{"nothing", nil, io.ErrUnexpectedEOF}, // compress/gzip: io.EOF
		{"zeros", make([]byte, 100), checkpoint.ErrCorrupt},
		{"garbage after", concat(head(0, ""), []byte("garbage")), checkpoint.ErrTrailing},
		{"garbage after padding", concat(head(0, ""), make([]byte, 600), []byte{1}), checkpoint.ErrTrailing},
		{"member after padding", concat(head(0, ""), make([]byte, 6), head(0, "")), checkpoint.ErrTrailing},
		{"half a magic after", concat(head(0, ""), []byte{0x1f}), io.ErrUnexpectedEOF},
	} {
		_, _, err := pass(t, bytes.NewReader(c.blob), 0)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestHeaderSum(t *testing.T) {
	blob := compress(t, []byte("data"), 6, 0)
	head := concat(blob[:3], []byte{2}, blob[4:10])
	member := func(sum uint16) []byte {
		return concat(head, []byte{byte(sum), byte(sum >> 8)}, blob[10:])
	}
	right := 0
	for sum := range 1 << 16 {
		if _, err := reference(member(uint16(sum))); err == nil {
			right = sum
			break
		}
	}
	for _, sum := range []int{right, right ^ 1, right ^ 0x8000} {
		_, _, err := pass(t, bytes.NewReader(member(uint16(sum))), 0)
		if (err == nil) != (sum == right) {
			t.Errorf("sum %#x: %v, right is %#x", sum, err, right)
		}
	}
}

func TestChecksum(t *testing.T) {
	blob := concat(compress(t, []byte("first"), 6, 0), compress(t, []byte("second"), 6, 0))
	for i := 1; i <= 8; i++ {
		bad := bytes.Clone(blob)
		bad[len(bad)-i] ^= 1
		got, _, err := pass(t, bytes.NewReader(bad), 0)
		if !errors.Is(err, checkpoint.ErrChecksum) || string(got) != "firstsecond" {
			t.Errorf("byte -%d changed: %q, %v", i, got, err)
		}
	}
}

func TestTruncated(t *testing.T) {
	text := source(t, 3000)
	blob := concat(compress(t, text, 6, 500), compress(t, noise(300), 0, 0), compress(t, text[:50], 6, 0))
	whole, err := reference(blob)
	if err != nil {
		t.Fatal(err)
	}
	ends := map[int]bool{}
	for _, n := range []int{len(compress(t, text, 6, 500)), len(blob) - len(compress(t, text[:50], 6, 0))} {
		ends[n] = true
	}
	for n := range len(blob) {
		got, _, err := pass(t, bytes.NewReader(blob[:n]), 0)
		if ends[n] && err != nil || !ends[n] && err != io.ErrUnexpectedEOF {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if !bytes.HasPrefix(whole, got) {
			t.Fatalf("cut at %d: wrong data", n)
		}
		if want, _ := reference(blob[:n]); len(got) < len(want) {
			t.Fatalf("cut at %d: %d bytes, compress/gzip has %d", n, len(got), len(want))
		}
	}
}

func TestEveryBitFlipped(t *testing.T) {
	blob := concat(compress(t, source(t, 2000), 6, 700), compress(t, skewed(300), 6, 0))
	for i := range len(blob) * 8 {
		bad := bytes.Clone(blob)
		bad[i/8] ^= 1 << (i % 8)
		compare(t, bad)
	}
}

func TestDamaged(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	text := source(t, 1<<20)
	for range 800 {
		from, n := rnd.IntN(len(text)/2), rnd.IntN(1<<(4+rnd.IntN(13)))
		blob := compress(t, text[from:from+n], 1+rnd.IntN(9), rnd.IntN(n+1))
		for range 1 + rnd.IntN(3) {
			switch at := rnd.IntN(len(blob)); rnd.IntN(4) {
			case 0:
				blob[at] ^= 1 << rnd.IntN(8)
			case 1:
				blob[at] = byte(rnd.Uint32())
			case 2:
				blob = append(blob[:at], blob[min(len(blob), at+rnd.IntN(4)):]...)
			default:
				blob = concat(blob[:at], noise(rnd.IntN(4)), blob[at:])
			}
			if len(blob) == 0 {
				break
			}
		}
		compare(t, blob)
	}
}

// compare holds the Reader against compress/gzip: the same data, or both an
// error after data of which one is the beginning of the other.
func compare(t *testing.T, blob []byte) {
	t.Helper()
	want, refErr := reference(blob)
	got, _, err := pass(t, bytes.NewReader(blob), 0)
	if n := min(len(got), len(want)); !bytes.Equal(got[:n], want[:n]) {
		t.Fatalf("data differs: %x", blob)
	}
	if (err == nil) != (refErr == nil) && !longName(blob, refErr) {
		t.Fatalf("%v, compress/gzip: %v: %x", err, refErr, blob)
	}
	if err == nil && refErr == nil && len(got) != len(want) {
		t.Fatalf("%d bytes, compress/gzip: %d: %x", len(got), len(want), blob)
	}
}

// longName tells the one thing that only compress/gzip refuses: a name or
// comment of 512 bytes.
func longName(blob []byte, err error) bool {
	return errors.Is(err, stdgzip.ErrHeader) && len(blob) > 512
}

func TestReaderErrors(t *testing.T) {
	broken := errors.New("broken")
	blob := compress(t, source(t, 1<<20), 6, 0)
	for _, n := range []int{0, 5, 10, 11, 100, 100_000, len(blob) - 8, len(blob) - 1} {
		z := checkpoint.NewReader(io.MultiReader(bytes.NewReader(blob[:n]), iotest.ErrReader(broken)), 0, nil)
		if _, err := io.Copy(io.Discard, z); !errors.Is(err, broken) {
			t.Errorf("broken at %d: %v", n, err)
		}
	}
	stop := errors.New("stop")
	calls := 0
	var out bytes.Buffer
	z := checkpoint.NewReader(bytes.NewReader(blob), 0, func(checkpoint.Checkpoint) error {
		if calls++; calls == 3 {
			return stop
		}
		return nil
	})
	if _, err := z.WriteTo(&out); err != stop || calls != 3 {
		t.Errorf("stopped after %d calls: %v", calls, err)
	}
	if _, err := z.WriteTo(iotest.TruncateWriter(io.Discard, 0)); err != stop {
		t.Error(err)
	}
}

type failingWriter struct{ n int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestWriterErrors(t *testing.T) {
	blob := compress(t, source(t, 1<<20), 6, 0)
	z := checkpoint.NewReader(bytes.NewReader(blob), 0, nil)
	n, err := z.WriteTo(&failingWriter{n: 300_000})
	if err != io.ErrClosedPipe {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(z)
	if err != nil || n+int64(len(rest)) != 1<<20 {
		t.Errorf("after a failed write: %d + %d bytes, %v", n, len(rest), err)
	}
}

func TestReset(t *testing.T) {
	text := source(t, 500_000)
	z := checkpoint.NewReader(strings.NewReader("no gzip at all"), 0, nil)
	for i := range 3 {
		if _, err := io.ReadAll(z); (err == nil) != (i > 0) {
			t.Fatal(err)
		}
		z.Reset(bytes.NewReader(compress(t, text, 6, 0)), 0, nil)
	}
	got, err := io.ReadAll(z)
	if err != nil || !bytes.Equal(got, text) {
		t.Fatal(len(got), err)
	}
	blob := compress(t, text, 6, 0)
	r := bytes.NewReader(nil)
	if n := testing.AllocsPerRun(10, func() {
		r.Reset(blob)
		z.Reset(r, 0, nil)
		_, _ = z.WriteTo(io.Discard)
	}); n > 0 {
		t.Errorf("%v allocations for a stream", n)
	}
}
