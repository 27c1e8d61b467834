package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"

	_ "crypto/sha256" // digests of descriptors; go-digest links none itself
	_ "crypto/sha512"

	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds on documents from outside. Registries accept manifests of 4 MiB; the
// largest configs seen are some hundred KiB.
const (
	maxManifest = 8 << 20
	maxConfig   = 8 << 20
	maxLayers   = 4096 // the kernel engine's device slots are numbered by 16 bits
)

// Docker's media types. Their documents have the shape of the OCI ones.
const (
	dockerManifest     = fetch.DockerManifest
	dockerManifestList = fetch.DockerManifestList
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Sig   = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// document is what a manifest or an index is classified by. Exactly one of
// manifest and index is set.
type document struct {
	manifest *ocispec.Manifest
	index    *ocispec.Index
}

// parseDocument parses the bytes of a manifest or an index, which the caller
// has verified. mediaType is the type they were announced with, or "". Errors
// wrap ErrCorrupt or ErrNotImage.
func parseDocument(raw []byte, mediaType string) (document, error) {
	probe, err := fetch.ParseDocument(raw)
	if err != nil {
		return document{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	announced, stated := specific(mediaType), specific(probe.MediaType)
	if string(probe.SchemaVersion) == "1" || probe.FSLayers != nil || isSchema1(announced) || isSchema1(stated) {
		return document{}, fmt.Errorf("%w: its manifest has docker's schema 1, obsolete since 2017; pull and push it again with a current docker", ErrNotImage)
	}
	if announced != "" && stated != "" && announced != stated {
		return document{}, fmt.Errorf("%w: a manifest announced as %.200q says it is %.200q", ErrCorrupt, announced, stated)
	}
	kind := stated
	if kind == "" {
		kind = announced
	}
	switch {
	case isIndexType(kind), kind == "" && probe.IsIndex():
		if probe.IsManifest() {
			return document{}, fmt.Errorf("%w: an image index with layers", ErrCorrupt)
		}
		index, err := parseIndex(raw)
		return document{index: index}, err
	case isManifestType(kind), kind == "" && probe.IsManifest():
		if probe.IsIndex() {
			return document{}, fmt.Errorf("%w: an image manifest that lists manifests", ErrCorrupt)
		}
		manifest, err := parseManifest(raw)
		return document{manifest: manifest}, err
	case kind != "":
		return document{}, fmt.Errorf("%w: its manifest has media type %.200q", ErrNotImage, kind)
	default:
		return document{}, fmt.Errorf("%w: a manifest with neither layers nor manifests", ErrCorrupt)
	}
}

// specific strips parameters off a media type, and drops the ones servers send
// when they do not know better.
func specific(mediaType string) string {
	if t, _, err := mime.ParseMediaType(mediaType); err == nil {
		mediaType = t
	}
	switch mediaType {
	case "application/json", "application/octet-stream", "text/plain":
		return ""
	}
	return mediaType
}

func isSchema1(t string) bool { return t == dockerSchema1 || t == dockerSchema1Sig }

func isIndexType(t string) bool { return t == ocispec.MediaTypeImageIndex || t == dockerManifestList }

func isManifestType(t string) bool { return t == ocispec.MediaTypeImageManifest || t == dockerManifest }

// parseIndex parses an image index or manifest list and checks its
// descriptors.
func parseIndex(raw []byte) (*ocispec.Index, error) {
	var x ocispec.Index
	if err := json.Unmarshal(raw, &x); err != nil {
		return nil, fmt.Errorf("%w: parse image index: %w", ErrCorrupt, err)
	}
	if x.SchemaVersion > 2 { // intact, and not to be repaired by us
		return nil, fmt.Errorf("%w: an image index of schema version %d, only 2 is known", ErrNotImage, x.SchemaVersion)
	}
	if x.SchemaVersion != 2 {
		return nil, fmt.Errorf("%w: an image index of schema version %d", ErrCorrupt, x.SchemaVersion)
	}
	for i, d := range x.Manifests {
		// An image for another platform, or of another tool in a store, may
		// have a digest that we do not know. Who loads it finds out.
		if err := checkDescriptor(d); err != nil && !errors.Is(err, ErrAlgorithm) {
			return nil, fmt.Errorf("manifest %d of the image index: %w", i+1, err)
		}
	}
	return &x, nil
}

// parseManifest parses an image manifest and checks that it describes layers
// of a container image.
func parseManifest(raw []byte) (*ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: parse manifest: %w", ErrCorrupt, err)
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("%w: a manifest of schema version %d", ErrCorrupt, m.SchemaVersion)
	}
	if err := checkConfigType(&m); err != nil {
		return nil, err
	}
	if err := checkDescriptor(m.Config); err != nil {
		return nil, fmt.Errorf("config of the manifest: %w", err)
	}
	if m.Config.Size > maxConfig {
		return nil, fmt.Errorf("%w: a config of %d bytes, more than %d", ErrCorrupt, m.Config.Size, maxConfig)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: it has %d layers, more than %d", ErrNotImage, len(m.Layers), maxLayers)
	}
	for i, d := range m.Layers {
		if err := checkLayerType(d.MediaType); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if err := checkDescriptor(d); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return &m, nil
}

// checkDescriptor checks what a descriptor cannot lack.
func checkDescriptor(d ocispec.Descriptor) error {
	if d.Size < 0 {
		return fmt.Errorf("%w: size %d", ErrCorrupt, d.Size)
	}
	return checkDigest(d.Digest)
}

// checkDigest checks that a digest is one and can be verified. Its parts may
// be used in paths also when the error is ErrAlgorithm.
func checkDigest(d digest.Digest) error {
	switch err := d.Validate(); {
	case errors.Is(err, digest.ErrDigestUnsupported):
		return fmt.Errorf("%w %.40q in the digest %.100q; sha256, sha384 and sha512 are known", ErrAlgorithm, d.Algorithm(), string(d))
	case err != nil:
		return fmt.Errorf("%w: digest %.100q: %w", ErrCorrupt, string(d), err)
	}
	return nil
}

// checkConfigType tells images from the other artifacts kept in registries.
func checkConfigType(m *ocispec.Manifest) error {
	kind := m.Config.MediaType
	switch kind {
	case ocispec.MediaTypeImageConfig, dockerConfig:
	case "", "application/octet-stream":
		// Written for images by old versions of docker; it accepts them itself.
		kind = ""
	default:
		if m.ArtifactType != "" && kind == ocispec.MediaTypeEmptyJSON {
			kind = m.ArtifactType
		}
		return fmt.Errorf("%w: it is an artifact of type %.200q", ErrNotImage, kind)
	}
	if m.ArtifactType != "" && kind == "" {
		return fmt.Errorf("%w: it is an artifact of type %.200q", ErrNotImage, m.ArtifactType)
	}
	return nil
}

// checkLayerType checks a layer's media type. How the layer is compressed is
// not decided by it: package layer looks at the content.
func checkLayerType(t string) error {
	base, suffix := t, ""
	if i := strings.LastIndexByte(t, '+'); i >= 0 && i < len(t)-1 {
		base, suffix = t[:i], t[i+1:]
	}
	switch base {
	case ocispec.MediaTypeImageLayer,
		ocispec.MediaTypeImageLayerNonDistributable: //nolint:staticcheck // deprecated, yet in use
		if suffix == "" || suffix == "gzip" || suffix == "zstd" {
			return nil
		}
	case dockerLayer, dockerForeignLayer:
		if suffix == "" || suffix == "gzip" || suffix == "zstd" {
			return nil
		}
	case dockerLayer + ".gzip", dockerForeignLayer + ".gzip", dockerLayer + ".zstd":
		if suffix == "" {
			return nil
		}
	}
	if suffix == "encrypted" {
		return fmt.Errorf("%w: it is encrypted (%.200q); decrypt the image with skopeo copy --decryption-key first", ErrNotImage, t)
	}
	return fmt.Errorf("%w: media type %.200q is no image layer's", ErrNotImage, t)
}

// parseConfig parses an image config, which the caller has verified, and
// checks that it belongs to a manifest of n layers.
func parseConfig(raw []byte, n int) (*ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%w: parse config: %w", ErrCorrupt, err)
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return nil, fmt.Errorf("%w: its root file system has type %.100q, not layers", ErrNotImage, c.RootFS.Type)
	}
	if len(c.RootFS.DiffIDs) != n {
		return nil, fmt.Errorf("%w: the config lists %d diff IDs, the manifest %d layers", ErrCorrupt, len(c.RootFS.DiffIDs), n)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, fmt.Errorf("diff ID %d of the config: %w", i+1, err)
		}
	}
	return &c, nil
}

// verify checks bytes against the descriptor that named them.
func verify(raw []byte, want digest.Digest) error {
	if err := checkDigest(want); err != nil {
		return err
	}
	if got := want.Algorithm().FromBytes(raw); got != want {
		return fmt.Errorf("%w: %s has the digest %s", ErrCorrupt, want, got)
	}
	return nil
}

// synthesise makes an OCI manifest for an image that came without one.
func synthesise(config ocispec.Descriptor, layers []ocispec.Descriptor) (*ocispec.Manifest, []byte, error) {
	m := &ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    layers,
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, nil, fmt.Errorf("write manifest: %w", err)
	}
	return m, raw, nil
}
