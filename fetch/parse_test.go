package fetch

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
)

func TestContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-9/100":    {0, 9, 100},
		"bytes 5-5/*":      {5, 5, -1},
		"Bytes 99-99/100 ": {99, 99, 100},
	} {
		if got, err := parseContentRange(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "bytes", "bytes */100", "bytes 0-9", "bytes 9-0/100", "bytes 0-100/100", "bytes -1-9/100",
		"bytes +1-9/100", "bytes 0-9/-1", "bytes 0-9223372036854775808/*", "items 0-9/100", "bytes=0-9/100",
	} {
		if got, err := parseContentRange(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/100", "bytes 5-5/*", "bytes */100", "bytes 9-0/1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseContentRange(s)
		if err != nil {
			return
		}
		if r.first < 0 || r.last < r.first || r.total >= 0 && r.last >= r.total || r.total < -1 {
			t.Fatalf("%q: %+v", s, r)
		}
		again := fmt.Sprintf("bytes %d-%d/%d", r.first, r.last, r.total)
		if q, err := parseContentRange(strings.Replace(again, "/-1", "/*", 1)); err != nil || q != r {
			t.Fatalf("%q: %+v, then %+v, %v", s, r, q, err)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, "-3": 0, "soon": 0, "1e9": 0, "99999999999": 0,
		"Wed, 01 May 2024 12:00:30 GMT": 30 * time.Second,
		"Wed, 01 May 2024 11:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {s}}, now); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"DENIED","message":"no\nno"}]}`))
	f.Add([]byte("<html>"))
	f.Add([]byte("a\x1b[31m\xff" + strings.Repeat("é", 300)))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := message(b)
		if len(m) > maxMessage+3 {
			t.Fatalf("%d bytes", len(m))
		}
		for _, r := range m {
			if !unicode.IsPrint(r) {
				t.Fatalf("%q", m)
			}
		}
	})
}

func FuzzManifestType(f *testing.F) {
	f.Add("application/json", []byte(`{"mediaType":"x","layers":[]}`))
	f.Add("text/html; charset", []byte(`{"manifests":[]}`))
	f.Add("", []byte(`{"manifests":[],"config":{}}`))
	f.Fuzz(func(t *testing.T, header string, body []byte) {
		if typ, err := manifestType(header, body); (typ == "") != (err != nil) {
			t.Fatalf("%q, %v", typ, err)
		}
	})
}

func TestExpiry(t *testing.T) {
	at := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC).Add(-5 * time.Second)
	for query, want := range map[string]time.Time{
		"":             {},
		"Expires=soon": {},
		"X-Amz-Date=20240501T115500Z&X-Amz-Expires=300":   at,
		"X-Goog-Date=20240501T115500Z&X-Goog-Expires=300": at,
		"se=2024-05-01T12%3A00%3A00Z&sig=x":               at,
		"Expires=1714564800&Signature=x":                  at,
	} {
		if got := expiry(&url.URL{RawQuery: query}); !got.Equal(want) {
			t.Errorf("%q: %v", query, got)
		}
	}
}

func TestRedact(t *testing.T) {
	u, err := url.Parse("https://me:pw@host:5000/v2/a/blobs/sha256:x?sig=secret#part")
	if err != nil {
		t.Fatal(err)
	}
	if got := redact(u); got != "https://host:5000/v2/a/blobs/sha256:x" {
		t.Error(got)
	}
}

// TestLinkClock measures with a clock of its own: parallel transfers add up,
// pauses do not count, and one slow sample moves nothing.
func TestLinkClock(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLink(func() time.Time { return now })
	read := func(d time.Duration, n int) {
		l.begin()
		now = now.Add(d)
		l.end(n)
	}
	for range 100 { // 10 MB/s, with long pauses
		now = now.Add(time.Second)
		read(10*time.Millisecond, 100_000)
	}
	if _, bps := l.estimate(); bps < 9.9e6 || bps > 10.1e6 {
		t.Errorf("one stream: %.0f", bps)
	}
	read(5*time.Second, 200_000)
	if _, bps := l.estimate(); bps < 9.9e6 {
		t.Errorf("after a stall: %.0f", bps)
	}
	for range 100 { // two at a time
		l.begin()
		read(10*time.Millisecond, 100_000)
		l.end(100_000)
	}
	if _, bps := l.estimate(); bps < 19e6 || bps > 21e6 {
		t.Errorf("two streams: %.0f", bps)
	}
	for i := range 20 {
		l.roundTrip(time.Duration(20+10*i) * time.Millisecond)
	}
	if rtt, _ := l.estimate(); rtt < 60*time.Millisecond || rtt > 90*time.Millisecond {
		t.Errorf("round trip %v", rtt)
	}
}
