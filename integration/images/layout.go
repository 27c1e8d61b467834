package images

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layout is an OCI image layout being written. Blobs may be added concurrently;
// the rest is for one goroutine.
type Layout struct {
	dir   string
	index ocispec.Index
}

// NewLayout makes an empty layout in dir, which it creates.
func NewLayout(dir string) (*Layout, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	l := &Layout{dir: dir, index: ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
	}}
	b, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	return l, os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), b, 0o644)
}

// AddBlob stores what write writes, under its digest.
func (l *Layout) AddBlob(write func(io.Writer) error) (digest.Digest, int64, error) {
	f, err := os.CreateTemp(l.dir, "blob")
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	d := digest.Canonical.Digester()
	if err := write(io.MultiWriter(f, d.Hash())); err != nil {
		_ = f.Close()
		return "", 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close()
		return "", 0, err
	}
	if err := f.Close(); err != nil {
		return "", 0, err
	}
	if err := os.Chmod(f.Name(), 0o644); err != nil {
		return "", 0, err
	}
	return d.Digest(), size, os.Rename(f.Name(), l.BlobPath(d.Digest()))
}

// BlobPath returns where the layout keeps a blob.
func (l *Layout) BlobPath(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// AddJSON stores a document and returns its descriptor.
func (l *Layout) AddJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, n, err := l.AddBlob(func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(b))
		return err
	})
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: n}, err
}

// AddImage stores config and manifest of an image whose layers the layout has,
// bottom first, and returns the manifest's descriptor. It is not tagged.
func (l *Layout) AddImage(cfg ocispec.ImageConfig, p ocispec.Platform, layers []ocispec.Descriptor, diffIDs []digest.Digest) (ocispec.Descriptor, error) {
	// Always the same: an image's digest is to depend on what is in it.
	created := time.Unix(1_700_000_000, 0).UTC()
	img := ocispec.Image{
		Created: &created, Platform: p, Config: cfg,
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	}
	for range layers {
		img.History = append(img.History, ocispec.History{Created: &created, CreatedBy: "lamina test"})
	}
	config, err := l.AddJSON(ocispec.MediaTypeImageConfig, img)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.AddJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: layers,
	})
}

// Tag gives a manifest or an index a name.
func (l *Layout) Tag(desc ocispec.Descriptor, name string) {
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	l.index.Manifests = append(l.index.Manifests, desc)
}

// Close writes the layout's index.
func (l *Layout) Close() error {
	b, err := json.Marshal(l.index)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), b, 0o644); err != nil {
		return fmt.Errorf("layout %s: %w", l.dir, err)
	}
	return nil
}
