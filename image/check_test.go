package image_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestCheckClean(t *testing.T) {
	s := newStore(t)
	problems, err := s.Check(t.Context(), image.CheckOptions{Repair: true})
	if err != nil || problems != nil {
		t.Errorf("a store that is not there: %v, %v", problems, err)
	}
	r := newRegistry(t)
	s, images := pulled(t, r, "clean:1", "clean:2")
	check(t, os.Remove(blobFile(s, images[0].Layers[0].Desc.Digest))) // as if it had not been fetched
	putPartial(t, s, images[0].Layers[0].Desc.Digest, "x")
	var last, total int64
	for _, repair := range []bool{false, true} {
		problems, err = s.Check(t.Context(), image.CheckOptions{Repair: repair, Progress: func(d, n int64) {
			if d < last || d > n {
				t.Errorf("progress %d after %d, of %d", d, last, n)
			}
			last, total = d, n
		}})
		if err != nil || problems != nil {
			t.Errorf("got %v, %v", problems, err)
		}
		if last != total || total == 0 {
			t.Errorf("progress ended at %d of %d", last, total)
		}
		last = 0
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.Check(ctx, image.CheckOptions{})
	oneLine(t, err, context.Canceled, "check "+s.Dir())
}

// Each damage is found, at its place, and repaired; then the store is clean,
// and the image can be had again.
func TestCheckRepair(t *testing.T) {
	r := newRegistry(t)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, "repair:1", index)
	img, _ := opened(t, r, ref, "linux/amd64")
	path := func(d interface{ Encoded() string }) string { return "blobs/sha256/" + d.Encoded() }
	manifest, config, root, layer := path(img.Digest), path(img.Manifest.Config.Digest), path(img.Index), path(img.Layers[0].Desc.Digest)
	cut := func(name string) func(string) error {
		return func(dir string) error { return os.Truncate(filepath.Join(dir, name), 20) }
	}
	scribble := func(name string) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return replace(filepath.Join(dir, name), b)
		}
	}
	create := func(name string) func(string) error {
		return func(dir string) error {
			old := time.Now().Add(-time.Hour)
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
				return err
			}
			return os.Chtimes(filepath.Join(dir, name), old, old)
		}
	}
	tests := []struct {
		name   string
		harm   func(dir string) error
		want   []string // object: what
		entry  bool     // the image is still stored afterwards
		others bool     // as is the other platform
	}{
		{"layer flipped", scribble(layer), []string{layer + ": wrong bytes"}, true, true},
		{"layer cut", cut(layer), []string{layer + ": truncated: 20 bytes of"}, true, true},
		{"layer empty", write(layer, ""), []string{layer + ": truncated: 0 bytes of"}, true, true},
		{"layer too long", write(layer, strings.Repeat("x", 1<<20)), []string{layer + ": wrong bytes"}, true, true},
		{"manifest gone", remove(manifest), []string{"index.json: entry \"" + ref + "\": manifest"}, false, true},
		{"manifest flipped", scribble(manifest), []string{manifest + ": wrong bytes", "index.json: entry"}, false, true},
		{"manifest cut", cut(manifest), []string{manifest + ": truncated: 20 bytes", "index.json: entry"}, false, true},
		{"config gone", remove(config), []string{"index.json: entry \"" + ref + "\": config"}, false, true},
		{"config flipped", scribble(config), []string{config + ": wrong bytes", "index.json: entry"}, false, true},
		{"image index gone", remove(root), []string{"index.json: entry", "index.json: entry"}, false, false},
		{"oci-layout gone", remove("oci-layout"), []string{"oci-layout: missing"}, true, true},
		{"oci-layout no JSON", write("oci-layout", "x"), []string{"oci-layout: cannot be read"}, true, true},
		{"oci-layout without version", write("oci-layout", "{}"), []string{"oci-layout: cannot be read"}, true, true},
		{"index.json no JSON", write("index.json", "x"), []string{"index.json: cannot be read"}, false, false},
		{"index.json gone", remove("index.json"), []string{"index.json: missing"}, false, false},
		{"index.json wrong digest", func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, "index.json"))
			if err != nil {
				return err
			}
			bad := strings.Replace(string(b), `"digest":"`+img.Digest.String(), `"digest":"sha256:../../x`, 1)
			return replace(filepath.Join(dir, "index.json"), []byte(bad))
		}, []string{"index.json: cannot be read"}, false, true},
		{"no blob", create("blobs/sha256/" + img.Digest.Encoded() + "123"), []string{"blobs/sha256/" + img.Digest.Encoded() + "123: not a blob"}, true, true},
		{"file in blobs", create("blobs/x"), []string{"blobs/x: not a blob"}, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t)
			o := image.Options{Client: newClient(t), Store: s}
			all, err := image.OpenAll(t.Context(), ref, o)
			check(t, err)
			fetchLayers(t, s, all[0])
			check(t, tt.harm(s.Dir()))
			for _, repair := range []bool{false, true} {
				problems, err := s.Check(t.Context(), image.CheckOptions{Repair: repair})
				check(t, err)
				for i, p := range problems {
					if got := p.Object + ": " + p.What; i >= len(tt.want) || !strings.HasPrefix(got, tt.want[i]) {
						t.Errorf("problem %d: %s", i, got)
					}
					if p.Repaired != repair || p.Err != nil {
						t.Errorf("repair %t: %+v", repair, p)
					}
				}
				if len(problems) != len(tt.want) {
					t.Errorf("repair %t: %d problems, want %v", repair, len(problems), tt.want)
				}
			}
			problems, err := s.Check(t.Context(), image.CheckOptions{})
			if err != nil || len(problems) > 0 {
				t.Errorf("after the repair: %+v, %v", problems, err)
			}
			left := names(t, s)
			if slices.Contains(left, ref+" amd64") != tt.entry || slices.Contains(left, ref+" arm64") != tt.others {
				t.Errorf("left: %v", left)
			}
			uniqueNames(t, s)
			o.Platform = "linux/amd64"
			got, err := image.Open(t.Context(), ref, o)
			check(t, err)
			same(t, got, images["linux/amd64"])
			fetchLayers(t, s, got)
		})
	}
}

// What may be right after all is told and left alone.
func TestCheckLeaves(t *testing.T) {
	r := newRegistry(t)
	img, s := opened(t, r, r.pushImage(t, "leaves:1", platformImage(t, host(), true)), "")
	check(t, os.Mkdir(filepath.Join(s.Dir(), "blobs", "blake3"), 0o755))
	check(t, os.WriteFile(filepath.Join(s.Dir(), "blobs", "sha256", "being-written"), nil, 0o600))
	check(t, write("oci-layout", `{"imageLayoutVersion":"2.0.0"}`)(s.Dir()))
	// A newer version's store is nobody's here.
	oneLine(t, s.Put(img), image.ErrNotImage, "version \"2.0.0\"")
	oneLine(t, s.Tag(img.Name, "x"), image.ErrNotImage, "version \"2.0.0\"")
	check(t, write("index.json", `{"schemaVersion":3,"manifests":[]}`)(s.Dir()))
	for _, repair := range []bool{false, true} {
		problems, err := s.Check(t.Context(), image.CheckOptions{Repair: repair})
		check(t, err)
		var objects []string
		for _, p := range problems {
			objects = append(objects, p.Object)
			if p.Repaired || (p.Err != nil) != repair {
				t.Errorf("repair %t: %+v", repair, p)
			}
		}
		if want := []string{"oci-layout", "index.json", "blobs/blake3", "blobs/sha256/being-written"}; !slices.Equal(objects, want) {
			t.Errorf("problems with %v, want %v", objects, want)
		}
	}
	check(t, write("oci-layout", `{"imageLayoutVersion":"1.0.0"}`)(s.Dir()))
	oneLine(t, s.Put(img), image.ErrNotImage, "schema version 3")
	_, err := s.Prune(t.Context(), image.PruneOptions{})
	oneLine(t, err, image.ErrNotImage, "schema version 3")
}

// Entries of other tools are images, artifacts or indexes, and may lack what
// they list.
func TestCheckForeignEntries(t *testing.T) {
	r := newRegistry(t)
	_, s := opened(t, r, r.pushImage(t, "foreign:1", platformImage(t, host(), true)), "")
	absent := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"sha256:` + hex64 + `","size":3}`
	config := putBlob(t, s, "application/x.config", "{}")
	gone := config
	gone.MediaType, gone.Digest = ocispec.MediaTypeImageManifest, "sha256:"+hex64
	addEntry(t, s,
		putBlob(t, s, ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[`+absent+`]}`),
		putBlob(t, s, ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"config":`+marshal(t, config)+`,"layers":[]}`),
		putBlob(t, s, "application/x.zip", "PK"), gone)
	problems, err := s.Check(t.Context(), image.CheckOptions{})
	check(t, err)
	if len(problems) != 1 || !strings.Contains(problems[0].What, hex64) {
		t.Errorf("got %+v", problems)
	}
}

// A repair that is refused, or that cannot be known to be right, changes nothing.
func TestCheckRefuses(t *testing.T) {
	r := newRegistry(t)
	index := func(s *image.Store) string { return filepath.Join(s.Dir(), "index.json") }

	// The store of a newer version.
	_, s := opened(t, r, r.pushImage(t, "newer:1", platformImage(t, host(), true)), "")
	bad := putBlob(t, s, "", "some bytes")
	check(t, os.WriteFile(blobFile(s, bad.Digest), []byte("others bytes"), 0o600))
	check(t, write("oci-layout", `{"imageLayoutVersion":"2.0.0"}`)(s.Dir()))
	check(t, write("index.json", "{")(s.Dir()))
	problems, err := s.Check(t.Context(), image.CheckOptions{Repair: true})
	check(t, err)
	for _, p := range problems {
		if p.Repaired || p.Err == nil {
			t.Errorf("%+v", p)
		}
	}
	if len(problems) != 3 {
		t.Errorf("%d problems", len(problems))
	}
	if b, err := os.ReadFile(index(s)); err != nil || string(b) != "{" {
		t.Errorf("index.json is %q, %v", b, err)
	}
	if !s.HasBlob(ocispec.Descriptor{Digest: bad.Digest, Size: int64(len("others bytes"))}) {
		t.Error("a blob is gone")
	}
	_, err = s.Prune(t.Context(), image.PruneOptions{})
	oneLine(t, err, image.ErrNotImage, "version \"2.0.0\"")

	// A manifest that cannot be read for a reason that is not the manifest's.
	img, s := opened(t, r, r.pushImage(t, "loop:1", platformImage(t, host(), true)), "")
	path := blobFile(s, img.Digest)
	check(t, os.Rename(path, path+".aside"))
	check(t, os.Symlink(path, path))
	problems, err = s.Check(t.Context(), image.CheckOptions{Repair: true})
	check(t, err)
	last := problems[len(problems)-1]
	if last.Object != "index.json" || last.Repaired || last.Err == nil || !strings.Contains(last.What, "symbolic links") {
		t.Errorf("%+v", problems)
	}
	check(t, os.Rename(path+".aside", path))
	if got := names(t, s); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}

// What a foreign manifest says of a blob's size makes an intact blob no wrong one.
func TestCheckForeignSize(t *testing.T) {
	r := newRegistry(t)
	s, images := pulled(t, r, "size:1")
	layer := images[0].Layers[0].Desc
	lie := layer
	lie.Size += 1000
	x := readIndexJSON(t, s)
	foreign := putBlob(t, s, ocispec.MediaTypeImageManifest, marshal(t, ocispec.Manifest{
		Versioned: x.Versioned, Config: images[0].Manifest.Config, Layers: []ocispec.Descriptor{lie, lie},
	}))
	x.Manifests = append([]ocispec.Descriptor{foreign}, x.Manifests...)
	check(t, write("index.json", marshal(t, x))(s.Dir()))
	problems, err := s.Check(t.Context(), image.CheckOptions{Repair: true})
	if err != nil || len(problems) > 0 || !s.HasBlob(layer) {
		t.Errorf("%+v, %v", problems, err)
	}
}
