package published

import (
	"context"
	"encoding/json"
	"errors"
	"sync"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// Referrers returns what refers to one image. It may be called by several
// goroutines, and asks the registry when it is called first.
type Referrers func() ([]ocispec.Descriptor, error)

// ReferrersOf returns the Referrers of the image with the manifest subject. They
// take one round trip and two requests at once: to the referrers API, and for the tag
// that has the list where a registry lacks the API. To learn first that it does would
// cost the round trip again. A long list takes one for each further page, as
// Client.Referrers says.
//
// ErrNone: the registry has neither. Other errors are those of fetch and of ctx.
func ReferrersOf(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest) Referrers {
	repo = reference.TrimNamed(repo)
	return sync.OnceValues(func() ([]ocispec.Descriptor, error) { return referrers(ctx, c, repo, subject) })
}

func referrers(ctx context.Context, c *fetch.Client, repo reference.Named, subject digest.Digest) ([]ocispec.Descriptor, error) {
	early, cancel := context.WithCancel(ctx)
	var instead []ocispec.Descriptor
	var tagErr error
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { instead, tagErr = tagged(early, c, repo, subject) })
	list, err := c.Referrers(ctx, repo, subject, "")
	if !errors.Is(err, fetch.ErrNotFound) {
		return list, err
	}
	wg.Wait()
	return instead, tagErr
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
