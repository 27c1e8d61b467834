package published_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/published"
)

// artifact puts an index of subject with a pack, which is called pack, for each
// of layers. It returns its entry in a list.
func (s *server) artifact(t *testing.T, subject ocispec.Descriptor, created, pack string, layers ...string) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: published.ArtifactType, Config: ocispec.DescriptorEmptyJSON, Subject: &subject,
	}
	if created != "" {
		m.Annotations = map[string]string{ocispec.AnnotationCreated: created}
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{
			MediaType: published.LayerMediaType, Digest: digest.FromString(pack + l), Size: 9,
			Annotations: map[string]string{published.AnnotationLayer: digest.FromString(l).String()},
		})
	}
	d := s.put(t, "", ocispec.MediaTypeImageManifest, m)
	d.ArtifactType, d.Annotations = published.ArtifactType, m.Annotations
	return d
}

// list answers requests to the referrers API.
func list(ds ...ocispec.Descriptor) func(w http.ResponseWriter, r *http.Request) bool {
	return onReferrers(func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(ocispec.Index{Manifests: ds})
	})
}

// TestFindMerges: what was published later, for more layers or better ones, counts.
func TestFindMerges(t *testing.T) {
	s, subject := newServer(t, false), image("an image")
	const early, late = "2024-01-02T03:04:05Z", "2025-01-02T03:04:05+01:00"
	old := s.artifact(t, subject, early, "old", "a", "b")
	recent := s.artifact(t, subject, late, "new", "b", "c")
	first := s.artifact(t, subject, "", "first", "a")
	second := s.artifact(t, subject, "not a time", "second", "a", "b")
	var many []ocispec.Descriptor
	for i := range 20 {
		many = append(many, s.artifact(t, subject, "", fmt.Sprint("pack", i), "a"))
	}
	for name, c := range map[string]struct {
		list []ocispec.Descriptor
		want map[string]string // the pack by layer
		desc ocispec.Descriptor
	}{
		"one":           {[]ocispec.Descriptor{old}, map[string]string{"a": "old", "b": "old"}, old},
		"newest first":  {[]ocispec.Descriptor{old, recent}, map[string]string{"a": "old", "b": "new", "c": "new"}, recent},
		"list order":    {[]ocispec.Descriptor{first, second}, map[string]string{"a": "first", "b": "second"}, first},
		"time or none":  {[]ocispec.Descriptor{first, old}, map[string]string{"a": "old", "b": "old"}, old},
		"behind many":   {append(many, recent), map[string]string{"a": "pack0", "b": "new", "c": "new"}, recent},
		"one unlisted":  {[]ocispec.Descriptor{image("gone"), first}, map[string]string{"a": "first"}, first},
		"twice the one": {[]ocispec.Descriptor{first, first}, map[string]string{"a": "first"}, first},
	} {
		s.set(list(c.list...))
		a, err := s.find(subject.Digest)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if a.Desc.Digest != c.desc.Digest || len(a.Layers) != len(c.want) {
			t.Errorf("%s: %+v", name, a)
		}
		for l, pack := range c.want {
			if got := a.Layers[digest.FromString(l)].Digest; got != digest.FromString(pack+l) {
				t.Errorf("%s: pack of layer %s is not that of %s", name, l, pack)
			}
		}
	}
}

// TestCandidates: what may be an index is looked at in an order, and not all of it.
func TestCandidates(t *testing.T) {
	of := func(name, artifactType, created string) ocispec.Descriptor {
		d := image(name)
		d.ArtifactType = artifactType
		if created != "" {
			d.Annotations = map[string]string{ocispec.AnnotationCreated: created}
		}
		return d
	}
	bad, huge, list := of("bad", "x", ""), of("huge", "x", ""), of("list", "x", "")
	bad.Digest, huge.Size, list.MediaType = "sha256:../x", 1<<40, ocispec.MediaTypeImageIndex
	all := []ocispec.Descriptor{
		bad, huge, list, of("other", "y", ""), of("unsaid", "", ""), of("old", "x", "2024-01-02T03:04:05Z"), of("timeless", "x", ""),
		of("unsaid, new", "", "2025-01-02T03:04:05Z"), of("new", "x", "2025-01-02T03:04:05Z"),
	}
	want := []string{"new", "old", "timeless", "unsaid, new", "unsaid"}
	for _, n := range []int{0, 1, 4, 8} {
		var got []digest.Digest
		for _, d := range published.Candidates(all, n, "x", "") {
			got = append(got, d.Digest)
		}
		var digests []digest.Digest
		for _, name := range want[:min(n, len(want))] {
			digests = append(digests, image(name).Digest)
		}
		if !slices.Equal(got, digests) {
			t.Errorf("%d: %v, want %v", n, got, digests)
		}
	}
	if got := published.Candidates(all, 8, "x"); len(got) != 3 {
		t.Errorf("of one type: %v", got)
	}
}

// TestLayersOf: only layers of the kind, each for one of the image's.
func TestLayersOf(t *testing.T) {
	of := func(name, layer string, change func(d *ocispec.Descriptor)) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: "x", Digest: digest.FromString(name), Size: 9, Annotations: map[string]string{"of": layer}}
		if change != nil {
			change(&d)
		}
		return d
	}
	a, b := digest.FromString("a"), digest.FromString("b")
	m := ocispec.Manifest{Layers: []ocispec.Descriptor{
		of("no layer", "", nil), of("no digest", "sha256:x", nil),
		of("bad", a.String(), func(d *ocispec.Descriptor) { d.Digest = "sha256:../x" }),
		of("type", a.String(), func(d *ocispec.Descriptor) { d.MediaType = "y" }),
		of("empty", a.String(), func(d *ocispec.Descriptor) { d.Size = 0 }),
		of("large", a.String(), func(d *ocispec.Descriptor) { d.Size = 10 }),
	}}
	if got := published.LayersOf(&m, "of", "x", 9); got != nil {
		t.Errorf("%v", got)
	}
	m.Layers = append(m.Layers, of("first", a.String(), nil), of("second", a.String(), nil), of("third", b.String(), nil))
	if got := published.LayersOf(&m, "of", "x", 9); len(got) != 2 || got[a].Digest != digest.FromString("first") || got[b].Digest != digest.FromString("third") {
		t.Errorf("%v", got)
	}
}

// TestFindGoesOn: one artifact that cannot be got does not hide the others.
func TestFindGoesOn(t *testing.T) {
	s, subject := newServer(t, false), image("an image")
	bad, good := s.artifact(t, subject, "", "bad", "a"), s.artifact(t, subject, "", "good", "a")
	breakBad := func(listed ...ocispec.Descriptor) {
		answer := list(listed...)
		s.set(func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, bad.Digest.String()) {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			return answer(w, r)
		})
	}
	breakBad(bad, good)
	if a, err := s.find(subject.Digest); err != nil || a.Desc.Digest != good.Digest {
		t.Errorf("%+v, %v", a, err)
	}
	breakBad(bad)
	if a, err := s.find(subject.Digest); !errors.Is(err, fetch.ErrDenied) {
		t.Errorf("%+v, %v", a, err)
	}
	breakBad(bad, image("gone"))
	if a, err := s.find(subject.Digest); !errors.Is(err, fetch.ErrDenied) {
		t.Errorf("%+v, %v", a, err)
	}
}
