package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/distribution/reference"
	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registrySource reads images of one repository. What the store has by digest
// is not asked for again.
type registrySource struct {
	repo   reference.Named
	client *fetch.Client
	store  *Store // may be nil
}

func (r registrySource) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if raw, ok := r.stored(ctx, desc.Digest, maxManifest); ok {
		return raw, nil
	}
	ref, err := reference.WithDigest(r.repo, desc.Digest)
	if err != nil {
		return nil, fmt.Errorf("%w: digest %.100q: %w", ErrCorrupt, string(desc.Digest), err)
	}
	_, raw, err := r.client.Manifest(ctx, ref, desc.Digest)
	return raw, err
}

func (r registrySource) config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if raw, ok := r.stored(ctx, desc.Digest, maxConfig); ok {
		return raw, nil
	}
	return fetch.ReadAll(ctx, r.client.Blob(r.repo, desc), maxConfig)
}

func (r registrySource) layer(desc ocispec.Descriptor) (fetch.Blob, error) {
	if r.store != nil {
		if b, err := r.store.source().blob(desc); err == nil {
			if local, ok := b.(fetch.Local); ok && r.client != nil {
				return fetch.Fallback(local, r.client.Blob(r.repo, desc)), nil // it may be pruned
			}
			return b, nil
		}
	}
	return r.client.Blob(r.repo, desc), nil
}

// stored returns a document that the store has, verified.
func (r registrySource) stored(ctx context.Context, d digest.Digest, limit int64) ([]byte, bool) {
	if r.store == nil {
		return nil, false
	}
	s, err := r.store.source().tree.file(blobPath(d))
	if err != nil {
		return nil, false
	}
	raw, err := readVerified(ctx, s.blob(d), limit)
	return raw, err == nil
}

// storedSource reads the documents of images from the store alone.
type storedSource struct {
	registrySource
	ask bool // for layers
}

func (s storedSource) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return s.need(ctx, desc, maxManifest)
}

func (s storedSource) config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return s.need(ctx, desc, maxConfig)
}

func (s storedSource) need(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	raw, ok := s.stored(ctx, desc.Digest, limit)
	if !ok {
		return nil, fmt.Errorf("%w: %s is not stored, and no registry is asked for it", ErrNotFound, desc.Digest)
	}
	return raw, nil
}

func (s storedSource) layer(desc ocispec.Descriptor) (fetch.Blob, error) {
	if !s.ask && !s.store.HasBlob(desc) {
		return nil, fmt.Errorf("%w: %s is not stored, and there is no registry to ask", ErrNotFound, desc.Digest)
	}
	return s.registrySource.layer(desc)
}

// openRegistry opens an image by its reference: from the store, or from the
// registry and then into the store.
func openRegistry(ctx context.Context, n Name, want target, o Options) (*Image, error) {
	if o.Store != nil && o.Pull != PullAlways {
		img, err := o.Store.lookup(ctx, n, want, o.Client)
		if err == nil {
			err = complete(img)
		}
		switch {
		case err == nil:
			o.manifestKnown(img)
			return img, nil
		case o.Pull == PullNever || ctx.Err() != nil:
			return nil, err
		case !errors.Is(err, ErrNotFound):
			o.warn("stored image is unusable, fetching it again", "image", n.String(), "error", err)
		}
	}
	switch {
	case o.Pull == PullNever:
		return nil, fmt.Errorf("%w: there is no store, and the pull policy is never", ErrNotFound)
	case o.Client == nil:
		return nil, fmt.Errorf("%w: it is not stored, and there is no registry to ask", ErrNotFound)
	}
	img, err := fetchImage(ctx, n, want, o)
	if err != nil {
		return nil, explain(err, n)
	}
	o.put(img)
	return img, nil
}

// put stores an image. It can be used all the same if that fails.
func (o *Options) put(img *Image) {
	if o.Store == nil {
		return
	}
	if err := o.Store.Put(img); err != nil {
		o.warn("image is not stored, the next mount needs the registry", "image", img.Name, "error", err)
	}
}

// complete says whether every layer of a stored image can be read.
func complete(img *Image) error {
	for i, l := range img.Layers {
		if l.Blob == nil {
			return fmt.Errorf("%w: layer %d is not stored, and there is no registry to ask for it", ErrCorrupt, i+1)
		}
	}
	return nil
}

// warmed is how many connections are opened beside the manifest's own: config
// and layers are asked for at once, as soon as it is known.
const warmed = 3

// fetchImage opens an image at its registry.
func fetchImage(ctx context.Context, n Name, want target, o Options) (*Image, error) {
	src := registrySource{reference.TrimNamed(n.Ref), o.Client, o.Store}
	root, err := src.root(ctx, n)
	if err != nil {
		return nil, err
	}
	found, err := resolve(ctx, src, want, root)
	if err != nil {
		return nil, err
	}
	img, err := newImage(src, found)
	if err != nil {
		return nil, err
	}
	img.Name, img.Origin = n.String(), src.repo
	o.manifestKnown(img)
	if err := img.loadConfig(ctx, src, want); err != nil {
		return nil, err
	}
	return img, nil
}

// root returns the document that the reference itself names.
func (r registrySource) root(ctx context.Context, n Name) (rawDocument, error) {
	var dgst digest.Digest
	if d, ok := n.Ref.(reference.Digested); ok {
		dgst = d.Digest()
		if raw, ok := r.stored(ctx, dgst, maxManifest); ok {
			return rawDocument{ocispec.Descriptor{Digest: dgst, Size: int64(len(raw))}, raw}, nil
		}
	}
	r.client.Warm(r.repo, warmed)
	desc, raw, err := r.client.Manifest(ctx, n.Ref, dgst)
	if err != nil {
		return rawDocument{}, err
	}
	desc.Size = int64(len(raw))
	return rawDocument{desc, raw}, nil
}

// explain adds what the user may do about an error of a registry.
func explain(err error, n Name) error {
	switch {
	case errors.Is(err, fetch.ErrNotFound):
		if st, statErr := os.Stat(reference.FamiliarName(n.Ref)); statErr == nil {
			if st.IsDir() {
				return fmt.Errorf("%w; for the directory of this name write oci:DIR", err)
			}
			return fmt.Errorf("%w; for the file of this name write oci-archive:FILE or docker-archive:FILE", err)
		}
	case errors.Is(err, fetch.ErrDenied):
		return fmt.Errorf("%w; no such image, or log in with: docker login %s", err, reference.Domain(n.Ref))
	}
	return err
}
