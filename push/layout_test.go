package push_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/push"
)

// item makes an image of two layers, whose config is of no importance.
func item(t *testing.T, tag string, sizes ...int) push.Item {
	t.Helper()
	it := push.Item{Tag: tag}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, size := range append(sizes, 100) {
		desc, from, _ := blob(t, size)
		if i == len(sizes) {
			desc.MediaType = ocispec.MediaTypeImageConfig
			m.Config = desc
		} else {
			m.Layers = append(m.Layers, desc)
		}
		it.Blobs = append(it.Blobs, push.Blob{Desc: desc, From: from})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	it.Documents = []image.Document{{
		Desc: ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}, Raw: raw,
	}}
	return it
}

// index reads the index.json of a layout.
func index(t *testing.T, dir string) (tags []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var x ocispec.Index
	if err := json.Unmarshal(b, &x); err != nil {
		t.Fatal(err)
	}
	for _, d := range x.Manifests {
		tags = append(tags, d.Annotations[ocispec.AnnotationRefName]+"="+d.Digest.Encoded()[:8])
	}
	return tags
}

func short(it push.Item) string { return it.Documents[0].Desc.Digest.Encoded()[:8] }

// TestToLayout: blobs that are there are not copied, and a tag leads to one image.
func TestToLayout(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "layout")
	a, b := item(t, "a", 1000, 300_000), item(t, "b", 1000, 5)
	for _, step := range []struct {
		it            push.Item
		sent, present int
		want          string
	}{
		{a, 3, 0, "a=" + short(a)},
		{b, 1, 2, "a=" + short(a) + " b=" + short(b)},
		{a, 0, 3, "b=" + short(b) + " a=" + short(a)},
		{push.Item{Tag: "b", Blobs: a.Blobs, Documents: a.Documents}, 0, 3, "a=" + short(a) + " b=" + short(a)},
		{push.Item{Blobs: b.Blobs, Documents: b.Documents}, 0, 3, "a=" + short(a) + " b=" + short(a) + " =" + short(b)},
		{push.Item{Blobs: b.Blobs, Documents: b.Documents}, 0, 3, "a=" + short(a) + " b=" + short(a) + " =" + short(b)},
	} {
		r, err := push.ToLayout(t.Context(), dir, step.it, nil)
		if err != nil || r.Sent != step.sent || r.Present != step.present {
			t.Fatalf("%+v, %v; want %d sent, %d there", r, err, step.sent, step.present)
		}
		if got := strings.Join(index(t, dir), " "); got != step.want {
			t.Errorf("index.json: %s, want %s", got, step.want)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(files) != 6 {
		t.Errorf("%v, %v", files, err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil || digest.FromBytes(b).Encoded() != filepath.Base(path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestToLayoutTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "layout")
	var wg sync.WaitGroup
	for _, tag := range strings.Split("abcdefgh", "") {
		it := item(t, tag, 1000, 20_000)
		wg.Go(func() {
			if _, err := push.ToLayout(t.Context(), dir, it, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := index(t, dir); len(got) != 8 {
		t.Errorf("%v", got)
	}
}

func TestToLayoutRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := push.ToLayout(t.Context(), dir, item(t, "a"), nil); !errors.Is(err, push.ErrLayout) {
		t.Errorf("a directory of something else: %v", err)
	}
	it := item(t, "a", 1000)
	it.Blobs[0].Desc.Digest = digest.FromString("something else")
	dir = filepath.Join(t.TempDir(), "layout")
	if _, err := push.ToLayout(t.Context(), dir, it, nil); !errors.Is(err, fetch.ErrDigest) {
		t.Errorf("wrong bytes: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image is there: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "sha256", ".*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestArchives: each blob is in it once, the same images give the same bytes, and
// docker's manifest.json leads to all of it.
func TestArchives(t *testing.T) {
	a, b := item(t, "a", 1000, 300_000), item(t, "b", 1000, 5)
	a.Name, b.Name = "docker.io/library/a:1", "host.example/b:1"
	var first, second, docker bytes.Buffer
	for _, w := range []*bytes.Buffer{&first, &second} {
		if err := push.WriteOCIArchive(t.Context(), w, []push.Item{a, b}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("written twice, it is not the same")
	}
	if err := push.WriteDockerArchive(t.Context(), &docker, []push.Item{a, b}, nil); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(&docker); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name] != nil {
			t.Errorf("%s is there twice", h.Name)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if d, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok && digest.FromBytes(files[h.Name]).Encoded() != d {
			t.Errorf("%s: wrong bytes", h.Name)
		}
	}
	if len(files) != 4+2+3 { // blobs, manifests, and the files of layout and docker
		t.Errorf("%d files", len(files))
	}
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &list); err != nil || len(list) != 2 {
		t.Fatalf("%s: %v", files["manifest.json"], err)
	}
	for i, tag := range []string{"a:1", "host.example/b:1"} {
		if len(list[i].RepoTags) != 1 || list[i].RepoTags[0] != tag {
			t.Errorf("%v, want %s", list[i].RepoTags, tag)
		}
		for _, name := range append(list[i].Layers, list[i].Config) {
			if files[name] == nil {
				t.Errorf("%s is not there", name)
			}
		}
	}
	several := item(t, "a", 1000)
	several.Documents = append(several.Documents, several.Documents...)
	if err := push.WriteDockerArchive(t.Context(), io.Discard, []push.Item{several}, nil); !errors.Is(err, image.ErrNotImage) {
		t.Errorf("for several platforms: %v", err)
	}
}
