package fetch_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// TestWarm: what Warm opened is what the reads after it use.
func TestWarm(t *testing.T) {
	var opened struct {
		sync.Mutex
		n int
	}
	f := newFake(t, func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				opened.Lock()
				opened.n++
				opened.Unlock()
			}
		}
		s.Start()
		return s
	})
	p := randomBytes(100_000)
	d := f.put(p)
	c := fetch.New(fetch.Options{PlainHTTP: true})
	ref := f.ref(t, "")
	c.Warm(ref, 3)
	c.Settle()
	time.Sleep(100 * time.Millisecond) // a connection is idle a moment after its answer was read
	opened.Lock()
	warm := opened.n
	opened.Unlock()
	if warm == 0 || warm > 3 {
		t.Fatalf("Warm(3) opened %d connections", warm)
	}
	b := c.Blob(ref, ocispec.Descriptor{Digest: d, Size: int64(len(p))})
	if got, err := fetch.ReadAll(context.Background(), b, 1<<20); err != nil || len(got) != len(p) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	opened.Lock()
	defer opened.Unlock()
	if opened.n != warm {
		t.Errorf("a read opened %d connections of its own", opened.n-warm)
	}
	c.Close()
}

// TestWarmFew: connections that nobody waits for are within the bound, and leave room
// for the manifest.
func TestWarmFew(t *testing.T) {
	f := newFake(t, httptest.NewServer)
	release := make(chan struct{})
	f.fault = func(int, http.ResponseWriter, *http.Request) bool { <-release; return false }
	for parallel, want := range map[int]int{1: 0, 2: 1, 8: 3} {
		c := fetch.New(fetch.Options{PlainHTTP: true, Parallel: parallel})
		c.Warm(f.ref(t, ""), 3)
		if s := c.Stats(); s.Active != want {
			t.Errorf("of %d, Warm(3) took %d", parallel, s.Active)
		}
		t.Cleanup(c.Close)
	}
	close(release)
}

// TestWarmNobody: a host that does not answer is no error and no leak.
func TestWarmNobody(t *testing.T) {
	f := newFake(t, httptest.NewServer)
	ref := f.ref(t, "")
	f.Close()
	c := fetch.New(fetch.Options{PlainHTTP: true})
	c.Warm(ref, 2)
	c.Close()
}

// TestWarmClose: Close does not wait for a host that takes connections and says
// nothing, and the client is of use again.
func TestWarmClose(t *testing.T) {
	f := newFake(t, httptest.NewServer)
	asked := make(chan struct{}, 3)
	gone := make(chan struct{}, 3)
	f.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
		asked <- struct{}{}
		<-r.Context().Done()
		gone <- struct{}{}
		return true
	}
	ref := f.ref(t, "")
	c := fetch.New(fetch.Options{PlainHTTP: true})
	for range 2 {
		c.Warm(ref, 3)
		for range 3 {
			<-asked
		}
		before := time.Now()
		c.Close()
		if took := time.Since(before); took > 4*time.Second { // Warm itself gives up after five
			t.Errorf("Close took %v", took)
		}
		for range 3 {
			<-gone
		}
	}
}
