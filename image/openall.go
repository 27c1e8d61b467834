package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Bounds on what OpenAll reads: images for that many platforms do not occur, and
// one call of it does not ask a registry for more at once, however deep indexes
// are nested.
const (
	maxPlatforms = 512
	parallel     = 4
)

// OpenAll finds the image that name stands for in all its platforms, in the
// order of the image index. Each Image is what Open would return for its
// platform, and is stored under the same name. What an index has besides
// images, such as attestations, is left out, and so are images that cannot be
// verified because of the algorithm of their digests. An image that is no index gives
// one, and so does a docker archive, where it is what Open would return.
//
// o.Platform does not count. o.Pull means for every platform what it means to
// Open: with PullMissing the stored image index says which platforms there are.
// o.OnManifest is called for each image. Errors are as from Open; if one
// platform fails, all do.
func OpenAll(ctx context.Context, name string, o Options) ([]*Image, error) {
	n, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	images, err := openAll(ctx, n, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return images, nil
}

func openAll(ctx context.Context, n Name, o Options) ([]*Image, error) {
	var src layoutSource
	var roots []ocispec.Descriptor
	var err error
	switch n.Transport {
	case Layout:
		src, roots, err = findLayout(n, o)
	case OCIArchive:
		src, roots, err = findOCIArchive(ctx, n)
	case DockerArchive:
		o.Platform = ""
		img, err := open(ctx, n, o)
		return []*Image{img}, err
	default:
		return openAllRegistry(ctx, n, o)
	}
	if err != nil {
		return nil, err
	}
	c := newCollector(src, o)
	found, err := c.children(ctx, roots, nil)
	if err != nil {
		return nil, err
	}
	return c.images(ctx, n, found)
}

// openAllRegistry opens the platforms of a reference: as the stored image index
// has them, or the registry's.
func openAllRegistry(ctx context.Context, n Name, o Options) ([]*Image, error) {
	src, stored, ask, err := o.sourceOf(n)
	if err != nil {
		return nil, err
	}
	c := newCollector(src, o)
	if !ask {
		c.src = storedSource{src, o.Client != nil}
	}
	// To Put one of several entries that no image index holds together, written by
	// another tool, would take the name from the others.
	entered := len(stored) > 1
	var found []*resolved
	if len(stored) > 0 {
		found, err = c.children(ctx, stored, nil)
	} else {
		var root rawDocument
		if root, err = src.root(ctx, n); err == nil {
			found, err = c.visit(ctx, root, nil)
		}
	}
	if err != nil {
		return nil, explain(err, n)
	}
	images, err := c.images(ctx, n, found)
	if err != nil {
		return nil, explain(err, n)
	}
	for _, img := range images {
		img.Origin = src.repo
		if !entered {
			o.put(img)
		}
	}
	return images, nil
}

// sourceOf returns where what a reference stands for is read from, what it stands for in
// the store, if anything, and whether the registry is asked for what is missing.
func (o *Options) sourceOf(n Name) (src registrySource, stored []ocispec.Descriptor, ask bool, err error) {
	src = registrySource{reference.TrimNamed(n.Ref), o.Client, o.Store}
	ask = o.Pull != PullNever && o.Client != nil
	stored, origin, err := o.storedRoots(n)
	switch {
	case err != nil && !ask:
		return src, nil, ask, err
	case err != nil:
		o.warn("stored image is unusable, fetching it again", "image", n.String(), "error", err)
	case len(stored) == 0 && !ask:
		return src, nil, ask, fmt.Errorf("%w: it is not stored, and no registry is asked for it", ErrNotFound)
	case origin != nil:
		src.repo = origin // the name may be one given by Tag
	}
	return src, stored, ask, nil
}

// storedRoots returns what a reference stands for in the store: its image
// index, or the entries of index.json if there is none; and the repository it
// came from, if known. Nothing if it is not stored, or must not be looked up.
func (o *Options) storedRoots(n Name) (roots []ocispec.Descriptor, origin reference.Named, err error) {
	if o.Store == nil || o.Pull == PullAlways {
		return nil, nil, nil
	}
	x, err := o.Store.readIndex()
	if err != nil {
		return nil, nil, err
	}
	entries := named(x.Manifests, n)
	if len(entries) == 0 {
		return nil, nil, nil
	}
	if from, err := reference.ParseNormalizedNamed(entries[0].Annotations[annotationOrigin]); err == nil {
		origin = from
	}
	index := digest.Digest(entries[0].Annotations[annotationIndex])
	if d, ok := n.Ref.(reference.Digested); ok && d.Digest() != index {
		return entries[:1], origin, nil // one platform's manifest was named
	}
	if index == "" {
		return entries, origin, nil
	}
	file, err := o.Store.indexFile(index)
	if err != nil {
		return nil, nil, err
	}
	return []ocispec.Descriptor{{Digest: index, Size: file.size}}, origin, nil
}

// A collector finds all images below an index.
type collector struct {
	src    source
	o      Options
	loaded atomic.Int32  // documents read so far
	turns  chan struct{} // has one for each read that is under way
}

func newCollector(src source, o Options) *collector {
	return &collector{src: src, o: o, turns: make(chan struct{}, parallel)}
}

// read reads a document when it is its turn.
func (c *collector) read(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	select {
	case c.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-c.turns }()
	return readDocument(ctx, c.src, d)
}

// visit returns the manifests that a document is or leads to. above are the
// indexes that led to it, outermost first.
func (c *collector) visit(ctx context.Context, at rawDocument, above []rawDocument) ([]*resolved, error) {
	doc, err := parseDocument(at.raw, at.desc.MediaType)
	if err != nil {
		return nil, err
	}
	if doc.manifest != nil {
		return []*resolved{{desc: at.desc, raw: at.raw, manifest: doc.manifest, indexes: above}}, nil
	}
	if len(above) == maxDepth {
		return nil, fmt.Errorf("%w: image indexes nested more than %d deep", ErrCorrupt, maxDepth)
	}
	return c.children(ctx, doc.index.Manifests, append(slices.Clip(above), at))
}

// children reads the documents of the descriptors and visits them, several at a
// time.
func (c *collector) children(ctx context.Context, descs []ocispec.Descriptor, above []rawDocument) ([]*resolved, error) {
	descs = slices.DeleteFunc(slices.Clone(descs), isAttachment)
	found := make([][]*resolved, len(descs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, d := range descs {
		g.Go(func() error {
			if c.loaded.Add(1) > maxPlatforms {
				return fmt.Errorf("%w: more than %d manifests to look at", ErrCorrupt, maxPlatforms)
			}
			raw, err := c.read(ctx, d)
			if err == nil {
				found[i], err = c.visit(ctx, rawDocument{d, raw}, above)
			}
			if len(descs) > 1 && (errors.Is(err, ErrNotImage) || errors.Is(err, ErrAlgorithm)) {
				c.o.warn("left out what is no image, or cannot be verified", "manifest", d.Digest.String(), "error", err)
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(found...), nil
}

// images makes the images of manifests and reads their configs.
func (c *collector) images(ctx context.Context, n Name, found []*resolved) ([]*Image, error) {
	anything, err := parseTarget("")
	if err != nil {
		return nil, err
	}
	var images []*Image
	for _, r := range found {
		same := func(img *Image) bool { return img.Digest == r.desc.Digest }
		if slices.ContainsFunc(images, same) {
			continue
		}
		img, err := newImage(c.src, r)
		if err != nil {
			return nil, err
		}
		img.Name = n.String()
		if len(r.indexes) == 0 {
			img.desc.Platform = nil // of an entry of index.json: a note of the config's
		}
		c.o.manifestKnown(img)
		images = append(images, img)
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%w: the image index lists no image", ErrNotFound)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, img := range images {
		g.Go(func() error { return img.loadConfig(ctx, c.src, anything) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return images, nil
}
