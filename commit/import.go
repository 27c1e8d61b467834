package commit

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/commit/config"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/encode"
	"github.com/laminafs/lamina/overlay"
)

// ErrTar: what is to be imported is no tar, or is cut off.
var ErrTar = errors.New("not a complete tar archive")

// ImportOptions say what becomes an image.
type ImportOptions struct {
	// From is a tar, which becomes the only layer as it is. It is read to its end.
	From io.Reader
	// Name is what the new image is called, as image.ParseName reads it. It must be one
	// of a registry.
	Name string
	// Format is that of the layer's blob.
	Format layer.Format
	// Platform is noted in the config.
	Platform ocispec.Platform
	// Edit changes the config, which is empty. Its layer is set by Import.
	Edit config.Edit
}

// Import stores an image of one layer in s and returns when it is on disk. Errors: ErrTar,
// config's, and those of the store and of o.From.
func Import(ctx context.Context, s *image.Store, o ImportOptions) (*Result, error) {
	r, err := importImage(ctx, s, o)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", o.Name, err)
	}
	return r, nil
}

func importImage(ctx context.Context, s *image.Store, o ImportOptions) (*Result, error) {
	name, err := image.ParseName(o.Name)
	if err != nil {
		return nil, err
	}
	if name.Transport != image.Registry {
		return nil, fmt.Errorf("%w: a new image is kept in the store, under a name like app:1", image.ErrName)
	}
	base, err := json.Marshal(ocispec.Image{Platform: o.Platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}}})
	if err != nil {
		return nil, err
	}
	// Before all is read: instructions may be wrong.
	if _, err := config.Apply(base, o.Edit); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	r := &Result{}
	var diffID digest.Digest
	r.Layer, r.Summary, diffID, err = addLayer(s, o.Format, func(w io.Writer) (Summary, error) { return copyTar(ctx, w, o.From) })
	if err != nil {
		return nil, err
	}
	edit := o.Edit
	edit.DiffID = diffID
	raw, err := config.Apply(base, edit)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	img, err := newImage(name.String(), o.Platform, raw, ocispec.Manifest{Layers: []ocispec.Descriptor{r.Layer}})
	if err != nil {
		return nil, err
	}
	r.Name, r.Digest = img.Name, img.Digest
	return r, s.Put(img)
}

// copyTar copies a tar, and reads on the way whether it is one.
func copyTar(ctx context.Context, w io.Writer, from io.Reader) (sum Summary, err error) {
	from = io.TeeReader(&interruptible{ctx, from}, w)
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			sum.Added++
			sum.Bytes += h.Size
			_, err = io.Copy(io.Discard, r)
		}
		if err != nil && ctx.Err() == nil {
			return sum, fmt.Errorf("%w: entry %d: %w", ErrTar, sum.Added+1, err)
		}
		if err != nil {
			return sum, ctx.Err()
		}
	}
	if sum.Added == 0 {
		return sum, fmt.Errorf("%w: it has no entry", ErrTar)
	}
	_, err = io.Copy(io.Discard, from) // what is behind its end belongs to the layer, too
	return sum, err
}

// interruptible ends a long copy when its context does.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (r *interruptible) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// addLayer stores the blob of a layer whose tar write writes.
func addLayer(s *image.Store, f layer.Format, write func(w io.Writer) (Summary, error)) (desc ocispec.Descriptor, sum Summary, diffID digest.Digest, err error) {
	desc, err = s.AddBlob(func(w io.Writer) (desc ocispec.Descriptor, err error) {
		e, err := encode.NewWriter(w, f)
		if err != nil {
			return desc, err
		}
		if sum, err = write(e); err != nil {
			e.Abort()
			return desc, err
		}
		if err := e.Close(); err != nil {
			return desc, err
		}
		diffID = e.Result().DiffID
		return e.Result().Desc, nil
	})
	return desc, sum, diffID, err
}

// newImage makes the image of a config and a manifest that lacks what follows from it.
func newImage(name string, platform ocispec.Platform, rawConfig []byte, m ocispec.Manifest) (img *image.Image, err error) {
	m.Versioned, m.MediaType = specs.Versioned{SchemaVersion: 2}, ocispec.MediaTypeImageManifest
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(rawConfig), Size: int64(len(rawConfig))}
	img = &image.Image{Name: name, Platform: platform, Manifest: m, RawConfig: rawConfig}
	if img.RawManifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	img.Digest = digest.FromBytes(img.RawManifest)
	if err := json.Unmarshal(rawConfig, &img.Config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return img, nil
}

// Export writes the tree that upper, which may be empty, makes of lower as a tar, in the
// order of names, to w.
// latest is as in Options. Errors: ErrName, ErrChanging, overlay.ErrUpper, and those of w
// and of reading upper and lower.
func Export(ctx context.Context, w io.Writer, upper overlay.Upper, lower *overlay.Tree, latest time.Time) (Summary, error) {
	sum, err := writeLayer(ctx, w, latest, func(fn func(*overlay.Change) error) error {
		return overlay.Everything(ctx, upper, lower, fn)
	})
	if err != nil {
		return sum, fmt.Errorf("export: %w", err)
	}
	return sum, nil
}
