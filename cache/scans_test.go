package cache_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
)

// gated is a blob of which nothing comes before its gate is open.
type gated struct {
	*blob
	asked *atomic.Int32
	gate  chan struct{}
}

func (g *gated) ReadRange(ctx context.Context, off, n int64) (fetch.Stream, error) {
	g.asked.Add(1)
	select {
	case <-g.gate:
		return g.blob.ReadRange(ctx, off, n)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// TestScans: of an image of very many layers all are downloaded side by side, but few
// are decoded at once, which takes much memory. Of one as most are, all are.
func TestScans(t *testing.T) {
	s := openStore(t, t.TempDir(), cache.Options{})
	most := s.Scans()
	if most < 10 || most > max(10, runtime.GOMAXPROCS(0)+2) {
		t.Errorf("%d at once", most)
	}
	n := 4 * most
	var asked atomic.Int32
	gate := make(chan struct{})
	open := func(ctx context.Context, each func(*cache.Layer, *fixture, error)) (wait func()) {
		var wg sync.WaitGroup
		for i := range n {
			f := gzipFixture(t, files(uint64(i), 3, 1<<10))
			f.src.Blob = &gated{f.blob, &asked, gate}
			wg.Go(func() {
				l, err := s.Layer(ctx, f.src, nil)
				each(l, f, err)
			})
		}
		for end := time.Now().Add(10 * time.Second); int(asked.Load()) < n || s.Scanning() < most; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("%d of %d blobs are asked for, and %d of %d decoded", asked.Load(), n, s.Scanning(), most)
				break
			}
		}
		return wg.Wait
	}
	ctx, cancel := context.WithCancel(t.Context())
	wait := open(ctx, func(l *cache.Layer, _ *fixture, err error) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
	cancel()
	wait()
	if s.Scanning() != 0 {
		t.Errorf("%d are decoded for nobody", s.Scanning())
	}
	asked.Store(0)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wait = open(t.Context(), func(l *cache.Layer, f *fixture, err error) {
		if err != nil {
			t.Error(err)
			return
		}
		if err := errors.Join(f.checkAll(t.Context(), l, 1000), l.Close()); err != nil {
			t.Error(err)
		}
	})
	close(gate)
	wait()
	runtime.ReadMemStats(&after)
	if used := (after.TotalAlloc - before.TotalAlloc) / uint64(n); used > 6<<20 {
		t.Errorf("%d bytes for each layer of some kilobytes", used)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
