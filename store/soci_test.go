package store_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/published/soci"
	"github.com/laminafs/lamina/published/soci/ztoctest"
	"github.com/laminafs/lamina/store"
)

// recorder is a registry that tells what it was asked.
type recorder struct {
	t    *testing.T
	host string

	mu     sync.Mutex
	asked  []string
	before func(path string) // may wait
}

func record(t *testing.T) *recorder {
	t.Helper()
	r := &recorder{t: t}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.mu.Lock()
		r.asked = append(r.asked, q.URL.Path)
		before := r.before
		r.mu.Unlock()
		if before != nil {
			before(q.URL.Path)
		}
		h.ServeHTTP(w, q)
	}))
	t.Cleanup(s.Close)
	r.host = strings.TrimPrefix(s.URL, "http://")
	return r
}

// count returns how many requests had part in their path.
func (r *recorder) count(part string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.asked {
		if strings.Contains(a, part) {
			n++
		}
	}
	return n
}

func (r *recorder) reset(before func(path string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked, r.before = nil, before
}

// image pushes an image of these layers as app/name:1.
func (r *recorder) image(called string, layers ...v1.Layer) (v1.Image, store.Ref) {
	r.t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	r.check(err)
	config, err := img.ConfigFile()
	r.check(err)
	config.OS, config.Architecture, config.Author = "linux", "amd64", called
	img, err = mutate.ConfigFile(img, config)
	r.check(err)
	ref, err := name.ParseReference(r.host + "/app/" + called + ":1")
	r.check(err)
	r.check(remote.Write(ref, img))
	return img, store.Ref{Name: ref.Name(), Platform: "linux/amd64"}
}

func (r *recorder) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// index pushes a SOCI index of version 1 for the image, of these layers.
func (r *recorder) index(img v1.Image, called string, layers ...v1.Layer) {
	r.t.Helper()
	repo, err := name.NewRepository(r.host + "/app/" + called)
	r.check(err)
	put := func(b []byte) ocispec.Descriptor {
		r.check(remote.WriteLayer(repo, static.NewLayer(b, soci.LayerMediaType)))
		return ocispec.Descriptor{MediaType: soci.LayerMediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	}
	subject, err := img.Digest()
	r.check(err)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: put([]byte("{}")),
		Subject: &ocispec.Descriptor{MediaType: string(types.DockerManifestSchema2), Digest: digest.Digest(subject.String()), Size: 1},
	}
	m.Config.MediaType = soci.TypeV1
	for _, l := range layers {
		rc, err := l.Compressed()
		r.check(err)
		blob, err := io.ReadAll(rc)
		r.check(err)
		z, err := ztoctest.New(blob, 32<<10)
		r.check(err)
		d := put(z.Bytes())
		d.Annotations = map[string]string{soci.AnnotationLayer: digest.FromBytes(blob).String()}
		m.Layers = append(m.Layers, d)
	}
	body, err := json.Marshal(m)
	r.check(err)
	r.check(remote.Put(repo.Digest(digest.FromBytes(body).String()), rawManifest(body)))
}

type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)        { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// keys returns the kinds of the layers' keys, the bottom one first.
func (r *recorder) keys(s *store.Store, ref store.Ref) (kinds string, err error) {
	tree, err := s.Open(r.t.Context(), ref, nil)
	if err != nil {
		return "", err
	}
	for _, l := range tree.Layers {
		if strings.HasPrefix(l.Key(), "idx-") {
			kinds += "i"
		} else {
			kinds += "s"
		}
	}
	return kinds, tree.Close()
}

// TestSOCI: an image with a SOCI index, and none of ours, is opened by it; what it
// does not cover is streamed, and it must cover something if one is required.
func TestSOCI(t *testing.T) {
	r := record(t)
	base, top := layerOf(t, "base", 300_000), layerOf(t, "top", 200_000)
	img, ref := r.image("some", base, top)
	r.index(img, "some", top)
	ref.Index = store.IndexRequire
	s := open(t, t.TempDir())
	r.reset(nil)
	tree, err := s.Open(t.Context(), ref, nil)
	r.check(err)
	if strings.HasPrefix(tree.Layers[0].Key(), "idx-") || !strings.HasPrefix(tree.Layers[1].Key(), "idx-") {
		t.Errorf("opened as %s, %s", tree.Layers[0].Key(), tree.Layers[1].Key())
	}
	o := tree.Overlay()
	for _, n := range []string{"base", "top"} {
		nid, err := o.Resolve("/" + n)
		r.check(err)
		got, want := make([]byte, 200_000), contents(n, 200_000)
		if k, err := o.Read(t.Context(), nid, got, 0); err != nil || k != len(want) || !bytes.Equal(got, want) {
			t.Errorf("read %s: %d bytes, %v", n, k, err)
		}
	}
	r.check(tree.Close())

	img, ref = r.image("foreign", base)
	r.index(img, "foreign", top)
	for _, p := range []store.IndexPolicy{store.IndexRequire, store.IndexAuto} {
		ref.Index = p
		keys, err := r.keys(open(t, t.TempDir()), ref)
		if p == store.IndexRequire && (!errors.Is(err, store.ErrNoIndex) || !strings.Contains(err.Error(), "covers no layer")) ||
			p == store.IndexAuto && (err != nil || keys != "s") {
			t.Errorf("%s, and it covers nothing: %s, %v", p, keys, err)
		}
	}
}

func contents(path string, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", path)))).Read(p)
	return p
}

// TestOwnFirst: lamina's own index comes before SOCI's.
func TestOwnFirst(t *testing.T) {
	r := record(t)
	base := layerOf(t, "base", 300_000)
	img, ref := r.image("both", base)
	r.index(img, "both", base)
	one := open(t, t.TempDir())
	never := ref
	never.Index = store.IndexNever
	tree, err := one.Open(t.Context(), never, nil)
	r.check(err)
	made, err := one.PackIndexes(t.Context(), tree, true)
	r.check(err)
	r.check(tree.Close())
	r.reset(nil)
	s := open(t, t.TempDir())
	keys, err := r.keys(s, ref)
	if err != nil || keys != "i" {
		t.Fatalf("%s, %v", keys, err)
	}
	m, err := img.Manifest()
	r.check(err)
	// Of what was fetched, one blob is neither config nor layer: the pack.
	var packs []string
	for _, a := range r.asked {
		if strings.Contains(a, "/blobs/") && !strings.HasSuffix(a, m.Config.Digest.String()) && !strings.HasSuffix(a, m.Layers[0].Digest.String()) {
			packs = append(packs, a)
		}
	}
	if len(packs) != 1 || made.Artifact == "" || r.count(made.Artifact.String()) != 1 {
		t.Errorf("asked for %v", packs)
	}
}

// TestSearchEarly: a first mount looks for indexes while the config is under way,
// and nobody looks for what nobody needs.
func TestSearchEarly(t *testing.T) {
	r := record(t)
	base := layerOf(t, "base", 50_000)
	img, ref := r.image("plain", base)
	m, err := img.Manifest()
	r.check(err)
	searched := make(chan struct{})
	var once sync.Once
	r.reset(func(path string) {
		switch {
		case strings.Contains(path, "/referrers/"):
			once.Do(func() { close(searched) })
		case strings.HasSuffix(path, m.Config.Digest.String()):
			select {
			case <-searched:
			case <-time.After(5 * time.Second):
				t.Error("no search until the config is there")
			}
		}
	})
	s := open(t, t.TempDir())
	keys, err := r.keys(s, ref)
	if err != nil || keys != "s" {
		t.Errorf("%s, %v", keys, err)
	}
	if n := r.count("/referrers/"); n != 1 { // for our index and SOCI's
		t.Errorf("%d searches", n)
	}
	_, other := r.image("other", base)
	for name, c := range map[string]struct {
		s   *store.Store
		ref store.Ref
	}{
		"warm":                 {s, ref},
		"other config":         {s, other},
		"never, another store": {open(t, t.TempDir()), store.Ref{Name: ref.Name, Platform: ref.Platform, Index: store.IndexNever}},
	} {
		r.reset(nil)
		if keys, err := r.keys(c.s, c.ref); err != nil || keys != "s" {
			t.Errorf("%s: %s, %v", name, keys, err)
		}
		if n := r.count("/referrers/"); n != 0 {
			t.Errorf("%s: %d searches", name, n)
		}
	}
}
