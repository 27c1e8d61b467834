package fetch_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// newTLS starts a server whose complaints about handshakes go nowhere.
func newTLS(h http.Handler) *httptest.Server {
	s := newUnstartedTLS(h)
	s.StartTLS()
	return s
}

func newUnstartedTLS(h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	return s
}

func (f *fake) certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
}

// TestTLS reads from registries on loopback that speak HTTP or HTTPS, with what
// the certs.d directories can say of them.
func TestTLS(t *testing.T) {
	p := randomBytes(10_000)
	password := func(w http.ResponseWriter, r *http.Request) bool {
		if user, pw, _ := r.BasicAuth(); user == "me" && pw == "secret" {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	for _, c := range []struct {
		name  string
		start func(http.Handler) *httptest.Server
		write func(t *testing.T, root string, f *fake)
		o     fetch.Options
		fails bool
	}{
		{name: "http, nothing said", start: httptest.NewServer},
		{name: "http, PlainHTTP", start: httptest.NewServer, o: fetch.Options{PlainHTTP: true}},
		{name: "http, Insecure", start: httptest.NewServer, o: fetch.Options{Insecure: true}},
		{name: "https, nothing said", start: newTLS},
		{name: "https, ca.crt", start: newTLS, write: func(t *testing.T, root string, f *fake) {
			writeFile(t, filepath.Join(root, f.host(), "ca.crt"), f.certificate())
		}},
		{name: "https, hosts.toml with ca", start: newTLS, write: func(t *testing.T, root string, f *fake) {
			writeFile(t, filepath.Join(root, f.host(), "my.pem"), f.certificate())
			writeFile(t, filepath.Join(root, f.host(), "hosts.toml"), fmt.Appendf(nil, "server = %q\nca = \"my.pem\"\n", f.URL))
		}},
		{name: "https, hosts.toml in host_port_", start: newTLS, write: func(t *testing.T, root string, f *fake) {
			dir := filepath.Join(root, strings.Replace(f.host(), ":", "_", 1)+"_")
			writeFile(t, filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\nskip_verify = true\n", f.URL))
		}},
		{name: "https, hosts.toml without ca", start: newTLS, fails: true, write: func(t *testing.T, root string, f *fake) {
			writeFile(t, filepath.Join(root, f.host(), "hosts.toml"), fmt.Appendf(nil, "server = %q\n", f.URL))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, c.start)
			f.put(p)
			f.allow = password
			root := t.TempDir()
			if c.write != nil {
				c.write(t, root, f)
			}
			c.o.HostsDirs = []string{filepath.Join(root, "none"), root}
			c.o.Keychain = userKeys{authn.AuthConfig{Username: "me", Password: "secret"}}
			b := f.blob(t, newClient(t, c.o), p)
			got, err := readRange(context.Background(), b, 10, 1000)
			switch {
			case c.fails && (!errors.Is(err, fetch.ErrUnavailable) || !strings.Contains(err.Error(), "certificate")):
				t.Errorf("%v", err)
			case !c.fails && (err != nil || string(got) != string(p[10:1010])):
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// mirrored is an origin with mirrors before it, in the order given.
func mirrored(t *testing.T, o fetch.Options, p []byte, extra string, mirrors ...string) (*fetch.Client, fetch.Blob) {
	t.Helper()
	text := fmt.Sprintf("server = %q\n", mirrors[len(mirrors)-1])
	for _, m := range mirrors[:len(mirrors)-1] {
		text += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n%s", m, extra)
	}
	o.HostsDirs = []string{hostsFile(t, "origin.example", text)}
	c := newClient(t, o)
	return c, c.Blob(parseRef(t, "origin.example/"+repo), ocispec.Descriptor{Digest: digest.FromBytes(p), Size: int64(len(p))})
}

func TestMirrors(t *testing.T) {
	p := randomBytes(100_000)
	gone := httptest.NewServer(nil)
	gone.Close()
	origin, good, empty, broken, corrupt := newFake(t, httptest.NewServer), newFake(t, httptest.NewServer),
		newFake(t, httptest.NewServer), newFake(t, httptest.NewServer), newFake(t, httptest.NewServer)
	origin.put(p)
	good.put(p)
	broken.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool { return cut(p, 3000, w, r) }
	wrong := bytes.Clone(p)
	wrong[50] ^= 1
	corrupt.objects[digest.FromBytes(p).String()] = wrong

	t.Run("first", func(t *testing.T) {
		_, b := mirrored(t, fetch.Options{}, p, "", good.URL, origin.URL)
		wantRange(t, b, p, 5, 10_000)
		if origin.count() != 0 || good.count() != 1 {
			t.Errorf("origin asked %d times, mirror %d", origin.count(), good.count())
		}
		if q := good.seen(0).URL.Query().Get("ns"); q != "origin.example" {
			t.Errorf("ns=%q", q)
		}
	})
	t.Run("down", func(t *testing.T) {
		c, b := mirrored(t, fetch.Options{}, p, "", gone.URL, good.URL, origin.URL)
		start := time.Now()
		for range 20 {
			wantRange(t, b, p, 5, 10_000)
		}
		// It is left alone for a second.
		if s := c.Stats(); float64(s.Errors) > 1+time.Since(start).Seconds() {
			t.Errorf("a mirror that is down was tried %d times in %v", s.Errors, time.Since(start))
		}
	})
	t.Run("without the blob", func(t *testing.T) {
		_, b := mirrored(t, fetch.Options{}, p, "", empty.URL, origin.URL)
		for range 5 {
			wantRange(t, b, p, 5, 10_000)
		}
		if empty.count() != 1 {
			t.Errorf("asked %d times for a blob it does not have", empty.count())
		}
	})
	t.Run("breaking off", func(t *testing.T) {
		c, b := mirrored(t, fetch.Options{}, p, "", broken.URL, origin.URL)
		wantRange(t, b, p, 5, 10_000)
		if s := c.Stats(); s.Bytes != 10_000 || broken.count() != 1 {
			t.Errorf("%d bytes for 10000, mirror asked %d times", s.Bytes, broken.count())
		}
	})
	t.Run("corrupt", func(t *testing.T) {
		c, b := mirrored(t, fetch.Options{}, p, "", corrupt.URL, origin.URL)
		got, err := fetch.ReadAll(context.Background(), b, 1<<20)
		if err != nil || !bytes.Equal(got, p) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if s := c.Stats(); s.Rejected != 1 {
			t.Errorf("%d rejected", s.Rejected)
		}
		n := corrupt.count()
		wantRange(t, b, p, 0, 1000)
		if corrupt.count() != n {
			t.Error("asked again after Reject")
		}
		_, b = mirrored(t, fetch.Options{}, p, "", corrupt.URL, corrupt.URL)
		if _, err := fetch.ReadAll(context.Background(), b, 1<<20); !errors.Is(err, fetch.ErrDigest) {
			t.Errorf("corrupt everywhere: %v", err)
		}
	})
	t.Run("nowhere", func(t *testing.T) {
		_, b := mirrored(t, fetch.Options{}, p, "", empty.URL, empty.URL)
		if _, err := readRange(context.Background(), b, 0, 10); !errors.Is(err, fetch.ErrNotFound) {
			t.Errorf("%v", err)
		}
	})
	t.Run("override_path", func(t *testing.T) {
		_, b := mirrored(t, fetch.Options{}, p, "override_path = true\n", good.URL+"/odd/place", origin.URL)
		wantRange(t, b, p, 5, 10)
		if path := good.seen(good.count() - 1).URL.Path; !strings.HasPrefix(path, "/odd/place/"+repo+"/blobs/") {
			t.Errorf("path %s", path)
		}
	})
	t.Run("malformed", func(t *testing.T) {
		c := newClient(t, fetch.Options{HostsDirs: []string{hostsFile(t, origin.host(), "server = \n[")}})
		if _, err := readRange(context.Background(), origin.blob(t, c, p), 0, 10); err == nil || !strings.Contains(err.Error(), "hosts.toml") {
			t.Errorf("%v", err)
		}
	})
}

// TestOriginIsTheAnswer: a server that hosts.toml lists among its mirrors, before
// them, is asked first, and still what it says is what counts.
func TestOriginIsTheAnswer(t *testing.T) {
	p := randomBytes(100)
	origin, mirror := newFake(t, httptest.NewServer), newFake(t, httptest.NewServer)
	mirror.fault = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	for name, hosts := range map[string][]string{
		"server first": {origin.URL, mirror.URL}, "server last": {mirror.URL, origin.URL}, "server not listed": {mirror.URL},
	} {
		text := fmt.Sprintf("server = %q\n", origin.URL)
		for _, h := range hosts {
			text += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\n", h)
		}
		c := newClient(t, fetch.Options{HostsDirs: []string{hostsFile(t, "origin.example", text)}})
		b := c.Blob(parseRef(t, "origin.example/"+repo), ocispec.Descriptor{Digest: digest.FromBytes(p), Size: int64(len(p))})
		if _, err := readRange(context.Background(), b, 0, 10); !errors.Is(err, fetch.ErrNotFound) || errors.Is(err, fetch.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
