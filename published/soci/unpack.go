package soci

import (
	"context"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/tarscan"
	"github.com/laminafs/lamina/published"
)

// Unpack derives tree and chunk table of the layer whose blob want describes from
// its ztoc. The bytes need not be trusted, but who reads from a registry compares
// their digest first, as fetch.ReadAll does. The result keeps nothing of them.
//
// published.ErrInvalid: this is not a ztoc of that blob, or one that cannot be used:
// the layer must be streamed. Other errors are those of ctx.
func Unpack(ctx context.Context, ztoc []byte, want ocispec.Descriptor) (*layer.Scanned, error) {
	s, err := unpack(ctx, ztoc, want)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("unpack ztoc of layer %s: %w", want.Digest, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("unpack ztoc of layer %s: %w: %w", want.Digest, published.ErrInvalid, err)
	}
	return s, nil
}

func unpack(ctx context.Context, b []byte, want ocispec.Descriptor) (*layer.Scanned, error) {
	if len(b) > maxZtoc {
		return nil, fmt.Errorf("%d bytes", len(b))
	}
	z, err := openZtoc(b)
	if err != nil {
		return nil, err
	}
	blob, tar, err := z.sizes()
	if err != nil {
		return nil, err
	}
	if blob != want.Size {
		return nil, fmt.Errorf("it is of a blob of %d bytes, not %d", blob, want.Size)
	}
	a, err := layer.NewAssembly(want, tar)
	if err != nil {
		return nil, err
	}
	for i := range z.spans {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, sum, err := z.span(i)
		if err == nil {
			err = a.Span(c, sum)
		}
		if err != nil {
			return nil, fmt.Errorf("span %d: %w", i, err)
		}
	}
	if err := addEntries(ctx, a, z); err != nil {
		return nil, err
	}
	return a.Finish()
}

// addEntries adds the entries, which must be in the order of the tar.
func addEntries(ctx context.Context, a *layer.Assembly, z *ztoc) error {
	free := int64(0) // where the next header may start
	for i := range z.entries {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		h, err := z.entry(i)
		if err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
		// A sparse file's data is shorter than the file: it would reach into
		// the next header, or beyond the tar, which Assembly sees.
		if h.Data%tarscan.BlockSize != 0 || h.Data < free || h.Data-free < tarscan.BlockSize {
			return fmt.Errorf("entry %.200q: data at %d, where the header may start at %d", h.Name, h.Data, free)
		}
		if err := a.Entry(h); err != nil {
			return err
		}
		free = h.Data
		if h.Type == tarscan.TypeReg {
			free += (h.Size + tarscan.BlockSize - 1) / tarscan.BlockSize * tarscan.BlockSize
		}
	}
	return nil
}
