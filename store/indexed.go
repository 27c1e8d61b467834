package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/published"
)

// IndexPolicy says whether a published index is used for layers that would have
// to be streamed.
type IndexPolicy string

// The policies: when there is one, never, and that it is an error when there is
// none.
const (
	IndexAuto    IndexPolicy = "auto"
	IndexNever   IndexPolicy = "never"
	IndexRequire IndexPolicy = "require"
)

// ParseIndexPolicy reads auto, never or require; "" is auto.
func ParseIndexPolicy(s string) (IndexPolicy, error) {
	switch p := IndexPolicy(s); p {
	case "":
		return IndexAuto, nil
	case IndexAuto, IndexNever, IndexRequire:
		return p, nil
	}
	return "", fmt.Errorf("index %q: write auto, never or require", s)
}

// ErrNoIndex: a published index was required, and there is none.
var ErrNoIndex = errors.New("no published index")

// findTime bounds the search for an index that is not required.
const findTime = 3 * time.Second

// maxPacked bounds a packed index, in bytes.
const maxPacked = 256 << 20

// indexes returns the packed indexes of those layers of img that would have to be
// streamed, by the digests of the layers' blobs; nil where none are needed or
// there are none.
func (s *Store) indexes(ctx context.Context, img *image.Image, policy IndexPolicy) (map[digest.Digest]ocispec.Descriptor, error) {
	if policy == IndexNever || img.Origin == nil {
		return nil, nil
	}
	needed := false
	for _, l := range img.Layers {
		needed = needed || s.wantsIndex(layer.Source(l))
	}
	if !needed {
		return nil, nil
	}
	if policy != IndexRequire {
		// What is only a short cut must not become a long wait.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, findTime)
		defer cancel()
	}
	found, err := published.Find(ctx, s.Client, img.Origin, img.Digest)
	switch {
	case err == nil:
		return found.Layers, nil
	case policy == IndexRequire && errors.Is(err, published.ErrNone):
		return nil, fmt.Errorf("%w for %s; 'lamina index --push' publishes one", ErrNoIndex, img.Name)
	case policy == IndexRequire:
		return nil, err
	case !errors.Is(err, published.ErrNone):
		s.Log.Warn("cannot look for a published index: going on without", "image", img.Name, "error", err)
	}
	return nil, nil
}

// wantsIndex reports whether src would have to be streamed from a registry.
func (s *Store) wantsIndex(src layer.Source) bool {
	key, _, lazy := layer.Key(src)
	if _, local := src.Blob.(fetch.Local); lazy || local {
		return false
	}
	return layer.IndexedKey(src) != "" && !s.Cache.Has(key) && !s.Cache.HasIndexed(src)
}

// openByIndex opens the layer of src by the packed index that desc describes.
func (s *Store) openByIndex(ctx context.Context, img *image.Image, src layer.Source, desc ocispec.Descriptor) (*cache.Layer, error) {
	if of := desc.Annotations[published.AnnotationDiffID]; of != src.DiffID.String() {
		return nil, fmt.Errorf("packed index %s is for diff ID %.100q, not %s", desc.Digest, of, src.DiffID)
	}
	return s.Cache.Indexed(ctx, src, func(ctx context.Context) (*layer.Scanned, error) {
		if desc.Size > maxPacked {
			return nil, fmt.Errorf("packed index %s of %d bytes: more than %d", desc.Digest, desc.Size, int64(maxPacked))
		}
		raw, err := fetch.ReadAll(ctx, s.Client.Blob(img.Origin, desc), maxPacked)
		if err != nil {
			return nil, err
		}
		return published.Unpack(ctx, bytes.NewReader(raw), src.Desc)
	})
}
