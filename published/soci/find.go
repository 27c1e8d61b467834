package soci

import (
	"context"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/published"
)

// The media types of an index's config, by its version. The first is its artifact
// type too.
const (
	TypeV1 = "application/vnd.amazon.soci.index.v1+json"
	TypeV2 = "application/vnd.amazon.soci.index.v2+json"
)

const (
	// AnnotationIndex of an image's manifest is the digest of its index.
	AnnotationIndex = "com.amazon.soci.index-digest"
	// AnnotationLayer of a ztoc is the digest of the image layer's blob.
	AnnotationLayer = "com.amazon.soci.image-layer-digest"
	// LayerMediaType is the media type of a ztoc.
	LayerMediaType = "application/octet-stream"
)

const (
	// maxCandidates bounds the manifests that are looked at for one image.
	maxCandidates = 4
	// maxZtoc bounds a ztoc. A span of 4 MiB takes 32 KiB of it, a file some
	// hundred bytes: this is more than 20 GiB of data.
	maxZtoc = 256 << 20
)

// Find returns the index of the image whose manifest, for one platform, has the
// digest subject and these annotations. Of several that refer to it, it is the newest
// that is sound. There may be none for some of the layers.
// It takes one round trip for an image that has no index and one more for one that
// has; one in all if the annotations name it.
//
// The sizes of ztocs are bounded, so that fetch.ReadAll may be given them as limit.
// published.ErrNone: there is none, or none that is sound. Other errors are those of
// fetch, as with published.Find.
func Find(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest, annotations map[string]string, refs published.Referrers) (*published.Artifact, error) {
	a, err := find(ctx, c, reference.TrimNamed(repo), subject, digest.Digest(annotations[AnnotationIndex]), refs)
	if err != nil {
		return nil, fmt.Errorf("find SOCI index of %s@%s: %w", repo.Name(), subject, err)
	}
	return a, nil
}

func find(ctx context.Context, c *fetch.Client, repo reference.Named, subject, own digest.Digest, refs published.Referrers) (*published.Artifact, error) {
	if err := subject.Validate(); err != nil { // it becomes part of a tag
		return nil, fmt.Errorf("%w: %w", fetch.ErrDigest, err)
	}
	if own.Validate() == nil {
		a, err := get(ctx, c, repo, own, 0, func(m *ocispec.Manifest) bool { return m.Config.MediaType == TypeV2 })
		if a != nil || err != nil {
			return a, err
		}
	}
	list, err := refs()
	if err != nil {
		return nil, err
	}
	for _, d := range published.Candidates(list, maxCandidates, TypeV1, "") {
		a, err := get(ctx, c, repo, d.Digest, d.Size, func(m *ocispec.Manifest) bool {
			return m.Config.MediaType == TypeV1 && m.Subject != nil && m.Subject.Digest == subject
		})
		if a != nil || err != nil {
			return a, err
		}
	}
	return nil, published.ErrNone
}

// get returns the index with the digest d, and of size bytes unless that is 0. It
// is nil if there is none any more, or another thing than is wanted.
func get(ctx context.Context, c *fetch.Client, repo reference.Named, d digest.Digest, size int64, wanted func(*ocispec.Manifest) bool) (*published.Artifact, error) {
	desc, m, err := published.Manifest(ctx, c, repo, d, size)
	if m == nil || err != nil || !wanted(m) {
		return nil, err
	}
	a := &published.Artifact{Desc: desc, Layers: published.LayersOf(m, AnnotationLayer, LayerMediaType, maxZtoc)}
	if a.Layers == nil {
		return nil, nil
	}
	a.Desc.ArtifactType = m.Config.MediaType
	return a, nil
}
