package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/image"
)

// ErrMounted: an image is mounted, so it is not removed.
var ErrMounted = errors.New("it is mounted")

// Mounted is what mounts use of a store.
type Mounted struct {
	Images map[digest.Digest]bool // manifests
	Blobs  map[digest.Digest]bool // of their layers
	Keys   map[string]bool        // layers
	Chains map[string]bool
}

// Removed is one thing that was thrown away, or would be.
type Removed struct {
	Kind string `json:"kind"` // image, layer, chain or blob
	Name string `json:"name"`
	// Freed is what it took on the disk, in bytes.
	Freed int64 `json:"freed"`
}

// RemoveOptions say what may be thrown away.
type RemoveOptions struct {
	Mounted Mounted
	// Force takes the name away from an image that is mounted; what the mount
	// reads stays until it ends.
	Force bool
}

// Remove takes the name away from an image, and throws away what no other image
// and no mount uses of it. Errors wrap ErrMounted and those of package image.
func (s *Store) Remove(ctx context.Context, name string, o RemoveOptions) ([]Removed, error) {
	before, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	if !o.Force {
		// Seen before anything is done: Remove of the image store does not ask.
		targets, err := s.Images.Find(name)
		if err != nil {
			return nil, err
		}
		for _, t := range targets {
			if o.Mounted.Images[t.Digest] && !named(before, t) {
				return nil, fmt.Errorf("remove %s: %w; 'lamina umount' ends mounts, --force takes the name away all the same", t.Name, ErrMounted)
			}
		}
	}
	entries, err := s.Images.Remove(name)
	if err != nil {
		return nil, err
	}
	var removed []Removed
	gone := map[digest.Digest]bool{}
	for _, e := range entries {
		removed = append(removed, Removed{Kind: "image", Name: e.Name})
		gone[e.Digest] = true
	}
	// Only what was this image's is freed: anything else is for Prune.
	only := map[string]bool{}
	blobs := map[digest.Digest]bool{}
	for _, im := range before {
		if !gone[im.Digest] {
			continue
		}
		blobs[im.Digest], blobs[im.ID] = true, true
		for _, l := range im.Layers {
			blobs[l.Digest] = true
			for _, k := range l.Keys {
				only[k] = true
			}
		}
	}
	more, err := s.sweep(ctx, sweepOptions{mounted: o.Mounted, only: only, blobs: blobs})
	return append(removed, more...), err
}

// named reports whether another entry than t keeps the same image.
func named(images []Image, t image.Entry) bool {
	for _, im := range images {
		if im.Digest == t.Digest && im.Name != t.Name {
			return true
		}
	}
	return false
}

// PruneOptions say what to throw away.
type PruneOptions struct {
	Mounted Mounted
	// All throws away every image that is not mounted, too.
	All bool
	// Until spares what was made, or used last, after it; zero spares nothing.
	Until time.Time
	// DryRun only says what would be done.
	DryRun bool
}

// Prune throws away what nobody uses: layers, merged trees and blobs of no image
// and no mount, and with All the images that are not mounted. Other processes may
// go on using the store. What cannot be removed because it is in use stays.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]Removed, error) {
	var removed []Removed
	spared := map[digest.Digest]bool{}
	if o.All {
		images, err := s.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, im := range images {
			if o.Mounted.Images[im.Digest] || !o.Until.IsZero() && (im.Created == nil || im.Created.After(o.Until)) {
				spared[im.Digest] = true
				continue
			}
			if !o.DryRun {
				if _, err := s.Images.Remove(im.Name); err != nil && !errors.Is(err, image.ErrNotFound) {
					return removed, err
				}
			}
			removed = append(removed, Removed{Kind: "image", Name: im.Name})
		}
	}
	more, err := s.sweep(ctx, sweepOptions{mounted: o.Mounted, until: o.Until, dry: o.DryRun, all: o.All, spared: spared})
	removed = append(removed, more...)
	if err == nil && o.DryRun && o.All {
		// The entries are there still, and lead to these.
		more, err = s.blobsBut(ctx, spared)
		removed = append(removed, more...)
	}
	return removed, err
}

// blobsBut returns the layers' blobs that only images lead to which are not
// spared.
func (s *Store) blobsBut(ctx context.Context, spared map[digest.Digest]bool) ([]Removed, error) {
	images, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	seen := map[digest.Digest]bool{}
	for _, im := range images {
		for _, l := range im.Layers {
			seen[l.Digest] = seen[l.Digest] || spared[im.Digest]
		}
	}
	var list []Removed
	for _, im := range images {
		for _, l := range im.Layers {
			if !seen[l.Digest] && s.Images.HasBlob(ocispec.Descriptor{Digest: l.Digest, Size: l.Size}) {
				list = append(list, Removed{"blob", l.Digest.String(), l.Size})
			}
			seen[l.Digest] = true
		}
	}
	return list, nil
}

// sweepOptions bound a sweep.
type sweepOptions struct {
	mounted Mounted
	until   time.Time
	dry     bool
	// all makes a dry run, which has removed none, count only the images in spared
	// as there.
	all    bool
	spared map[digest.Digest]bool
	// only and blobs, if not nil, are what may be removed.
	only  map[string]bool
	blobs map[digest.Digest]bool
}

// sweep removes layers, merged trees and blobs that nobody uses.
func (s *Store) sweep(ctx context.Context, o sweepOptions) ([]Removed, error) {
	images, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	keys, chains, reached := map[string]bool{}, map[string]bool{}, map[digest.Digest]bool{}
	for _, im := range images {
		if o.dry && o.all && !o.spared[im.Digest] {
			continue // it would be gone by now
		}
		reached[im.Digest], reached[im.Index], reached[im.ID] = true, true, true
		for _, l := range im.Layers {
			reached[l.Digest] = true
			for _, k := range l.Keys {
				keys[k] = true
			}
		}
		addChains(chains, im.Layers)
	}
	var removed []Removed
	layers, err := s.Cache.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if keys[l.Key] || o.mounted.Keys[l.Key] || o.only != nil && !o.only[l.Key] || o.young(l.Used) {
			continue
		}
		freed, err := l.Disk, error(nil)
		if !o.dry {
			freed, err = s.Cache.RemoveLayer(ctx, l.Key)
		}
		if errors.Is(err, cache.ErrInUse) {
			continue
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, Removed{"layer", l.Key, freed})
	}
	all, err := s.Cache.Chains()
	if err != nil {
		return removed, err
	}
	for _, c := range all {
		if chains[c.ID] || o.mounted.Chains[c.ID] || o.young(c.Used) {
			continue
		}
		freed, err := c.Disk, error(nil)
		if !o.dry {
			freed, err = s.Cache.RemoveChain(ctx, c.ID)
		}
		if errors.Is(err, cache.ErrInUse) {
			continue
		}
		if err != nil {
			return removed, err
		}
		removed = append(removed, Removed{"chain", c.ID, freed})
	}
	return s.sweepBlobs(ctx, o, reached, removed)
}

func (o *sweepOptions) young(used time.Time) bool {
	return !o.until.IsZero() && used.After(o.until)
}

// sweepBlobs removes blobs of the layout.
func (s *Store) sweepBlobs(ctx context.Context, o sweepOptions, reached map[digest.Digest]bool, removed []Removed) ([]Removed, error) {
	p := image.PruneOptions{
		DryRun: o.dry,
		Keep:   func(d digest.Digest) bool { return reached[d] || o.mounted.Blobs[d] || o.blobs != nil && !o.blobs[d] },
	}
	if !o.until.IsZero() {
		p.OlderThan = time.Since(o.until)
	}
	blobs, err := s.Images.Prune(ctx, p)
	for _, b := range blobs {
		removed = append(removed, Removed{"blob", b.Digest.String(), b.Size})
	}
	return removed, err
}

// maxChains bounds the ways to stack an image's layers that are thought of.
const maxChains = 64

// addChains adds the names of the merged trees that an image's layers make.
func addChains(chains map[string]bool, layers []ImageLayer) {
	stacks := [][]string{nil}
	for _, l := range layers {
		var next [][]string
		for _, s := range stacks {
			for _, k := range l.Keys {
				next = append(next, append(s[:len(s):len(s)], k))
			}
		}
		stacks = next[:min(len(next), maxChains)]
	}
	for _, s := range stacks {
		chains[cache.ChainID(s)] = true
	}
}
