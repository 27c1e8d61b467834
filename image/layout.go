package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of the entries of index.json.
const (
	annotationName   = "io.containerd.image.name"
	annotationOrigin = "io.github.laminafs.image.origin"
	annotationIndex  = "io.github.laminafs.image.index"
)

// maxIndexJSON bounds index.json, which in a store names many images.
const maxIndexJSON = 64 << 20

// A tree holds files by slash-separated names: a directory or a tar archive.
type tree interface {
	// file returns where the regular file is. A name that is not there gives
	// an error that is fs.ErrNotExist.
	file(name string) (section, error)
}

// A section is a file of a tree: a range of a file on this machine.
type section struct {
	path      string
	off, size int64
	whole     bool // all of the file: size is what it was when it was found
}

// blob is the section as a blob with the digest.
func (s section) blob(d digest.Digest) fetch.Blob { return fetch.OpenFile(s.path, s.off, s.size, d) }

// read reads the section, which must not be longer than limit.
func (s section) read(limit int64) ([]byte, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	if s.whole {
		// Another process may have replaced the file since it was found.
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		s.size = st.Size()
	}
	if s.size > limit {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrCorrupt, s.size, limit)
	}
	b := make([]byte, s.size)
	if _, err := f.ReadAt(b, s.off); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %s: %w", s.path, err)
	}
	return b, nil
}

// readFile reads a file of a tree whose digest is not known.
func readFile(t tree, name string, limit int64) ([]byte, error) {
	s, err := t.file(name)
	if err != nil {
		return nil, err
	}
	b, err := s.read(limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// dirTree is a tree in a directory.
type dirTree struct{ dir string }

func (t dirTree) file(name string) (section, error) {
	path := filepath.Join(t.dir, filepath.FromSlash(name))
	st, err := os.Stat(path)
	if err != nil {
		return section{}, err
	}
	// Opening a FIFO would wait for a writer.
	if !st.Mode().IsRegular() {
		return section{}, fmt.Errorf("%w: %s is not a regular file", ErrCorrupt, path)
	}
	return section{path: path, size: st.Size(), whole: true}, nil
}

// layoutSource reads an OCI image layout out of a tree.
type layoutSource struct {
	tree tree

	// remote returns the blob of a layer that the layout lacks. Nil if a
	// layout must be complete.
	remote func(desc ocispec.Descriptor) fetch.Blob
}

// blob finds a blob that is in the layout.
func (l layoutSource) blob(desc ocispec.Descriptor) (fetch.Blob, error) {
	s, err := l.tree.file(blobPath(desc.Digest))
	switch {
	case isNotExist(err):
		return nil, fmt.Errorf("%w: blob %s is not in the layout: %w", ErrCorrupt, desc.Digest, fs.ErrNotExist)
	case err != nil:
		return nil, err
	case s.size != desc.Size:
		return nil, fmt.Errorf("%w: blob %s has %d bytes, its descriptor says %d", ErrCorrupt, desc.Digest, s.size, desc.Size)
	}
	return s.blob(desc.Digest), nil
}

func (l layoutSource) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	b, err := l.blob(desc)
	if err != nil {
		return nil, err
	}
	return readVerified(ctx, b, maxManifest)
}

func (l layoutSource) config(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	b, err := l.blob(desc)
	if err != nil {
		return nil, err
	}
	return readVerified(ctx, b, maxConfig)
}

func (l layoutSource) layer(desc ocispec.Descriptor) (fetch.Blob, error) {
	b, err := l.blob(desc)
	if l.remote == nil {
		return b, err
	}
	remote := l.remote(desc)
	if err != nil {
		// Missing, or cut off by a crash while it was pulled.
		return remote, nil
	}
	if local, ok := b.(fetch.Local); ok && remote != nil {
		return fetch.Fallback(local, remote), nil // it may be pruned
	}
	return b, nil
}

// openLayout opens an image in an OCI layout.
func openLayout(ctx context.Context, n Name, want target, o Options) (*Image, error) {
	src, roots, err := findLayout(n, o)
	if err != nil {
		return nil, err
	}
	return openResolved(ctx, src, n, want, roots, o)
}

// findLayout returns an OCI layout and the descriptors that the name stands for
// in it.
func findLayout(n Name, o Options) (src layoutSource, roots []ocispec.Descriptor, err error) {
	dir, err := filepath.Abs(n.Path)
	if err != nil {
		return src, nil, err
	}
	switch st, err := os.Stat(dir); {
	case isNotExist(err):
		return src, nil, fmt.Errorf("%w: no directory %s%s", ErrNotFound, n.Path, n.colonHint())
	case err != nil:
		return src, nil, err
	case !st.IsDir():
		return src, nil, fmt.Errorf("%w: %s is a file; write oci-archive:FILE or docker-archive:FILE", ErrNotFound, n.Path)
	}
	src = layoutSource{tree: dirTree{dir}}
	roots, err = src.roots(n)
	if err != nil {
		return src, nil, err
	}
	if o.Store != nil && o.Client != nil && o.Store.isDir(dir) {
		src.remote = remoteOf(roots[0], o.Client)
	}
	return src, roots, nil
}

// remoteOf returns the function that finds missing layers of an entry of our
// own store at their origin, nil if the entry has none.
func remoteOf(entry ocispec.Descriptor, c *fetch.Client) func(ocispec.Descriptor) fetch.Blob {
	origin, err := reference.ParseNormalizedNamed(entry.Annotations[annotationOrigin])
	if err != nil || c == nil {
		return nil
	}
	return func(desc ocispec.Descriptor) fetch.Blob { return c.Blob(origin, desc) }
}

// openResolved opens the image for the target among the roots that a name of
// a file stands for.
func openResolved(ctx context.Context, src layoutSource, n Name, want target, roots []ocispec.Descriptor, o Options) (*Image, error) {
	found, err := resolveAny(ctx, src, want, roots)
	if err != nil {
		return nil, err
	}
	img, err := newImage(src, found)
	if err != nil {
		return nil, err
	}
	img.Name = n.String()
	o.manifestKnown(img)
	return img, img.loadConfig(ctx, src, want)
}

// index reads and checks the layout's own files.
func (l layoutSource) index() (*ocispec.Index, error) {
	raw, err := readFile(l.tree, ocispec.ImageLayoutFile, maxManifest)
	if isNotExist(err) {
		return nil, fmt.Errorf("%w: not an OCI image layout, it has no %s", ErrNotFound, ocispec.ImageLayoutFile)
	}
	if err != nil {
		return nil, err
	}
	var v ocispec.ImageLayout
	if err := json.Unmarshal(raw, &v); err != nil {
		return nil, fmt.Errorf("%w: parse %s: %w", ErrCorrupt, ocispec.ImageLayoutFile, err)
	}
	if !strings.HasPrefix(v.Version, "1.") {
		return nil, fmt.Errorf("%w: an OCI image layout of version %.20q, only 1.x is known", ErrNotImage, v.Version)
	}
	raw, err = readFile(l.tree, ocispec.ImageIndexFile, maxIndexJSON)
	if isNotExist(err) {
		return nil, fmt.Errorf("%w: the OCI image layout has no %s", ErrCorrupt, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	return x, nil
}

// roots returns the descriptors that a name stands for: at least one, several
// when they are the same image for different platforms.
func (l layoutSource) roots(n Name) ([]ocispec.Descriptor, error) {
	x, err := l.index()
	if err != nil {
		return nil, err
	}
	if n.Digest != "" {
		return l.byDigest(x, n.Digest)
	}
	images := make([]ocispec.Descriptor, 0, len(x.Manifests))
	for _, d := range x.Manifests {
		if !isAttachment(d) {
			images = append(images, d)
		}
	}
	if n.Tag != "" {
		if found := byTag(images, n.Tag); len(found) > 0 {
			return found, nil
		}
		return nil, fmt.Errorf("%w: no tag %q; %s", ErrNotFound, n.Tag, tagsOf(images))
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%w: the layout is empty", ErrNotFound)
	}
	for _, d := range images[1:] {
		if entryName(d) != entryName(images[0]) {
			return nil, fmt.Errorf("%w: there are several images, add :TAG; %s", ErrNotFound, tagsOf(images))
		}
	}
	return images, nil
}

// byDigest finds a manifest that index.json lists or an index in it refers to:
// any blob of the layout may be named by its digest.
func (l layoutSource) byDigest(x *ocispec.Index, want digest.Digest) ([]ocispec.Descriptor, error) {
	for _, d := range x.Manifests {
		if d.Digest == want {
			return []ocispec.Descriptor{d}, nil
		}
	}
	s, err := l.tree.file(blobPath(want))
	if isNotExist(err) {
		return nil, fmt.Errorf("%w: no manifest %s in the layout", ErrNotFound, want)
	}
	if err != nil {
		return nil, err
	}
	return []ocispec.Descriptor{{Digest: want, Size: s.size}}, nil
}

// byTag finds the entries with a tag or full name: by the exact annotation
// first, then by what Docker's rules make of both.
func byTag(images []ocispec.Descriptor, tag string) []ocispec.Descriptor {
	matching := func(match func(name string) bool) []ocispec.Descriptor {
		var found []ocispec.Descriptor
		for _, d := range images {
			if match(d.Annotations[ocispec.AnnotationRefName]) || match(d.Annotations[annotationName]) {
				found = append(found, d)
			}
		}
		return found
	}
	if found := matching(func(name string) bool { return name == tag }); len(found) > 0 {
		return found
	}
	ref, err := reference.ParseDockerRef(tag)
	if err != nil {
		return nil
	}
	return matching(func(name string) bool {
		other, err := reference.ParseDockerRef(name)
		return err == nil && strings.ContainsAny(name, "/:") && other.String() == ref.String()
	})
}

// entryName is the name of an entry of index.json, "" if it has none.
func entryName(d ocispec.Descriptor) string {
	if name := d.Annotations[annotationName]; name != "" {
		return name
	}
	return d.Annotations[ocispec.AnnotationRefName]
}

// tagsOf lists the names there are, for an error message.
func tagsOf(images []ocispec.Descriptor) string {
	var names []string
	for _, d := range images {
		name := d.Annotations[ocispec.AnnotationRefName]
		if name == "" {
			name = entryName(d)
		}
		if name == "" {
			name = "@" + d.Digest.String()
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return "the layout is empty"
	}
	return "there is " + list(names)
}
