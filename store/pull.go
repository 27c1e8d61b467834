package store

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/laminafs/lamina/image"
)

// Pulled is an image of which all blobs are in the store.
type Pulled struct {
	Image *image.Image
	// Fetched is how many bytes of blobs were not here before.
	Fetched int64
}

// PullOptions say what to pull.
type PullOptions struct {
	Name string
	// Platform is os/arch[/variant]; empty means the host's.
	Platform string
	// AllPlatforms pulls every platform of an image index, whatever Platform is.
	AllPlatforms bool
	// Policy says when the registry is asked what the name stands for.
	Policy image.Policy
}

// maxFetches bounds the blobs that one Pull is at: what the client lets a
// prefetch have by default.
const maxFetches = 16

// Pull makes a full local copy of an image: its blobs are in the store's layout
// when it returns, each fetched once, and only if it was not there. What was
// fetched before an error is kept, in mid-blob too, and may be pruned if its image
// could not be remembered. p counts the layers of all platforms on. Errors are those
// of packages image and fetch, and of ctx. Names that are not of a registry are
// refused before anything is read.
func (s *Store) Pull(ctx context.Context, o PullOptions, p Progress) ([]Pulled, error) {
	name, err := image.ParseName(o.Name)
	if err != nil {
		return nil, err
	}
	if name.Transport != image.Registry {
		return nil, fmt.Errorf("pull %s: only images of registries are pulled; 'lamina mount' reads it in place", o.Name)
	}
	opts := image.Options{Platform: o.Platform, Pull: o.Policy, Client: s.Client, Store: s.Images, Log: s.Log}
	var images []*image.Image
	if o.AllPlatforms {
		all, err := image.OpenAll(ctx, o.Name, opts)
		if err != nil {
			return nil, err
		}
		images = all
	} else {
		img, err := image.Open(ctx, o.Name, opts)
		if err != nil {
			return nil, err
		}
		images = []*image.Image{img}
	}
	pulled := make([]Pulled, len(images))
	first, seen := 0, map[digest.Digest]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxFetches)
	for i, img := range images {
		pulled[i].Image = img
		for k, l := range img.Layers {
			if seen[l.Desc.Digest] || s.Images.HasBlob(l.Desc) {
				continue
			}
			seen[l.Desc.Digest] = true
			pulled[i].Fetched += l.Desc.Size
			n := first + k
			g.Go(func() error {
				return s.Images.Fetch(gctx, l.Desc, l.Blob, func(done, total int64) {
					if p != nil {
						p(n, l.Desc.Digest.String(), done, total)
					}
				})
			})
		}
		first += len(img.Layers)
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("pull %s: %w", o.Name, err)
	}
	for _, img := range images {
		if err := s.remember(img); err != nil {
			return nil, fmt.Errorf("pull %s: %w", o.Name, err)
		}
	}
	return pulled, nil
}

// remember makes sure that an image is stored under its name: to open it, that is
// not needed. One that is stored already keeps its entry, which may be of another
// tool and one of several platforms.
func (s *Store) remember(img *image.Image) error {
	entries, err := s.Images.Find(img.Name)
	if err == nil && slices.ContainsFunc(entries, func(e image.Entry) bool { return e.Digest == img.Digest }) {
		return nil
	}
	return s.Images.Put(img)
}
