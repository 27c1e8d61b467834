package commit

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/commit/config"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/overlay"
)

// Options say what becomes of which image.
type Options struct {
	// Base is the image that gets one more layer.
	Base *image.Image
	// Lower is what Upper is over: the merged tree of Base, if Since is nil.
	Lower *overlay.Tree
	// Upper is what was changed.
	Upper overlay.Upper
	// Since, if not nil, is the tree of Base, which is then a commit of an earlier
	// state of Upper over Lower.
	Since *overlay.Base
	// Frozen, if not nil, is called when all of Upper was read, and tells whether that
	// was what it should have been.
	Frozen func() error
	// Name is what the new image is called, as image.ParseName reads it. It must
	// be one of a registry.
	Name string
	// Format is that of the new layer's blob.
	Format layer.Format
	// Squash makes one layer of the whole tree, which is all the new image has.
	// It reads all of it.
	Squash bool
	// Edit changes the config. Its layer is set by Commit.
	Edit config.Edit
	// Latest, if it is set, takes the place of later times of files, so that the
	// same work done again gives the same layer: see SOURCE_DATE_EPOCH at
	// reproducible-builds.org.
	Latest time.Time
}

// Result is a new image.
type Result struct {
	// Name is what it is called, in full.
	Name string
	// Digest is that of its manifest.
	Digest digest.Digest
	// Layer describes the new layer's blob.
	Layer ocispec.Descriptor
	Summary
}

// Commit stores the changes as a new image, and its layer's blob, in s, and
// returns when both are on disk. Layers of a base that is in no registry are
// copied into s, as it would not find them later.
//
// Errors: ErrName, ErrChanging, overlay.ErrUpper, config's, and those of the
// store and of reading upper and lower.
func Commit(ctx context.Context, s *image.Store, o Options) (*Result, error) {
	r, err := commit(ctx, s, o)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", o.Name, err)
	}
	return r, nil
}

func commit(ctx context.Context, s *image.Store, o Options) (*Result, error) {
	name, err := image.ParseName(o.Name)
	if err != nil {
		return nil, err
	}
	if name.Transport != image.Registry {
		return nil, fmt.Errorf("%w: a new image is kept in the store, under a name like app:1", image.ErrName)
	}
	r := &Result{}
	var diffID digest.Digest
	r.Layer, r.Summary, diffID, err = addLayer(s, o.Format, func(w io.Writer) (Summary, error) {
		sum, err := o.write(ctx, w)
		if err == nil && o.Frozen != nil {
			err = o.Frozen()
		}
		return sum, err
	})
	if err != nil {
		return nil, err
	}
	if err := o.keepBase(ctx, s); err != nil {
		return nil, err
	}
	img, err := o.image(name.String(), r.Layer, diffID)
	if err != nil {
		return nil, err
	}
	r.Name, r.Digest = img.Name, img.Digest
	return r, s.Put(img)
}

// write writes the new layer's tar.
func (o *Options) write(ctx context.Context, w io.Writer) (Summary, error) {
	return writeLayer(ctx, w, o.Latest, func(fn func(*overlay.Change) error) error {
		switch {
		case o.Squash:
			return overlay.Everything(ctx, o.Upper, o.Lower, fn)
		case o.Since != nil:
			return overlay.ChangesSince(ctx, o.Upper, o.Lower, *o.Since, fn)
		}
		return overlay.Changes(ctx, o.Upper, o.Lower, fn)
	})
}

// keepBase copies the base's layers into s that it could not find again.
func (o *Options) keepBase(ctx context.Context, s *image.Store) error {
	if o.Squash || o.Base.Origin != nil {
		return nil
	}
	for _, l := range o.Base.Layers {
		if s.HasBlob(l.Desc) {
			continue
		}
		if err := s.Fetch(ctx, l.Desc, l.Blob, nil); err != nil {
			return fmt.Errorf("copy layer of %s: %w", o.Base.Name, err)
		}
	}
	return nil
}

// image makes config and manifest.
func (o *Options) image(name string, added ocispec.Descriptor, diffID digest.Digest) (*image.Image, error) {
	edit := o.Edit
	edit.DiffID = diffID
	edit.Squash = o.Squash
	raw, err := config.Apply(o.Base.RawConfig, edit)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	m := ocispec.Manifest{Annotations: map[string]string{
		ocispec.AnnotationBaseImageDigest: o.Base.Digest.String(),
		ocispec.AnnotationBaseImageName:   o.Base.Name,
	}}
	if !o.Squash {
		for _, l := range o.Base.Layers {
			d := l.Desc
			d.MediaType = ociLayer(d.MediaType)
			m.Layers = append(m.Layers, d)
		}
	}
	m.Layers = append(m.Layers, added)
	img, err := newImage(name, o.Base.Platform, raw, m)
	if err == nil && !o.Squash {
		img.Origin = o.Base.Origin
	}
	return img, err
}

// ociLayer returns the OCI media type for one of Docker's: the blobs are the
// same, and Docker's manifest knows no zstd.
func ociLayer(mediaType string) string {
	switch {
	case !strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs."):
		return mediaType
	case strings.HasSuffix(mediaType, ".gzip"):
		return ocispec.MediaTypeImageLayerGzip
	case strings.HasSuffix(mediaType, ".zstd"):
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}
