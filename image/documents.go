package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"github.com/distribution/reference"
	"github.com/laminafs/lamina/fetch"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Document is a manifest or an image index, with what it leads to.
type Document struct {
	Desc ocispec.Descriptor
	Raw  []byte
	// Blobs are the config and the layers of a manifest, whatever it is of; an image
	// index has none.
	Blobs []Layer
}

// Documents finds all that name stands for: its image index, if it is one, and every
// manifest below it, attestations and the like among them. Each comes before those that
// lead to it, the last one is what name stands for, and none comes twice. origin is the
// repository that blobs can be fetched from, nil for names of files.
//
// o.Platform does not count, and nothing is stored. With PullMissing the stored image
// index says what there is; of it, what is not stored is fetched. Names that stand for
// several images without an index, and docker archives, are refused with ErrNotImage.
// Errors are else as from Open.
func Documents(ctx context.Context, name string, o Options) (documents []Document, origin reference.Named, err error) {
	n, err := ParseName(name)
	if err != nil {
		return nil, nil, err
	}
	w := &walker{seen: map[string]bool{}}
	if origin, err = w.open(ctx, n, o); err != nil {
		if n.Transport == Registry {
			err = explain(err, n)
		}
		return nil, nil, fmt.Errorf("open %s: %w", name, err)
	}
	return w.found, origin, nil
}

// A walker collects documents.
type walker struct {
	src   source
	found []Document
	seen  map[string]bool // by digest
}

// open walks what n stands for.
func (w *walker) open(ctx context.Context, n Name, o Options) (origin reference.Named, err error) {
	var roots []ocispec.Descriptor
	switch n.Transport {
	case Layout:
		w.src, roots, err = findLayout(n, o)
	case OCIArchive:
		w.src, roots, err = findOCIArchive(ctx, n)
	case DockerArchive:
		return nil, fmt.Errorf("%w for several platforms: it is a docker archive", ErrNotImage)
	default:
		return w.openRegistry(ctx, n, o)
	}
	if err != nil {
		return nil, err
	}
	return nil, w.root(ctx, roots)
}

// openRegistry walks what a reference stands for, as the store has it or the registry.
func (w *walker) openRegistry(ctx context.Context, n Name, o Options) (reference.Named, error) {
	src, stored, ask, err := o.sourceOf(n)
	if err != nil {
		return nil, err
	}
	w.src = src
	if !ask {
		w.src = storedSource{src, o.Client != nil}
	}
	if len(stored) > 0 {
		return src.repo, w.root(ctx, stored)
	}
	root, err := src.root(ctx, n)
	if err != nil {
		return nil, err
	}
	return src.repo, w.visit(ctx, root, 0)
}

// root walks the only document that a name stands for.
func (w *walker) root(ctx context.Context, roots []ocispec.Descriptor) error {
	if len(roots) != 1 {
		return fmt.Errorf("%w for several platforms: no image index holds its %d images together", ErrNotImage, len(roots))
	}
	return w.load(ctx, roots[0], 0)
}

func (w *walker) load(ctx context.Context, d ocispec.Descriptor, depth int) error {
	if w.seen[d.Digest.String()] {
		return nil
	}
	if len(w.seen) >= maxPlatforms {
		return fmt.Errorf("%w: more than %d manifests to look at", ErrCorrupt, maxPlatforms)
	}
	raw, err := readDocument(ctx, w.src, d)
	if err != nil {
		return err
	}
	return w.visit(ctx, rawDocument{d, raw}, depth)
}

// visit adds a document, after those that it leads to.
func (w *walker) visit(ctx context.Context, at rawDocument, depth int) error {
	w.seen[at.desc.Digest.String()] = true
	probe, err := fetch.ParseDocument(at.raw)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	found := Document{Desc: at.desc, Raw: at.raw}
	found.Desc.MediaType = cmp.Or(specific(probe.MediaType), specific(at.desc.MediaType))
	switch {
	case probe.IsIndex():
		found.Desc.MediaType = cmp.Or(found.Desc.MediaType, ocispec.MediaTypeImageIndex)
		err = w.below(ctx, at.raw, depth)
	case probe.IsManifest():
		found.Desc.MediaType = cmp.Or(found.Desc.MediaType, ocispec.MediaTypeImageManifest)
		found.Blobs, err = w.blobs(at.raw)
	default:
		err = fmt.Errorf("%w: manifest %s has neither layers nor manifests", ErrNotImage, at.desc.Digest)
	}
	w.found = append(w.found, found)
	return err
}

// below walks what an image index lists.
func (w *walker) below(ctx context.Context, raw []byte, depth int) error {
	if depth == maxDepth {
		return fmt.Errorf("%w: image indexes nested more than %d deep", ErrCorrupt, maxDepth)
	}
	x, err := parseIndex(raw)
	if err != nil {
		return err
	}
	for _, d := range x.Manifests {
		if err := w.load(ctx, d, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// blobs returns what a manifest leads to, be it of an image or not.
func (w *walker) blobs(raw []byte) ([]Layer, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: parse manifest: %w", ErrCorrupt, err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: it has %d layers, more than %d", ErrNotImage, len(m.Layers), maxLayers)
	}
	var found []Layer
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if err := checkDescriptor(d); err != nil {
			return nil, err
		}
		b, err := w.src.layer(d)
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", d.Digest, err)
		}
		found = append(found, Layer{Desc: d, Blob: b})
	}
	return found, nil
}
