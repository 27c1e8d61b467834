package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/integration/images"
)

// storage is the registry's file-system driver's directory.
type storage struct {
	dir    string // docker/registry/v2 is below
	layout string // the OCI layout that blobs are linked from
}

func (s storage) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir, "docker", "registry", "v2"}, parts...)...)
}

// add puts the layout's manifest desc, with all it names, into a repository.
func (s storage) add(repo, tag string, desc ocispec.Descriptor) error {
	if err := s.manifest(repo, desc); err != nil {
		return fmt.Errorf("registry storage: %s:%s: %w", repo, tag, err)
	}
	tags := s.path("repositories", repo, "_manifests", "tags", tag)
	return errors.Join(
		link(filepath.Join(tags, "current", "link"), desc.Digest),
		link(filepath.Join(tags, "index", "sha256", desc.Digest.Encoded(), "link"), desc.Digest),
	)
}

func (s storage) manifest(repo string, desc ocispec.Descriptor) error {
	if err := s.blob(desc); err != nil {
		return err
	}
	if err := link(s.path("repositories", repo, "_manifests", "revisions", "sha256", desc.Digest.Encoded(), "link"), desc.Digest); err != nil {
		return err
	}
	b, err := os.ReadFile(images.BlobFile(s.layout, desc))
	if err != nil {
		return err
	}
	var m struct {
		Config    *ocispec.Descriptor
		Layers    []ocispec.Descriptor
		Manifests []ocispec.Descriptor
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	for _, d := range m.Manifests {
		if err := s.manifest(repo, d); err != nil {
			return err
		}
	}
	if m.Config != nil {
		m.Layers = append(m.Layers, *m.Config)
	}
	for _, d := range m.Layers {
		if err := s.blob(d); err != nil {
			return err
		}
		if err := link(s.path("repositories", repo, "_layers", "sha256", d.Digest.Encoded(), "link"), d.Digest); err != nil {
			return err
		}
	}
	return nil
}

func (s storage) blob(d ocispec.Descriptor) error {
	hexa := d.Digest.Encoded()
	dst := s.path("blobs", "sha256", hexa[:2], hexa, "data")
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	if err := os.Link(images.BlobFile(s.layout, d), dst); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func link(path string, d digest.Digest) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(d.String()), 0o644)
}
