package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/overlay"
)

// Ref says which image is meant.
type Ref struct {
	// Name is the image's name as the user wrote it; see image.ParseName.
	Name string
	// Platform is os/arch[/variant]; empty means the host's.
	Platform string
	// Pull says when the registry is asked.
	Pull image.Policy
	// Index says whether a published index is used; empty means IndexAuto.
	Index IndexPolicy
}

// Progress is told how much of layer i, counted from the bottom, has arrived, in
// bytes of its blob. It is called by several goroutines.
type Progress func(i int, digest string, done, total int64)

// Tree is an image whose layers are opened and merged.
type Tree struct {
	Image  *image.Image
	Layers []*cache.Layer // the bottom one first
	Chain  *cache.Chain
}

// Open resolves the image that ref names, opens its layers, all at once, and
// merges them. What can be read lazily is not downloaded. Errors are those of
// packages image, cache, layer and fetch, and of ctx. p may be nil.
func (s *Store) Open(ctx context.Context, ref Ref, p Progress) (*Tree, error) {
	early, cancel := context.WithCancel(ctx)
	var ahead sync.WaitGroup
	defer func() { cancel(); ahead.Wait() }()
	done := make(chan struct{})
	defer close(done)
	last := s.Cache.AnyLayer
	if ref.Index == IndexNever {
		last = s.Cache.Layer // nor by an index that was taken before
	}
	if ref.Index != IndexRequire && ref.Pull == image.PullNever {
		ref.Index = IndexNever // nothing is asked of the registry but data
	}
	var begun *search
	img, err := image.Open(ctx, ref.Name, image.Options{
		Platform: ref.Platform, Pull: ref.Pull, Client: s.Client, Store: s.Images, Log: s.Log,
		// Tables of contents are fetched, and published indexes looked for, while
		// the config is still under way: that costs one round trip less.
		OnManifest: func(known *image.Image) {
			begun = s.searchEarly(early, &ahead, known, ref.Index)
			for _, l := range known.Layers {
				if _, f, _ := layer.Key(layer.Source(l)); f != layer.EStargz && f != layer.ZstdChunked {
					continue
				}
				ahead.Go(func() {
					// Open until the layers below are: what fails is tried again
					// there, where errors are reported.
					if opened, err := s.Cache.Layer(early, layer.Source(l), nil); err == nil {
						<-done
						_ = opened.Close()
					}
				})
			}
		},
	})
	if err != nil {
		return nil, err
	}
	sources := make([]layer.Source, len(img.Layers))
	for i, l := range img.Layers {
		sources[i] = layer.Source(l)
	}
	found, err := s.indexes(ctx, img, ref.Index, begun, func() *search {
		return s.startSearch(early, &ahead, img, ref.Index, nil)
	})
	if err != nil {
		return nil, err
	}
	t, err := s.openLayers(ctx, len(sources), func(ctx context.Context, i int) (*cache.Layer, error) {
		src := sources[i]
		l, err := s.openByIndex(ctx, found, src)
		if err == nil || !errors.Is(err, ErrNoIndex) && (ref.Index == IndexRequire || ctx.Err() != nil) {
			return l, err
		}
		if !errors.Is(err, ErrNoIndex) {
			s.Log.Warn("published index is not used: streaming the layer",
				"blob", src.Desc.Digest, "index", found.layers[src.Desc.Digest].Digest, "error", err)
		}
		return last(ctx, src, func(done, total int64) {
			if p != nil {
				p(i, src.Desc.Digest.String(), done, total)
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", img.Name, err)
	}
	t.Image = img
	return t, nil
}

// Image resolves the image that ref names and reads its manifest and config, and
// nothing of its layers. Errors are those of package image.
func (s *Store) Image(ctx context.Context, ref Ref) (*image.Image, error) {
	return image.Open(ctx, ref.Name, image.Options{
		Platform: ref.Platform, Pull: ref.Pull, Client: s.Client, Store: s.Images, Log: s.Log,
	})
}

// OpenLayers opens the layers that were opened before by the keys given, the bottom
// one first, and merges them: it is the same tree, or an error of
// cache.Store.LayerAt. The tree has no Image.
func (s *Store) OpenLayers(ctx context.Context, sources []layer.Source, keys []string) (*Tree, error) {
	if len(keys) != len(sources) {
		return nil, fmt.Errorf("open %d layers by %d keys: %w", len(sources), len(keys), fs.ErrInvalid)
	}
	return s.openLayers(ctx, len(sources), func(ctx context.Context, i int) (*cache.Layer, error) {
		return s.Cache.LayerAt(ctx, keys[i], sources[i])
	})
}

// Layers opens the layers of an image from the one at place from on, each by itself. The
// caller closes them. Errors are those of package cache, and of ctx.
func (s *Store) Layers(ctx context.Context, img *image.Image, from int) ([]*cache.Layer, error) {
	above := img.Layers[from:]
	t, err := openEach(ctx, len(above), func(ctx context.Context, i int) (*cache.Layer, error) {
		return s.Cache.AnyLayer(ctx, layer.Source(above[i]), nil)
	})
	if err != nil {
		return nil, err
	}
	return t.Layers, nil
}

// openLayers opens n layers, all at once, and merges them.
func (s *Store) openLayers(ctx context.Context, n int, open func(ctx context.Context, i int) (*cache.Layer, error)) (*Tree, error) {
	t, err := openEach(ctx, n, open)
	if err != nil {
		return nil, err
	}
	if t.Chain, err = s.Cache.Chain(ctx, t.Layers); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// openEach opens n layers, all at once, to a tree without a chain.
func openEach(ctx context.Context, n int, open func(ctx context.Context, i int) (*cache.Layer, error)) (*Tree, error) {
	t := &Tree{Layers: make([]*cache.Layer, n)}
	g, gctx := errgroup.WithContext(ctx)
	for i := range n {
		g.Go(func() (err error) {
			t.Layers[i], err = open(gctx, i)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// Close closes the tree's layers. Nothing of it may be in use.
func (t *Tree) Close() error {
	var errs []error
	if t.Chain != nil {
		errs = append(errs, t.Chain.Close())
	}
	for _, l := range t.Layers {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// Overlay returns the merged tree, which is usable until t is closed.
func (t *Tree) Overlay() *overlay.Tree {
	data := make([]overlay.Data, len(t.Layers))
	for i, l := range t.Layers {
		data[i] = l
	}
	return overlay.New(t.Chain.Index, data)
}

// Complete reports whether every layer's data is in a file as it is, so that
// nothing has to be fetched or decoded.
func (t *Tree) Complete() bool {
	for _, l := range t.Layers {
		if _, ok := l.DataFile(); !ok {
			return false
		}
	}
	return true
}

// Release gives the mapped pages of indexes and chunk tables back to the system.
func (t *Tree) Release() {
	t.Chain.Index.Release()
	for _, l := range t.Layers {
		l.Release()
	}
}
