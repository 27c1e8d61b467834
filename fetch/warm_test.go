package fetch_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

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

// TestWarmNobody: a host that does not answer is no error and no leak.
func TestWarmNobody(t *testing.T) {
	f := newFake(t, httptest.NewServer)
	ref := f.ref(t, "")
	f.Close()
	c := fetch.New(fetch.Options{PlainHTTP: true})
	c.Warm(ref, 2)
	c.Close()
}
