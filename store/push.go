package store

import (
	"context"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/push"
)

// PushOptions say what to push, and where to.
type PushOptions struct {
	Name string
	// To is the name to push it as; empty means Name.
	To string
	// Platform is os/arch[/variant]; empty means the host's.
	Platform string
	// WithIndex publishes the indexes of layers that need one beside the image, as
	// PackIndexes does.
	WithIndex bool
}

// Pushed is an image that was pushed.
type Pushed struct {
	Image  string        `json:"image"` // the name it was pushed as
	Digest digest.Digest `json:"digest"`
	push.Result
	// Index is the digest of the published index, if there is one.
	Index digest.Digest `json:"index,omitempty"`
}

// Push sends an image to a registry: the blobs that it lacks, and then the manifest. What
// of it is not in the store is streamed from the registry it came from, and mounted where
// that is the same one. A push that was interrupted goes on with the next blob. p is told
// of the layers. Errors are those of packages image, fetch and push, and of ctx.
func (s *Store) Push(ctx context.Context, o PushOptions, p Progress) (Pushed, error) {
	done, err := s.push(ctx, o, p)
	if err != nil {
		return done, fmt.Errorf("push %s: %w", o.Name, err)
	}
	return done, nil
}

func (s *Store) push(ctx context.Context, o PushOptions, p Progress) (Pushed, error) {
	target, err := pushTarget(o)
	if err != nil {
		return Pushed{}, err
	}
	img, err := image.Open(ctx, o.Name, image.Options{
		Platform: o.Platform, Pull: image.PullMissing, Client: s.Client, Store: s.Images, Log: s.Log,
	})
	if err != nil {
		return Pushed{}, err
	}
	done := Pushed{Image: target.String(), Digest: img.Digest}
	var from []reference.Named
	if img.Origin != nil {
		from = append(from, img.Origin)
	}
	r, err := push.NewRegistry(s.Client, target, from...)
	if err != nil {
		return done, err
	}
	if done.Result, err = r.Blobs(ctx, []*image.Image{img}, push.Progress(p)); err != nil {
		return done, err
	}
	tag := ""
	if t, ok := target.(reference.Tagged); ok {
		tag = t.Tag()
	}
	if err := r.Manifest(ctx, push.Descriptor(img), img.RawManifest, tag); err != nil {
		return done, err
	}
	if !o.WithIndex {
		return done, nil
	}
	packed, err := s.pushIndex(ctx, o, target, img)
	done.Index = packed.Artifact
	return done, err
}

// pushTarget returns the reference that o.Name is pushed as.
func pushTarget(o PushOptions) (reference.Named, error) {
	to := o.To
	if to == "" {
		to = o.Name
	}
	name, err := image.ParseName(to)
	if err != nil {
		return nil, err
	}
	if name.Transport != image.Registry {
		return nil, fmt.Errorf("%w: %s is no image of a registry: name one as the second argument", image.ErrName, to)
	}
	return name.Ref, nil
}

// pushIndex publishes the index of what was pushed as target.
func (s *Store) pushIndex(ctx context.Context, o PushOptions, target reference.Named, img *image.Image) (made Packed, err error) {
	t, err := s.Open(ctx, Ref{Name: o.Name, Platform: o.Platform, Pull: image.PullMissing, Index: IndexNever}, nil)
	if err != nil {
		return Packed{}, err
	}
	defer func() {
		if cerr := t.Close(); err == nil {
			err = cerr
		}
	}()
	if t.Image.Digest != img.Digest {
		return Packed{}, fmt.Errorf("%w: the name stands for another image now", image.ErrNotFound)
	}
	return s.packIndexes(ctx, t, reference.TrimNamed(target))
}
