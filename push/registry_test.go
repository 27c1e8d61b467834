package push_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/push"
)

// blob makes a file of random bytes.
func blob(t *testing.T, size int) (ocispec.Descriptor, fetch.Blob, string) {
	t.Helper()
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8)})
	_, _ = rng.Read(b)
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(b)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: int64(size)},
		fetch.OpenFile(path, 0, int64(size), d), string(b)
}

func open(t *testing.T, f *fake, repo string, from ...reference.Named) *push.Registry {
	t.Helper()
	r, err := push.NewRegistry(f.client(), f.repo(repo), from...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestBlob(t *testing.T) {
	f := newFake(t)
	r := open(t, f, "team/app")
	for _, size := range []int{0, 1, 3 << 20} {
		desc, from, content := blob(t, size)
		var last int64
		way, err := r.Blob(t.Context(), desc, from, nil, func(done, total int64) {
			if total != desc.Size {
				t.Errorf("%d of %d bytes", done, total)
			}
			last = done
		})
		if err != nil || way != push.Sent || f.has("team/app", desc.Digest) != content || last != desc.Size {
			t.Fatalf("%d bytes: way %v, %d told: %v", size, way, last, err)
		}
		f.asked()
		if way, err := r.Blob(t.Context(), desc, from, nil, nil); err != nil || way != push.Present || f.asked() != "HEAD" {
			t.Errorf("%d bytes again: way %v, %v", size, way, err)
		}
	}
}

// TestMount: a blob of another repository of the registry is mounted; what cannot be is
// sent.
func TestMount(t *testing.T) {
	f := newFake(t)
	desc, from, content := blob(t, 100_000)
	if _, err := open(t, f, "lib/base").Blob(t.Context(), desc, from, nil, nil); err != nil {
		t.Fatal(err)
	}
	f.asked()
	before := f.taken
	r := open(t, f, "team/app", f.repo("lib/base"))
	if way, err := r.Blob(t.Context(), desc, from, f.repo("lib/base"), nil); err != nil || way != push.Mounted {
		t.Errorf("way %v: %v", way, err)
	}
	if got := f.asked(); got != "HEAD POST" || f.taken != before || f.has("team/app", desc.Digest) != content {
		t.Errorf("%s, %d bytes sent", got, f.taken-before)
	}
	elsewhere, err := reference.ParseNormalizedNamed("registry.invalid/lib/base")
	if err != nil {
		t.Fatal(err)
	}
	for repo, origin := range map[string]reference.Named{"a": f.repo("lib/other"), "b": elsewhere} {
		if way, err := open(t, f, repo).Blob(t.Context(), desc, from, origin, nil); err != nil || way != push.Sent || f.has(repo, desc.Digest) != content {
			t.Errorf("from %s: way %v: %v", origin, way, err)
		}
	}
}

// TestResume: an upload that is cut off goes on where the registry says, and begins anew
// where it does not know.
func TestResume(t *testing.T) {
	const size = 4 << 20
	for name, keeps := range map[string]bool{"kept": true, "lost": false} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.keeps = keeps
			f.cut = func(patch int) int64 {
				if patch < 3 {
					return 1 << 20
				}
				return -1
			}
			desc, from, content := blob(t, size)
			if way, err := open(t, f, "team/app").Blob(t.Context(), desc, from, nil, nil); err != nil || way != push.Sent {
				t.Fatalf("way %v: %v", way, err)
			}
			if f.has("team/app", desc.Digest) != content {
				t.Error("other bytes came")
			}
			want := int64(size)
			if !keeps {
				want += 3 << 20
			}
			if f.taken != want {
				t.Errorf("%d bytes were sent, want %d", f.taken, want)
			}
		})
	}
}

// TestResumeMany: as often as it is cut off, an upload that gets on goes on.
func TestResumeMany(t *testing.T) {
	f := newFake(t)
	f.cut = func(patch int) int64 {
		if patch < 12 {
			return 100_000
		}
		return -1
	}
	desc, from, content := blob(t, 2<<20)
	if _, err := open(t, f, "team/app").Blob(t.Context(), desc, from, nil, nil); err != nil || f.has("team/app", desc.Digest) != content || f.taken != desc.Size {
		t.Errorf("%d bytes sent of %d: %v", f.taken, desc.Size, err)
	}
}

// rejecting is a blob whose first copy is wrong.
type rejecting struct {
	fetch.Blob
	content  string
	rejected int
}

func (b *rejecting) ReadRange(_ context.Context, off, n int64) (fetch.Stream, error) {
	p := []byte(b.content[off : off+n])
	if b.rejected == 0 {
		p[0] ^= 1
	}
	return &rejectingStream{io.NopCloser(bytes.NewReader(p)), b}, nil
}

type rejectingStream struct {
	io.ReadCloser
	b *rejecting
}

func (s *rejectingStream) Reject(error) { s.b.rejected++ }

func TestWrongBytes(t *testing.T) {
	f := newFake(t)
	desc, from, content := blob(t, 50_000)
	b := &rejecting{Blob: from, content: content}
	if way, err := open(t, f, "team/app").Blob(t.Context(), desc, b, nil, nil); err != nil || way != push.Sent || b.rejected != 1 {
		t.Errorf("way %v, %d rejected: %v", way, b.rejected, err)
	}
	desc.Digest = digest.FromString("something else")
	_, err := open(t, f, "team/app").Blob(t.Context(), desc, b, nil, nil)
	if !errors.Is(err, fetch.ErrDigest) || b.rejected != 3 {
		t.Errorf("bytes that are nowhere right, %d rejected: %v", b.rejected, err)
	}
}

// TestRefused: what the registry says for good is said at once, and what may pass is
// tried again.
func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		method string
		status int
		times  int // 0: for ever
		want   error
	}{
		{http.MethodHead, http.StatusForbidden, 0, fetch.ErrDenied},
		{http.MethodPost, http.StatusUnauthorized, 0, fetch.ErrDenied},
		{http.MethodPost, http.StatusNotFound, 0, fetch.ErrNotFound},
		{http.MethodPatch, http.StatusForbidden, 0, fetch.ErrDenied},
		{http.MethodPut, http.StatusBadRequest, 0, fetch.ErrUnavailable},
		{http.MethodHead, http.StatusServiceUnavailable, 1, nil},
		{http.MethodPost, http.StatusTooManyRequests, 2, nil},
		{http.MethodPatch, http.StatusBadGateway, 2, nil},
		{http.MethodPut, http.StatusInternalServerError, 1, nil},
	} {
		t.Run(tt.method+" "+http.StatusText(tt.status), func(t *testing.T) {
			t.Parallel() // pauses
			f := newFake(t)
			n := 0
			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				if r.Method != tt.method || tt.times > 0 && n >= tt.times {
					return false
				}
				n++
				f.refuse(w, tt.status, "WHATEVER")
				return true
			}
			desc, from, content := blob(t, 10_000)
			_, err := open(t, f, "team/app").Blob(t.Context(), desc, from, nil, nil)
			// Once more, perhaps, with other credentials.
			if !errors.Is(err, tt.want) || tt.want != nil && n > 2 {
				t.Errorf("asked %d times: %v", n, err)
			}
			if tt.want == nil && f.has("team/app", desc.Digest) != content {
				t.Error("it did not come")
			}
			if err != nil && (strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%v: says too much", err)
			}
		})
	}
}

// TestLostSession: a session that the registry forgets is begun anew, and an answer that
// is lost does no harm.
func TestLostSession(t *testing.T) {
	for method, want := range map[string]string{
		http.MethodPatch: "HEAD POST PATCH GET POST PATCH PUT",
		http.MethodPut:   "HEAD POST PATCH PUT GET HEAD",
	} {
		t.Run(method, func(t *testing.T) {
			f := newFake(t)
			done := false
			f.fault = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != method || done {
					return false
				}
				done = true
				f.note(r.Method)
				if r.Method == http.MethodPut { // it is done, and nobody learns of it
					f.ServeHTTP(httptest.NewRecorder(), r)
					panic(http.ErrAbortHandler)
				}
				_, _ = io.Copy(io.Discard, r.Body)
				f.mu.Lock()
				clear(f.upload)
				f.mu.Unlock()
				f.refuse(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
				return true
			}
			desc, from, content := blob(t, 10_000)
			way, err := open(t, f, "team/app").Blob(t.Context(), desc, from, nil, nil)
			if err != nil || way != push.Sent || f.has("team/app", desc.Digest) != content {
				t.Errorf("way %v: %v", way, err)
			}
			got := strings.ReplaceAll(f.asked(), "PUT PUT", "PUT")
			if got != want && got != strings.Replace(want, "GET", "GET DELETE", 1) {
				t.Errorf("asked %s, want %s", got, want)
			}
		})
	}
}

// TestMountDenied: what may not be mounted is sent.
func TestMountDenied(t *testing.T) {
	f := newFake(t)
	f.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !r.URL.Query().Has("mount") {
			return false
		}
		f.refuse(w, http.StatusUnauthorized, "UNAUTHORIZED")
		return true
	}
	desc, from, content := blob(t, 10_000)
	way, err := open(t, f, "team/app", f.repo("lib/base")).Blob(t.Context(), desc, from, f.repo("lib/base"), nil)
	if err != nil || way != push.Sent || f.has("team/app", desc.Digest) != content {
		t.Errorf("way %v: %v", way, err)
	}
}

// TestCancel: an upload ends at once, and leaves no session.
func TestCancel(t *testing.T) {
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			cancel()
			_, _ = io.Copy(io.Discard, r.Body) // until the connection ends
			panic(http.ErrAbortHandler)
		}
		return false
	}
	desc, from, _ := blob(t, 1<<20)
	began := time.Now()
	if _, err := open(t, f, "team/app").Blob(ctx, desc, from, nil, nil); !errors.Is(err, context.Canceled) || time.Since(began) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.upload) != 0 {
		t.Errorf("%d sessions are left", len(f.upload))
	}
}

func TestManifest(t *testing.T) {
	f := newFake(t)
	r := open(t, f, "team/app")
	raw := []byte(`{"schemaVersion":2}`)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	for tag, want := range map[string]string{"": desc.Digest.String(), "1.0": "1.0"} {
		if err := r.Manifest(t.Context(), desc, raw, tag); err != nil || string(f.objects["team/app "+want]) != string(raw) {
			t.Errorf("tag %q: %v", tag, err)
		}
	}
}
