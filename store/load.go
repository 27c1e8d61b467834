package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/image"
)

// LoadOptions say what to load.
type LoadOptions struct {
	// Path is the archive; empty means From.
	Path string
	// From is read to its end if Path is empty.
	From io.Reader
	// Name is what an image is called that has no name in the archive.
	Name string
}

// Loaded is an image that was loaded.
type Loaded struct {
	Name   string        `json:"name"`
	Digest digest.Digest `json:"digest"`
}

// Load takes the images of an archive into the store, as docker save, podman save, skopeo
// and Save write it, compressed or not. Blobs that are here are not copied. Either all
// images of the archive are here under their names, or the error says which is not; blobs
// that came before may be pruned. Errors are those of package image, of ctx and of
// o.From.
func (s *Store) Load(ctx context.Context, o LoadOptions, p Progress) ([]Loaded, error) {
	loaded, err := s.load(ctx, o, p)
	if err != nil {
		return loaded, fmt.Errorf("load: %w", err)
	}
	return loaded, nil
}

func (s *Store) load(ctx context.Context, o LoadOptions, p Progress) ([]Loaded, error) {
	path, done, err := s.seekable(ctx, o)
	if err != nil {
		return nil, err
	}
	defer done()
	found, err := image.Archives(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cmp.Or(o.Path, "what was piped in"), err)
	}
	var loaded []Loaded
	first := 0
	for _, a := range found {
		name, err := loadName(a, o.Name, len(found))
		if err != nil {
			return loaded, err
		}
		images, err := image.OpenAll(ctx, a.In.String(), image.Options{Log: s.Log})
		if err != nil {
			return loaded, err
		}
		if err := s.takeIn(ctx, images, first, p); err != nil {
			return loaded, err
		}
		for _, img := range images {
			first += len(img.Layers)
			named := *img
			named.Name, named.Origin = name, nil
			if err := s.remember(&named); err != nil {
				return loaded, err
			}
			loaded = append(loaded, Loaded{Name: name, Digest: img.Digest})
		}
	}
	return loaded, nil
}

// loadName returns what an image of the archive is to be called.
func loadName(a image.Archived, otherwise string, images int) (string, error) {
	switch {
	case a.Name != "":
		return a.Name, nil
	case otherwise == "":
		return "", fmt.Errorf("%w: the archive does not say what the image is called: write its name after the options", image.ErrName)
	case images > 1:
		return "", fmt.Errorf("%w: the archive has %d images, and some have no name", image.ErrName, images)
	}
	n, err := image.ParseName(otherwise)
	if err != nil {
		return "", err
	}
	if _, ok := n.Ref.(reference.Tagged); !ok {
		return "", fmt.Errorf("%w: %s: write one with a tag, such as app:1.0", image.ErrName, otherwise)
	}
	return n.String(), nil
}

// takeIn copies the blobs of images that are not here; their layers are counted from
// first on.
func (s *Store) takeIn(ctx context.Context, images []*image.Image, first int, p Progress) error {
	seen := map[digest.Digest]bool{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxCopies)
	for _, img := range images {
		for k, l := range img.Layers {
			if seen[l.Desc.Digest] {
				continue
			}
			seen[l.Desc.Digest] = true
			n := first + k
			g.Go(func() error {
				return s.Images.Fetch(gctx, l.Desc, l.Blob, func(done, total int64) {
					if p != nil {
						p(n, l.Desc.Digest.String(), done, total)
					}
				})
			})
		}
		first += len(img.Layers)
	}
	return g.Wait()
}

// maxCopies bounds the blobs that are copied, and verified, at once.
const maxCopies = 4

// seekable returns the path of the archive as a tar that can be read at any offset, and
// what to call at the end. What is compressed, or comes from a pipe, is written to a file
// of the store that goes with the process.
func (s *Store) seekable(ctx context.Context, o LoadOptions) (path string, done func(), err error) {
	from := o.From
	if o.Path != "" {
		f, err := os.Open(o.Path)
		if err != nil {
			return "", nil, err
		}
		plain, err := isPlainTar(f)
		if plain || err != nil {
			return o.Path, func() {}, errors.Join(err, f.Close())
		}
		defer func() { _ = f.Close() }()
		from = f
	}
	fd, err := unix.Open(s.Root, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	var f *os.File
	if err == nil {
		f = os.NewFile(uintptr(fd), filepath.Join(s.Root, "archive"))
		path = fmt.Sprintf("/proc/self/fd/%d", fd)
	} else {
		if f, err = os.CreateTemp(s.Root, ".archive-*"); err != nil {
			return "", nil, err
		}
		path = f.Name()
	}
	done = func() {
		_ = f.Close()
		if path == f.Name() {
			_ = os.Remove(path)
		}
	}
	if err := spool(ctx, f, from); err != nil {
		done()
		return "", nil, err
	}
	return path, done, nil
}

// spool writes what from holds, decompressed, to f.
func spool(ctx context.Context, f *os.File, from io.Reader) error {
	r, err := Decompressed(from)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if _, werr := f.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the archive: %w", err)
		}
	}
}
