package store

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// Usage is what a store takes on the disk, and what for.
type Usage struct {
	Images []ImageUsage `json:"images"`
	// Disk is the sum of all layers, blobs and merged trees, each counted once.
	Disk int64 `json:"disk"`
	// Saved is what the images would take more if they shared nothing.
	Saved int64 `json:"saved"`
	// Unused is the part of Disk that no image uses; prune frees it.
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

// Usage adds up what the store takes. mounted says which manifests are mounted.
func (s *Store) Usage(ctx context.Context, mounted map[digest.Digest]bool) (Usage, error) {
	images, err := s.List(ctx)
	if err != nil {
		return Usage{}, err
	}
	// One image may have several names, and one layer twice.
	users := map[digest.Digest]map[digest.Digest]bool{}
	disk, keys := map[digest.Digest]int64{}, map[string]bool{}
	for _, im := range images {
		for _, l := range im.Layers {
			if users[l.Digest] == nil {
				users[l.Digest] = map[digest.Digest]bool{}
			}
			users[l.Digest][im.Digest] = true
			disk[l.Digest] = l.Disk
			for _, k := range l.Keys {
				keys[k] = true
			}
		}
	}
	u := Usage{Images: make([]ImageUsage, 0, len(images))}
	for _, im := range images {
		iu := ImageUsage{Name: im.Name, Digest: im.Digest, Size: im.Size, Here: im.Here, Mounted: mounted[im.Digest]}
		seen := map[digest.Digest]bool{}
		for _, l := range im.Layers {
			if seen[l.Digest] {
				continue
			}
			seen[l.Digest] = true
			iu.Disk += l.Disk
			if len(users[l.Digest]) > 1 {
				iu.Shared += l.Disk
			} else {
				iu.Unique += l.Disk
			}
		}
		u.Images = append(u.Images, iu)
	}
	for d, size := range disk {
		u.Disk += size
		u.Saved += size * int64(len(users[d])-1)
	}
	return u, s.addUnused(ctx, &u, keys)
}

// addUnused adds what no image uses.
func (s *Store) addUnused(ctx context.Context, u *Usage, used map[string]bool) error {
	layers, err := s.Cache.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		if !used[l.Key] {
			u.Unused += l.Disk
		}
	}
	blobs, err := s.Images.Unused(ctx)
	if err != nil {
		return err
	}
	for _, b := range blobs {
		u.Unused += b.Size
	}
	chains, err := s.Cache.Chains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		u.Disk += c.Disk
	}
	u.Disk += u.Unused
	return nil
}
