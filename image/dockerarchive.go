package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/distribution/reference"
	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Files of a docker archive.
const (
	dockerArchiveManifest = "manifest.json"
	dockerArchiveLegacy   = "repositories" // all there was before docker 1.10
)

// archivedImage is an entry of manifest.json. Paths are names of members.
type archivedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// openDockerArchive opens an image in what docker save wrote. There is no
// manifest in it, so one is made: the layers' descriptors follow from the
// files.
//
//   - An uncompressed layer is what the config's diff ID covers.
//   - A file blobs/sha256/HEX (docker 25 and later) has its digest for a name.
//   - Any other compressed layer is read once to compute its digest; it is
//     written down nowhere.
func openDockerArchive(ctx context.Context, n Name, want target, o Options) (*Image, error) {
	a, err := openArchive(ctx, n)
	if err != nil {
		return nil, err
	}
	list, err := a.images()
	if err != nil {
		return nil, err
	}
	entries, err := selectArchived(list, n.Tag)
	if err != nil {
		return nil, err
	}
	entry, raw, err := a.chooseConfig(entries, want)
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(raw, len(entry.Layers))
	if err != nil {
		return nil, err
	}
	layers := make([]ocispec.Descriptor, len(entry.Layers))
	blobs := make([]fetch.Blob, len(entry.Layers))
	for i, name := range entry.Layers {
		layers[i], blobs[i], err = a.layer(ctx, name, config.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("layer %d (%.200q): %w", i+1, name, err)
		}
	}
	m, rawManifest, err := synthesise(ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig,
		Digest:    digest.FromBytes(raw),
		Size:      int64(len(raw)),
	}, layers)
	if err != nil {
		return nil, err
	}
	img := &Image{
		Name:        n.String(),
		Digest:      digest.FromBytes(rawManifest),
		Manifest:    *m,
		RawManifest: rawManifest,
		desc:        ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(rawManifest), Size: int64(len(rawManifest))},
	}
	for i := range layers {
		img.Layers = append(img.Layers, Layer{Desc: layers[i], Blob: blobs[i]})
	}
	o.manifestKnown(img)
	if err := img.setConfig(raw, want); err != nil {
		return nil, err
	}
	return img, nil
}

// images reads manifest.json.
func (a *archive) images() ([]archivedImage, error) {
	raw, err := readFile(a, dockerArchiveManifest, maxManifest)
	switch {
	case isNotExist(err) && a.has(ocispec.ImageIndexFile):
		return nil, fmt.Errorf("%w: it is no docker archive; write oci-archive:FILE", ErrNotFound)
	case isNotExist(err) && a.has(dockerArchiveLegacy):
		return nil, fmt.Errorf("%w: the archive was written before docker 1.10; load and save it with a current docker", ErrNotImage)
	case isNotExist(err):
		return nil, fmt.Errorf("%w: it is no docker archive, it has no %s", ErrNotFound, dockerArchiveManifest)
	case err != nil:
		return nil, err
	}
	var list []archivedImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%w: parse %s: %w", ErrCorrupt, dockerArchiveManifest, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: the archive is empty", ErrNotFound)
	}
	for _, entry := range list {
		if len(entry.Layers) > maxLayers {
			return nil, fmt.Errorf("%w: it has %d layers, more than %d", ErrNotImage, len(entry.Layers), maxLayers)
		}
	}
	return list, nil
}

// selectArchived returns the entries with a tag, which is normalised; all that
// are the same image when no tag is given.
func selectArchived(images []archivedImage, tag string) ([]archivedImage, error) {
	var found []archivedImage
	var tags []string
	names := make(map[string]bool)
	for _, entry := range images {
		key := ""
		for _, t := range entry.RepoTags {
			tags = append(tags, t)
			ref, err := reference.ParseDockerRef(t)
			if err != nil {
				continue // a tag that we cannot write either
			}
			key += ref.String() + " "
			if ref.String() == tag {
				found = append(found, entry)
				break
			}
		}
		names[key] = true
	}
	switch {
	case tag == "" && (len(images) == 1 || len(names) == 1 && !names[""]):
		return images, nil
	case len(found) > 0:
		return found, nil
	case tag == "" && len(tags) == 0:
		return nil, fmt.Errorf("%w: there are %d images without a name; save one of them alone", ErrNotFound, len(images))
	case tag == "":
		return nil, fmt.Errorf("%w: there are several images, add :NAME:TAG; there is %s", ErrNotFound, list(tags))
	case len(tags) == 0:
		return nil, fmt.Errorf("%w: no image %q; the images here have no names", ErrNotFound, tag)
	default:
		return nil, fmt.Errorf("%w: no image %q; there is %s", ErrNotFound, tag, list(tags))
	}
}

// chooseConfig reads the config of the entry for the target. There are several
// entries when docker saved one image for several platforms.
func (a *archive) chooseConfig(entries []archivedImage, want target) (archivedImage, []byte, error) {
	if len(entries) == 1 {
		raw, err := a.config(entries[0].Config)
		return entries[0], raw, err
	}
	if len(entries) > maxDocuments {
		return archivedImage{}, nil, fmt.Errorf("%w: more than %d images of one name", ErrCorrupt, maxDocuments)
	}
	var have []ocispec.Platform
	raws := make([][]byte, len(entries))
	best := -1
	for i, entry := range entries {
		raw, err := a.config(entry.Config)
		if err != nil {
			return archivedImage{}, nil, err
		}
		config, err := parseConfig(raw, len(entry.Layers))
		if err != nil {
			return archivedImage{}, nil, err
		}
		raws[i], have = raw, append(have, config.Platform)
		if want.matcher.Match(config.Platform) && (best < 0 || want.matcher.Less(config.Platform, have[best])) {
			best = i
		}
	}
	if best < 0 {
		return archivedImage{}, nil, want.unavailable(have)
	}
	return entries[best], raws[best], nil
}

// config reads a config, and verifies it where its name is its digest.
func (a *archive) config(name string) ([]byte, error) {
	raw, err := readFile(a, name, maxConfig)
	if isNotExist(err) {
		return nil, fmt.Errorf("%w: the config %.200q is not in the archive", ErrCorrupt, name)
	}
	if err != nil {
		return nil, err
	}
	if d, ok := blobDigest(name); ok {
		if err := verify(raw, d); err != nil {
			return nil, fmt.Errorf("config: %w", err)
		}
	}
	return raw, nil
}

// layer describes a layer from the content of its file.
func (a *archive) layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, fetch.Blob, error) {
	s, err := a.file(name)
	if isNotExist(err) {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%w: it is not in the archive", ErrCorrupt)
	}
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	head, err := s.head(8)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: s.size}
	for _, c := range compressions {
		if !strings.HasPrefix(head, c.magic) {
			continue
		}
		if c.name != "gzip" && c.name != "zstd" {
			return desc, nil, fmt.Errorf("%w: it is compressed with %s; images know gzip and zstd", ErrNotImage, c.name)
		}
		desc.MediaType += "+" + c.name
		var ok bool
		if desc.Digest, ok = blobDigest(name); !ok {
			if desc.Digest, err = s.digest(ctx); err != nil {
				return desc, nil, err
			}
		}
	}
	return desc, s.blob(desc.Digest), nil
}

// blobDigest is the digest in a name such as blobs/sha256/HEX.
func blobDigest(name string) (digest.Digest, bool) {
	rest, ok := strings.CutPrefix(memberName(name), "blobs/")
	if !ok || path.Dir(rest) == "." {
		return "", false
	}
	d := digest.NewDigestFromEncoded(digest.Algorithm(path.Dir(rest)), path.Base(rest))
	return d, d.Validate() == nil
}

// head returns the first n bytes of the section, fewer if it is shorter.
func (s section) head(n int64) (string, error) {
	s.size = min(s.size, n)
	b, err := s.read(n)
	return string(b), err
}

// digest computes the digest of the section's bytes.
func (s section) digest(ctx context.Context) (digest.Digest, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	d := digest.Canonical.Digester()
	r := contextReader{ctx, io.NewSectionReader(f, s.off, s.size)}
	if n, err := io.Copy(d.Hash(), r); err != nil {
		return "", fmt.Errorf("read %s: %w", s.path, err)
	} else if n != s.size {
		return "", fmt.Errorf("%w: %s is cut off", ErrCorrupt, s.path)
	}
	return d.Digest(), nil
}

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
