package fetch_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/laminafs/lamina/fetch"
)

func TestTokens(t *testing.T) {
	p := randomBytes(10_000)
	for _, c := range []struct {
		name           string
		per            int
		user, password string
		hint           string
		keys           authn.Keychain
		want           error
	}{
		{name: "anonymous", per: 1000},
		{name: "expiring after three requests", per: 3},
		{name: "expiring, and the registry says so", per: 3, hint: `,error="invalid_token"`},
		{name: "with a password", per: 3, user: "me", password: "secret", keys: userKeys{authn.AuthConfig{Username: "me", Password: "secret"}}},
		{name: "with a wrong password", per: 3, user: "me", password: "secret", keys: userKeys{authn.AuthConfig{Username: "me", Password: "guess"}}, want: fetch.ErrDenied},
		{name: "never accepted", per: 0, want: fetch.ErrDenied},
		{name: "broken helper, not needed", per: 100, keys: brokenKeys{}},
		{name: "broken helper", per: 100, user: "me", keys: brokenKeys{}, want: fetch.ErrDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			k := newTokens(t, c.per)
			k.user, k.password, k.hint = c.user, c.password, c.hint
			f := newFake(t, httptest.NewServer)
			f.put(p)
			f.allow = k.allow
			b := f.blob(t, newClient(t, fetch.Options{Keychain: c.keys}), p)
			for range 10 {
				got, err := readRange(context.Background(), b, 100, 1000)
				if !errors.Is(err, c.want) || err == nil && string(got) != string(p[100:1100]) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				if err != nil && (strings.Contains(err.Error(), "guess") || strings.Contains(err.Error(), "?")) {
					t.Errorf("secrets in %q", err)
				}
			}
			if c.want == nil && c.per == 3 && k.issued != 4 {
				t.Errorf("%d tokens for 10 requests", k.issued)
			}
			if c.want == nil && k.scopes[0] != "repository:"+repo+":pull" {
				t.Errorf("scope %q", k.scopes[0])
			}
		})
	}
}

type brokenKeys struct{}

func (brokenKeys) Resolve(authn.Resource) (authn.Authenticator, error) {
	return nil, errors.New("helper is not installed")
}

// TestTokenShared wants one token for many readers, and one renewal.
func TestTokenShared(t *testing.T) {
	p := randomBytes(10_000)
	k := newTokens(t, 1000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	f.allow = k.allow
	b := f.blob(t, newClient(t, fetch.Options{Parallel: 16}), p)
	for round := 1; round <= 2; round++ {
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() { wantRange(t, b, p, 5, 5000) })
		}
		wg.Wait()
		k.mu.Lock()
		if k.issued != round {
			t.Errorf("round %d: %d tokens", round, k.issued)
		}
		clear(k.uses) // revoked
		k.mu.Unlock()
	}
}

// TestTokenServerDown has one that fails at first. The failure must not stick.
func TestTokenServerDown(t *testing.T) {
	p := randomBytes(10_000)
	k := newTokens(t, 1000)
	k.broken = 2
	f := newFake(t, httptest.NewServer)
	f.put(p)
	f.allow = k.allow
	wantRange(t, f.blob(t, newClient(t, fetch.Options{}), p), p, 5, 5000)
}

// TestTokenCancelled cancels a reader while it asks for the token: others go on.
func TestTokenCancelled(t *testing.T) {
	p := randomBytes(10_000)
	k := newTokens(t, 1000)
	hold := make(chan struct{})
	var once sync.Once
	inner := k.Config.Handler
	k.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := false
		once.Do(func() { first = true })
		if first {
			close(hold)
			<-r.Context().Done()
			return
		}
		inner.ServeHTTP(w, r)
	})
	f := newFake(t, httptest.NewServer)
	f.put(p)
	f.allow = k.allow
	b := f.blob(t, newClient(t, fetch.Options{}), p)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-hold; cancel() }()
	if _, err := readRange(ctx, b, 0, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	wantRange(t, b, p, 0, 10)
}

func TestBasicAuth(t *testing.T) {
	p := randomBytes(10_000)
	for _, c := range []struct {
		name, challenge string
		creds           authn.AuthConfig
		header          string
	}{
		{"password", `Basic realm="x"`, authn.AuthConfig{Username: "me", Password: "secret"}, "Basic bWU6c2VjcmV0"},
		{"registry token", `Bearer realm="http://127.0.0.1:1/none"`, authn.AuthConfig{RegistryToken: "abc"}, "Bearer abc"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, httptest.NewServer)
			f.put(p)
			f.allow = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") == c.header {
					return true
				}
				w.Header().Set("WWW-Authenticate", c.challenge)
				w.WriteHeader(http.StatusUnauthorized)
				return false
			}
			client := newClient(t, fetch.Options{Keychain: userKeys{c.creds}})
			b := f.blob(t, client, p)
			for range 3 {
				wantRange(t, b, p, 100, 100)
			}
			if s := client.Stats(); s.Requests != 4 || s.Errors != 0 {
				t.Errorf("%d requests for 3 ranges and a challenge, %d errors", s.Requests, s.Errors)
			}
			if c.name != "password" {
				return
			}
			wrong := f.blob(t, newClient(t, fetch.Options{Keychain: userKeys{authn.AuthConfig{Username: "me", Password: "no"}}}), p)
			if _, err := readRange(context.Background(), wrong, 0, 1); !errors.Is(err, fetch.ErrDenied) {
				t.Errorf("wrong password: %v", err)
			}
		})
	}
	f := newFake(t, httptest.NewServer)
	f.allow = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	if _, err := readRange(context.Background(), f.blob(t, newClient(t, fetch.Options{}), p), 0, 1); !errors.Is(err, fetch.ErrDenied) {
		t.Errorf("no credentials: %v", err)
	}
}

// TestRedirects has a registry that sends to a store on another port, with
// signatures that are good for a few requests.
func TestRedirects(t *testing.T) {
	p := randomBytes(100_000)
	const per = 3
	var mu sync.Mutex
	uses := make(map[string]int)
	store := newFake(t, httptest.NewServer)
	dgst := store.put(p)
	store.allow = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Secret") != "" {
			t.Errorf("credentials at the store: %v", r.Header)
		}
		sig := r.URL.Query().Get("sig")
		if uses[sig]++; uses[sig] > per {
			w.WriteHeader(http.StatusForbidden)
			return false
		}
		return true
	}
	k := newTokens(t, 1000)
	f := newFake(t, httptest.NewServer)
	f.allow = k.allow
	f.fault = func(n int, w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Secret") != "yes" {
			t.Error("configured header is missing")
		}
		http.Redirect(w, r, fmt.Sprintf("%s/store/%s?sig=secret%d", store.URL, dgst, n), http.StatusTemporaryRedirect)
		return true
	}
	root := hostsFile(t, f.host(), fmt.Sprintf("server = %q\n[header]\nx-secret = \"yes\"\n", f.URL))
	c := newClient(t, fetch.Options{HostsDirs: []string{root}})
	b := f.blob(t, c, p)
	for range 10 {
		wantRange(t, b, p, 100, 50_000)
	}
	if n := f.count(); n != 4 {
		t.Errorf("registry was asked %d times for 10 ranges at %d per signature", n, per)
	}
	if s := c.Stats(); s.Errors != 0 || s.Retries != 0 {
		t.Errorf("an expired signature counts as a failure: %+v", s)
	}

	// A store that never accepts is an error, without the signature in it.
	store.mu.Lock()
	store.allow = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return false }
	store.mu.Unlock()
	_, err := readRange(context.Background(), b, 0, 10)
	if !errors.Is(err, fetch.ErrDenied) || strings.Contains(err.Error(), "secret") {
		t.Errorf("store that denies: %v", err)
	}
	store.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	_, err = readRange(ctx, b, 0, 10)
	if !errors.Is(err, fetch.ErrUnavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("store that is gone: %v", err)
	}
}

// TestSignedExpiry has signatures that say when they end: nobody asks with one
// that has ended.
func TestSignedExpiry(t *testing.T) {
	p := randomBytes(1000)
	store := newFake(t, httptest.NewServer)
	dgst := store.put(p)
	f := newFake(t, httptest.NewServer)
	f.fault = func(n int, w http.ResponseWriter, r *http.Request) bool {
		end := time.Now().Add(time.Hour)
		if n == 0 {
			end = time.Now().Add(-time.Hour)
		}
		http.Redirect(w, r, fmt.Sprintf("%s/store/%s?Expires=%d", store.URL, dgst, end.Unix()), http.StatusFound)
		return true
	}
	b := f.blob(t, newClient(t, fetch.Options{}), p)
	for range 5 {
		wantRange(t, b, p, 10, 100)
	}
	if f.count() != 2 || store.count() != 5 {
		t.Errorf("registry %d, store %d requests", f.count(), store.count())
	}
}

func TestKeychain(t *testing.T) {
	entry := func(user string) string {
		return fmt.Sprintf(`{"auth":%q}`, base64.StdEncoding.EncodeToString([]byte(user+":pw")))
	}
	file := func(pairs ...string) []byte {
		var b strings.Builder
		for i := 0; i+1 < len(pairs); i += 2 {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "%q:%s", pairs[i], entry(pairs[i+1]))
		}
		return []byte(`{"auths":{` + b.String() + `}}`)
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, "run"))
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker")) // docker's package looks for its folder once per process
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(home, "auth.json"))
	writeFile(t, filepath.Join(home, "auth.json"), file("explicit.example", "explicit"))
	writeFile(t, filepath.Join(home, ".docker/config.json"), file("explicit.example", "docker", "docker.example:5000", "docker"))
	writeFile(t, filepath.Join(home, "run/containers/auth.json"), file(
		"docker.io", "hub", "quay.example", "quay", "quay.example/org", "org", "quay.example/org/app", "app"))
	writeFile(t, filepath.Join(home, ".config/containers/auth.json"), file("old.example", "old", "quay.example", "no"))

	for _, c := range []struct{ registry, repo, user string }{
		{"explicit.example", "a", "explicit"},
		{"docker.example:5000", "a", "docker"},
		{"index.docker.io", "library/nginx", "hub"},
		{"quay.example", "other/app", "quay"},
		{"quay.example", "org/b", "org"},
		{"quay.example", "org/app", "app"},
		{"old.example", "a", "old"},
		{"unknown.example", "a", ""},
	} {
		a, err := fetch.Keychain().Resolve(target{c.registry, c.repo})
		if err != nil {
			t.Errorf("%s/%s: %v", c.registry, c.repo, err)
			continue
		}
		creds, err := a.Authorization()
		if err != nil || creds.Username != c.user {
			t.Errorf("%s/%s: %+v, %v; want %q", c.registry, c.repo, creds, err, c.user)
		}
	}
}

type target struct{ registry, repo string }

func (r target) RegistryStr() string { return r.registry }
func (r target) String() string      { return r.registry + "/" + r.repo }

// TestUnasked: after Warm the first request carries a name and a password, so
// that they cost no challenge; who does not want them gets none.
func TestUnasked(t *testing.T) {
	p := randomBytes(10_000)
	const basic = "Basic bWU6c2VjcmV0"
	password := authn.AuthConfig{Username: "me", Password: "secret"}
	for _, c := range []struct {
		name     string
		keys     authn.Keychain
		insecure bool
		reject   int    // answer to credentials; 0: they are wanted
		first    string // what the first request carries
		requests int    // for two ranges
	}{
		{name: "wanted", keys: userKeys{password}, first: basic, requests: 2},
		{name: "wanted, but anybody may listen", keys: userKeys{password}, insecure: true, requests: 3},
		{name: "refused as malformed", keys: userKeys{password}, reject: http.StatusBadRequest, first: basic, requests: 3},
		{name: "refused as forbidden", keys: userKeys{password}, reject: http.StatusForbidden, first: basic, requests: 3},
		{name: "a token is no password", keys: userKeys{authn.AuthConfig{RegistryToken: "abc"}}, reject: 500, requests: 2},
		{name: "a broken helper", keys: brokenKeys{}, reject: 500, requests: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, httptest.NewServer)
			f.put(p)
			var mu sync.Mutex
			var sent []string
			f.allow = func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				header := r.Header.Get("Authorization")
				if r.URL.Path != "/v2/" { // not Warm's own
					sent = append(sent, header)
				}
				switch {
				case c.reject != 0 && header != "":
					w.WriteHeader(c.reject)
				case c.reject == 0 && header != basic:
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				default:
					return true
				}
				return false
			}
			client := newClient(t, fetch.Options{Keychain: c.keys, Insecure: c.insecure})
			client.Warm(f.ref(t, ""), 1)
			client.Settle()
			b := f.blob(t, client, p)
			for range 2 {
				wantRange(t, b, p, 100, 100)
			}
			mu.Lock()
			defer mu.Unlock()
			if sent[0] != c.first || len(sent) != c.requests {
				t.Errorf("requests carried %q, want %d and first %q", sent, c.requests, c.first)
			}
		})
	}
}
