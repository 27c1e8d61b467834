package push

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/atomicfile"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
)

// An Item is an image, for one platform or several, to be sent: the blobs, and the
// documents that lead to them, of which the last one is the image.
type Item struct {
	Blobs     []Blob
	Documents []image.Document
	// Tag and Name are noted with the image in layouts and archives, unless empty, as
	// org.opencontainers.image.ref.name and io.containerd.image.name.
	Tag, Name string
}

// root returns the descriptor that leads to the image.
func (it *Item) root() ocispec.Descriptor {
	d := it.Documents[len(it.Documents)-1].Desc
	d.Annotations = map[string]string{}
	if it.Tag != "" {
		d.Annotations[ocispec.AnnotationRefName] = it.Tag
	}
	if it.Name != "" {
		d.Annotations[annotationName] = it.Name
	}
	return d
}

const (
	annotationName = "io.containerd.image.name"
	// unfinished begins the names of files that are not whole.
	unfinished = ".unfinished-"
	// maxIndex bounds the index.json that is read, in bytes.
	maxIndex = 64 << 20
)

var layoutFile = []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)

// ErrLayout: a directory holds something else than an OCI image layout.
var ErrLayout = errors.New("not an OCI image layout")

// ToLayout copies an image into the OCI image layout in dir (OCI image specification,
// "Image Layout"), which is made if it is not there. Blobs that it has stay as they are.
// What the layout had under the image's tag loses it. Others may do the same at the same
// time. A crash leaves blobs that nothing leads to at the most.
//
// Errors: ErrLayout, fetch.ErrDigest, those of reading the blobs, and the system's.
func ToLayout(ctx context.Context, dir string, it Item, p Progress) (Result, error) {
	l := layout{dir}
	result, err := l.add(ctx, it, p)
	if err != nil {
		return result, fmt.Errorf("write layout %s: %w", dir, err)
	}
	return result, nil
}

// layout is a directory.
type layout struct{ dir string }

func (l layout) add(ctx context.Context, it Item, p Progress) (Result, error) {
	if err := l.begin(); err != nil {
		return Result{}, err
	}
	var mu sync.Mutex // guards result
	var result Result
	seen := map[digest.Digest]bool{}
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	for i, b := range it.Blobs {
		if seen[b.Desc.Digest] {
			continue
		}
		seen[b.Desc.Digest] = true
		g.Go(func() error {
			made, err := l.blob(all, &b, p.of(i, &b))
			mu.Lock()
			defer mu.Unlock()
			if made {
				result.Sent++
				result.Bytes += b.Desc.Size
			} else {
				result.Present++
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return result, err
	}
	for _, d := range it.Documents {
		b := Blob{Desc: d.Desc, From: memory{d.Desc.Digest, d.Raw}}
		if _, err := l.blob(ctx, &b, func(int64) {}); err != nil {
			return result, err
		}
	}
	return result, l.enter(it.root())
}

// begin makes the layout if it is not there.
func (l layout) begin() error {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	unlock, err := l.lock() // another one may be about to make it
	if err != nil {
		return err
	}
	defer unlock()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	path := filepath.Join(l.dir, ocispec.ImageLayoutFile)
	if len(entries) > 0 {
		var v ocispec.ImageLayout
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &v)
		}
		if err != nil || v.Version != ocispec.ImageLayoutVersion {
			return fmt.Errorf("%w: it has no file oci-layout that says version %s", ErrLayout, ocispec.ImageLayoutVersion)
		}
		return nil
	}
	if err := l.file(path, layoutFile); err != nil {
		return err
	}
	return os.MkdirAll(filepath.Join(l.dir, "blobs"), 0o755)
}

// lock keeps others who write the layout by this package out until unlock is called.
func (l layout) lock() (unlock func(), err error) {
	dir, err := os.Open(l.dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	return func() { _ = dir.Close() }, nil
}

// file makes or replaces a small file, for everybody to read.
func (l layout) file(path string, b []byte) error {
	return atomicfile.Write(path, filepath.Join(filepath.Dir(path), unfinished), func(f *os.File) error {
		_, err := f.Write(b)
		return errors.Join(err, f.Chmod(0o644))
	})
}

// blob makes the file of a blob, if it is not there.
func (l layout) blob(ctx context.Context, b *Blob, progress func(done int64)) (made bool, err error) {
	if err := b.Desc.Digest.Validate(); err != nil {
		return false, fmt.Errorf("blob %q: %w: %w", b.Desc.Digest, fetch.ErrDigest, err)
	}
	dir := filepath.Join(l.dir, "blobs", b.Desc.Digest.Algorithm().String())
	path := filepath.Join(dir, b.Desc.Digest.Encoded())
	if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Size() == b.Desc.Size {
		progress(b.Desc.Size)
		return false, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	return true, atomicfile.Write(path, filepath.Join(dir, unfinished), func(f *os.File) error {
		if err := b.copyTo(ctx, f, progress); err != nil {
			return err
		}
		return f.Chmod(0o644)
	})
}

// enter notes the image in index.json.
func (l layout) enter(root ocispec.Descriptor) error {
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(l.dir, ocispec.ImageIndexFile)
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	switch b, err := readFile(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(b, &x); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrLayout, path, err)
		}
	}
	x.Manifests = entered(x.Manifests, root)
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	return l.file(path, b)
}

func readFile(path string) ([]byte, error) {
	if fi, err := os.Stat(path); err != nil || fi.Size() > maxIndex {
		if err == nil {
			err = fmt.Errorf("%w: %s has %d bytes", ErrLayout, path, fi.Size())
		}
		return nil, err
	}
	return os.ReadFile(path)
}

// entered returns entries with root in place of what had its tag, or stood for the same
// without one.
func entered(entries []ocispec.Descriptor, root ocispec.Descriptor) []ocispec.Descriptor {
	tag := root.Annotations[ocispec.AnnotationRefName]
	entries = slices.DeleteFunc(entries, func(d ocispec.Descriptor) bool {
		return d.Annotations[ocispec.AnnotationRefName] == tag && (tag != "" || d.Digest == root.Digest)
	})
	return append(entries, root)
}
