package checkpoint_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"syscall"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"

	"github.com/laminafs/lamina/layer/checkpoint"
)

// cpuTime is what this process has used: on a busy machine the honest measure
// of a core's speed.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFirstPass measures MB/s of tar, on one core, of a 32 MiB tar of Go
// sources compressed as gzip -6 does it. All three check the sums; ours reports
// checkpoints every MiB, too.
func BenchmarkFirstPass(b *testing.B) {
	blob := compress(b, source(b, 32<<20), 6, 0)
	for _, reader := range []struct {
		name string
		open func(r io.Reader) (io.Reader, error)
	}{
		{"stdlib", func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) }},
		{"klauspost", func(r io.Reader) (io.Reader, error) { return kgzip.NewReader(r) }},
		{"ours", func(r io.Reader) (io.Reader, error) {
			return checkpoint.NewReader(r, 1<<20, func(checkpoint.Checkpoint) error { return nil }), nil
		}},
	} {
		b.Run(reader.name, func(b *testing.B) {
			total, start := int64(0), cpuTime(b)
			for b.Loop() {
				r, err := reader.open(bytes.NewReader(blob))
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, r)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
				total += n
			}
			b.ReportMetric(float64(total)/1e6/(cpuTime(b)-start).Seconds(), "MB/cpu-s")
		})
	}
}

// BenchmarkResume measures reading the data between two checkpoints 1 MiB
// apart, from a Reader that is used again and by a kept library.
func BenchmarkResume(b *testing.B) {
	blob := compress(b, source(b, 8<<20), 6, 0)
	_, cs, err := pass(b, bytes.NewReader(blob), 1<<20)
	if err != nil {
		b.Fatal(err)
	}
	const at = 3
	c, part := cs[at], span(blob, cs, at)
	data := make([]byte, cs[at+1].Out-c.Out)
	b.Run("klauspost", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := io.ReadFull(libraryResume(part, c), data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		z := checkpoint.NewReader(nil, 0, nil)
		for b.Loop() {
			if err := z.Resume(bytes.NewReader(part), c); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(z, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
