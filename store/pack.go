package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/published"
)

// Packed says what was made of an image's indexes.
type Packed struct {
	Image string `json:"image"`
	// Artifact is the digest of the artifact's manifest, if it was published.
	Artifact digest.Digest `json:"artifact,omitempty"`
	Layers   []PackedLayer `json:"layers"`
}

// PackedLayer is a layer with the size of its packed index.
type PackedLayer struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // of the blob
	Packed int64         `json:"packed"`
}

// PackIndexes packs the indexes of those layers of t that need one to be read
// lazily: gzip and zstd without a table of contents, verified against their diff
// IDs, that can be read in parts. With push they are published in the image's
// repository, for the image as it is. A layer that was opened by somebody else's index
// is left out.
func (s *Store) PackIndexes(ctx context.Context, t *Tree, push bool) (Packed, error) {
	if !push {
		return s.packIndexes(ctx, t, nil)
	}
	if t.Image.Origin == nil {
		return Packed{}, fmt.Errorf("index %s: only images of registries have a place to publish at", t.Image.Name)
	}
	made, err := s.packIndexes(ctx, t, t.Image.Origin)
	if err == nil && made.Artifact == "" {
		err = fmt.Errorf("index %s: no layer needs one and can be read in parts by it: convert zstd of one frame to zstd:chunked", t.Image.Name)
	}
	return made, err
}

// packIndexes is PackIndexes that publishes in repo, if that is not nil and there is
// anything to publish.
func (s *Store) packIndexes(ctx context.Context, t *Tree, repo reference.Named) (made Packed, err error) {
	made = Packed{Image: t.Image.Name, Layers: []PackedLayer{}}
	dir, err := os.MkdirTemp("", "lamina-index-")
	if err != nil {
		return made, fmt.Errorf("index %s: %w", t.Image.Name, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var packs []published.PackedLayer
	for i, l := range t.Image.Layers {
		if layer.IndexedKey(layer.Source(l)) == "" || layer.IsIndexed(t.Layers[i].Key()) || !t.Layers[i].Seekable() {
			continue
		}
		path := filepath.Join(dir, l.Desc.Digest.Encoded())
		size, err := s.pack(path, t.Layers[i].Key())
		if err != nil {
			return made, fmt.Errorf("index %s: layer %s: %w", t.Image.Name, l.Desc.Digest, err)
		}
		made.Layers = append(made.Layers, PackedLayer{Digest: l.Desc.Digest, Size: l.Desc.Size, Packed: size})
		packs = append(packs, published.PackedLayer{Layer: l.Desc.Digest, DiffID: l.DiffID, Path: path})
	}
	if repo == nil || len(packs) == 0 {
		return made, nil
	}
	desc, err := published.Push(ctx, s.Client, repo, ocispec.Descriptor{
		MediaType: t.Image.MediaType(), Digest: t.Image.Digest, Size: int64(len(t.Image.RawManifest)),
	}, packs)
	made.Artifact = desc.Digest
	return made, err
}

// pack writes the packed index of the layer called key to path.
func (s *Store) pack(path, key string) (size int64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	dir := filepath.Join(s.Root, "layers", key)
	err = published.Pack(f, filepath.Join(dir, "index.erofs"), filepath.Join(dir, "chunks"))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return 0, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}
