package published

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// What indexes of all kinds have in common: manifests that refer to an image's, with
// a layer for each of the image's.

// maxManifest is the largest manifest that registries take.
const maxManifest = 4 << 20

// Candidates returns those of list that may be an artifact of the type likely, n of
// them at the most: those that the list says are, then those that it says are of one
// of the types possible, as some registries list an artifact by the type of its
// config and some by none. Of each the newest come first, by the time of creation
// that they say.
func Candidates(list []ocispec.Descriptor, n int, likely string, possible ...string) []ocispec.Descriptor {
	var sure, unsure []ocispec.Descriptor
	for _, d := range list {
		if d.MediaType != ocispec.MediaTypeImageManifest || d.Digest.Validate() != nil || d.Size <= 0 || d.Size > maxManifest {
			continue
		}
		switch {
		case d.ArtifactType == likely:
			sure = append(sure, d)
		case slices.Contains(possible, d.ArtifactType):
			unsure = append(unsure, d)
		}
	}
	newest := func(a, b ocispec.Descriptor) int { return created(b.Annotations).Compare(created(a.Annotations)) }
	slices.SortStableFunc(sure, newest)
	slices.SortStableFunc(unsure, newest)
	all := append(sure, unsure...)
	return all[:min(len(all), n)]
}

// Manifest gets the image manifest with the digest d, of size bytes unless that is 0.
// It is nil if there is none any more, or another thing. Errors are those of fetch
// and of ctx.
func Manifest(ctx context.Context, c *fetch.Client, repo reference.Named, d digest.Digest, size int64) (ocispec.Descriptor, *ocispec.Manifest, error) {
	desc, body, err := c.Manifest(ctx, repo, d)
	if errors.Is(err, fetch.ErrNotFound) {
		return desc, nil, nil // deleted, and the list does not know
	}
	if err != nil {
		return desc, nil, err
	}
	var m ocispec.Manifest
	if size != 0 && desc.Size != size || json.Unmarshal(body, &m) != nil || m.MediaType != ocispec.MediaTypeImageManifest {
		return desc, nil, nil
	}
	return desc, &m, nil
}

// LayersOf returns the layers of m that have the media type and from 1 to limit bytes,
// by the digest of the image's layer that each is for, which its annotation says. Of
// several for one it is the first. Nil if there are none.
func LayersOf(m *ocispec.Manifest, annotation, mediaType string, limit int64) map[digest.Digest]ocispec.Descriptor {
	var layers map[digest.Digest]ocispec.Descriptor
	for _, d := range m.Layers {
		of := digest.Digest(d.Annotations[annotation])
		_, again := layers[of]
		if d.MediaType != mediaType || d.Digest.Validate() != nil || of.Validate() != nil || again || d.Size <= 0 || d.Size > limit {
			continue
		}
		if layers == nil {
			layers = map[digest.Digest]ocispec.Descriptor{}
		}
		layers[of] = d
	}
	return layers
}
