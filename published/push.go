package published

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/laminafs/lamina/fetch"
)

// ArtifactType is the artifact type of a published index.
const ArtifactType = "application/vnd.lamina.index.v1"

// The annotations of a pack's descriptor in the artifact's manifest.
const (
	// AnnotationLayer is the digest of the image layer's blob.
	AnnotationLayer = "dev.lamina.layer.digest"
	// AnnotationDiffID is the digest of that layer's uncompressed tar.
	AnnotationDiffID = "dev.lamina.layer.diff-id"
)

// uploads is how many blobs are sent at once.
const uploads = 4

// PackedLayer is a pack to be pushed.
type PackedLayer struct {
	Layer  digest.Digest // of the image layer's blob
	DiffID digest.Digest // of its uncompressed tar
	Path   string        // the file with what Pack wrote; it must not change
}

// Push uploads the packs, as far as the registry does not have them, and then
// the manifest of an artifact that refers to subject, the manifest of an image
// for one platform in repo. The same packs give the same manifest, and pushing it
// again changes nothing. Of several packs for one layer the first counts. Find
// finds the artifact afterwards, also where the registry has no referrers API.
//
// The registry is reached as Client.Origin says. Errors: fetch.ErrDenied when the
// credentials do not suffice, fetch.ErrNotFound when the registry does not take
// artifacts into that repository, fetch.ErrUnavailable, and those of ctx and of
// the files, which are *fs.PathError.
func Push(ctx context.Context, c *fetch.Client, repo reference.Named, subject ocispec.Descriptor, layers []PackedLayer) (ocispec.Descriptor, error) {
	desc, err := push(ctx, c, repo, subject, layers)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push index of %s@%s: %w", repo.Name(), subject.Digest, err)
	}
	return desc, nil
}

func push(ctx context.Context, c *fetch.Client, repo reference.Named, subject ocispec.Descriptor, layers []PackedLayer) (ocispec.Descriptor, error) {
	m := ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType,
		Config:       ocispec.DescriptorEmptyJSON,
		Subject:      &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
	}
	blobs := []v1.Layer{static.NewLayer(m.Config.Data, types.MediaType(m.Config.MediaType))}
	have := map[digest.Digest]bool{}
	for _, l := range layers {
		if have[l.Layer] {
			continue
		}
		have[l.Layer] = true
		desc, blob, err := l.open()
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		m.Layers = append(m.Layers, desc)
		blobs = append(blobs, blob)
	}
	if len(m.Layers) == 0 {
		return ocispec.Descriptor{}, errors.New("no layers")
	}
	body, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{
		MediaType: m.MediaType, ArtifactType: m.ArtifactType, Digest: digest.FromBytes(body), Size: int64(len(body)),
	}
	return desc, upload(ctx, c, repo, blobs, desc.Digest, body)
}

// upload sends blobs, and then the manifest body, whose digest is dgst.
func upload(ctx context.Context, c *fetch.Client, repo reference.Named, blobs []v1.Layer, dgst digest.Digest, body []byte) error {
	target, rt, err := c.Origin(repo)
	if err != nil {
		return err
	}
	pusher, err := remote.NewPusher(remote.WithTransport(rt))
	if err != nil {
		return err
	}
	group, all := errgroup.WithContext(ctx)
	group.SetLimit(uploads)
	for _, b := range blobs {
		group.Go(func() error { return pusher.Upload(all, target, b) })
	}
	if err := group.Wait(); err != nil {
		return cause(ctx, err)
	}
	// Not pusher.Push: that does nothing when the manifest exists, though the
	// tag that leads to it may be missing.
	return cause(ctx, pusher.Put(ctx, target.Digest(dgst.String()), manifest(body)))
}

// manifest implements remote.Taggable.
type manifest []byte

func (m manifest) RawManifest() ([]byte, error)        { return m, nil }
func (m manifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// open reads the pack once, for its descriptor.
func (l PackedLayer) open() (ocispec.Descriptor, v1.Layer, error) {
	f, err := os.Open(l.Path)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	defer func() { _ = f.Close() }()
	hash, size, err := v1.SHA256(f)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc := ocispec.Descriptor{
		MediaType:   LayerMediaType,
		Digest:      digest.Digest(hash.String()),
		Size:        size,
		Annotations: map[string]string{AnnotationLayer: l.Layer.String(), AnnotationDiffID: l.DiffID.String()},
	}
	blob, err := partial.CompressedToLayer(packFile{l.Path, hash, size})
	return desc, blob, err
}

// packFile implements partial.CompressedLayer.
type packFile struct {
	path string
	hash v1.Hash
	size int64
}

func (p packFile) Digest() (v1.Hash, error)            { return p.hash, nil }
func (p packFile) Compressed() (io.ReadCloser, error)  { return os.Open(p.path) }
func (p packFile) Size() (int64, error)                { return p.size, nil }
func (p packFile) MediaType() (types.MediaType, error) { return LayerMediaType, nil }

// cause returns err of go-containerregistry as one on which callers can decide,
// in one line and without the queries of addresses, which may be secret.
func cause(ctx context.Context, err error) error {
	var status *transport.Error
	var address *url.Error
	var file *fs.PathError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &file):
		return file // a pack that is gone is no fault of the registry
	case errors.As(err, &status):
		return refusal(status)
	case errors.As(err, &address):
		err = address.Err
	}
	var known *fetch.Error
	if errors.As(err, &known) {
		return err
	}
	return fmt.Errorf("%w: %w", fetch.ErrUnavailable, err)
}

// refusal is the error of a response that says no.
func refusal(e *transport.Error) error {
	kind := fetch.ErrUnavailable
	switch e.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = fetch.ErrDenied
	case http.StatusNotFound:
		kind = fetch.ErrNotFound
	}
	text := fmt.Sprintf("%d %s", e.StatusCode, http.StatusText(e.StatusCode))
	for _, d := range e.Errors {
		text += fmt.Sprintf("; %.40q %.200q", d.Code, d.Message)
	}
	if r := e.Request; r != nil {
		text = r.Method + " " + r.URL.Host + r.URL.Path + ": " + text
	}
	return fmt.Errorf("%w: %s", kind, text)
}
