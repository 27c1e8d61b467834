package published_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/published"
)

// server is an in-memory registry that counts requests, and may answer some in
// its own way.
type server struct {
	*httptest.Server
	repo reference.Named
	c    *fetch.Client

	mu     sync.Mutex
	seen   []string // method and path
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func newServer(t *testing.T, referrers bool) *server {
	t.Helper()
	s := &server{}
	h := registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path)
		answer := s.answer
		s.mu.Unlock()
		if answer == nil || !answer(w, r) {
			h.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	s.c = fetch.New(fetch.Options{HostsDirs: []string{}, Keychain: authn.NewMultiKeychain()})
	t.Cleanup(s.c.Close)
	var err error
	s.repo, err = reference.ParseNormalizedNamed(strings.TrimPrefix(s.URL, "http://") + "/team/app:1.0")
	check(t, err)
	return s
}

// requests returns what was asked since the last call.
func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

func (s *server) set(answer func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *server) push(ctx context.Context, subject ocispec.Descriptor, layers ...published.PackedLayer) (ocispec.Descriptor, error) {
	return published.Push(ctx, s.c, s.repo, subject, layers)
}

func (s *server) find(subject digest.Digest) (*published.Artifact, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return published.Find(ctx, s.c, s.repo, subject, published.ReferrersOf(ctx, s.c, s.repo, subject))
}

// put stores a manifest as it is.
func (s *server) put(t *testing.T, object string, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if object == "" {
		object = desc.Digest.String()
	}
	req, err := http.NewRequest(http.MethodPut, s.URL+"/v2/team/app/manifests/"+object, bytes.NewReader(b))
	check(t, err)
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("put %s: %s", object, resp.Status)
	}
	return desc
}

func image(name string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name), Size: int64(len(name))}
}

// TestPushAndFind publishes an index and opens a layer by it, at registries with
// the referrers API, without it, and with strange ways of not having it.
func TestPushAndFind(t *testing.T) {
	f, g := newFixture(t, 1), newFixture(t, 2)
	packs := []published.PackedLayer{f.packed(t), g.packed(t), f.packed(t)}
	for _, way := range []struct {
		name   string
		knows  bool
		answer func(w http.ResponseWriter, r *http.Request) bool
	}{
		{"referrers", true, nil},
		{"404", false, nil},
		{"400", false, status(http.StatusBadRequest)},
		{"405", false, status(http.StatusMethodNotAllowed)},
		{"501", false, status(http.StatusNotImplemented)},
		{"web page", false, onReferrers(func(w http.ResponseWriter) {
			_, _ = fmt.Fprint(w, "<!doctype html><title>Registry</title>")
		})},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, way.knows)
			s.set(way.answer)
			subject := image("an image")
			if _, err := s.find(subject.Digest); !errors.Is(err, published.ErrNone) {
				t.Errorf("before: %v", err)
			}
			desc, err := s.push(context.Background(), subject, packs...)
			check(t, err)
			if desc.MediaType != ocispec.MediaTypeImageManifest || desc.ArtifactType != published.ArtifactType {
				t.Errorf("pushed %+v", desc)
			}
			s.requests()
			a, err := s.find(subject.Digest)
			check(t, err)
			want := []string{"GET /v2/team/app/referrers/" + subject.Digest.String(), "GET /v2/team/app/manifests/" + desc.Digest.String()}
			tag := "GET /v2/team/app/manifests/sha256-" + subject.Digest.Encoded()
			got := s.requests()
			asked := slices.Contains(got, tag) // at the same time; where the API is known, in vain
			got = slices.DeleteFunc(got, func(r string) bool { return r == tag })
			if !slices.Equal(got, want) || !asked && !way.knows {
				t.Errorf("requests %q, tag asked for: %v", got, asked)
			}
			if a.Desc.Digest != desc.Digest || a.Desc.Size != desc.Size || len(a.Layers) != 2 {
				t.Errorf("found %+v", a)
			}
			for _, x := range []*fixture{f, g} {
				p := a.Layers[x.desc.Digest]
				if p.Annotations[published.AnnotationDiffID] != x.diffID.String() {
					t.Errorf("annotations %v", p.Annotations)
				}
				b, err := fetch.ReadAll(context.Background(), s.c.Blob(s.repo, p), p.Size)
				check(t, err)
				_, err = unpack(b, x.desc)
				check(t, err)
			}
			if _, err := s.find(digest.FromString("another")); !errors.Is(err, published.ErrNone) {
				t.Errorf("another image: %v", err)
			}
		})
	}
}

func onReferrers(answer func(w http.ResponseWriter)) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		answer(w)
		return true
	}
}

func status(code int) func(w http.ResponseWriter, r *http.Request) bool {
	return onReferrers(func(w http.ResponseWriter) { w.WriteHeader(code) })
}

// TestNoneCostsOneRoundTrip: most images have no index, and every mount asks.
func TestNoneCostsOneRoundTrip(t *testing.T) {
	s := newServer(t, true)
	s.put(t, "", ocispec.MediaTypeImageManifest, map[string]any{"schemaVersion": 2}) // the repository exists
	s.requests()
	if _, err := s.find(image("bare").Digest); !errors.Is(err, published.ErrNone) {
		t.Errorf("%v", err)
	}
	if got := s.requests(); len(got) > 2 {
		t.Errorf("requests %q", got)
	}

	// Without the API: its answer comes once the tag is asked for, so it must be
	// asked for before.
	s = newServer(t, false)
	tag := make(chan struct{})
	s.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/sha256-") {
			close(tag)
		} else {
			<-tag
		}
		return false
	})
	if _, err := s.find(image("bare").Digest); !errors.Is(err, published.ErrNone) {
		t.Errorf("without the API: %v", err)
	}

	// With the API nobody waits for the tag.
	s = newServer(t, true)
	s.put(t, "", ocispec.MediaTypeImageManifest, map[string]any{"schemaVersion": 2})
	s.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/sha256-") {
			<-r.Context().Done()
		}
		return false
	})
	if _, err := s.find(image("bare").Digest); !errors.Is(err, published.ErrNone) {
		t.Errorf("with the API: %v", err)
	}
}

// TestPushAgain: what is there is not sent again, but for the manifest; a tag that
// was lost is made again, and others in it are kept.
func TestPushAgain(t *testing.T) {
	s := newServer(t, false)
	subject, pack := image("an image"), newFixture(t, 1).packed(t)
	signature := s.put(t, "", ocispec.MediaTypeImageManifest, map[string]any{"schemaVersion": 2, "a": "signature"})
	signature.ArtifactType = "application/vnd.signature"
	tag := "sha256-" + subject.Digest.Encoded()
	list := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{signature}}
	s.put(t, tag, ocispec.MediaTypeImageIndex, list)
	first, err := s.push(context.Background(), subject, pack)
	check(t, err)
	s.put(t, tag, ocispec.MediaTypeImageIndex, list) // as if killed before the tag
	s.requests()
	second, err := s.push(context.Background(), subject, pack)
	check(t, err)
	if first.Digest != second.Digest {
		t.Errorf("%s and %s", first.Digest, second.Digest)
	}
	for _, r := range s.requests() {
		if strings.Contains(r, "/uploads/") {
			t.Errorf("sent again: %s", r)
		}
	}
	ref, err := reference.WithTag(reference.TrimNamed(s.repo), tag)
	check(t, err)
	_, body, err := s.c.Manifest(context.Background(), ref, "")
	check(t, err)
	check(t, json.Unmarshal(body, &list))
	if len(list.Manifests) != 2 {
		t.Errorf("tag has %d entries", len(list.Manifests))
	}
	if a, err := s.find(subject.Digest); err != nil || a.Desc.Digest != first.Digest {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestPushFails(t *testing.T) {
	pack := newFixture(t, 1).packed(t)
	writes := func(code int) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				return false
			}
			w.WriteHeader(code)
			_, _ = fmt.Fprint(w, `{"errors":[{"code":"DENIED","message":"read\nonly"}]}`)
			return true
		}
	}
	for code, want := range map[int]error{
		http.StatusForbidden:        fetch.ErrDenied,
		http.StatusUnauthorized:     fetch.ErrDenied,
		http.StatusNotFound:         fetch.ErrNotFound,
		http.StatusMethodNotAllowed: fetch.ErrUnavailable,
	} {
		s := newServer(t, true)
		s.set(writes(code))
		_, err := s.push(context.Background(), image("x"), pack)
		if !errors.Is(err, want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%d: %v", code, err)
		}
	}
	s := newServer(t, true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.push(ctx, image("x"), pack); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, err := s.push(context.Background(), image("x")); err == nil {
		t.Error("an artifact without layers was pushed")
	}
	pack.Path += ".none"
	if _, err := s.push(context.Background(), image("x"), pack); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	pack = newFixture(t, 1).packed(t)
	s.set(func(http.ResponseWriter, *http.Request) bool { _ = os.Remove(pack.Path); return false })
	var file *fs.PathError
	if _, err := s.push(context.Background(), image("x"), pack); !errors.As(err, &file) || file.Path != pack.Path || errors.Is(err, fetch.ErrUnavailable) {
		t.Errorf("file that goes while it is sent: %v", err)
	}
}

// TestFindWrong: what a registry may answer that must not be taken for the index
// of the image.
func TestFindWrong(t *testing.T) {
	subject := image("an image")
	pack := ocispec.Descriptor{
		MediaType: published.LayerMediaType, Digest: digest.FromString("pack"), Size: 9,
		Annotations: map[string]string{published.AnnotationLayer: digest.FromString("layer").String()},
	}
	right := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: published.ArtifactType, Config: ocispec.DescriptorEmptyJSON, Subject: &subject, Layers: []ocispec.Descriptor{pack},
	}
	other := image("another image")
	for name, c := range map[string]struct {
		manifest func(m *ocispec.Manifest)
		listed   func(d *ocispec.Descriptor)
		good     bool
	}{
		"right":                  {good: true},
		"listed by its config":   {listed: func(d *ocispec.Descriptor) { d.ArtifactType = ocispec.MediaTypeEmptyJSON }, good: true},
		"listed without type":    {listed: func(d *ocispec.Descriptor) { d.ArtifactType = "" }, good: true},
		"listed as another type": {listed: func(d *ocispec.Descriptor) { d.ArtifactType = "application/vnd.signature" }},
		"listed as an index":     {listed: func(d *ocispec.Descriptor) { d.MediaType = ocispec.MediaTypeImageIndex }},
		"not there":              {listed: func(d *ocispec.Descriptor) { d.Digest = digest.FromString("none") }},
		"a bad digest":           {listed: func(d *ocispec.Descriptor) { d.Digest = "sha256:../../x" }},
		"another size":           {listed: func(d *ocispec.Descriptor) { d.Size++ }},
		"huge":                   {listed: func(d *ocispec.Descriptor) { d.Size = 1 << 40 }},
		"another subject":        {manifest: func(m *ocispec.Manifest) { m.Subject = &other }},
		"no subject":             {manifest: func(m *ocispec.Manifest) { m.Subject = nil }},
		"another type":           {manifest: func(m *ocispec.Manifest) { m.ArtifactType = "application/vnd.signature" }},
		"an image":               {manifest: func(m *ocispec.Manifest) { m.ArtifactType = "" }},
		"no layers":              {manifest: func(m *ocispec.Manifest) { m.Layers = nil }},
		"other layers":           {manifest: func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip }},
		"unnamed layers":         {manifest: func(m *ocispec.Manifest) { m.Layers[0].Annotations = nil }},
		"huge layers":            {manifest: func(m *ocispec.Manifest) { m.Layers[0].Size = 1 << 40 }},
		"negative layers":        {manifest: func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }},
		"layers of bad digests":  {manifest: func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:x" }},
	} {
		s := newServer(t, false)
		m := right
		m.Layers = slices.Clone(right.Layers)
		if c.manifest != nil {
			c.manifest(&m)
		}
		d := s.put(t, "", ocispec.MediaTypeImageManifest, m)
		d.ArtifactType = published.ArtifactType
		if c.listed != nil {
			c.listed(&d)
		}
		s.set(onReferrers(func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex+"; charset=utf-8")
			_ = json.NewEncoder(w).Encode(ocispec.Index{Manifests: []ocispec.Descriptor{d}})
		}))
		a, err := s.find(subject.Digest)
		if c.good && (err != nil || len(a.Layers) != 1) || !c.good && (a != nil || !errors.Is(err, published.ErrNone)) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

// TestFindMisbehaving: answers after which it is not known whether there is an
// index, or that must not be read on.
func TestFindMisbehaving(t *testing.T) {
	subject := image("an image").Digest
	index := func(body string) func(w http.ResponseWriter, r *http.Request) bool {
		return onReferrers(func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = io.WriteString(w, body)
		})
	}
	entry := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":3}`, ocispec.MediaTypeImageManifest, digest.FromString("no"))
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request) bool
		want   error
		most   int // requests
	}{
		"500":          {status(http.StatusInternalServerError), fetch.ErrUnavailable, 0},
		"403":          {status(http.StatusForbidden), fetch.ErrDenied, 2},
		"null":         {index("null"), published.ErrNone, 2},
		"empty object": {index("{}"), published.ErrNone, 2},
		"array":        {index("[]"), fetch.ErrUnavailable, 2},
		"html":         {index("<html>"), fetch.ErrUnavailable, 2},
		"empty":        {index(""), fetch.ErrUnavailable, 2},
		"bad size":     {index(`{"manifests":[{"size":"3"}]}`), fetch.ErrUnavailable, 2},
		"huge list":    {index(`{"manifests":[` + strings.Repeat(entry+",", 100_000) + entry + `]}`), fetch.ErrTooBig, 2},
		"long list":    {index(`{"manifests":[` + strings.Repeat(entry+",", 10_000) + entry + `]}`), published.ErrNone, 10},
		"wrong bytes": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			_, _ = io.WriteString(w, `{"manifests":[`+entry+`]}`)
			return true
		}, fetch.ErrDigest, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, true)
			s.set(c.answer)
			a, err := s.find(subject)
			if a != nil || !errors.Is(err, c.want) {
				t.Errorf("%+v, %v", a, err)
			}
			if got := s.requests(); c.most > 0 && len(got) > c.most {
				t.Errorf("%d requests: %q", len(got), got)
			}
		})
	}
	s := newServer(t, true)
	if _, err := s.find("sha256:../x"); !errors.Is(err, fetch.ErrDigest) {
		t.Errorf("bad subject: %v", err)
	}
	s.Close()
	if _, err := s.find(subject); !errors.Is(err, fetch.ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
}

// TestFindTag: what may stand under the tag where a list is expected.
func TestFindTag(t *testing.T) {
	subject := image("an image").Digest
	s := newServer(t, false)
	s.put(t, "sha256-"+subject.Encoded(), ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.DescriptorEmptyJSON})
	if a, err := s.find(subject); !errors.Is(err, published.ErrNone) {
		t.Errorf("an image: %+v, %v", a, err)
	}
	long := digest.SHA512.FromString("an image")
	s.requests()
	if a, err := s.find(long); !errors.Is(err, published.ErrNone) {
		t.Errorf("sha512: %+v, %v", a, err)
	}
	if got := s.requests(); len(got) != 2 || !slices.Contains(got, "GET /v2/team/app/manifests/sha512-"+long.Encoded()[:64]) {
		t.Errorf("sha512: %q", got)
	}
}
