package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/image"
)

// ErrMounted: an image is mounted, or a workspace was made over it, so it is not
// removed.
var ErrMounted = errors.New("it is mounted or has a workspace")

// Mounted is what mounts use of a store.
type Mounted struct {
	Images map[digest.Digest]bool // manifests
	Blobs  map[digest.Digest]bool // of their layers
	Keys   map[string]bool        // layers
	Chains map[string]bool
}

// Removed is one thing that was thrown away, or would be.
type Removed struct {
	// Kind is image, layer, chain, blob, or data: that of a layer whose blob stays.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Freed is what it took on the disk, in bytes; of data that would be removed,
	// about.
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
// and no mount uses of it; what others have left is for Prune. A mounted image may
// lose one of several names. Errors wrap ErrMounted and those of package image.
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
			if o.Mounted.Images[t.Digest] && !staysNamed(before, t.Digest, targets) {
				return nil, fmt.Errorf("remove %s: %w ('lamina mounts --all'); 'lamina umount [--rm]' ends them, --force takes the name away all the same", t.Name, ErrMounted)
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
	only := &parts{keys: map[string]bool{}, chains: map[string]bool{}, blobs: map[digest.Digest]bool{}}
	for _, im := range before {
		if gone[im.Digest] {
			only.add(im)
		}
	}
	more, err := s.sweep(ctx, sweepOptions{mounted: o.Mounted, only: only})
	return append(removed, more...), err
}

// staysNamed reports whether an image has a name still when targets are gone.
func staysNamed(images []Image, d digest.Digest, targets []image.Entry) bool {
	return slices.ContainsFunc(images, func(im Image) bool {
		return im.Digest == d && !slices.ContainsFunc(targets, func(t image.Entry) bool { return t.Name == im.Name && t.Digest == d })
	})
}

// parts are what images are made of on the disk.
type parts struct {
	keys, chains map[string]bool
	blobs        map[digest.Digest]bool
}

func (p *parts) add(im Image) {
	p.blobs[im.Digest], p.blobs[im.ID], p.blobs[im.Index] = true, true, true
	for _, l := range im.Layers {
		p.blobs[l.Digest] = true
		for _, k := range l.Keys {
			p.keys[k] = true
		}
	}
	addChains(p.chains, im.Layers)
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
// go on using the store. What cannot be removed because it is in use stays. Where
// damage to the store hides what is used, only images are removed, and the error
// wraps image.ErrCorrupt.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]Removed, error) {
	var removed []Removed
	sweep := sweepOptions{mounted: o.Mounted, until: o.Until, dry: o.DryRun}
	if o.All {
		images, err := s.List(ctx)
		if err != nil {
			return nil, err
		}
		// By manifest: a name may stand for platforms that stay.
		gone := map[named]bool{}
		for _, im := range images {
			if o.Mounted.Images[im.Digest] || !o.Until.IsZero() && (im.Created == nil || im.Created.After(o.Until)) {
				continue
			}
			gone[named{im.Name, im.Digest}] = true
			if o.DryRun {
				removed = append(removed, Removed{Kind: "image", Name: im.Name})
			}
		}
		if o.DryRun {
			sweep.gone = gone
		} else {
			entries, err := s.Images.RemoveEntries(func(e image.Entry) bool { return gone[named{e.Name, e.Digest}] })
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				removed = append(removed, Removed{Kind: "image", Name: e.Name})
			}
		}
	}
	more, err := s.sweep(ctx, sweep)
	return append(removed, more...), err
}

// named is what an image is called, and which one it is.
type named struct {
	name   string
	digest digest.Digest
}

// sweepOptions bound a sweep.
type sweepOptions struct {
	mounted Mounted
	until   time.Time
	dry     bool
	// gone are the images that a dry run has not removed, and takes for removed.
	gone map[named]bool
	// only, if not nil, is what may be removed.
	only *parts
}

// isGone reports whether an entry is there only because this is a dry run.
func (o *sweepOptions) isGone(e image.Entry) bool { return o.gone[named{e.Name, e.Digest}] }

// spares reports whether something that no image uses stays all the same.
func (o *sweepOptions) spares(mounted bool, used time.Time) bool {
	return mounted || !o.until.IsZero() && used.After(o.until)
}

// sweep removes layers, merged trees and blobs that nobody uses, and the data of
// layers whose blobs are here.
func (s *Store) sweep(ctx context.Context, o sweepOptions) ([]Removed, error) {
	// It refuses where damage hides what images need. Then nobody knows their
	// layers either.
	if _, err := s.Images.Prune(ctx, image.PruneOptions{DryRun: true, Without: o.isGone}); err != nil {
		return nil, err
	}
	images, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	need := parts{keys: map[string]bool{}, chains: map[string]bool{}, blobs: map[digest.Digest]bool{}}
	for _, im := range images {
		if !o.isGone(image.Entry{Name: im.Name, Digest: im.Digest}) {
			need.add(im)
		}
	}
	var removed []Removed
	layers, err := s.Cache.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if o.spares(o.mounted.Keys[l.Key], l.Used) || o.only != nil && !o.only.keys[l.Key] {
			continue
		}
		if need.keys[l.Key] {
			// Its bytes are kept once: the blob serves other tools, too.
			if o.only == nil && l.Present > 0 && !l.InPlace && s.Images.HasBlob(ocispec.Descriptor{Digest: l.BlobDigest, Size: l.BlobSize}) {
				if removed, err = o.remove(ctx, removed, Removed{"data", l.Key, l.Present}, s.Cache.DropData); err != nil {
					return removed, err
				}
			}
			continue
		}
		if removed, err = o.remove(ctx, removed, Removed{"layer", l.Key, l.Disk}, s.Cache.RemoveLayer); err != nil {
			return removed, err
		}
	}
	all, err := s.Cache.Chains()
	if err != nil {
		return removed, err
	}
	for _, c := range all {
		if need.chains[c.ID] || o.spares(o.mounted.Chains[c.ID], c.Used) || o.only != nil && !o.only.chains[c.ID] {
			continue
		}
		if removed, err = o.remove(ctx, removed, Removed{"chain", c.ID, c.Disk}, s.Cache.RemoveChain); err != nil {
			return removed, err
		}
	}
	return s.sweepBlobs(ctx, o, removed)
}

// remove removes one thing, unless it is in use, and adds it to removed.
func (o *sweepOptions) remove(ctx context.Context, removed []Removed, r Removed, do func(context.Context, string) (int64, error)) ([]Removed, error) {
	if !o.dry {
		freed, err := do(ctx, r.Name)
		if errors.Is(err, cache.ErrInUse) {
			return removed, nil
		}
		if err != nil {
			return removed, err
		}
		if r.Freed = freed; freed == 0 && r.Kind == "data" {
			return removed, nil // it had gone, or is not kept twice for nothing
		}
	}
	return append(removed, r), nil
}

// sweepBlobs removes blobs of the layout.
func (s *Store) sweepBlobs(ctx context.Context, o sweepOptions, removed []Removed) ([]Removed, error) {
	p := image.PruneOptions{
		DryRun:  o.dry,
		Keep:    func(d digest.Digest) bool { return o.mounted.Blobs[d] || o.only != nil && !o.only.blobs[d] },
		Without: o.isGone,
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
