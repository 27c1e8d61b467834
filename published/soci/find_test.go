package soci_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
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
	"github.com/laminafs/lamina/published/soci"
)

// server is an in-memory registry that counts requests.
type server struct {
	*httptest.Server
	repo reference.Named
	c    *fetch.Client

	mu   sync.Mutex
	seen []string // method and path
}

func newServer(t *testing.T, referrers bool) *server {
	t.Helper()
	s := &server{}
	h := registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0)))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path)
		s.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	s.c = fetch.New(fetch.Options{HostsDirs: []string{}, Keychain: authn.NewMultiKeychain()})
	t.Cleanup(s.c.Close)
	var err error
	s.repo, err = reference.ParseNormalizedNamed(strings.TrimPrefix(s.URL, "http://") + "/team/app:1.0")
	check(t, err)
	return s
}

// requests returns what was asked since the last call, but for the greeting.
func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := slices.DeleteFunc(s.seen, func(r string) bool { return r == "GET /v2/" })
	s.seen = nil
	return seen
}

// put stores a manifest under a tag, or its digest if that is "".
func (s *server) put(t *testing.T, tag, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if tag == "" {
		tag = desc.Digest.String()
	}
	req, err := http.NewRequest(http.MethodPut, s.URL+"/v2/team/app/manifests/"+tag, bytes.NewReader(b))
	check(t, err)
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	check(t, resp.Body.Close())
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("put %s: %s", tag, resp.Status)
	}
	return desc
}

func (s *server) find(subject digest.Digest, annotations map[string]string) (*published.Artifact, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return soci.Find(ctx, s.c, s.repo, subject, annotations, published.ReferrersOf(ctx, s.c, s.repo, subject))
}

// ztocOf describes a ztoc of the layer called name.
func ztocOf(name string) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: soci.LayerMediaType, Digest: digest.FromString("ztoc of " + name), Size: 1000,
		Annotations: map[string]string{soci.AnnotationLayer: digest.FromString(name).String()},
	}
}

// indexOf is an index of the image with the manifest subject, if that is not "".
func indexOf(typ string, subject digest.Digest, ztocs ...ocispec.Descriptor) ocispec.Manifest {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: typ, Digest: ocispec.DescriptorEmptyJSON.Digest, Size: 2}, Layers: ztocs,
	}
	if subject != "" {
		m.Subject = &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 5}
	}
	return m
}

// TestFind: an index of version 1 is found by what refers to the image, in both ways
// that registries know of.
func TestFind(t *testing.T) {
	for name, knows := range map[string]bool{"referrers": true, "tag": false} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, knows)
			subject := digest.FromString("image")
			if _, err := s.find(subject, nil); !errors.Is(err, published.ErrNone) {
				t.Errorf("nothing there: %v", err)
			}
			if got := s.requests(); len(got) > 2 {
				t.Errorf("asked %v", got)
			}
			foreign, huge, again := ztocOf("foreign"), ztocOf("huge"), ztocOf("a")
			foreign.MediaType, huge.Size, again.Size = "application/vnd.amazon.soci.prefetch.v1+json", 1<<40, 7
			want := s.put(t, "", ocispec.MediaTypeImageManifest, indexOf(soci.TypeV1, subject, ztocOf("a"), ztocOf("b"), foreign, huge, again))
			if !knows {
				want.ArtifactType = soci.TypeV1
				s.put(t, strings.Replace(subject.String(), ":", "-", 1), ocispec.MediaTypeImageIndex, ocispec.Index{
					Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{want},
				})
			}
			s.requests()
			a, err := s.find(subject, nil)
			check(t, err)
			if got := s.requests(); len(got) > 3 {
				t.Errorf("asked %v", got)
			}
			if a.Desc.Digest != want.Digest || len(a.Layers) != 2 || a.Layers[digest.FromString("a")].Size != 1000 ||
				a.Layers[digest.FromString("b")].Digest != ztocOf("b").Digest {
				t.Errorf("got %+v", a)
			}
		})
	}
}

// TestFindOwn: an index of version 2 is named by the image itself, and comes first.
func TestFindOwn(t *testing.T) {
	s := newServer(t, true)
	subject := digest.FromString("image")
	one := s.put(t, "", ocispec.MediaTypeImageManifest, indexOf(soci.TypeV1, subject, ztocOf("a")))
	two := s.put(t, "", ocispec.MediaTypeImageManifest, indexOf(soci.TypeV2, "", ztocOf("b")))
	other := s.put(t, "", ocispec.MediaTypeImageManifest, indexOf("application/json", "", ztocOf("c")))
	for name, c := range map[string]struct {
		note string
		want digest.Digest
		asks int
	}{
		"named":        {two.Digest.String(), two.Digest, 1},
		"none":         {"", one.Digest, 2},
		"gone":         {digest.FromString("gone").String(), one.Digest, 3},
		"no index":     {other.Digest.String(), one.Digest, 3},
		"version 1":    {one.Digest.String(), one.Digest, 3},
		"not a digest": {"sha256:../../x", one.Digest, 2},
	} {
		s.requests()
		a, err := s.find(subject, map[string]string{soci.AnnotationIndex: c.note})
		if err != nil || a.Desc.Digest != c.want {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
		// The tag's is given up when the API has answered, and may come any time.
		got := slices.DeleteFunc(s.requests(), func(r string) bool { return strings.Contains(r, "/manifests/sha256-") })
		if len(got) != c.asks {
			t.Errorf("%s: asked %v", name, got)
		}
	}
}

// TestFindWrong: what is no index of the image is not taken for one.
func TestFindWrong(t *testing.T) {
	subject := digest.FromString("image")
	bad := ztocOf("a")
	bad.Annotations = nil
	for name, m := range map[string]ocispec.Manifest{
		"no layers":    indexOf(soci.TypeV1, subject),
		"no digests":   indexOf(soci.TypeV1, subject, bad),
		"another type": indexOf(ocispec.MediaTypeImageConfig, subject, ztocOf("a")),
		"version 2":    indexOf(soci.TypeV2, subject, ztocOf("a")),
	} {
		s := newServer(t, true)
		s.put(t, "", ocispec.MediaTypeImageManifest, m)
		if a, err := s.find(subject, nil); !errors.Is(err, published.ErrNone) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	// Lists are believed by nobody.
	s := newServer(t, false)
	other := s.put(t, "", ocispec.MediaTypeImageManifest, indexOf(soci.TypeV1, digest.FromString("other"), ztocOf("a")))
	other.ArtifactType = soci.TypeV1
	s.put(t, strings.Replace(subject.String(), ":", "-", 1), ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other},
	})
	if a, err := s.find(subject, nil); !errors.Is(err, published.ErrNone) {
		t.Errorf("of another image: %+v, %v", a, err)
	}
	s.Close()
	if _, err := s.find(subject, nil); err == nil || errors.Is(err, published.ErrNone) {
		t.Errorf("no registry: %v", err)
	}
}
