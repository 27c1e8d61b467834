package fetch_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/time/rate"

	"github.com/laminafs/lamina/fetch"
)

// TestReaderGoesFirst fills the places that lower classes may have, and has more of
// them in the queue. A Reader does not wait, and there are never more requests under
// way than allowed.
func TestReaderGoesFirst(t *testing.T) {
	p := randomBytes(10_000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	release := make(chan struct{})
	f.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "bytes=1-1" { // not the Reader's
			<-release
		}
		return false
	}
	c := newClient(t, fetch.Options{Parallel: 3})
	b := f.blob(t, c, p)
	var wg sync.WaitGroup
	for _, class := range []fetch.Priority{fetch.Background, fetch.Prefetch} {
		for range 6 {
			wg.Go(func() {
				if _, err := readRange(fetch.WithPriority(context.Background(), class), b, 100, 100); err != nil {
					t.Error(err)
				}
			})
		}
	}
	for s := c.Stats(); s.Active+s.Waiting < 12; s = c.Stats() {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		wantRange(t, b, p, 1, 1)
	}
	for i := range 6 {
		wg.Go(func() {
			if _, err := readRange(context.Background(), b, int64(200+i), 100); err != nil {
				t.Error(err)
			}
		})
	}
	for s := c.Stats(); s.Active+s.Waiting < 18; s = c.Stats() {
		time.Sleep(time.Millisecond)
	}
	if s := c.Stats(); s.Active != 3 {
		t.Errorf("%d active, %d waiting", s.Active, s.Waiting)
	}
	close(release)
	wg.Wait()
	if s := c.Stats(); s.Active != 0 || s.Waiting != 0 {
		t.Errorf("%d active, %d waiting at the end", s.Active, s.Waiting)
	}
}

// TestParallel never has more requests under way than allowed.
func TestParallel(t *testing.T) {
	p := randomBytes(10_000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	var now, most atomic.Int64
	f.fault = func(int, http.ResponseWriter, *http.Request) bool {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(5 * time.Millisecond)
		return false
	}
	c := newClient(t, fetch.Options{Parallel: 3})
	b := f.blob(t, c, p)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if i >= 20 { // some give up, all of them in the queue
				cancel()
			}
			if _, err := readRange(ctx, b, 5, 100); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() != 3 {
		t.Errorf("at most %d at a time", most.Load())
	}
	// Some give up later, in the queue or under way. The server goes on with
	// those for a while, so they are counted on our side.
	for i := range 30 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if i%3 == 0 {
				time.AfterFunc(5*time.Millisecond, cancel)
			}
			if _, err := readRange(ctx, b, 5, 100); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			if s := c.Stats(); s.Active > 3 {
				t.Errorf("%d active", s.Active)
			}
		})
	}
	wg.Wait()
	if s := c.Stats(); s.Active != 0 || s.Waiting != 0 {
		t.Errorf("%d active, %d waiting at the end", s.Active, s.Waiting)
	}
}

// TestOnePlace: what fills the cache does not keep the only place from a Reader for
// long.
func TestOnePlace(t *testing.T) {
	p := randomBytes(1 << 20)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	c := newClient(t, fetch.Options{Parallel: 1})
	b := f.blob(t, c, p)
	s, err := b.ReadRange(fetch.WithPriority(context.Background(), fetch.Background), 0, int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	var wg sync.WaitGroup
	start := time.Now()
	wg.Go(func() { wantRange(t, b, p, 1, 1) })
	for c.Stats().Waiting == 0 {
		time.Sleep(time.Millisecond)
	}
	for piece := make([]byte, 4<<10); err == nil; {
		_, err = io.ReadFull(s, piece)
	}
	wg.Wait()
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("the Reader waited %v", d)
	}
}

// TestSlowConsumer has one that does not read on. Others get its place, and it
// gets its bytes in the end.
func TestSlowConsumer(t *testing.T) {
	p := randomBytes(4 << 20)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	b := f.blob(t, newClient(t, fetch.Options{Parallel: 1}), p)
	s, err := b.ReadRange(context.Background(), 0, int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	first := make([]byte, 10)
	if _, err := io.ReadFull(s, first); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	wantRange(t, b, p, 100, 100)
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("the other waited %v", d)
	}
	rest, err := io.ReadAll(s)
	if err != nil || string(first)+string(rest) != string(p) {
		t.Errorf("%d bytes, %v", len(rest), err)
	}
}

func TestFillRate(t *testing.T) {
	p := randomBytes(200_000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	b := f.blob(t, newClient(t, fetch.Options{FillRate: rate.Limit(100_000)}), p)
	start := time.Now()
	wantRange(t, b, p, 0, 200_000)
	if d := time.Since(start); d > time.Second {
		t.Errorf("a Reader was slowed down: %v", d)
	}
	start = time.Now()
	if _, err := readRange(fetch.WithPriority(context.Background(), fetch.Background), b, 0, 200_000); err != nil {
		t.Fatal(err)
	}
	// 200,000 bytes less the burst of 65,536, at 100,000 a second.
	if d := time.Since(start); d < 1200*time.Millisecond || d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}

// TestLink reads through a server with a delay and a pace, and looks at what
// the client thinks of it.
func TestLink(t *testing.T) {
	p := randomBytes(1 << 20)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	c := newClient(t, fetch.Options{})
	if rtt, bps := c.Link(); rtt != 20*time.Millisecond || bps != 25e6 {
		t.Errorf("before any request: %v, %v", rtt, bps)
	}
	f.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		time.Sleep(30 * time.Millisecond)
		from, to := parseRange(r, len(p))
		if to-from < 1000 {
			return false
		}
		for ; from < to; from += 20_000 { // 4 MB/s
			_, _ = w.Write(p[from:min(from+20_000, to)])
			_ = http.NewResponseController(w).Flush()
			time.Sleep(5 * time.Millisecond)
		}
		return true
	}
	b := f.blob(t, c, p)
	for range 20 {
		wantRange(t, b, p, 10, 100)
	}
	wantRange(t, b, p, 0, int64(len(p)))
	rtt, bps := c.Link()
	if rtt < 29*time.Millisecond || rtt > 500*time.Millisecond {
		t.Errorf("round trip %v", rtt)
	}
	if bps < 1e5 || bps > 5e6 {
		t.Errorf("bandwidth %.0f", bps)
	}
}

// TestConnections wants connections kept: one for readers in turn, besides the
// one that found out that this loopback server does not speak TLS.
func TestConnections(t *testing.T) {
	p := randomBytes(100_000)
	var opened atomic.Int64
	f := newFake(t, func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				opened.Add(1)
			}
		}
		s.Start()
		return s
	})
	f.put(p, "v1")
	c := newClient(t, fetch.Options{})
	b := f.blob(t, c, p)
	for range 50 {
		wantRange(t, b, p, 10, 50_000)
	}
	if n := opened.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
	const parallel = 8
	for range 20 {
		var wg sync.WaitGroup
		for range parallel {
			wg.Go(func() { wantRange(t, b, p, 10, 50_000) })
		}
		wg.Wait()
	}
	if n := opened.Load(); n > 2+2*parallel {
		t.Errorf("%d connections for %d at a time", n, parallel)
	}
}

// BenchmarkRange is the cost of one small range, client and server.
func BenchmarkRange(b *testing.B) {
	p := randomBytes(1 << 20)
	f := &fake{objects: make(map[string][]byte)}
	f.Server = httptest.NewServer(f)
	defer f.Close()
	dgst := f.put(p)
	ref, err := reference.ParseNormalizedNamed(f.host() + "/" + repo)
	if err != nil {
		b.Fatal(err)
	}
	c := fetch.New(fetch.Options{HostsDirs: []string{}, Keychain: noKeys})
	defer c.Close()
	blob := c.Blob(ref, ocispec.Descriptor{Digest: dgst, Size: int64(len(p))})
	buf := make([]byte, 64<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		s, err := blob.ReadRange(context.Background(), 1000, int64(len(buf)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, buf); err != nil {
			b.Fatal(err)
		}
		_ = s.Close()
	}
}
