package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/laminafs/lamina/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerTar writes an archive as go-containerregistry does: gzip layers named
// by their digest.
func dockerTar(t testing.TB, img v1.Image, tag string) string {
	t.Helper()
	n, err := name.NewTag(tag)
	check(t, err)
	file := filepath.Join(t.TempDir(), "docker.tar")
	check(t, tarball.WriteToFile(file, n, img))
	return file
}

// content is what an image consists of, to be written in other ways.
type content struct {
	config string
	plain  []string // layers, uncompressed
	packed []string // layers, as they are in the image
}

func contentOf(t testing.TB, img v1.Image) content {
	t.Helper()
	config, err := img.RawConfigFile()
	check(t, err)
	c := content{config: string(config)}
	layers, err := img.Layers()
	check(t, err)
	for _, l := range layers {
		r, err := l.Uncompressed()
		check(t, err)
		b, err := io.ReadAll(r)
		check(t, err)
		c.plain = append(c.plain, string(b))
		r, err = l.Compressed()
		check(t, err)
		b, err = io.ReadAll(r)
		check(t, err)
		c.packed = append(c.packed, string(b))
	}
	return c
}

func (c content) manifest(t testing.TB, config string, tags []string, layers ...string) *member {
	t.Helper()
	b, err := json.Marshal([]map[string]any{{"Config": config, "RepoTags": tags, "Layers": layers}})
	check(t, err)
	return &member{name: "manifest.json", data: string(b)}
}

func hexOf(s string) string { return digest.FromString(s).Encoded() }

func TestOpenDockerArchive(t *testing.T) {
	want := platformImage(t, host(), false)
	c := contentOf(t, want)
	configName := hexOf(c.config) + ".json"
	tests := []struct {
		name      string
		members   []*member
		mediaType string
	}{
		{"docker save before 25, shared layer linked", []*member{
			{name: configName, data: c.config},
			{name: "old/layer.tar", data: c.plain[0]},
			{name: "one/VERSION", data: "1.0"},
			{name: "one/layer.tar", link: "../old/layer.tar", kind: tar.TypeSymlink},
			{name: "two/layer.tar", data: c.plain[1]},
			c.manifest(t, configName, []string{"a:1"}, "one/layer.tar", "two/layer.tar"),
			{name: "repositories", data: `{"a":{"1":"two"}}`},
		}, ocispec.MediaTypeImageLayer},
		{"docker save since 25", []*member{
			{name: "blobs/sha256/" + hexOf(c.config), data: c.config},
			{name: "blobs/sha256/" + hexOf(c.plain[0]), data: c.plain[0]},
			{name: "blobs/sha256/" + hexOf(c.plain[1]), data: c.plain[1]},
			{name: "index.json", data: `{}`},
			{name: "oci-layout", data: `{}`},
			c.manifest(t, "blobs/sha256/"+hexOf(c.config), []string{"a:1"}, "blobs/sha256/"+hexOf(c.plain[0]), "blobs/sha256/"+hexOf(c.plain[1])),
		}, ocispec.MediaTypeImageLayer},
		{"docker save from containerd's store", []*member{
			{name: "blobs/sha256/" + hexOf(c.config), data: c.config},
			{name: "blobs/sha256/" + hexOf(c.packed[0]), data: c.packed[0]},
			{name: "blobs/sha256/" + hexOf(c.packed[1]), data: c.packed[1]},
			c.manifest(t, "blobs/sha256/"+hexOf(c.config), nil, "blobs/sha256/"+hexOf(c.packed[0]), "blobs/sha256/"+hexOf(c.packed[1])),
		}, ocispec.MediaTypeImageLayerGzip},
		{"podman save, hard links and dots", []*member{
			{name: "./" + configName, data: c.config},
			{name: "./x.tar", data: c.plain[0]},
			{name: "./1.tar", link: "./x.tar", kind: tar.TypeLink},
			{name: "./2.tar", data: c.plain[1]},
			c.manifest(t, "./"+configName, []string{"docker.io/library/a:1"}, "1.tar", "./2.tar"),
		}, ocispec.MediaTypeImageLayer},
		{"gzip under a plain name", []*member{
			c.manifest(t, "config", []string{"a:1"}, "one/layer.tar", "two/layer.tar"),
			{name: "config", data: c.config},
			{name: "one/layer.tar", data: c.packed[0]},
			{name: "two/layer.tar", data: c.packed[1]},
		}, ocispec.MediaTypeImageLayerGzip},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := writeTar(t, tt.members...)
			refs := []string{"", ":a:1"}
			if strings.Contains(tt.name, "containerd") {
				refs = refs[:1]
			}
			for _, ref := range refs {
				img, err := image.Open(t.Context(), "docker-archive:"+file+ref, image.Options{})
				check(t, err)
				sameContent(t, img, want)
				for i, l := range img.Layers {
					if l.Desc.MediaType != tt.mediaType {
						t.Errorf("layer %d has the media type %s", i, l.Desc.MediaType)
					}
				}
				if digest.FromBytes(img.RawManifest) != img.Digest {
					t.Errorf("digest %s", img.Digest)
				}
			}
		})
	}
	t.Run("go-containerregistry", func(t *testing.T) {
		img, err := image.Open(t.Context(), "docker-archive:"+dockerTar(t, want, "a:1"), image.Options{})
		check(t, err)
		sameContent(t, img, want)
	})
}

func TestOpenDockerArchiveChoice(t *testing.T) {
	amd, arm := platformImage(t, "linux/amd64", false), platformImage(t, "linux/arm64", false)
	file := filepath.Join(t.TempDir(), "several.tar")
	tag := func(s string) name.Tag {
		n, err := name.NewTag(s)
		check(t, err)
		return n
	}
	check(t, tarball.MultiWriteToFile(file, map[name.Tag]v1.Image{tag("a:1"): amd, tag("me/b:2"): arm, tag("c"): arm}))
	tests := []struct {
		ref, platform string
		want          v1.Image
		is            error
		hint          string
	}{
		{":a:1", "", amd, nil, ""},
		{":docker.io/library/a:1", "", amd, nil, ""},
		{":me/b:2", "", arm, nil, ""},
		{":c", "", arm, nil, ""},
		{":c", "linux/amd64", nil, image.ErrPlatform, "linux/arm64"},
		{":a", "", nil, image.ErrNotFound, `no image "docker.io/library/a:latest"; there is`},
		{"", "", nil, image.ErrNotFound, "add :NAME:TAG"},
	}
	for _, tt := range tests {
		img, err := image.Open(t.Context(), "docker-archive:"+file+tt.ref, image.Options{Platform: tt.platform})
		if tt.want == nil {
			oneLine(t, err, tt.is, tt.hint)
			continue
		}
		check(t, err)
		sameContent(t, img, tt.want)
	}

	// One name for two platforms, as docker save --platform writes.
	var members []*member
	var entries []string
	for i, img := range []v1.Image{amd, arm} {
		c := contentOf(t, img)
		config := fmt.Sprintf("%d.json", i)
		members = append(members, &member{name: config, data: c.config},
			&member{name: fmt.Sprintf("%d-0", i), data: c.plain[0]}, &member{name: fmt.Sprintf("%d-1", i), data: c.plain[1]})
		entries = append(entries, fmt.Sprintf(`{"Config":%q,"RepoTags":["a:1"],"Layers":["%d-0","%d-1"]}`, config, i, i))
	}
	members = append(members, &member{name: "manifest.json", data: "[" + strings.Join(entries, ",") + "]"})
	both := writeTar(t, members...)
	for _, ref := range []string{"", ":a:1"} {
		img, err := image.Open(t.Context(), "docker-archive:"+both+ref, image.Options{Platform: "linux/arm64"})
		check(t, err)
		sameContent(t, img, arm)
		_, err = image.Open(t.Context(), "docker-archive:"+both+ref, image.Options{Platform: "linux/mips"})
		oneLine(t, err, image.ErrPlatform, "linux/amd64, linux/arm64")
	}
}

func TestOpenDockerArchiveDamaged(t *testing.T) {
	c := contentOf(t, platformImage(t, host(), false))
	blob := "blobs/sha256/" + hexOf(c.config)
	plain := []*member{{name: "c", data: c.config}, {name: "1", data: c.plain[0]}, {name: "2", data: c.plain[1]}}
	with := func(more ...*member) []*member { return append(append([]*member(nil), plain...), more...) }
	tests := []struct {
		name    string
		members []*member
		is      error
		hint    string
	}{
		{"no layer", with(c.manifest(t, "c", nil, "1", "3")), image.ErrCorrupt, `layer 2 ("3")`},
		{"no config", with(c.manifest(t, "d", nil, "1", "2")), image.ErrCorrupt, `config "d"`},
		{"too few layers", with(c.manifest(t, "c", nil, "1")), image.ErrCorrupt, "2 diff IDs"},
		{"wrong config", with(c.manifest(t, blob, nil, "1", "2"), &member{name: blob, data: "{}"}), image.ErrCorrupt, "digest"},
		{"config is no JSON", with(c.manifest(t, "1", nil, "1", "2")), image.ErrCorrupt, "parse config"},
		{"manifest is no JSON", with(&member{name: "manifest.json", data: "x"}), image.ErrCorrupt, "manifest.json"},
		{"empty manifest", with(&member{name: "manifest.json", data: "[]"}), image.ErrNotFound, "empty"},
		{"nameless", with(&member{name: "manifest.json", data: `[{"Config":"c"},{"Config":"c"}]`}), image.ErrNotFound, "2 images without a name"},
		{"xz", with(c.manifest(t, "c", nil, "1", "x"), &member{name: "x", data: "\xfd7zXZ\x00\x00\x00\x00"}), image.ErrNotImage, "xz"},
		{"config is a directory", with(c.manifest(t, ".", nil, "1", "2")), image.ErrCorrupt, "config"},
		{"escape", with(c.manifest(t, "../../../../etc/passwd", nil, "1", "2")), image.ErrCorrupt, "not in the archive"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := image.Open(t.Context(), "docker-archive:"+writeTar(t, tt.members...), image.Options{})
			oneLine(t, err, tt.is, tt.hint)
		})
	}
}

// GNU tar -S writes holes as no data: such a member is not a plain range.
func TestArchiveSparseMember(t *testing.T) {
	c := contentOf(t, platformImage(t, host(), false))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	records := map[string]string{
		"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "1",
		"GNU.sparse.size": "4096", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,512",
	}
	// The writer refuses these records, so they go in under names of the same
	// length and are replaced.
	disguised := make(map[string]string)
	for k, v := range records {
		disguised[strings.Replace(k, "GNU.sparse.", "XXX.sparse.", 1)] = v
	}
	check(t, w.WriteHeader(&tar.Header{Name: "1", Size: 512, Mode: 0o644, Typeflag: tar.TypeReg, PAXRecords: disguised, Format: tar.FormatPAX}))
	_, err := w.Write(make([]byte, 512))
	check(t, err)
	for _, m := range []*member{c.manifest(t, "c", nil, "1", "2"), {name: "c", data: c.config}, {name: "2", data: c.plain[1]}} {
		check(t, w.WriteHeader(&tar.Header{Name: m.name, Size: int64(len(m.data)), Mode: 0o644}))
		_, err := io.WriteString(w, m.data)
		check(t, err)
	}
	check(t, w.Close())
	file := filepath.Join(t.TempDir(), "sparse.tar")
	check(t, os.WriteFile(file, bytes.ReplaceAll(b.Bytes(), []byte("XXX.sparse."), []byte("GNU.sparse.")), 0o600))
	_, err = image.Open(t.Context(), "docker-archive:"+file, image.Options{})
	oneLine(t, err, image.ErrNotImage, "sparse")
}

func FuzzOpenDockerArchive(f *testing.F) {
	c := contentOf(f, platformImage(f, host(), false))
	f.Add(tarBytes(f, c.manifest(f, "c", []string{"a:1"}, "1", "2"),
		&member{name: "c", data: c.config}, &member{name: "1", data: c.plain[0]},
		&member{name: "2", link: "1", kind: tar.TypeSymlink}))
	f.Add(tarBytes(f, &member{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`}, &member{name: "index.json", data: `{"schemaVersion":2}`}))
	var z bytes.Buffer
	check(f, gzip.NewWriter(&z).Close())
	f.Add(z.Bytes())
	file := filepath.Join(f.TempDir(), "fuzz.tar")
	f.Fuzz(func(t *testing.T, b []byte) {
		check(t, os.WriteFile(file, b, 0o600))
		for _, transport := range []string{"docker-archive:", "oci-archive:"} {
			img, err := image.Open(t.Context(), transport+file, image.Options{})
			if err != nil {
				if strings.ContainsAny(err.Error(), "\n\x00") {
					t.Errorf("not one line: %q", err)
				}
				continue
			}
			for _, l := range img.Layers {
				if l.Blob == nil || l.DiffID.Validate() != nil {
					t.Errorf("layer %+v", l)
				}
			}
		}
	})
}
