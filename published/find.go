package published

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

const (
	// maxCandidates bounds the manifests that are looked at for one image.
	maxCandidates = 4

	// maxManifest is the largest manifest that registries take.
	maxManifest = 4 << 20
)

// Artifact is a published index of an image.
type Artifact struct {
	// Desc describes the artifact's manifest.
	Desc ocispec.Descriptor
	// Layers are the packs, in the same repository, by the digest of the image
	// layer's blob that each is for. Their sizes are bounded, so that
	// fetch.ReadAll may be given Size as limit.
	Layers map[digest.Digest]ocispec.Descriptor
}

// Find returns the published index of the image with the manifest subject, which
// must be one for a platform, not an image index. There may be none for some of
// the image's layers. It takes one request, to the referrers API, when nothing
// refers to the image, and one more for the artifact; a registry without that API
// is asked for the tag first.
//
// ErrNone: there is none, or none that is sound. Other errors are those of
// fetch: it is not known whether there is one. A registry that fails is asked
// again as fetch does, for seconds if ctx has no deadline.
func Find(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest) (*Artifact, error) {
	a, err := find(ctx, c, reference.TrimNamed(repo), subject)
	if err != nil {
		return nil, fmt.Errorf("find index of %s@%s: %w", repo.Name(), subject, err)
	}
	return a, nil
}

func find(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest) (*Artifact, error) {
	list, err := c.Referrers(ctx, repo, subject, ArtifactType)
	if errors.Is(err, fetch.ErrNotFound) {
		list, err = tagged(ctx, c, repo, subject)
	}
	if err != nil {
		return nil, err
	}
	for _, desc := range candidates(list) {
		got, body, err := c.Manifest(ctx, repo, desc.Digest)
		switch {
		case errors.Is(err, fetch.ErrNotFound): // deleted, and the list does not know
		case err != nil:
			return nil, err
		case got.Size == desc.Size:
			if a := parse(body, subject); a != nil {
				got.ArtifactType = ArtifactType
				a.Desc = got
				return a, nil
			}
		}
	}
	return nil, ErrNone
}

// tagged returns the list that a registry without the referrers API has under a
// tag made of the subject's digest.
func tagged(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest) ([]ocispec.Descriptor, error) {
	hash := subject.Encoded()
	tag, err := reference.WithTag(repo, subject.Algorithm().String()+"-"+hash[:min(len(hash), 64)])
	if err != nil {
		return nil, err
	}
	desc, body, err := c.Manifest(ctx, tag, "")
	var list ocispec.Index
	switch {
	case errors.Is(err, fetch.ErrNotFound):
		return nil, ErrNone
	case err != nil:
		return nil, err
	case desc.MediaType != ocispec.MediaTypeImageIndex || json.Unmarshal(body, &list) != nil:
		return nil, ErrNone // somebody else's tag
	}
	return list.Manifests, nil
}

// candidates returns those of list that may be ours, the likely ones first. Old
// registries list an artifact by the type of its config.
func candidates(list []ocispec.Descriptor) []ocispec.Descriptor {
	var likely, possible []ocispec.Descriptor
	for _, d := range list {
		if d.MediaType != ocispec.MediaTypeImageManifest || d.Digest.Validate() != nil || d.Size <= 0 || d.Size > maxManifest {
			continue
		}
		switch d.ArtifactType {
		case ArtifactType:
			likely = append(likely, d)
		case "", ocispec.MediaTypeEmptyJSON:
			possible = append(possible, d)
		}
	}
	all := append(likely, possible...)
	return all[:min(len(all), maxCandidates)]
}

// parse returns the artifact whose manifest is body, nil if it is not one for
// subject.
func parse(body []byte, subject digest.Digest) *Artifact {
	var m ocispec.Manifest
	if json.Unmarshal(body, &m) != nil || m.MediaType != ocispec.MediaTypeImageManifest ||
		m.ArtifactType != ArtifactType || m.Subject == nil || m.Subject.Digest != subject {
		return nil
	}
	a := &Artifact{Layers: map[digest.Digest]ocispec.Descriptor{}}
	for _, d := range m.Layers {
		of := digest.Digest(d.Annotations[AnnotationLayer])
		_, again := a.Layers[of]
		if d.MediaType == LayerMediaType && d.Digest.Validate() == nil && of.Validate() == nil && !again &&
			d.Size > 0 && d.Size <= maxUnpacked {
			a.Layers[of] = d
		}
	}
	if len(a.Layers) == 0 {
		return nil
	}
	return a
}
