package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A source is where one transport keeps the documents and blobs of images.
type source interface {
	// document returns the bytes of a manifest or image index, verified.
	document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)

	// config returns the bytes of an image config, verified.
	config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)

	// layer returns a layer's blob, without reading it or asking a registry.
	layer(desc ocispec.Descriptor) (fetch.Blob, error)
}

// A rawDocument is an image index as it was found.
type rawDocument struct {
	desc ocispec.Descriptor
	raw  []byte
}

// resolved is a manifest and how it was found.
type resolved struct {
	desc     ocispec.Descriptor // of the manifest; with a platform if an index gave one
	raw      []byte
	manifest *ocispec.Manifest
	indexes  []rawDocument // outermost first; empty if the name meant the manifest
}

// Bounds on nested indexes. One index in another occurs (multi-platform images
// in a layout); more depth only in attacks.
const (
	maxDepth     = 4
	maxDocuments = 32
)

// resolver finds the manifest for a target below an index.
type resolver struct {
	src    source
	want   target
	have   []ocispec.Platform // seen so far and not wanted, for the message
	loaded int                // documents read so far
}

// resolve finds the manifest for the target starting at a document.
func resolve(ctx context.Context, src source, want target, root rawDocument) (*resolved, error) {
	r := &resolver{src: src, want: want}
	found, err := r.visit(ctx, root, 0)
	if err == nil && found == nil {
		err = want.unavailable(r.have)
	}
	return found, err
}

// resolveAny finds the manifest for the target below any of several
// descriptors, as if they were the entries of an index.
func resolveAny(ctx context.Context, src source, want target, roots []ocispec.Descriptor) (*resolved, error) {
	r := &resolver{src: src, want: want}
	var found *resolved
	var err error
	if len(roots) == 1 {
		found, err = r.load(ctx, roots[0], 0)
	} else {
		found, err = r.choose(ctx, roots, 0)
	}
	if err == nil && found == nil {
		err = want.unavailable(r.have)
	}
	return found, err
}

// load reads a document and visits it.
func (r *resolver) load(ctx context.Context, desc ocispec.Descriptor, depth int) (*resolved, error) {
	if r.loaded++; r.loaded > maxDocuments {
		return nil, fmt.Errorf("%w: more than %d manifests to look at", ErrCorrupt, maxDocuments)
	}
	raw, err := readDocument(ctx, r.src, desc)
	if err != nil {
		return nil, err
	}
	return r.visit(ctx, rawDocument{desc, raw}, depth)
}

// readDocument reads a manifest or image index that a descriptor leads to.
func readDocument(ctx context.Context, src source, desc ocispec.Descriptor) ([]byte, error) {
	if err := checkDescriptor(desc); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if desc.Size > maxManifest {
		return nil, fmt.Errorf("%w: manifest %s of %d bytes, more than %d", ErrCorrupt, desc.Digest, desc.Size, maxManifest)
	}
	raw, err := src.document(ctx, desc)
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) != desc.Size {
		return nil, fmt.Errorf("%w: manifest %s has %d bytes, its descriptor says %d", ErrCorrupt, desc.Digest, len(raw), desc.Size)
	}
	return raw, nil
}

// visit returns the manifest that a document is or leads to, nil if the
// document is an index without the wanted platform.
func (r *resolver) visit(ctx context.Context, at rawDocument, depth int) (*resolved, error) {
	doc, err := parseDocument(at.raw, at.desc.MediaType)
	if err != nil {
		return nil, err
	}
	if doc.manifest != nil {
		return &resolved{desc: at.desc, raw: at.raw, manifest: doc.manifest}, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("%w: image indexes nested more than %d deep", ErrCorrupt, maxDepth)
	}
	found, err := r.choose(ctx, doc.index.Manifests, depth)
	if found != nil {
		found.indexes = append([]rawDocument{at}, found.indexes...)
	}
	return found, err
}

// choose goes on with the entry of an index for the target. Indexes within the
// index that do not say their platform are searched when no entry does.
func (r *resolver) choose(ctx context.Context, entries []ocispec.Descriptor, depth int) (*resolved, error) {
	if d, ok := r.want.pick(entries); ok {
		return r.load(ctx, d, depth+1)
	}
	for _, d := range entries {
		if isAttachment(d) {
			continue
		}
		if d.Platform != nil {
			r.have = append(r.have, *d.Platform)
			continue
		}
		if !isIndexType(d.MediaType) {
			continue
		}
		if found, err := r.load(ctx, d, depth+1); found != nil || err != nil {
			return found, err
		}
	}
	return nil, nil
}

// newImage makes the image of a resolved manifest, its config still missing.
func newImage(src source, r *resolved) (*Image, error) {
	img := &Image{
		Digest:      r.desc.Digest,
		Manifest:    *r.manifest,
		RawManifest: r.raw,
		Layers:      make([]Layer, len(r.manifest.Layers)),
		desc:        r.desc,
		indexes:     r.indexes,
	}
	if len(r.indexes) > 0 {
		img.Index = r.indexes[0].desc.Digest
	}
	for i, d := range r.manifest.Layers {
		b, err := src.layer(d)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		img.Layers[i] = Layer{Desc: d, Blob: b}
	}
	return img, nil
}

// loadConfig reads the config of an image and fills in what comes from it.
func (img *Image) loadConfig(ctx context.Context, src source, want target) error {
	raw, err := src.config(ctx, img.Manifest.Config)
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	return img.setConfig(raw, want)
}

// setConfig fills in what comes from the config, whose bytes are verified.
func (img *Image) setConfig(raw []byte, want target) error {
	config, err := parseConfig(raw, len(img.Layers))
	if err != nil {
		return err
	}
	img.Config, img.RawConfig = *config, raw
	img.Platform = config.Platform
	for i, d := range config.RootFS.DiffIDs {
		img.Layers[i].DiffID = d
	}
	if img.desc.Platform != nil {
		// The index is what the choice was made by; the configs of old images
		// lack the variant.
		img.Platform = *img.desc.Platform
	} else if !want.accepts(config.Platform) {
		return want.unavailable([]ocispec.Platform{config.Platform})
	}
	return nil
}

// readVerified reads a local blob and verifies it; what is wrong with the file
// becomes ErrCorrupt.
func readVerified(ctx context.Context, b fetch.Blob, limit int64) ([]byte, error) {
	raw, err := fetch.ReadAll(ctx, b, limit)
	if errors.Is(err, fetch.ErrDigest) || errors.Is(err, fetch.ErrTooBig) || errors.Is(err, fetch.ErrShort) || errors.Is(err, fetch.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return raw, err
}

// blobPath is where a layout keeps a blob, with slashes.
func blobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// isNotExist says whether an error means that a file is not there.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
