package store

import (
	"context"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Usage is what a store takes on the disk, and what for.
type Usage struct {
	Images []ImageUsage `json:"images"`
	// Disk is the sum of all layers, blobs of layers, merged trees and unused blobs,
	// each counted once.
	Disk int64 `json:"disk"`
	// Saved is what the images would take more if they shared nothing.
	Saved int64 `json:"saved"`
	// Unused is the part of Disk that no image and no mount uses; prune frees it.
	Unused int64 `json:"unused"`
}

// ImageUsage is the share of one image. Disk is Shared and Unique together: what
// other images use too, and what would be freed with this one.
type ImageUsage struct {
	Name    string        `json:"name"`
	Digest  digest.Digest `json:"digest"`
	Size    int64         `json:"size"` // compressed, all of it
	Here    int64         `json:"here"` // compressed, what has been fetched
	Disk    int64         `json:"disk"`
	Shared  int64         `json:"shared"`
	Unique  int64         `json:"unique"`
	Mounted bool          `json:"mounted"`
}

// Usage adds up what the store takes. What only mounts use is on the disk, and
// neither an image's nor unused.
func (s *Store) Usage(ctx context.Context, mounted Mounted) (Usage, error) {
	images, err := s.List(ctx)
	if err != nil {
		return Usage{}, err
	}
	t := tally{disk: map[thing]int64{}, users: map[thing]map[digest.Digest]bool{}}
	if err := s.measure(&t); err != nil {
		return Usage{}, err
	}
	// One image may have several names, and a layer's directory serve several
	// blobs that hold the same tar.
	uses := make([][]thing, len(images))
	for i, im := range images {
		uses[i] = s.things(im, &t)
		for _, th := range uses[i] {
			if t.users[th] == nil {
				t.users[th] = map[digest.Digest]bool{}
			}
			t.users[th][im.Digest] = true
		}
	}
	u := Usage{Images: make([]ImageUsage, 0, len(images))}
	for i, im := range images {
		iu := ImageUsage{Name: im.Name, Digest: im.Digest, Size: im.Size, Here: im.Here, Mounted: mounted.Images[im.Digest]}
		for _, th := range uses[i] {
			iu.Disk += t.disk[th]
			if len(t.users[th]) > 1 {
				iu.Shared += t.disk[th]
			} else {
				iu.Unique += t.disk[th]
			}
		}
		u.Images = append(u.Images, iu)
	}
	held := map[string]map[string]bool{"layer": mounted.Keys, "chain": mounted.Chains}
	for th, size := range t.disk {
		u.Disk += size
		if n := len(t.users[th]); n > 0 {
			u.Saved += size * int64(n-1)
		} else if !held[th.kind][th.name] {
			u.Unused += size
		}
	}
	blobs, err := s.Images.Unused(ctx)
	if err != nil {
		return Usage{}, err
	}
	for _, b := range blobs {
		u.Disk += b.Size
		if !mounted.Blobs[b.Digest] {
			u.Unused += b.Size
		}
	}
	return u, nil
}

// A thing is what takes room on the disk, and may be shared: a layer's directory,
// a merged tree, a layer's blob. Its kind is that of Removed.
type thing struct{ kind, name string }

// A tally says what things take, and which images use them.
type tally struct {
	disk  map[thing]int64
	users map[thing]map[digest.Digest]bool
}

// measure notes all layers and merged trees.
func (s *Store) measure(t *tally) error {
	layers, err := s.Cache.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		t.disk[thing{"layer", l.Key}] = l.Disk
	}
	chains, err := s.Cache.Chains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		t.disk[thing{"chain", c.ID}] = c.Disk
	}
	return nil
}

// things returns what an image uses of what is here, each once, and notes its
// blobs.
func (s *Store) things(im Image, t *tally) []thing {
	seen := map[thing]bool{}
	for _, l := range im.Layers {
		for _, k := range l.Keys {
			seen[thing{"layer", k}] = true
		}
		if s.Images.HasBlob(ocispec.Descriptor{Digest: l.Digest, Size: l.Size}) {
			blob := thing{"blob", l.Digest.String()}
			seen[blob], t.disk[blob] = true, l.Size
		}
	}
	chains := map[string]bool{}
	addChains(chains, im.Layers)
	for id := range chains {
		seen[thing{"chain", id}] = true
	}
	return slices.DeleteFunc(slices.Collect(maps.Keys(seen)), func(th thing) bool {
		_, here := t.disk[th]
		return !here
	})
}
