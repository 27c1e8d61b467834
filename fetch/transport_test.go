package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/fetch"
)

// writable is a registry that can be pushed to. allow, if set, decides first.
func writable(allow func(w http.ResponseWriter, r *http.Request) bool) http.Handler {
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if allow == nil || allow(w, r) {
			h.ServeHTTP(w, r)
		}
	})
}

// push writes a small image to ref's registry and returns its digest.
func push(c *fetch.Client, t *testing.T, host string) (digest.Digest, error) {
	t.Helper()
	repository, rt, err := c.Origin(parseRef(t, host+"/"+repo))
	if err != nil {
		return "", err
	}
	img, err := random.Image(5000, 2)
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.Digest(d.String()), remote.Write(repository.Digest(d.String()), img, remote.WithTransport(rt),
		remote.WithJobs(1), remote.WithRetryBackoff(remote.Backoff{Steps: 1}))
}

// TestOriginParallel: what is pushed is within the bound too.
func TestOriginParallel(t *testing.T) {
	var now, most atomic.Int64
	f := &fake{Server: httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(5 * time.Millisecond)
	}))}
	t.Cleanup(f.Close)
	repository, rt, err := newClient(t, fetch.Options{Parallel: 2, PlainHTTP: true}).Origin(parseRef(t, f.host()+"/"+repo))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+repository.RegistryStr()+"/v2/", nil)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := rt.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			_ = resp.Body.Close()
		})
	}
	wg.Wait()
	if most.Load() > 2 {
		t.Errorf("%d at a time", most.Load())
	}
}

// TestOrigin pushes by the Client's own settings and reads back.
func TestOrigin(t *testing.T) {
	creds := authn.AuthConfig{Username: "me", Password: "secret"}
	for _, c := range []struct {
		name  string
		start func(http.Handler) *httptest.Server
		hosts func(f *fake) string // hosts.toml
		fails string
		tokens,
		prefix bool
	}{
		{name: "http", start: httptest.NewServer},
		{name: "http, tokens", start: httptest.NewServer, tokens: true},
		{name: "https", start: newTLS},
		{name: "https, tokens", start: newTLS, tokens: true},
		{name: "https, ca", start: newTLS, hosts: func(f *fake) string {
			return fmt.Sprintf("server = %q\nca = \"ca.pem\"\n", f.URL)
		}},
		{name: "https, ca of the host", start: newTLS, hosts: func(f *fake) string {
			return fmt.Sprintf("[host.%q]\nca = \"ca.pem\"\n", f.URL)
		}},
		{name: "https, no ca", start: newTLS, fails: "certificate", hosts: func(f *fake) string {
			return fmt.Sprintf("server = %q\n", f.URL)
		}},
		{name: "path", start: httptest.NewServer, prefix: true, hosts: func(f *fake) string {
			return fmt.Sprintf("server = %q\n", f.URL+"/registry")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var allow func(w http.ResponseWriter, r *http.Request) bool
			var k *tokens
			if c.tokens {
				k = newTokens(t, 3) // each expires in the middle of things
				k.user, k.password = creds.Username, creds.Password
				allow = k.allow
			}
			h := writable(allow)
			if c.prefix {
				h = http.StripPrefix("/registry", h)
			}
			f := &fake{Server: c.start(h)}
			t.Cleanup(f.Close)
			var mirrored atomic.Int64
			mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				mirrored.Add(1)
				w.WriteHeader(http.StatusNotFound)
			}))
			t.Cleanup(mirror.Close)

			root := t.TempDir()
			if c.hosts != nil {
				dir := filepath.Join(root, f.host())
				text := c.hosts(f)
				if strings.HasPrefix(text, "server") {
					text += fmt.Sprintf("[host.%q]\n", mirror.URL) // may do everything, pushing too
				}
				writeFile(t, filepath.Join(dir, "hosts.toml"), []byte(text))
				if f.Certificate() != nil {
					writeFile(t, filepath.Join(dir, "ca.pem"), f.certificate())
				}
			}
			client := newClient(t, fetch.Options{HostsDirs: []string{root}, Keychain: userKeys{creds}})
			d, err := push(client, t, f.host())
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := mirrored.Load(); n > 0 {
				t.Errorf("%d requests to the mirror", n)
			}
			if k != nil && (len(k.scopes) < 2 || !strings.Contains(k.scopes[0], "repository:"+repo+":pull,push")) {
				t.Errorf("scopes %q", k.scopes)
			}
			if _, _, err := client.Manifest(context.Background(), f.ref(t, ""), d); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOriginDenied: credentials that do not suffice are an answer, not a loop.
func TestOriginDenied(t *testing.T) {
	k := newTokens(t, 100)
	k.user, k.password = "another", "user"
	f := &fake{Server: httptest.NewServer(writable(k.allow))}
	t.Cleanup(f.Close)
	client := newClient(t, fetch.Options{Keychain: userKeys{authn.AuthConfig{Username: "me", Password: "secret"}}})
	_, err := push(client, t, f.host())
	if !errors.Is(err, fetch.ErrDenied) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%v", err)
	}
}

// TestOriginReferrers: whoever lacks the referrers API says so to remote.
func TestOriginReferrers(t *testing.T) {
	f := newFake(t, httptest.NewServer)
	f.fault = func(_ int, w http.ResponseWriter, _ *http.Request) bool {
		_, _ = fmt.Fprint(w, "<html>")
		return true
	}
	client := newClient(t, fetch.Options{})
	repository, rt, err := client.Origin(f.ref(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{
		"/referrers/" + digest.FromString("x").String(): http.StatusNotFound,
		"/manifests/latest":                             http.StatusOK,
	} {
		req, err := http.NewRequest(http.MethodGet, "https://"+repository.RegistryStr()+"/v2/"+repo+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want || resp.Request != req {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// TestOriginRedirect: credentials do not go to where the registry redirects.
func TestOriginRedirect(t *testing.T) {
	var leaked atomic.Bool
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked.Store(leaked.Load() || r.Header.Get("Authorization") != "")
		w.WriteHeader(http.StatusNotFound)
	}))
	t.Cleanup(store.Close)
	f := newFake(t, httptest.NewServer)
	f.allow = func(w http.ResponseWriter, r *http.Request) bool {
		if user, _, _ := r.BasicAuth(); user != "me" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return false
		}
		http.Redirect(w, r, strings.Replace(store.URL, "127.0.0.1", "localhost", 1)+"/blob", http.StatusTemporaryRedirect)
		return false
	}
	client := newClient(t, fetch.Options{Keychain: userKeys{authn.AuthConfig{Username: "me", Password: "secret"}}})
	repository, rt, err := client.Origin(f.ref(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodGet, "https://"+repository.RegistryStr()+"/v2/"+repo+"/blobs/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound || leaked.Load() {
		t.Errorf("%s, credentials leaked: %t", resp.Status, leaked.Load())
	}
}

// TestOriginNotAMirror: a server that may not be pushed to is an error; a mirror
// that could be is not taken for it.
func TestOriginNotAMirror(t *testing.T) {
	mirror := newFake(t, httptest.NewServer)
	for name, c := range map[string]struct{ text, host string }{
		"server may not":      {"server = \"https://up.example\"\ncapabilities = [\"pull\"]\n[host.%q]\n", ""},
		"server may":          {"server = \"https://up.example\"\n[host.%q]\n", "up.example"},
		"listed too, may":     {"server = \"https://up.example\"\ncapabilities = [\"pull\"]\n[host.%q]\n[host.\"https://up.example\"]\n", "up.example"},
		"listed too, may not": {"server = \"https://up.example\"\n[host.\"https://up.example\"]\ncapabilities = [\"pull\"]\n[host.%q]\n", "up.example"},
	} {
		root := hostsFile(t, "origin.example", fmt.Sprintf(c.text, mirror.URL))
		client := newClient(t, fetch.Options{HostsDirs: []string{root}})
		repository, _, err := client.Origin(parseRef(t, "origin.example/"+repo))
		switch {
		case c.host == "" && (!errors.Is(err, fetch.ErrUnavailable) || !strings.Contains(err.Error(), "capability push")):
			t.Errorf("%s: %s, %v", name, repository.RegistryStr(), err)
		case c.host != "" && (err != nil || repository.RegistryStr() != c.host):
			t.Errorf("%s: %s, %v", name, repository.RegistryStr(), err)
		}
	}
}

// TestOriginEscapedPath: what a registry has escaped in its own way, as in the
// location of an upload, comes back to it as it was.
func TestOriginEscapedPath(t *testing.T) {
	const way = "/blobs/uploads/a%2Fb%7Ec"
	for path, text := range map[string]string{
		"/v2":      "",
		"/odd/way": "server = %q\noverride_path = true\n",
	} {
		var seen atomic.Value
		f := newFake(t, httptest.NewServer)
		f.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool { seen.Store(r.RequestURI); return true }
		o := fetch.Options{}
		if text != "" {
			o.HostsDirs = []string{hostsFile(t, f.host(), fmt.Sprintf(text, f.URL+path))}
		}
		repository, rt, err := newClient(t, o).Origin(f.ref(t, ""))
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(http.MethodPatch, "https://"+repository.RegistryStr()+"/v2/"+repo+way, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := seen.Load(); got != path+"/"+repo+way {
			t.Errorf("%s: asked for %v", path, got)
		}
	}
}
