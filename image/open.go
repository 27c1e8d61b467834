package image

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/distribution/reference"
	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Layer is one layer of an image.
type Layer struct {
	// Desc is the manifest's descriptor: media type, digest and size of the
	// blob, annotations.
	Desc ocispec.Descriptor

	// DiffID is the digest of the uncompressed tar, from the config. Empty
	// while the config is not known, see Options.OnManifest.
	DiffID digest.Digest

	// Blob reads the layer. It implements fetch.Local when the bytes are in a
	// file here.
	Blob fetch.Blob
}

// An Image is one image for one platform. It is not changed after Open returned
// it; whoever reads it may share it.
type Image struct {
	// Name is the full name it was opened by, which ParseName reads.
	Name string

	// Digest is the digest of RawManifest, thus of the manifest for Platform.
	Digest digest.Digest

	// Index is the digest of the image index the name stands for, empty if it
	// stands for the manifest itself.
	Index digest.Digest

	// Origin is the repository the layers can be fetched from, without tag and
	// digest. Nil for images in files.
	Origin reference.Named

	// Platform is the image's own platform.
	Platform ocispec.Platform

	// Manifest and Config are the parsed documents, RawManifest and RawConfig
	// the bytes their digests cover. The manifest of a docker archive is made
	// by this package, as there is none in the file.
	Manifest               ocispec.Manifest
	Config                 ocispec.Image
	RawManifest, RawConfig []byte

	// Layers are the layers, bottom first.
	Layers []Layer

	desc    ocispec.Descriptor // of RawManifest
	indexes []rawDocument      // the indexes between name and manifest
}

// Policy says when the registry is asked for an image that may be stored.
type Policy uint8

// The policies. They concern names of registries only.
const (
	PullMissing Policy = iota // when it is not stored; a tag that moved goes unnoticed
	PullAlways                // every time, for the manifest; blobs that are here are used
	PullNever                 // never
)

// ParsePolicy parses "missing", "always" or "never"; "" is missing.
func ParsePolicy(s string) (Policy, error) {
	switch s {
	case "", "missing":
		return PullMissing, nil
	case "always":
		return PullAlways, nil
	case "never":
		return PullNever, nil
	}
	return 0, fmt.Errorf("pull policy %q: write missing, always or never", s)
}

// String returns what ParsePolicy reads.
func (p Policy) String() string {
	switch p {
	case PullAlways:
		return "always"
	case PullNever:
		return "never"
	default:
		return "missing"
	}
}

// Options say how Open finds an image. The zero Options open files.
type Options struct {
	// Platform is the wanted platform, such as "linux/arm64/v8"; "" is this
	// host's.
	Platform string

	// Pull says when to ask the registry.
	Pull Policy

	// Client asks registries. Nil if there are none to ask: names of images
	// that are not stored then fail.
	Client *fetch.Client

	// Store remembers images of registries. May be nil.
	Store *Store

	// OnManifest, if set, is called once as soon as the manifest is known, by
	// Open's own goroutine and before the config is fetched: a caller that
	// starts to fetch layers in goroutines of its own saves a round trip. It gets
	// an image of its own, which stays as it is: of one that is fetched the config
	// is not known, nor the DiffID of its layers. Open may still fail afterwards.
	OnManifest func(img *Image)

	// Log is told what did not stop Open: a stored image that was damaged, an
	// image that could not be stored. Nil is silence.
	Log *slog.Logger
}

// manifestKnown calls OnManifest with a copy, as Open goes on to fill in the diff
// IDs.
func (o *Options) manifestKnown(img *Image) {
	if o.OnManifest == nil {
		return
	}
	known := *img
	known.Layers = append([]Layer(nil), img.Layers...)
	o.OnManifest(&known)
}

// warn logs what does not stop Open.
func (o *Options) warn(msg string, args ...any) {
	if o.Log != nil {
		o.Log.Warn(msg, args...)
	}
}

// Open finds the image that name stands for, in the platform that o wants, and
// reads its manifest and config. See ParseName for names. An image of a
// registry is looked up in o.Store first, as o.Pull says, and is stored there
// after it was fetched; failing to store it is logged only.
//
// Errors wrap a sentinel of this package, or what the fetch client returned.
// They begin "open NAME: ", but for ErrName, which names the name itself.
func Open(ctx context.Context, name string, o Options) (*Image, error) {
	n, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	img, err := open(ctx, n, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return img, nil
}

func open(ctx context.Context, n Name, o Options) (*Image, error) {
	want, err := parseTarget(o.Platform)
	if err != nil {
		return nil, err
	}
	switch n.Transport {
	case Layout:
		return openLayout(ctx, n, want, o)
	case OCIArchive:
		return openOCIArchive(ctx, n, want, o)
	case DockerArchive:
		return openDockerArchive(ctx, n, want, o)
	default:
		return openRegistry(ctx, n, want, o)
	}
}
