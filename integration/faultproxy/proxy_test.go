package faultproxy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/laminafs/lamina/integration/faultproxy"
)

const blobPath = "/v2/repo/blobs/sha256:00"

// start serves blob behind a proxy with the given configuration.
func start(t *testing.T, blob []byte, cfg faultproxy.Config) (*faultproxy.Proxy, *http.Client) {
	t.Helper()
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
	}))
	t.Cleanup(up.Close)
	var err error
	if cfg.Upstream, err = url.Parse(up.URL); err != nil {
		t.Fatal(err)
	}
	p, err := faultproxy.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // the test's own certificate
		ForceAttemptHTTP2: cfg.HTTP2,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return p, &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func certificate(t *testing.T) *tls.Certificate {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS()
	defer s.Close()
	return &s.TLS.Certificates[0]
}

func get(c *http.Client, u, rng string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, u, nil)
	if err != nil {
		return nil, nil, err
	}
	if rng != "" {
		req.Header.Set("Range", rng)
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp, b, err
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// takes fails if f is ever faster than want, or never nearly as fast: the race
// detector and another package's tests on the other core make a machine slow,
// each time; what it must not do is make the link fast. bench/ has the machine
// for itself.
func takes(t *testing.T, what string, want time.Duration, f func()) {
	t.Helper()
	fastest := time.Hour
	for range 10 {
		began := time.Now()
		f()
		fastest = min(fastest, time.Since(began))
		if fastest < want*110/100+20*time.Millisecond {
			break
		}
	}
	if fastest < want*97/100 || fastest > 3*want {
		t.Errorf("%s took %v, want about %v", what, fastest, want)
	}
}

func TestLinkTimes(t *testing.T) {
	const size = 6_000_000
	blob := randomBytes(size)
	link := faultproxy.Link{RTT: 20 * time.Millisecond, BytesPerSecond: 25_000_000}
	body := size * time.Second / 25_000_000 // 240 ms
	for _, tc := range []struct {
		name   string
		tls    bool
		h2     bool
		rounds int // of the first request: set-up, TLS, request
	}{{"http", false, false, 2}, {"https", true, false, 3}, {"http2", true, true, 3}} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := faultproxy.Config{Link: link, HTTP2: tc.h2}
			if tc.tls {
				cfg.Certificate = certificate(t)
			}
			p, c := start(t, blob, cfg)
			takes(t, "first request", body+time.Duration(tc.rounds)*link.RTT, func() {
				c.CloseIdleConnections()
				resp, b, err := get(c, p.URL().String()+blobPath, "")
				if err != nil || !bytes.Equal(b, blob) {
					t.Fatalf("got %d bytes, %v", len(b), err)
				}
				if (resp.ProtoMajor == 2) != tc.h2 {
					t.Errorf("protocol is %s", resp.Proto)
				}
			})
			takes(t, "request on an open connection", link.RTT, func() {
				if _, _, err := get(c, p.URL().String()+blobPath, "bytes=0-9"); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestBandwidthIsShared(t *testing.T) {
	blob := randomBytes(1_000_000)
	p, c := start(t, blob, faultproxy.Config{Link: faultproxy.Link{BytesPerSecond: 20_000_000}})
	takes(t, "six transfers", 300*time.Millisecond, func() {
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				if _, b, err := get(c, p.URL().String()+blobPath, ""); err != nil || len(b) != len(blob) {
					t.Errorf("got %d bytes, %v", len(b), err)
				}
			})
		}
		wg.Wait()
	})
}

func TestFaults(t *testing.T) {
	blob := randomBytes(300_000)
	for _, h2 := range []bool{false, true} {
		for _, k := range faultproxy.AllKinds() {
			t.Run(fmt.Sprintf("%v/h2=%v", k, h2), func(t *testing.T) {
				p, c := start(t, blob, faultproxy.Config{
					Certificate: certificate(t), HTTP2: h2, Seed: 7,
					Faults: faultproxy.Faults{
						Rate: 1, Kinds: []faultproxy.Kind{k},
						Delay: 150 * time.Millisecond, RetryAfter: 2 * time.Second,
					},
				})
				began := time.Now()
				resp, b, err := get(c, p.URL().String()+blobPath, "bytes=1000-200999")
				checkFault(t, k, resp, b, err, blob[1000:201000], len(blob))
				if k == faultproxy.Delay && time.Since(began) < 150*time.Millisecond {
					t.Error("not late")
				}
				// Anything but a blob is spared.
				if resp, _, err := get(c, p.URL().String()+"/v2/", ""); err != nil || resp.StatusCode != 200 {
					t.Errorf("a request that must be spared: %v", err)
				}
			})
		}
	}
}

func checkFault(t *testing.T, k faultproxy.Kind, resp *http.Response, b []byte, err error, want []byte, whole int) {
	t.Helper()
	switch k {
	case faultproxy.Drop, faultproxy.Truncate:
		if err == nil {
			t.Fatalf("cut, yet no error after %d bytes", len(b))
		}
		if len(b) >= len(want) || !bytes.HasPrefix(want, b) {
			t.Errorf("the %d bytes before the cut are not the blob's", len(b))
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	switch k {
	case faultproxy.Short:
		if resp.StatusCode != 206 || len(b) == 0 || len(b) >= len(want) || !bytes.HasPrefix(want, b) {
			t.Errorf("status %d, %d bytes", resp.StatusCode, len(b))
		}
		if cr := fmt.Sprintf("bytes 1000-%d/%d", 1000+len(b)-1, whole); resp.Header.Get("Content-Range") != cr {
			t.Errorf("Content-Range %q, want %q", resp.Header.Get("Content-Range"), cr)
		}
	case faultproxy.Delay:
		if !bytes.Equal(b, want) {
			t.Error("wrong bytes")
		}
	case faultproxy.Corrupt:
		differ := 0
		for i := range b {
			if b[i] != want[i] {
				differ++
			}
		}
		if len(b) != len(want) || differ != 1 {
			t.Errorf("%d bytes of %d differ, want 1", differ, len(b))
		}
	case faultproxy.IgnoreRange:
		if resp.StatusCode != 200 || len(b) != whole {
			t.Errorf("status %d, %d bytes", resp.StatusCode, len(b))
		}
	case faultproxy.TooMany:
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "2" {
			t.Errorf("status %d, Retry-After %q", resp.StatusCode, resp.Header.Get("Retry-After"))
		}
	case faultproxy.Err500, faultproxy.Err503:
		if want := map[faultproxy.Kind]int{faultproxy.Err500: 500, faultproxy.Err503: 503}[k]; resp.StatusCode != want {
			t.Errorf("status %d, want %d", resp.StatusCode, want)
		}
	}
}

func TestRateIsKept(t *testing.T) {
	p, c := start(t, randomBytes(10), faultproxy.Config{
		Seed:   3,
		Faults: faultproxy.Faults{Rate: 0.1, Kinds: []faultproxy.Kind{faultproxy.Err500}},
	})
	bad := 0
	for range 1000 {
		resp, _, err := get(c, p.URL().String()+blobPath, "")
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == 500 {
			bad++
		}
	}
	if bad < 60 || bad > 140 {
		t.Errorf("%d of 1000 failed, want about 100", bad)
	}
}

func TestExchanges(t *testing.T) {
	blob := randomBytes(100_000)
	p, c := start(t, blob, faultproxy.Config{Link: faultproxy.Link{RTT: 20 * time.Millisecond}})
	u := p.URL().String() + blobPath
	for _, r := range []string{"bytes=0-999", "bytes=500-1499", "bytes=5000-5999"} {
		if _, _, err := get(c, u, r); err != nil {
			t.Fatal(err)
		}
	}
	ex := p.Exchanges()
	if got, want := faultproxy.Sum(ex, "/blobs/"), (faultproxy.Count{Requests: 3, Connections: 1, Bytes: 3000}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	if n := faultproxy.RoundTrips(ex); n != 4 {
		t.Errorf("%d round trips, want 4: one connection and three requests", n)
	}
	if twice := faultproxy.SentTwice(ex)[blobPath]; twice != 500 {
		t.Errorf("%d bytes were sent twice, want 500", twice)
	}
	p.Reset()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { _, _, _ = get(c, u, "bytes=0-0") })
	}
	wg.Wait()
	if n := faultproxy.RoundTrips(p.Exchanges()); n > 3 {
		t.Errorf("four requests side by side took %d round trips, want at most 3", n)
	}
}

// A client that asks for the connection to be closed still gets its answer.
func TestCloseAfterAnswer(t *testing.T) {
	blob := randomBytes(100_000)
	p, c := start(t, blob, faultproxy.Config{
		Certificate: certificate(t), Link: faultproxy.Link{RTT: 10 * time.Millisecond, BytesPerSecond: 10_000_000},
	})
	c.Transport.(*http.Transport).DisableKeepAlives = true
	for range 3 {
		if _, b, err := get(c, p.URL().String()+blobPath, ""); err != nil || !bytes.Equal(b, blob) {
			t.Fatalf("got %d bytes, %v", len(b), err)
		}
	}
}

// What a client did not wait for does not count as sent to it.
func TestCutExchange(t *testing.T) {
	blob := randomBytes(4_000_000)
	p, c := start(t, blob, faultproxy.Config{Link: faultproxy.Link{BytesPerSecond: 4_000_000}})
	resp, err := c.Get(p.URL().String() + blobPath)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		ex := p.Exchanges()
		if ex[len(ex)-1].Cut {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not seen as cut: %+v", ex[len(ex)-1])
		}
	}
	if _, _, err := get(c, p.URL().String()+blobPath, "bytes=0-99999"); err != nil {
		t.Fatal(err)
	}
	if twice := faultproxy.SentTwice(p.Exchanges()); len(twice) > 0 {
		t.Errorf("sent twice: %v", twice)
	}
}
