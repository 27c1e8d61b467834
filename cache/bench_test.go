package cache_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/laminafs/lamina/cache"
)

// BenchmarkReadAt is a read of what is present: of a layer that is complete, and
// of one whose marks have to be looked at.
func BenchmarkReadAt(b *testing.B) {
	list := files(40, 400, 64<<10)
	for _, size := range []int64{4 << 10, 128 << 10} {
		for _, c := range []struct {
			name string
			f    *fixture
		}{{"complete", gzipFixture(b, list)}, {"marks", estargzFixture(b, list)}} {
			b.Run(fmt.Sprintf("%dKiB/%s", size>>10, c.name), func(b *testing.B) {
				l := openLayer(b, b.TempDir(), cache.Options{}, c.f)
				if err := c.f.checkAll(b.Context(), l, 1<<20); err != nil {
					b.Fatal(err)
				}
				p := make([]byte, size)
				rnd := rand.New(rand.NewPCG(1, 1))
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					if err := l.ReadAt(b.Context(), p, rnd.Int64N(l.Size()-size)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkOpen is a warm open of a layer that has many chunks.
func BenchmarkOpen(b *testing.B) {
	f := estargzFixture(b, files(41, 20_000, 200))
	dir := b.TempDir()
	_ = openLayer(b, dir, cache.Options{}, f)
	for b.Loop() {
		s := openStore(b, dir, cache.Options{})
		l, err := s.Layer(b.Context(), f.src, nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
