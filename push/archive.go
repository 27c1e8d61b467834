package push

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/image"
)

// WriteOCIArchive writes a tar of an OCI image layout that has the images. The same
// images give the same bytes. Each blob is in it once; p counts the blobs of all images
// on.
//
// An error leaves w with a part of it: whoever writes a file must not leave that under
// its name. fetch.ErrDigest: a blob has other bytes than its descriptor says.
func WriteOCIArchive(ctx context.Context, w io.Writer, items []Item, p Progress) error {
	a, err := writeLayout(ctx, w, items, p)
	if err != nil {
		return err
	}
	return a.close()
}

// WriteDockerArchive is WriteOCIArchive that adds the manifest.json of docker save, which
// leads to the same blobs: docker load and whoever reads its archives take it, and who
// knows layouts finds manifests and digests as they were. Items of several platforms are
// refused.
func WriteDockerArchive(ctx context.Context, w io.Writer, items []Item, p Progress) error {
	list, err := dockerManifests(items)
	if err != nil {
		return err
	}
	a, err := writeLayout(ctx, w, items, p)
	if err != nil {
		return err
	}
	if err := a.file("manifest.json", list); err != nil {
		return err
	}
	return a.close()
}

// dockerManifest is an entry of docker's manifest.json.
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func dockerManifests(items []Item) ([]byte, error) {
	list := []dockerManifest{}
	for _, it := range items {
		if len(it.Documents) != 1 {
			return nil, fmt.Errorf("%w: a docker archive holds images for one platform", image.ErrNotImage)
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(it.Documents[0].Raw, &m); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", it.Documents[0].Desc.Digest, err)
		}
		e := dockerManifest{Config: blobPath(m.Config.Digest), Layers: []string{}}
		for _, l := range m.Layers {
			e.Layers = append(e.Layers, blobPath(l.Digest))
		}
		if ref, err := reference.ParseNormalizedNamed(it.Name); it.Name != "" && err == nil {
			e.RepoTags = append(e.RepoTags, reference.FamiliarString(ref))
		}
		list = append(list, e)
	}
	return json.Marshal(list)
}

func blobPath(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// writeLayout writes all of a layout.
func writeLayout(ctx context.Context, w io.Writer, items []Item, p Progress) (*archive, error) {
	a := &archive{tar: tar.NewWriter(w), seen: map[digest.Digest]bool{}}
	x := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if err := a.file(ocispec.ImageLayoutFile, layoutFile); err != nil {
		return nil, err
	}
	first := 0
	for _, it := range items {
		for i, b := range it.Blobs {
			if err := a.blob(ctx, &b, p.of(first+i, &b)); err != nil {
				return nil, err
			}
		}
		first += len(it.Blobs)
		for _, d := range it.Documents {
			b := Blob{Desc: d.Desc, From: memory{d.Desc.Digest, d.Raw}}
			if err := a.blob(ctx, &b, func(int64) {}); err != nil {
				return nil, err
			}
		}
		x.Manifests = entered(x.Manifests, it.root())
	}
	b, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	return a, a.file(ocispec.ImageIndexFile, b)
}

// archive is a tar that is being written.
type archive struct {
	tar  *tar.Writer
	seen map[digest.Digest]bool
}

// header begins a file.
func (a *archive) header(name string, size int64) error {
	err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0), Format: tar.FormatPAX})
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

func (a *archive) file(name string, b []byte) error {
	if err := a.header(name, int64(len(b))); err != nil {
		return err
	}
	if _, err := a.tar.Write(b); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

func (a *archive) blob(ctx context.Context, b *Blob, progress func(done int64)) error {
	d := b.Desc.Digest
	if a.seen[d] {
		return nil
	}
	a.seen[d] = true
	if err := a.header(blobPath(d), b.Desc.Size); err != nil {
		return err
	}
	return b.copyTo(ctx, a.tar, progress)
}

func (a *archive) close() error {
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}
