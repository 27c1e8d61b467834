package fetch_test

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

const repo = "library/thing"

// fake is a registry of one repository: the read half of the distribution
// protocol over http.ServeContent, with room for faults.
type fake struct {
	*httptest.Server
	mu       sync.Mutex
	objects  map[string][]byte // by digest or tag
	requests []*http.Request

	// fault, if set, sees the n-th object request (from 0) first. It returns
	// true if it has answered.
	fault func(n int, w http.ResponseWriter, r *http.Request) bool
	// allow, if set, decides on authorisation the same way, before fault.
	allow func(w http.ResponseWriter, r *http.Request) bool
}

func newFake(t *testing.T, start func(http.Handler) *httptest.Server) *fake {
	t.Helper()
	f := &fake{objects: make(map[string][]byte)}
	f.Server = start(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	allow, fault := f.allow, f.fault
	f.mu.Unlock()
	if allow != nil && !allow(w, r) {
		return
	}
	f.mu.Lock()
	n := len(f.requests)
	f.requests = append(f.requests, r)
	i := strings.LastIndexByte(r.URL.Path, '/')
	p, ok := f.objects[r.URL.Path[i+1:]]
	f.mu.Unlock()
	if fault != nil && fault(n, w, r) {
		return
	}
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		_, _ = fmt.Fprint(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}`)
		return
	}
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(p).String())
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
}

func (f *fake) put(p []byte, names ...string) digest.Digest {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(p)
	for _, name := range append(names, d.String()) {
		f.objects[name] = p
	}
	return d
}

// count is the number of object requests so far.
func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

func (f *fake) seen(i int) *http.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests[i]
}

func (f *fake) host() string {
	u, err := url.Parse(f.URL)
	if err != nil {
		panic(err)
	}
	return u.Host
}

// ref is a reference into the fake.
func (f *fake) ref(t *testing.T, suffix string) reference.Named {
	t.Helper()
	return parseRef(t, f.host()+"/"+repo+suffix)
}

func parseRef(t *testing.T, s string) reference.Named {
	t.Helper()
	n, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// noKeys is a keychain without credentials, so that tests do not depend on the
// files of whoever runs them.
var noKeys = authn.NewMultiKeychain()

// userKeys knows one user everywhere.
type userKeys struct{ authn.AuthConfig }

func (k userKeys) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(k.AuthConfig), nil
}

// newClient fills in what tests want: no files of the machine, and its
// connections closed at the end.
func newClient(t *testing.T, o fetch.Options) *fetch.Client {
	t.Helper()
	if o.HostsDirs == nil {
		o.HostsDirs = []string{}
	}
	if o.Keychain == nil {
		o.Keychain = noKeys
	}
	c := fetch.New(o)
	t.Cleanup(c.Close)
	return c
}

func (f *fake) blob(t *testing.T, c *fetch.Client, p []byte) fetch.Blob {
	t.Helper()
	return c.Blob(f.ref(t, ""), ocispec.Descriptor{Digest: digest.FromBytes(p), Size: int64(len(p))})
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.Read(p)
	return p
}

func randomInt(n int64) int64 {
	i, err := rand.Int(rand.Reader, big.NewInt(n))
	if err != nil {
		panic(err)
	}
	return i.Int64()
}

// hostsFile writes a hosts.toml for domain and returns the certs.d directory.
func hostsFile(t *testing.T, domain, text string) string {
	t.Helper()
	root := t.TempDir()
	writeFile(t, filepath.Join(root, domain, "hosts.toml"), []byte(text))
	return root
}

func writeFile(t *testing.T, path string, p []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tokens is a token server whose tokens are good for a number of requests.
type tokens struct {
	*httptest.Server
	mu     sync.Mutex
	issued int
	uses   map[string]int // by token: how many are left
	scopes []string
	// per is how many requests one token is good for, expires what is said of
	// its life in seconds, user and password who may have one ("" all).
	per, expires   int
	user, password string
	hint           string // added to the challenge
	broken         int    // how many requests to answer with 503
}

func newTokens(t *testing.T, per int) *tokens {
	t.Helper()
	k := &tokens{uses: make(map[string]int), per: per, expires: 300}
	k.Server = httptest.NewServer(k)
	t.Cleanup(k.Close)
	return k
}

func (k *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.broken > 0 {
		k.broken--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	_ = r.ParseForm()
	user, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		user, password = r.Form.Get("username"), r.Form.Get("password")
	}
	if user != k.user || password != k.password {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	k.issued++
	token := fmt.Sprintf("token-%d", k.issued)
	k.uses[token] = k.per
	k.scopes = append(k.scopes, strings.Join(r.Form["scope"], " "))
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": k.expires})
}

// allow is for fake.allow.
func (k *tokens) allow(w http.ResponseWriter, r *http.Request) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if k.uses[token] > 0 {
		k.uses[token]--
		return true
	}
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="fake",scope="repository:%s:pull"%s`, k.URL, repo, k.hint))
	w.WriteHeader(http.StatusUnauthorized)
	return false
}
