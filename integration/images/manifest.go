package images

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Tagged returns what the index of the layout in dir gives a name to.
func Tagged(dir string) (map[string]ocispec.Descriptor, error) {
	b, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("layout %s: %w", dir, err)
	}
	tags := map[string]ocispec.Descriptor{}
	for _, d := range index.Manifests {
		if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
			tags[name] = d
		}
	}
	return tags, nil
}

// BlobFile returns where the layout in dir keeps a blob.
func BlobFile(dir string, d ocispec.Descriptor) string {
	return filepath.Join(dir, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
}

// Manifest returns the manifest that the layout in dir gives a name to.
func Manifest(dir, tag string) (m ocispec.Manifest, err error) {
	tags, err := Tagged(dir)
	if err != nil {
		return m, err
	}
	d, ok := tags[tag]
	if !ok {
		return m, fmt.Errorf("layout %s: no image %q", dir, tag)
	}
	b, err := os.ReadFile(BlobFile(dir, d))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("layout %s: manifest of %q: %w", dir, tag, err)
	}
	return m, nil
}
