package push_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/fetch"
)

// fake is a registry that is pushed to: the writing half of the distribution protocol
// (OCI distribution specification 1.1, "Push"), with room for faults.
type fake struct {
	*httptest.Server
	t *testing.T

	mu      sync.Mutex
	blobs   map[string]map[digest.Digest][]byte // by repository
	objects map[string][]byte                   // manifests, by repository and tag or digest
	upload  map[string][]byte                   // sessions
	said    []string                            // requests, without queries
	taken   int64                               // bytes of blobs that came

	// cut, if it returns n >= 0, ends the connection of a PATCH after n bytes more.
	cut func(patch int) int64
	// keeps: what came before a cut stays, and the session can be asked for it.
	keeps bool
	// fault, if set, sees every request first, and returns true if it has answered.
	fault   func(w http.ResponseWriter, r *http.Request) bool
	patches int
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{
		t: t, blobs: map[string]map[digest.Digest][]byte{}, objects: map[string][]byte{}, upload: map[string][]byte{}, keeps: true,
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// repo returns a repository of the registry.
func (f *fake) repo(name string) reference.Named {
	ref, err := reference.ParseNormalizedNamed(strings.TrimPrefix(f.URL, "http://") + "/" + name)
	if err != nil {
		f.t.Fatal(err)
	}
	return ref
}

func (f *fake) client() *fetch.Client {
	c := fetch.New(fetch.Options{HostsDirs: []string{}, Keychain: authn.NewMultiKeychain()})
	f.t.Cleanup(c.Close)
	return c
}

// has returns the blob that a repository has.
func (f *fake) has(repo string, d digest.Digest) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.blobs[repo][d])
}

// asked returns the requests since the last call, as "METHOD kind".
func (f *fake) asked() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.said, " ")
	f.said = nil
	return s
}

func (f *fake) refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"because"}]}`, code)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	fault := f.fault
	f.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	repo, rest, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	if !ok {
		if repo, rest, ok = strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/"); ok {
			f.manifest(w, r, repo, rest)
			return
		}
		w.WriteHeader(http.StatusOK) // the base
		return
	}
	f.note(r.Method)
	id, session := strings.CutPrefix(rest, "uploads/")
	switch {
	case !session:
		f.blob(w, r, repo, digest.Digest(rest))
	case r.Method == http.MethodPost:
		f.begin(w, r, repo)
	default:
		f.session(w, r, repo, id)
	}
}

func (f *fake) note(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.said = append(f.said, what)
}

func (f *fake) manifest(w http.ResponseWriter, r *http.Request, repo, what string) {
	f.note(r.Method + "-manifest")
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	f.objects[repo+" "+what] = b
	f.mu.Unlock()
	w.WriteHeader(http.StatusCreated)
}

func (f *fake) blob(w http.ResponseWriter, _ *http.Request, repo string, d digest.Digest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.blobs[repo][d]; !ok {
		f.refuse(w, http.StatusNotFound, "BLOB_UNKNOWN")
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (f *fake) begin(w http.ResponseWriter, r *http.Request, repo string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.Digest(r.URL.Query().Get("mount"))
	if b, ok := f.blobs[r.URL.Query().Get("from")][d]; ok {
		f.put(repo, d, b)
		w.WriteHeader(http.StatusCreated)
		return
	}
	id := fmt.Sprint("s", len(f.upload))
	f.upload[id] = nil
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=secret")
	w.WriteHeader(http.StatusAccepted)
}

// put must be called with mu held.
func (f *fake) put(repo string, d digest.Digest, b []byte) {
	if f.blobs[repo] == nil {
		f.blobs[repo] = map[digest.Digest][]byte{}
	}
	f.blobs[repo][d] = b
}

func (f *fake) session(w http.ResponseWriter, r *http.Request, repo, id string) {
	f.mu.Lock()
	b, ok := f.upload[id]
	f.mu.Unlock()
	if !ok || r.URL.Query().Get("state") != "secret" {
		f.refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
		return
	}
	switch r.Method {
	case http.MethodPatch:
		if c := r.Header.Get("Content-Range"); c != "" && !strings.HasPrefix(c, fmt.Sprintf("%d-", len(b))) || c == "" && len(b) > 0 {
			f.refuse(w, http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID")
			return
		}
		f.take(r, id, b)
	case http.MethodDelete:
		f.mu.Lock()
		delete(f.upload, id)
		f.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
		return
	case http.MethodPut:
		d := digest.Digest(r.URL.Query().Get("digest"))
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.upload, id)
		if digest.FromBytes(b) != d {
			f.refuse(w, http.StatusBadRequest, "DIGEST_INVALID")
			return
		}
		f.put(repo, d, b)
		w.WriteHeader(http.StatusCreated)
		return
	}
	f.mu.Lock()
	n := len(f.upload[id])
	f.mu.Unlock()
	if n > 0 {
		w.Header().Set("Range", fmt.Sprintf("0-%d", n-1))
	}
	w.Header().Set("Location", r.URL.String())
	w.WriteHeader(map[string]int{http.MethodGet: http.StatusNoContent, http.MethodPatch: http.StatusAccepted}[r.Method])
}

// take reads the body of a PATCH, to its end or to where it is cut.
func (f *fake) take(r *http.Request, id string, have []byte) {
	f.mu.Lock()
	cut := int64(-1)
	if f.cut != nil {
		cut = f.cut(f.patches)
	}
	f.patches++
	f.mu.Unlock()
	body := io.Reader(r.Body)
	if cut >= 0 {
		body = io.LimitReader(body, cut)
	}
	b, err := io.ReadAll(body)
	f.mu.Lock()
	f.taken += int64(len(b))
	switch {
	case f.keeps || cut < 0 && err == nil:
		f.upload[id] = append(have, b...)
	default:
		delete(f.upload, id)
	}
	f.mu.Unlock()
	if cut >= 0 || err != nil {
		panic(http.ErrAbortHandler)
	}
}
