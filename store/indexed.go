package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/published"
	"github.com/laminafs/lamina/published/soci"
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

// maxUnpacking is how many indexes of an image are unpacked at once. Each may take
// several times its size of memory.
const maxUnpacking = 2

// found is what is published for an image.
type found struct {
	repo   reference.Named
	layers map[digest.Digest]ocispec.Descriptor // by the digest of the layer's blob
	soci   bool                                 // they are ztocs, and else lamina's own
	turns  chan struct{}                        // of those that unpack
}

// search is a search for what is published for an image. done is closed at its end;
// what it found may be looked at then.
type search struct {
	cancel context.CancelFunc
	done   chan struct{}
	found  *found
	err    error // wraps published.ErrNone if there is nothing; errHere: none was made
}

// errHere: no search was made, as the store seemed to have all layers.
var errHere = errors.New("all layers are here")

// startSearch starts a search for img in a goroutine of wg, which ends soon after
// ctx does. If here, which may be nil, then says that all layers are here, none is
// made.
func (s *Store) startSearch(ctx context.Context, wg *sync.WaitGroup, img *image.Image, policy IndexPolicy, here func() bool) *search {
	f := &search{done: make(chan struct{})}
	if policy == IndexRequire {
		ctx, f.cancel = context.WithCancel(ctx)
	} else {
		// What is only a short cut must not become a long wait.
		ctx, f.cancel = context.WithTimeout(ctx, findTime)
	}
	wg.Go(func() {
		defer close(f.done)
		defer f.cancel()
		if here != nil && here() {
			f.err = errHere
			return
		}
		f.found, f.err = s.find(ctx, img.Origin, img.Digest, img.Manifest.Annotations)
	})
	return f
}

// searchEarly starts the search while the config of img is under way, and with it
// the diff IDs that tell whether a layer is here: a first mount then waits no longer
// for it than for the config. It is nil where that would gain nothing, or where no
// layer can want an index as far as is known.
func (s *Store) searchEarly(ctx context.Context, wg *sync.WaitGroup, img *image.Image, policy IndexPolicy) *search {
	if policy == IndexNever || img.Origin == nil || s.Images.HasBlob(img.Manifest.Config) {
		return nil
	}
	var wanting []digest.Digest
	for _, l := range img.Layers {
		_, f, lazy := layer.Key(layer.Source(l))
		if _, local := l.Blob.(fetch.Local); !lazy && !local && (f == layer.Gzip || f == layer.Zstd) {
			wanting = append(wanting, l.Desc.Digest)
		}
	}
	if len(wanting) == 0 {
		return nil
	}
	return s.startSearch(ctx, wg, img, policy, func() bool {
		return s.Cache.MadeFrom(wanting...) // another image may have brought them
	})
}

// wait returns when the search is over, with the cause if ctx ends before.
func (f *search) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// find returns what is published for the image: lamina's own index, or else SOCI's.
// It looks for both at once, because the second one would cost a round trip more.
func (s *Store) find(ctx context.Context, repo reference.Named, subject digest.Digest, annotations map[string]string) (*found, error) {
	ctx, cancel := context.WithCancel(ctx)
	var theirs *published.Artifact
	var theirErr error
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	refs := published.ReferrersOf(ctx, s.Client, repo, subject)
	wg.Go(func() { theirs, theirErr = soci.Find(ctx, s.Client, repo, subject, annotations, refs) })
	f := &found{repo: repo, turns: make(chan struct{}, maxUnpacking)}
	own, err := published.Find(ctx, s.Client, repo, subject, refs)
	if err == nil {
		f.layers = own.Layers
		return f, nil
	}
	wg.Wait()
	if theirErr == nil {
		f.layers, f.soci = theirs.Layers, true
		return f, nil
	}
	if errors.Is(err, published.ErrNone) {
		err = theirErr // that there is none, too, or that it is not known
	}
	return nil, err
}

// indexes returns what is published for those layers of img that would have to be
// streamed; nil where none are needed or there are none. begun is the search that
// was started before, if not nil, and start starts one.
//
// With IndexRequire there must be an index, and it must be for one at least of those
// layers. The others are streamed: whoever publishes an index leaves out what it
// cannot help, small layers or zstd of one frame.
func (s *Store) indexes(ctx context.Context, img *image.Image, policy IndexPolicy, begun *search, start func() *search) (*found, error) {
	if begun != nil {
		defer begun.cancel() // nobody waits for it if none is needed
	}
	if policy == IndexNever || img.Origin == nil {
		return nil, nil
	}
	var wanting []digest.Digest
	for _, l := range img.Layers {
		if s.wantsIndex(layer.Source(l)) {
			wanting = append(wanting, l.Desc.Digest)
		}
	}
	if len(wanting) == 0 {
		return nil, nil
	}
	f := begun
	if f == nil {
		f = start()
	}
	if err := f.wait(ctx); err != nil {
		return nil, err
	}
	if errors.Is(f.err, errHere) { // not any more, or not by these diff IDs
		f = start()
		if err := f.wait(ctx); err != nil {
			return nil, err
		}
	}
	switch {
	case f.err == nil:
		covers := func(d digest.Digest) bool { _, ok := f.found.layers[d]; return ok }
		if policy == IndexRequire && !slices.ContainsFunc(wanting, covers) {
			return nil, fmt.Errorf("%w for %s: the one that there is covers no layer that needs one", ErrNoIndex, img.Name)
		}
		return f.found, nil
	case policy == IndexRequire && errors.Is(f.err, published.ErrNone):
		return nil, fmt.Errorf("%w for %s; 'lamina index --push' publishes one", ErrNoIndex, img.Name)
	case policy == IndexRequire:
		return nil, f.err
	case !errors.Is(f.err, published.ErrNone):
		s.Log.Warn("cannot look for a published index: going on without", "image", img.Name, "error", f.err)
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

// openByIndex opens the layer of src by the index that f has for it: ErrNoIndex if
// it has none.
func (s *Store) openByIndex(ctx context.Context, f *found, src layer.Source) (*cache.Layer, error) {
	if f == nil {
		return nil, ErrNoIndex
	}
	desc, ok := f.layers[src.Desc.Digest]
	if !ok || !s.wantsIndex(src) {
		return nil, ErrNoIndex
	}
	if of := desc.Annotations[published.AnnotationDiffID]; !f.soci && of != src.DiffID.String() {
		return nil, fmt.Errorf("packed index %s is for diff ID %.100q, not %s", desc.Digest, of, src.DiffID)
	}
	return s.Cache.Indexed(ctx, src, func(ctx context.Context) (*layer.Scanned, error) {
		if desc.Size > maxPacked {
			return nil, fmt.Errorf("packed index %s of %d bytes: more than %d", desc.Digest, desc.Size, int64(maxPacked))
		}
		raw, err := fetch.ReadAll(ctx, s.Client.Blob(f.repo, desc), maxPacked)
		if err != nil {
			return nil, err
		}
		select {
		case f.turns <- struct{}{}:
			defer func() { <-f.turns }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		if f.soci {
			return soci.Unpack(ctx, raw, src.Desc)
		}
		return published.Unpack(ctx, bytes.NewReader(raw), src.Desc)
	})
}
