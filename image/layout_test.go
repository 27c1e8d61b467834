package image_test

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/opencontainers/go-digest"
)

// Names in a layout and in an archive of it, by the same table: only the
// transport differs.
func TestOpenLayout(t *testing.T) {
	a, b := platformImage(t, host(), true), platformImage(t, host(), false)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64", "linux/s390x")
	aDigest, err := a.Digest()
	check(t, err)
	armDigest, err := images["linux/arm64"].Digest()
	check(t, err)
	full := newLayout(t, map[string]mutate.Appendable{
		"a": a, "docker.io/library/b:1": b, "multi": index,
	})
	one := newLayout(t, map[string]mutate.Appendable{"": a})
	tests := []struct {
		dir, suffix, platform string
		want                  v1.Image
		is                    error
		hint                  string
	}{
		{one, "", "", a, nil, ""},
		{one, ":a", "", nil, image.ErrNotFound, "no tag \"a\"; there is @sha256:"},
		{full, ":a", "", a, nil, ""},
		{full, ":docker.io/library/b:1", "", b, nil, ""},
		{full, ":b:1", "", b, nil, ""},
		{full, ":multi", "linux/arm64", images["linux/arm64"], nil, ""},
		{full, ":multi", "linux/mips", nil, image.ErrPlatform, "linux/amd64, linux/arm64, linux/s390x"},
		{full, ":a", "linux/mips", nil, image.ErrPlatform, host()},
		{full, "", "", nil, image.ErrNotFound, "add :TAG; there is a, docker.io/library/b:1, multi"},
		{full, ":c", "", nil, image.ErrNotFound, "no tag \"c\"; there is a, docker"},
		{full, "@" + aDigest.String(), "", a, nil, ""},
		{full, ":b:1@" + aDigest.String(), "", a, nil, ""},
		{full, "@" + armDigest.String(), "", images["linux/arm64"], nil, ""},
		{full, "@sha256:" + hex64, "", nil, image.ErrNotFound, "no manifest sha256:"},
	}
	for _, transport := range []string{"oci:", "oci-archive:"} {
		path := map[string]string{one: one, full: full}
		if transport == "oci-archive:" {
			path = map[string]string{one: tarDir(t, one), full: tarDir(t, full)}
		}
		for _, tt := range tests {
			t.Run(transport+tt.suffix+tt.platform, func(t *testing.T) {
				img, err := image.Open(t.Context(), transport+path[tt.dir]+tt.suffix, image.Options{Platform: tt.platform})
				if tt.want == nil {
					oneLine(t, err, tt.is, tt.hint)
					return
				}
				check(t, err)
				same(t, img, tt.want)
				for _, l := range img.Layers {
					if f, ok := l.Blob.(fetch.Local); !ok {
						t.Errorf("layer %s is not local", l.Desc.Digest)
					} else if p, _ := f.File(); !filepath.IsAbs(p) {
						t.Errorf("layer %s at the relative path %s", l.Desc.Digest, p)
					}
				}
				if img.Origin != nil || !strings.HasPrefix(img.Name, transport) {
					t.Errorf("got origin %v, name %s", img.Origin, img.Name)
				}
			})
		}
	}
}

// index.json itself may list one image for several platforms.
func TestOpenLayoutPlatforms(t *testing.T) {
	for _, ref := range []string{"", "latest"} {
		dir := t.TempDir()
		l, err := layout.Write(dir, empty.Index)
		check(t, err)
		images := make(map[string]v1.Image)
		for _, s := range []string{"linux/amd64", "linux/arm64"} {
			p, err := v1.ParsePlatform(s)
			check(t, err)
			images[s] = platformImage(t, s, true)
			check(t, l.AppendImage(images[s], layout.WithPlatform(*p), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})))
		}
		for s, want := range images {
			img, err := image.Open(t.Context(), "oci:"+dir, image.Options{Platform: s})
			check(t, err)
			same(t, img, want)
		}
		_, err = image.Open(t.Context(), "oci:"+dir, image.Options{Platform: "linux/mips"})
		oneLine(t, err, image.ErrPlatform, "linux/amd64, linux/arm64")
	}
}

func TestOpenLayoutDamaged(t *testing.T) {
	img := platformImage(t, host(), true)
	blob := func(h v1.Hash, err error) string {
		check(t, err)
		return "blobs/sha256/" + h.Hex
	}
	layers, err := img.Layers()
	check(t, err)
	config, manifest, layer := blob(img.ConfigName()), blob(img.Digest()), blob(layers[1].Digest())
	tests := []struct {
		name string
		harm func(dir string) error
		is   error
		hint string
	}{
		{"no oci-layout", remove("oci-layout"), image.ErrNotFound, "not an OCI image layout"},
		{"version 2", write("oci-layout", `{"imageLayoutVersion":"2.0.0"}`), image.ErrNotImage, "version"},
		{"oci-layout", write("oci-layout", `[]`), image.ErrCorrupt, "oci-layout"},
		{"no index.json", remove("index.json"), image.ErrCorrupt, "no index.json"},
		{"index.json", write("index.json", `{"schemaVersion":2,`), image.ErrCorrupt, "index.json"},
		{"empty index.json", write("index.json", `{"schemaVersion":2,"manifests":[]}`), image.ErrNotFound, "empty"},
		{"no manifest", remove(manifest), image.ErrCorrupt, "not in the layout"},
		{"short manifest", write(manifest, "{}"), image.ErrCorrupt, "2 bytes"},
		{"flipped manifest", flip(manifest), image.ErrCorrupt, "wrong digest"},
		{"no config", remove(config), image.ErrCorrupt, "config"},
		{"flipped config", flip(config), image.ErrCorrupt, "wrong digest"},
		{"no layer", remove(layer), image.ErrCorrupt, "layer 2"},
		{"short layer", write(layer, "x"), image.ErrCorrupt, "layer 2"},
		{"layer is a directory", func(dir string) error {
			if err := remove(layer)(dir); err != nil {
				return err
			}
			return os.Mkdir(filepath.Join(dir, layer), 0o755)
		}, image.ErrCorrupt, "not a regular file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := newLayout(t, map[string]mutate.Appendable{"": img})
			check(t, tt.harm(dir))
			_, err := image.Open(t.Context(), "oci:"+dir, image.Options{})
			oneLine(t, err, tt.is, "open oci:"+dir, tt.hint)
		})
	}
}

// The wrong transport, or none of them.
func TestOpenWrongTransport(t *testing.T) {
	img := platformImage(t, host(), true)
	dir := newLayout(t, map[string]mutate.Appendable{"": img})
	archive := tarDir(t, dir)
	docker := dockerTar(t, img, "a:1")
	zipped := filepath.Join(t.TempDir(), "a.tar.gz")
	f, err := os.Create(zipped)
	check(t, err)
	z := gzip.NewWriter(f)
	in, err := os.Open(archive)
	check(t, err)
	defer func() { _ = in.Close() }()
	_, err = io.Copy(z, in)
	check(t, err)
	check(t, z.Close())
	check(t, f.Close())
	whole, err := os.ReadFile(archive)
	check(t, err)
	cut := filepath.Join(t.TempDir(), "cut.tar")
	check(t, os.WriteFile(cut, whole[:len(whole)/2], 0o600))
	noise := filepath.Join(t.TempDir(), "noise.tar")
	check(t, os.WriteFile(noise, []byte(strings.Repeat("noise", 1000)), 0o600))
	blank := filepath.Join(t.TempDir(), "blank.tar")
	check(t, os.WriteFile(blank, nil, 0o600))
	old := writeTar(t, &member{name: "repositories", data: `{}`})
	tests := []struct {
		in   string
		is   error
		hint string
	}{
		{"oci:" + dir + "x", image.ErrNotFound, "no directory"},
		{"oci:" + archive, image.ErrNotFound, "write oci-archive:FILE or docker-archive:FILE"},
		{"oci:" + t.TempDir(), image.ErrNotFound, "not an OCI image layout"},
		{"oci-archive:" + dir, image.ErrNotFound, "write oci:DIR"},
		{"oci-archive:" + archive + "x", image.ErrNotFound, "no file"},
		{"oci-archive:" + docker, image.ErrNotFound, "write docker-archive:FILE"},
		{"oci-archive:" + zipped, image.ErrNotImage, "run gunzip"},
		{"oci-archive:" + cut, image.ErrCorrupt, "cut off"},
		{"oci-archive:" + noise, image.ErrCorrupt, "tar header"},
		{"oci-archive:" + blank, image.ErrNotFound, "not an OCI image layout"},
		{"oci-archive:/dev/null", image.ErrNotFound, "not a regular file"},
		{"docker-archive:" + archive, image.ErrNotFound, "write oci-archive:FILE"},
		{"docker-archive:" + dir, image.ErrNotFound, "write oci:DIR"},
		{"docker-archive:" + zipped, image.ErrNotImage, "run gunzip"},
		{"docker-archive:" + blank, image.ErrNotFound, "no manifest.json"},
		{"docker-archive:" + old, image.ErrNotImage, "docker 1.10"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			_, err := image.Open(t.Context(), tt.in, image.Options{})
			oneLine(t, err, tt.is, tt.hint)
		})
	}
}

// Members of an archive that are links, written twice, or stored sparsely.
func TestOCIArchiveMembers(t *testing.T) {
	img := platformImage(t, host(), true)
	dir := newLayout(t, map[string]mutate.Appendable{"": img})
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		check(t, err)
		return string(b)
	}
	var members []*member
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	check(t, err)
	for _, b := range blobs {
		content := read("blobs/sha256/" + b.Name())
		members = append(members, &member{name: "store/" + b.Name(), data: content})
		switch len(members) % 3 {
		case 0:
			members = append(members, &member{name: "blobs/sha256/" + b.Name(), link: "../../store/" + b.Name(), kind: tar.TypeSymlink})
		case 1:
			members = append(members, &member{name: "./blobs/sha256/" + b.Name(), link: "./store/" + b.Name(), kind: tar.TypeLink})
		default:
			members = append(members, &member{name: "/blobs/sha256/" + b.Name(), data: content})
		}
	}
	members = append(members,
		&member{name: "index.json", data: "an older one"},
		&member{name: "oci-layout", data: read("oci-layout")},
		&member{name: "index.json", data: read("index.json")})
	got, err := image.Open(t.Context(), "oci-archive:"+writeTar(t, members...), image.Options{})
	check(t, err)
	same(t, got, img)

	loop := writeTar(t,
		&member{name: "oci-layout", link: "a", kind: tar.TypeSymlink},
		&member{name: "a", link: "oci-layout", kind: tar.TypeSymlink})
	_, err = image.Open(t.Context(), "oci-archive:"+loop, image.Options{})
	oneLine(t, err, image.ErrCorrupt, "too many links")

	outside := writeTar(t, &member{name: "oci-layout", link: "../../../../etc/passwd", kind: tar.TypeSymlink})
	_, err = image.Open(t.Context(), "oci-archive:"+outside, image.Options{})
	oneLine(t, err, image.ErrNotFound, "not an OCI image layout")
}

func remove(name string) func(dir string) error {
	return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
}

func write(name, content string) func(dir string) error {
	return func(dir string) error { return replace(filepath.Join(dir, name), []byte(content)) }
}

// flip changes one byte that is no structure of JSON.
func flip(name string) func(dir string) error {
	return func(dir string) error {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		at := strings.Index(string(b), digest.SHA256.String())
		b[at] ^= 1
		return replace(filepath.Join(dir, name), b)
	}
}

// replace writes a file whatever its mode is.
func replace(path string, b []byte) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
