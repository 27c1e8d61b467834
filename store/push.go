package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/atomicfile"
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
	// AllPlatforms pushes an image index as it is, with all that it leads to, whatever
	// Platform is. Without it one platform's manifest is pushed.
	AllPlatforms bool
	// WithIndex publishes the indexes of layers that need one beside the image, as
	// PackIndexes does. It is for one platform.
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
// that is the same one. A push that was interrupted goes on with the next blob. To a
// layout what it lacks is copied, and archives are written anew, or replaced when they
// are whole. p is told
// of the blobs. Errors are those of packages image, fetch and push, and of ctx.
func (s *Store) Push(ctx context.Context, o PushOptions, p Progress) (Pushed, error) {
	done, err := s.push(ctx, o, p)
	if err != nil {
		return done, fmt.Errorf("push %s: %w", o.Name, err)
	}
	return done, nil
}

func (s *Store) push(ctx context.Context, o PushOptions, p Progress) (Pushed, error) {
	to := o.To
	if to == "" {
		to = o.Name
	}
	target, err := image.ParseName(to)
	if err != nil {
		return Pushed{}, err
	}
	switch {
	case target.Transport != image.Registry && o.To == "":
		return Pushed{}, fmt.Errorf("%w: %s is no image of a registry: name one as the second argument", image.ErrName, to)
	case target.Transport != image.Registry && o.WithIndex:
		return Pushed{}, fmt.Errorf("%w: %s is no registry, which an index is published in", image.ErrName, to)
	}
	what, origin, err := s.outgoing(ctx, o)
	if err != nil {
		return Pushed{}, err
	}
	done := Pushed{Image: target.String(), Digest: what.Documents[len(what.Documents)-1].Desc.Digest}
	if target.Digest != "" && target.Digest != done.Digest {
		return done, fmt.Errorf("%w: it has the digest %s, not that of %s", image.ErrName, done.Digest, to)
	}
	what.Tag = target.Tag
	switch target.Transport {
	case image.Layout:
		done.Result, err = push.ToLayout(ctx, target.Path, what, push.Progress(p))
	case image.OCIArchive:
		done.Result = all(what)
		err = ToFile(target.Path, func(w io.Writer) error { return push.WriteOCIArchive(ctx, w, []push.Item{what}, push.Progress(p)) })
	case image.DockerArchive:
		done.Result = all(what)
		what.Name, what.Tag = target.Tag, ""
		if ref, perr := reference.ParseNormalizedNamed(target.Tag); perr == nil {
			if t, ok := ref.(reference.Tagged); ok {
				what.Tag = t.Tag()
			}
		}
		err = ToFile(target.Path, func(w io.Writer) error { return push.WriteDockerArchive(ctx, w, []push.Item{what}, push.Progress(p)) })
	default:
		return done, s.toRegistry(ctx, o, target.Ref, what, origin, &done, p)
	}
	return done, err
}

// all says that every blob was sent.
func all(what push.Item) (r push.Result) {
	seen := map[digest.Digest]bool{}
	for _, b := range what.Blobs {
		if !seen[b.Desc.Digest] {
			seen[b.Desc.Digest] = true
			r.Sent++
			r.Bytes += b.Desc.Size
		}
	}
	return r
}

// ToFile makes or replaces the file at path with what write writes, so that a crash leaves
// the old one or all of it. What is there and no regular file, such as a pipe, is written
// to. Errors are write's and the system's.
func ToFile(path string, write func(w io.Writer) error) error {
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := write(f); err != nil {
			_ = f.Close()
			return err
		}
		return f.Close()
	}
	return atomicfile.Write(path, path+".", func(f *os.File) error {
		if err := Buffered(f, write); err != nil {
			return err
		}
		return f.Chmod(0o644)
	})
}

// Buffered has write write to w in large pieces.
func Buffered(w io.Writer, write func(w io.Writer) error) error {
	b := bufio.NewWriterSize(w, 1<<20)
	if err := write(b); err != nil {
		return err // one line: what is left in b would fail for the same reason
	}
	return b.Flush()
}

// toRegistry pushes what was found, and notes in done how.
func (s *Store) toRegistry(ctx context.Context, o PushOptions, target reference.Named, what push.Item, origin reference.Named, done *Pushed, p Progress) error {
	if d, ok := target.(reference.Digested); ok && d.Digest() != done.Digest {
		return fmt.Errorf("%w: it has the digest %s, not that of %s", image.ErrName, done.Digest, target)
	}
	var from []reference.Named
	if origin != nil {
		from = append(from, origin)
	}
	r, err := push.NewRegistry(s.Client, target, from...)
	if err != nil {
		return err
	}
	if done.Result, err = r.Blobs(ctx, what.Blobs, push.Progress(p)); err != nil {
		return err
	}
	for i, d := range what.Documents {
		tag := ""
		if t, ok := target.(reference.Tagged); ok && i == len(what.Documents)-1 {
			tag = t.Tag()
		}
		if err := r.Manifest(ctx, d.Desc, d.Raw, tag); err != nil {
			return err
		}
	}
	if !o.WithIndex {
		return nil
	}
	packed, err := s.pushIndex(ctx, o, target, done.Digest)
	done.Index = packed.Artifact
	return err
}

// outgoing finds what is to be sent, and the repository that it comes from, if any.
func (s *Store) outgoing(ctx context.Context, o PushOptions) (it push.Item, origin reference.Named, err error) {
	open := image.Options{Platform: o.Platform, Pull: image.PullMissing, Client: s.Client, Store: s.Images, Log: s.Log}
	if !o.AllPlatforms {
		img, err := image.Open(ctx, o.Name, open)
		if err != nil {
			return it, nil, err
		}
		it.Blobs = push.Parts(img)
		it.Documents = []image.Document{{Desc: push.Descriptor(img), Raw: img.RawManifest}}
		return it, img.Origin, nil
	}
	it.Documents, origin, err = image.Documents(ctx, o.Name, open)
	for _, d := range it.Documents {
		for _, b := range d.Blobs {
			it.Blobs = append(it.Blobs, push.Blob{Desc: b.Desc, From: b.Blob, Origin: origin})
		}
	}
	return it, origin, err
}

// pushIndex publishes the index of what was pushed as target.
func (s *Store) pushIndex(ctx context.Context, o PushOptions, target reference.Named, pushed digest.Digest) (made Packed, err error) {
	t, err := s.Open(ctx, Ref{Name: o.Name, Platform: o.Platform, Pull: image.PullMissing, Index: IndexNever}, nil)
	if err != nil {
		return Packed{}, err
	}
	defer func() {
		if cerr := t.Close(); err == nil {
			err = cerr
		}
	}()
	if t.Image.Digest != pushed {
		return Packed{}, fmt.Errorf("%w: the name stands for another image now", image.ErrNotFound)
	}
	return s.packIndexes(ctx, t, reference.TrimNamed(target))
}

// SaveOptions say what to save.
type SaveOptions struct {
	Names []string
	// Platform is os/arch[/variant]; empty means the host's.
	Platform string
	// AllPlatforms saves image indexes as they are, with all that they lead to.
	AllPlatforms bool
	// Docker adds what docker load reads.
	Docker bool
}

// Save writes an archive of images to w: a tar of an OCI image layout, in which each blob
// is once, and with o.Docker what docker load needs besides. After an error a part of it
// was written. Errors are those of packages image, fetch and push, and of w.
func (s *Store) Save(ctx context.Context, w io.Writer, o SaveOptions, p Progress) error {
	var items []push.Item
	for _, name := range o.Names {
		it, _, err := s.outgoing(ctx, PushOptions{Name: name, Platform: o.Platform, AllPlatforms: o.AllPlatforms})
		if err != nil {
			return fmt.Errorf("save: %w", err)
		}
		n, err := image.ParseName(name)
		if err != nil {
			return fmt.Errorf("save: %w", err)
		}
		if it.Tag = n.Tag; n.Transport == image.Registry {
			it.Name, it.Tag = n.String(), ""
			if t, ok := n.Ref.(reference.Tagged); ok {
				it.Tag = t.Tag()
			}
		}
		items = append(items, it)
	}
	distinct(items)
	write := push.WriteOCIArchive
	if o.Docker {
		write = push.WriteDockerArchive
	}
	if err := write(ctx, w, items, push.Progress(p)); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	return nil
}

// distinct gives images that have one tag their full names instead, where they have any:
// a layout leads to one image by a tag.
func distinct(items []push.Item) {
	have := map[string]int{}
	for _, it := range items {
		have[it.Tag]++
	}
	for i := range items {
		if it := &items[i]; have[it.Tag] > 1 && it.Name != "" {
			it.Tag = it.Name
		}
	}
}
