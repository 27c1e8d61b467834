package store

import (
	"context"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
)

// Image is what the store knows of an image that it remembers.
type Image struct {
	Name     string            `json:"name"`
	Digest   digest.Digest     `json:"digest"` // of the platform's manifest
	Index    digest.Digest     `json:"index,omitempty"`
	ID       digest.Digest     `json:"id"` // of the config, docker's image ID
	Platform *ocispec.Platform `json:"platform,omitempty"`
	Created  *time.Time        `json:"created,omitempty"`
	// Size is the sum of the layers' compressed sizes; Here is how much of them
	// is on this machine, as blobs or as data that was made of them.
	Size   int64        `json:"size"`
	Here   int64        `json:"here"`
	Layers []ImageLayer `json:"layers"`
	// Damaged says why the rest is not known.
	Damaged string `json:"damaged,omitempty"`
}

// ImageLayer is a layer of an Image.
type ImageLayer struct {
	Digest digest.Digest `json:"digest"`
	DiffID digest.Digest `json:"diffId"`
	Size   int64         `json:"size"` // compressed
	Here   int64         `json:"here"` // compressed, of Size
	// Disk is what the layer takes on the disk: its blob, and its index and data.
	Disk int64 `json:"disk"`
	// Keys are its directories in layers/, if there are any.
	Keys []string `json:"keys,omitempty"`
}

// List returns the images that the store remembers, ordered by name and
// platform. It asks no registry. An image whose manifest or config is damaged is
// listed with what is known.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	entries, err := s.Images.List()
	if err != nil {
		return nil, err
	}
	layers, err := s.layersByBlob()
	if err != nil {
		return nil, err
	}
	images := make([]Image, 0, len(entries))
	for _, e := range entries {
		im := Image{Name: e.Name, Digest: e.Digest, Index: e.Index}
		if p := e.Platform; p.OS != "" {
			im.Platform = &p
		}
		found, err := s.Images.Load(ctx, e)
		if err != nil {
			if ctx.Err() != nil {
				return nil, fmt.Errorf("list images: %w", context.Cause(ctx))
			}
			im.Damaged = err.Error()
			images = append(images, im)
			continue
		}
		im.ID, im.Created = found.Manifest.Config.Digest, found.Config.Created
		for _, l := range found.Layers {
			il := s.imageLayer(l, layers)
			im.Size += il.Size
			im.Here += il.Here
			im.Layers = append(im.Layers, il)
		}
		images = append(images, im)
	}
	return images, nil
}

// layersByBlob returns the cached layers by what they were made of.
func (s *Store) layersByBlob() (map[digest.Digest][]cache.LayerInfo, error) {
	all, err := s.Cache.Layers()
	if err != nil {
		return nil, err
	}
	by := make(map[digest.Digest][]cache.LayerInfo, len(all))
	for _, l := range all {
		by[l.BlobDigest] = append(by[l.BlobDigest], l)
	}
	return by, nil
}

func (s *Store) imageLayer(l image.Layer, by map[digest.Digest][]cache.LayerInfo) ImageLayer {
	il := ImageLayer{Digest: l.Desc.Digest, DiffID: l.DiffID, Size: l.Desc.Size}
	infos := by[l.Desc.Digest]
	if plain := layer.DiffKey(layer.Source(l)); plain != "" {
		// The same tar, of another compression, is as good.
		for _, others := range by {
			for _, o := range others {
				if o.Key == plain && o.BlobDigest != l.Desc.Digest {
					infos = append(infos, o)
				}
			}
		}
	}
	for _, c := range infos {
		il.Keys = append(il.Keys, c.Key)
		il.Disk += c.Disk
		here := c.Fetched
		if c.Complete || here > il.Size {
			here = il.Size
		}
		il.Here = max(il.Here, here)
	}
	if s.Images.HasBlob(l.Desc) {
		il.Here = il.Size
		il.Disk += l.Desc.Size
	}
	return il
}
