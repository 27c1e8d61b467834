package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/laminafs/lamina/fetch"
)

// cut answers like the fake would, but breaks the connection after k bytes of
// body.
func cut(p []byte, k int, w http.ResponseWriter, r *http.Request) bool {
	from, to := parseRange(r, len(p))
	w.Header().Set("Content-Length", strconv.Itoa(to-from))
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(p)))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(p[from:min(from+k, to)])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// parseRange reads what the client sends: bytes=a-b, or nothing.
func parseRange(r *http.Request, size int) (from, to int) {
	if r.Header.Get("Range") == "" {
		return 0, size
	}
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
		panic(err)
	}
	return from, to + 1
}

func status(code int, header ...string) func([]byte, http.ResponseWriter, *http.Request) bool {
	return func(_ []byte, w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		_, _ = fmt.Fprint(w, "no\x1b[31m\nluck")
		return true
	}
}

// partial answers 206 with the header given and the right bytes.
func partial(format string, shift int) func([]byte, http.ResponseWriter, *http.Request) bool {
	return func(p []byte, w http.ResponseWriter, r *http.Request) bool {
		from, to := parseRange(r, len(p))
		w.Header().Set("Content-Range", fmt.Sprintf(format, from+shift, to-1+shift, len(p)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(p[from:to])
		return true
	}
}

// TestFaultThenRight has a host that fails the first one or two times, in each
// way, and then does its work.
func TestFaultThenRight(t *testing.T) {
	p := randomBytes(200_000)
	for _, c := range []struct {
		name  string
		times int
		fault func(p []byte, w http.ResponseWriter, r *http.Request) bool
	}{
		{"500", 2, status(500)},
		{"502", 1, status(502)},
		{"503 with Retry-After", 1, status(503, "Retry-After", "1")},
		{"429 with Retry-After", 1, status(429, "Retry-After", "0")},
		{"408", 1, status(408)},
		{"416", 1, status(416)},
		{"204", 1, status(204)},
		{"304", 1, status(304)},
		{"redirect to nowhere", 1, status(302)},
		{"redirect to a file", 1, status(302, "Location", "file:///etc/passwd")},
		{"redirect to itself", 1, func(_ []byte, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
			return true
		}},
		{"cut before the body", 2, func(p []byte, w http.ResponseWriter, r *http.Request) bool { return cut(p, 0, w, r) }},
		{"cut after a byte", 2, func(p []byte, w http.ResponseWriter, r *http.Request) bool { return cut(p, 1, w, r) }},
		{"cut in the middle", 2, func(p []byte, w http.ResponseWriter, r *http.Request) bool { return cut(p, 40_000, w, r) }},
		{"cut before the header", 2, func([]byte, http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }},
		{"chunked and short", 1, func(p []byte, w http.ResponseWriter, r *http.Request) bool {
			from, to := parseRange(r, len(p))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(p)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p[from:min(from+1000, to)])
			_ = http.NewResponseController(w).Flush()
			return true
		}},
		{"chunked and long", 1, func(p []byte, w http.ResponseWriter, r *http.Request) bool {
			from, to := parseRange(r, len(p))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(p)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p[from:to])
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(p)
			return true
		}},
		{"a shorter range than asked", 1, func(p []byte, w http.ResponseWriter, r *http.Request) bool {
			from, to := parseRange(r, len(p))
			to = (from + to) / 2
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(p)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p[from:to])
			return true
		}},
		{"ignored range", 1, func(_ []byte, _ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false }},
		{"ignored range, then cut", 1, func(p []byte, w http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return cut(p, 120_000, w, r)
		}},
		{"Content-Range beside", 1, partial("bytes %d-%d/%d", 1)},
		{"Content-Range of another size", 1, partial("bytes %d-%d/1%d", 0)},
		{"Content-Range malformed", 1, partial("octets %d-%d/%d", 0)},
		{"Content-Range without size", 1, partial("bytes %d-%d/*%.0d", 0)},
		{"encoded", 1, status(200, "Content-Encoding", "gzip")},
		{"200 of another size", 1, status(200, "Content-Length", "9")},
		{"stall before the header", 1, func(_ []byte, _ http.ResponseWriter, r *http.Request) bool {
			<-r.Context().Done()
			return true
		}},
		{"stall in the body", 1, func(p []byte, w http.ResponseWriter, r *http.Request) bool {
			from, to := parseRange(r, len(p))
			w.Header().Set("Content-Length", strconv.Itoa(to-from))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(p)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p[from : from+10])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, httptest.NewServer)
			f.put(p)
			f.fault = func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n >= c.times {
					return false
				}
				return c.fault(p, w, r)
			}
			client := newClient(t, fetch.Options{IdleTimeout: 150 * time.Millisecond})
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			got, err := readRange(ctx, f.blob(t, client, p), 1000, 150_000)
			if err != nil || string(got) != string(p[1000:151_000]) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// TestPermanent has hosts that never do their work. The error says in what way,
// without secrets, and what is hopeless is not tried again.
func TestPermanent(t *testing.T) {
	p := randomBytes(1000)
	for _, c := range []struct {
		name  string
		fault func([]byte, http.ResponseWriter, *http.Request) bool
		want  error
		most  int // requests
	}{
		{"404", status(404), fetch.ErrNotFound, 1},
		{"403", status(403), fetch.ErrDenied, 1},
		{"401", status(401), fetch.ErrDenied, 1},
		{"400", status(400), fetch.ErrUnavailable, 1},
		{"501", status(501), fetch.ErrUnavailable, 1},
		{"500", status(500), fetch.ErrUnavailable, 3},
		{"429 for an hour", status(429, "Retry-After", "3600"), fetch.ErrUnavailable, 1},
		{"416", status(416), fetch.ErrShort, 5},
		{"smaller", status(200, "Content-Length", "9"), fetch.ErrShort, 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, httptest.NewServer)
			f.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool { return c.fault(p, w, r) }
			client := newClient(t, fetch.Options{Retries: 2})
			_, err := readRange(context.Background(), f.blob(t, client, p), 0, 10)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v", err)
			}
			var e *fetch.Error
			if !errors.As(err, &e) || e.Status == 0 || !strings.Contains(e.URL, "/blobs/sha256:") {
				t.Errorf("no details: %v", err)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("message is not one printable line: %q", err)
			}
			if f.count() > c.most {
				t.Errorf("%d requests", f.count())
			}
			if s := client.Stats(); s.Errors == 0 || s.Hosts[f.host()].Errors != s.Errors || s.Requests == 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	p := randomBytes(1000)
	for name, fault := range map[string]func(int, http.ResponseWriter, *http.Request) bool{
		"down":    func(_ int, w http.ResponseWriter, r *http.Request) bool { return status(503)(p, w, r) },
		"silence": func(_ int, _ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true },
		"mid-way": func(_ int, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(p[:10])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, httptest.NewServer)
			f.fault = fault
			ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, err := readRange(ctx, f.blob(t, newClient(t, fetch.Options{}), p), 0, 1000)
			if !errors.Is(err, fetch.ErrUnavailable) || errors.Is(err, io.EOF) {
				t.Errorf("%v", err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestCancelAtOnce(t *testing.T) {
	p := randomBytes(1000)
	stuck := func(_ int, _ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	down := func(_ int, w http.ResponseWriter, r *http.Request) bool {
		return status(503, "Retry-After", "30")(p, w, r)
	}
	for name, fault := range map[string]func(int, http.ResponseWriter, *http.Request) bool{"waiting": stuck, "backing off": down} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, httptest.NewServer)
			f.fault = fault
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(200*time.Millisecond, cancel)
			start := time.Now()
			_, err := readRange(ctx, f.blob(t, newClient(t, fetch.Options{}), p), 0, 1000)
			if !errors.Is(err, context.Canceled) || errors.Is(err, fetch.ErrUnavailable) {
				t.Errorf("%v", err)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

// TestCloseWhileReading closes a stream whose Read waits for the network.
func TestCloseWhileReading(t *testing.T) {
	p := randomBytes(1000)
	f := newFake(t, httptest.NewServer)
	f.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write(p[:10])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
	s, err := f.blob(t, newClient(t, fetch.Options{}), p).ReadRange(context.Background(), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { _ = s.Close() })
	if n, err := io.Copy(io.Discard, s); n != 10 || err == nil || errors.Is(err, fetch.ErrUnavailable) {
		t.Errorf("%d, %v", n, err)
	}
}

// TestResume counts the bytes that come again when transfers break off: none.
func TestResume(t *testing.T) {
	p := randomBytes(500_000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	f.fault = func(n int, w http.ResponseWriter, r *http.Request) bool {
		return n < 4 && cut(p, 100_000, w, r)
	}
	c := newClient(t, fetch.Options{})
	got, err := readRange(context.Background(), f.blob(t, c, p), 0, 500_000)
	if err != nil || string(got) != string(p) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	s := c.Stats()
	if s.Bytes != int64(len(p)) || s.Retries != 4 || f.count() != 5 {
		t.Errorf("%d bytes, %d retries, %d requests", s.Bytes, s.Retries, f.count())
	}
}

// TestTrickle has a server that breaks off after every few bytes, more often
// than there are retries: as long as bytes come it goes on.
func TestTrickle(t *testing.T) {
	p := randomBytes(10_000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	f.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool { return cut(p, 1000, w, r) }
	c := newClient(t, fetch.Options{Retries: 2})
	if got, err := readRange(context.Background(), f.blob(t, c, p), 0, 10_000); err != nil || string(got) != string(p) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// TestRandomFaults reads much through a server that fails one time in four.
func TestRandomFaults(t *testing.T) {
	p := randomBytes(300_000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	faults := []func([]byte, http.ResponseWriter, *http.Request) bool{
		status(500), status(429, "Retry-After", "0"), status(416), partial("bytes %d-%d/%d", 2),
		func(p []byte, w http.ResponseWriter, r *http.Request) bool {
			return cut(p, int(randomInt(50_000)), w, r)
		},
		func(_ []byte, _ http.ResponseWriter, r *http.Request) bool { r.Header.Del("Range"); return false },
	}
	f.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		return r.Header.Get("Range") != "" && randomInt(4) == 0 && faults[randomInt(int64(len(faults)))](p, w, r)
	}
	b := f.blob(t, newClient(t, fetch.Options{}), p)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 15 {
				off := randomInt(int64(len(p)))
				n := randomInt(int64(len(p)) - off + 1)
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				got, err := readRange(ctx, b, off, n)
				cancel()
				if err != nil || string(got) != string(p[off:off+n]) {
					t.Errorf("%d at %d: %d bytes, %v", n, off, len(got), err)
				}
			}
		})
	}
	wg.Wait()
}
