package published

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// maxCandidates bounds the manifests that are looked at for one image, all at once.
const maxCandidates = 8

// Artifact is a published index of an image: one artifact, or what several that
// were published have together.
type Artifact struct {
	// Desc describes the manifest of the artifact that was preferred.
	Desc ocispec.Descriptor
	// Layers are the packs, in the same repository, by the digest of the image
	// layer's blob that each is for. Of a layer that several artifacts have a pack
	// for, it is that of the one preferred. Their sizes are bounded, so that
	// fetch.ReadAll may be given Size as limit.
	Layers map[digest.Digest]ocispec.Descriptor
}

// Find returns the published index of the image with the manifest subject, which
// must be one for a platform, not an image index. There may be none for some of
// the image's layers. Of several artifacts, eight at the most, all are taken
// together: the newest is preferred by the time of creation that its annotation
// says, then, of those that say none, the first in the registry's list.
//
// The artifacts take one round trip, beside what refs takes.
//
// ErrNone: there is none, or none that is sound. Other errors are those of
// fetch and of ctx: nothing sound was found, and it is not known whether there is
// anything. A registry that fails is asked again as fetch does, for seconds if ctx
// has no deadline.
func Find(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest, refs Referrers) (*Artifact, error) {
	a, err := find(ctx, c, reference.TrimNamed(repo), subject, refs)
	if err != nil {
		return nil, fmt.Errorf("find index of %s@%s: %w", repo.Name(), subject, err)
	}
	return a, nil
}

func find(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest, refs Referrers) (*Artifact, error) {
	if err := subject.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", fetch.ErrDigest, err)
	}
	list, err := refs()
	if err != nil {
		return nil, err
	}
	descs := Candidates(list, maxCandidates, ArtifactType, "", ocispec.MediaTypeEmptyJSON)
	found, errs := make([]*artifact, len(descs)), make([]error, len(descs))
	var wg sync.WaitGroup
	for i, desc := range descs {
		wg.Go(func() { found[i], errs[i] = get(ctx, c, repo, subject, desc) })
	}
	wg.Wait()
	if a := merge(found); a != nil {
		return a, nil
	}
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return nil, ErrNone
}

// get returns the artifact that desc lists, nil if it is none for subject or is
// gone.
func get(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest, desc ocispec.Descriptor) (*artifact, error) {
	got, m, err := Manifest(ctx, c, repo, desc.Digest, desc.Size)
	if m == nil || err != nil || m.ArtifactType != ArtifactType || m.Subject == nil || m.Subject.Digest != subject {
		return nil, err
	}
	a := &artifact{created: created(m.Annotations)}
	if a.Layers = LayersOf(m, AnnotationLayer, LayerMediaType, maxUnpacked); a.Layers == nil {
		return nil, nil
	}
	a.Desc = got
	a.Desc.ArtifactType = ArtifactType
	return a, nil
}

// artifact is an Artifact and when it was created, zero if it does not say.
type artifact struct {
	Artifact
	created time.Time
}

// merge returns what those of found that are not nil have together, nil if all
// are.
func merge(found []*artifact) *Artifact {
	found = slices.DeleteFunc(found, func(a *artifact) bool { return a == nil })
	if len(found) == 0 {
		return nil
	}
	slices.SortStableFunc(found, func(a, b *artifact) int { return b.created.Compare(a.created) })
	all := &found[0].Artifact
	for _, a := range found[1:] {
		for of, desc := range a.Layers {
			if _, ok := all.Layers[of]; !ok {
				all.Layers[of] = desc
			}
		}
	}
	return all
}

// created returns the time of creation among annotations, zero if there is none.
func created(annotations map[string]string) time.Time {
	t, err := time.Parse(time.RFC3339, annotations[ocispec.AnnotationCreated])
	if err != nil {
		return time.Time{}
	}
	return t
}
