package encode_test

import (
	"archive/tar"
	stdgzip "compress/gzip"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/laminafs/lamina/layer/encode"
)

// semi returns a tar of mb files of 1 MiB that compress to about 40%.
func semi(b *testing.B, mb int) []byte {
	w := newTar(b)
	words := make([][]byte, 4000)
	for i := range words {
		words[i] = make([]byte, 2+w.rnd.IntN(12))
		for k := range words[i] {
			words[i][k] = byte('a' + w.rnd.IntN(26))
		}
	}
	zipf := rand.NewZipf(w.rnd, 1.2, 4, uint64(len(words)-1))
	for i := range mb {
		p := make([]byte, 0, 1<<20)
		for len(p) < 1<<20-64 {
			if w.rnd.IntN(6) == 0 {
				for range 8 {
					p = append(p, byte(w.rnd.Uint32()))
				}
			}
			p = append(append(p, words[zipf.Uint64()]...), ' ')
		}
		w.add(tar.Header{Name: "f" + string(rune('a'+i%26)) + string(rune('0'+i/26))}, p)
	}
	return w.bytes()
}

func small(b *testing.B) []byte {
	w := newTar(b)
	w.add(tar.Header{Name: "etc/motd"}, content(w.rnd, 1024))
	return w.bytes()
}

func benchmark(b *testing.B, in []byte) {
	run := func(name string, open func(io.Writer) io.WriteCloser) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(in)))
			var out counter
			for b.Loop() {
				out = 0
				w := open(&out)
				for p := in; len(p) > 0; p = p[min(len(p), 32<<10):] {
					_, err := w.Write(p[:min(len(p), 32<<10)])
					check(b, err)
				}
				check(b, w.Close())
			}
			b.ReportMetric(100*float64(out)/float64(len(in)), "%size")
		})
	}
	run("std gzip", func(w io.Writer) io.WriteCloser { return stdgzip.NewWriter(w) })
	for _, f := range formats {
		run(f.String(), func(w io.Writer) io.WriteCloser {
			e, err := encode.NewWriter(w, f)
			check(b, err)
			return e
		})
	}
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func BenchmarkSmall(b *testing.B) { benchmark(b, small(b)) }

func BenchmarkBig(b *testing.B) { benchmark(b, semi(b, 256)) }

func BenchmarkManyFiles(b *testing.B) { benchmark(b, manyFiles(b, 20_000, 2000)) }
