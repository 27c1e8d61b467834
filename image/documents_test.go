package image_test

import (
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
)

// TestDocuments: all that an image index leads to, attestations too, comes once and
// before what leads to it, with blobs that can be read.
func TestDocuments(t *testing.T) {
	var index v1.ImageIndex = empty.Index
	_, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	for _, s := range []string{"linux/amd64", "linux/arm64"} {
		p, err := v1.ParsePlatform(s)
		check(t, err)
		index = mutate.AppendManifests(index,
			mutate.IndexAddendum{Add: images[s], Descriptor: v1.Descriptor{Platform: p}},
			mutate.IndexAddendum{Add: platformImage(t, "linux/mips", true), Descriptor: v1.Descriptor{
				Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
				Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
			}})
	}
	root, err := index.Digest()
	check(t, err)
	r := newRegistry(t)
	ref := r.pushIndex(t, "all:1", index)
	layout := newLayout(t, map[string]mutate.Appendable{"all": index, "one": images["linux/amd64"]})
	s := newStore(t)
	o := image.Options{Client: newClient(t), Store: s}
	stored, err := image.OpenAll(t.Context(), ref, o)
	check(t, err)
	for name, want := range map[string]int{ref: 5, "oci:" + layout + ":all": 5, "oci:" + layout + ":one": 1, "oci-archive:" + tarDir(t, layout) + ":all": 5} {
		documents, origin, err := image.Documents(t.Context(), name, o)
		check(t, err)
		if len(documents) != want || want == 5 && documents[want-1].Desc.Digest.String() != root.String() || (origin != nil) != (name == ref) {
			t.Errorf("%s: %d documents, origin %v", name, len(documents), origin)
		}
		var seen []digest.Digest
		for i, d := range documents {
			if digest.FromBytes(d.Raw) != d.Desc.Digest || d.Desc.Size != int64(len(d.Raw)) || slices.Contains(seen, d.Desc.Digest) {
				t.Errorf("%s: document %d is %+v", name, i, d.Desc)
			}
			seen = append(seen, d.Desc.Digest)
			if isIndex := d.Desc.MediaType == ocispec.MediaTypeImageIndex; isIndex != (want == 5 && i == 4) || isIndex != (len(d.Blobs) == 0) {
				t.Errorf("%s: document %d is %s with %d blobs", name, i, d.Desc.MediaType, len(d.Blobs))
			}
			for _, b := range d.Blobs {
				if _, err := fetch.ReadAll(t.Context(), b.Blob, 1<<20); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
	_, _, err = image.Documents(t.Context(), "oci:"+layout, o)
	oneLine(t, err, image.ErrNotFound, "several images")
	_, _, err = image.Documents(t.Context(), "docker-archive:x", o)
	oneLine(t, err, image.ErrNotImage, "docker archive")
	// What the store has is enough, but for what was never fetched.
	for _, img := range stored {
		fetchLayers(t, s, img)
	}
	o.Pull = image.PullNever
	if _, _, err = image.Documents(t.Context(), ref, o); err == nil {
		t.Error("the attestations are not stored")
	}
}
