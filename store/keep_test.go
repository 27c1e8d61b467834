package store_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/store"
)

// imageOf makes an image of layers.
func imageOf(t *testing.T, p v1.Platform, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture, config.OSVersion = p.OS, p.Architecture, p.OSVersion
	config.Created = v1.Time{Time: time.Now().Add(-time.Hour)}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image, or one for each of several platforms, into the registry.
func push(t *testing.T, ref string, images ...v1.Image) {
	t.Helper()
	n, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if len(images) == 1 {
		if err := remote.Write(n, images[0]); err != nil {
			t.Fatal(err)
		}
		return
	}
	index := v1.ImageIndex(empty.Index)
	for _, img := range images {
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		p := &v1.Platform{OS: config.OS, Architecture: config.Architecture, OSVersion: config.OSVersion}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: p}})
	}
	if err := remote.WriteIndex(n, index); err != nil {
		t.Fatal(err)
	}
}

var linux = v1.Platform{OS: "linux", Architecture: "amd64"}

// pullAll pulls all platforms.
func pullAll(t *testing.T, s *store.Store, ref string) []store.Pulled {
	t.Helper()
	p, err := s.Pull(t.Context(), store.PullOptions{Name: ref, AllPlatforms: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reopen closes a store, so that nothing is spared for it, and opens it anew.
func reopen(t *testing.T, s *store.Store) *store.Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.Root)
}

// sorted orders what was removed, as a comparison needs it.
func sorted(removed []store.Removed) []store.Removed {
	slices.SortFunc(removed, func(a, b store.Removed) int { return strings.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name) })
	return removed
}

// TestPrunePlatforms: of an image whose platforms share a name, the one that is
// mounted stays.
func TestPrunePlatforms(t *testing.T) {
	host, s := serve(t), open(t, t.TempDir())
	ref := host + "/app/both:1"
	push(t, ref, imageOf(t, linux, layerOf(t, "amd", 1000)), imageOf(t, v1.Platform{OS: "linux", Architecture: "arm64"}, layerOf(t, "arm", 1000)))
	both := pullAll(t, s, ref)
	o := store.PruneOptions{All: true, Mounted: store.Mounted{Images: map[digest.Digest]bool{both[0].Image.Digest: true}}}
	for _, o.DryRun = range []bool{true, false} {
		removed, err := s.Prune(t.Context(), o)
		if err != nil || len(removed) != 1 || removed[0].Kind != "image" || removed[0].Name != ref {
			t.Errorf("dry run %t: %+v, %v", o.DryRun, removed, err)
		}
	}
	left, err := s.List(t.Context())
	if err != nil || len(left) != 1 || left[0].Digest != both[0].Image.Digest || left[0].Damaged != "" {
		t.Errorf("left: %+v, %v", left, err)
	}
}

// TestPruneDryRun: a dry run says what a prune does, with all that spares.
func TestPruneDryRun(t *testing.T) {
	root := t.TempDir()
	host, s := serve(t), open(t, root)
	one, two := pull(t, s, host+"/app/one:1").Image, pull(t, s, host+"/app/two:1").Image
	s = reopen(t, s)
	young, mounted := one.Layers[1].Desc.Digest, two.Layers[1].Desc.Digest
	files, err := filepath.Glob(filepath.Join(root, "images", "blobs", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if at := time.Now().Add(-time.Hour); filepath.Base(f) != young.Encoded() {
			if err := os.Chtimes(f, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	o := store.PruneOptions{All: true, Until: time.Now().Add(-time.Minute), Mounted: store.Mounted{Blobs: map[digest.Digest]bool{mounted: true}}}
	var got [2][]store.Removed
	for i, dry := range []bool{true, false} {
		o.DryRun = dry
		if got[i], err = s.Prune(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		for _, r := range got[i] {
			if r.Name == young.String() || r.Name == mounted.String() {
				t.Errorf("dry run %t removes %+v", dry, r)
			}
		}
	}
	// Two images, their manifests and configs, and the layer that they share.
	if !reflect.DeepEqual(sorted(got[0]), sorted(got[1])) || len(got[1]) != 2+4+1 {
		t.Errorf("a dry run says\n%+v, and removed is\n%+v", got[0], got[1])
	}
}

// TestRemoveMounted: a mounted image may lose a name, but not all at once.
func TestRemoveMounted(t *testing.T) {
	host, s := serve(t), open(t, t.TempDir())
	one := pull(t, s, host+"/app/one:1").Image
	if err := s.Images.Tag(one.Name, host+"/app/one:2"); err != nil {
		t.Fatal(err)
	}
	o := store.RemoveOptions{Mounted: store.Mounted{Images: map[digest.Digest]bool{one.Digest: true}}}
	byDigest := host + "/app/one@" + one.Digest.String()
	if removed, err := s.Remove(t.Context(), byDigest, o); !errors.Is(err, store.ErrMounted) {
		t.Errorf("both names at once: %+v, %v", removed, err)
	}
	if _, err := s.Remove(t.Context(), host+"/app/one:2", o); err != nil {
		t.Errorf("one of two names: %v", err)
	}
	if _, err := s.Remove(t.Context(), byDigest, o); !errors.Is(err, store.ErrMounted) {
		t.Errorf("the last name: %v", err)
	}
}

// TestRemoveOwn: with an image goes all that was its own, and nothing else.
func TestRemoveOwn(t *testing.T) {
	host, s := serve(t), open(t, t.TempDir())
	tree, err := s.Open(t.Context(), store.Ref{Name: host + "/app/one:1", Platform: "linux/amd64"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Images.Remove(host + "/app/one:1"); err != nil {
		t.Fatal(err)
	}
	ref := host + "/app/both:1"
	push(t, ref, imageOf(t, linux, layerOf(t, "amd", 1000)), imageOf(t, v1.Platform{OS: "linux", Architecture: "arm64"}, layerOf(t, "arm", 1000)))
	both := pullAll(t, s, ref)
	s = reopen(t, s)
	removed, err := s.Remove(t.Context(), ref, store.RemoveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kinds, index := map[string]int{}, false
	for _, r := range removed {
		kinds[r.Kind]++
		index = index || r.Name == both[0].Image.Index.String()
	}
	if want := map[string]int{"image": 2, "blob": 7}; !index || !reflect.DeepEqual(kinds, want) {
		t.Errorf("removed %v, want %v, with the image index: %t", kinds, want, index)
	}
	if removed, err := s.Prune(t.Context(), store.PruneOptions{}); err != nil || len(removed) < 3 {
		t.Errorf("left for prune: %+v, %v", removed, err)
	}
}

// TestUsageSameTar: one tar in two compressions is unpacked once, and counted
// once; what is merged counts for its image, and what is mounted is not unused.
func TestUsageSameTar(t *testing.T) {
	host, root := serve(t), t.TempDir()
	s := open(t, root)
	fast := layerOf(t, "same", 50_000)
	rc, err := fast.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	small, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, tarball.WithCompressionLevel(gzip.NoCompression))
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/app/a:1", imageOf(t, linux, fast))
	push(t, host+"/app/b:1", imageOf(t, linux, small))
	a := pull(t, s, host+"/app/a:1").Image
	b := pull(t, s, host+"/app/b:1").Image
	tree, err := s.Open(t.Context(), store.Ref{Name: a.Name, Platform: "linux/amd64"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := store.Mounted{Keys: map[string]bool{tree.Layers[0].Key(): true}, Chains: map[string]bool{tree.Chain.ID: true}}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	layers, err := s.Cache.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%+v, %v", layers, err)
	}
	chains, err := s.Cache.Chains()
	if err != nil || len(chains) != 1 {
		t.Fatalf("%+v, %v", chains, err)
	}
	cached := layers[0].Disk + chains[0].Disk
	u, err := s.Usage(t.Context(), nothing())
	if err != nil {
		t.Fatal(err)
	}
	if want := cached + a.Layers[0].Desc.Size + b.Layers[0].Desc.Size; u.Disk != want || u.Saved != cached || u.Unused != 0 {
		t.Errorf("%+v, want %d on the disk, of it %d shared", u, want, cached)
	}
	for _, im := range u.Images {
		if im.Shared != cached || im.Unique != im.Size || im.Disk != im.Shared+im.Unique {
			t.Errorf("%+v", im)
		}
	}
	s = reopen(t, s)
	if _, err := s.Images.RemoveEntries(func(image.Entry) bool { return true }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		m    store.Mounted
		held int64
	}{{nothing(), 0}, {m, cached}} {
		u, err := s.Usage(t.Context(), c.m)
		if err != nil || u.Unused != u.Disk-c.held || u.Disk <= cached {
			t.Errorf("nothing is remembered: %+v, %v; %d are mounted", u, err, c.held)
		}
	}
}

// TestListDigests: entries that differ in nothing but what their platform's name
// leaves out are told apart.
func TestListDigests(t *testing.T) {
	host, s := serve(t), open(t, t.TempDir())
	ref := host + "/app/windows:1"
	push(t, ref,
		imageOf(t, v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.17763.1"}, layerOf(t, "ltsc2019", 1000)),
		imageOf(t, v1.Platform{OS: "windows", Architecture: "amd64", OSVersion: "10.0.20348.1"}, layerOf(t, "ltsc2022", 1000)))
	pulled := pullAll(t, s, ref)
	images, err := s.List(t.Context())
	if err != nil || len(images) != 2 {
		t.Fatalf("%+v, %v", images, err)
	}
	for _, p := range pulled {
		if !slices.ContainsFunc(images, func(im store.Image) bool {
			return im.Digest == p.Image.Digest && im.ID == p.Image.Manifest.Config.Digest && im.Layers[0].Digest == p.Image.Layers[0].Desc.Digest
		}) {
			t.Errorf("%s is not in %+v", p.Image.Digest, images)
		}
	}
}

// TestPullRemembers: an image that cannot be remembered was not pulled.
func TestPullRemembers(t *testing.T) {
	host, root := serve(t), t.TempDir()
	s := open(t, root)
	pull(t, s, host+"/app/one:1")
	if err := os.WriteFile(filepath.Join(root, "images", "index.json"), []byte(`{"schemaVersion":3,"manifests":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Pull(t.Context(), store.PullOptions{Name: host + "/app/two:1", Platform: "linux/amd64"}, nil)
	if !errors.Is(err, image.ErrNotImage) || !strings.HasPrefix(err.Error(), "pull ") {
		t.Errorf("got %v", err)
	}
}

// TestPullFiles: what is no registry's is refused without a look at it.
func TestPullFiles(t *testing.T) {
	s := open(t, t.TempDir())
	if _, err := s.Pull(t.Context(), store.PullOptions{Name: "oci:/none"}, nil); err == nil || !strings.Contains(err.Error(), "lamina mount") {
		t.Errorf("a layout: %v", err)
	}
	if _, err := s.Pull(t.Context(), store.PullOptions{Name: "A"}, nil); !errors.Is(err, image.ErrName) {
		t.Errorf("no name: %v", err)
	}
}

// TestCloseReleases: for a store that was closed nothing is spared.
func TestCloseReleases(t *testing.T) {
	root := t.TempDir()
	one, two := open(t, root), open(t, root)
	desc := ocispec.Descriptor{Digest: digest.FromString("a layer"), Size: int64(len("a layer"))}
	file := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(file, []byte("a layer"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := one.Images.Fetch(t.Context(), desc, fetch.OpenFile(file, 0, desc.Size, desc.Digest), nil); err != nil {
		t.Fatal(err)
	}
	for want := range 2 {
		removed, err := two.Prune(t.Context(), store.PruneOptions{})
		if err != nil || len(removed) != want {
			t.Errorf("%+v, %v, want %d", removed, err, want)
		}
		if err := one.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPruneMissingIndex: as long as nobody knows what images need, their layers
// stay, too.
func TestPruneMissingIndex(t *testing.T) {
	host, root := serve(t), t.TempDir()
	s := open(t, root)
	tree, err := s.Open(t.Context(), store.Ref{Name: host + "/app/one:1", Platform: "linux/amd64"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "images", "index.json")); err != nil {
		t.Fatal(err)
	}
	for _, all := range []bool{false, true} {
		removed, err := s.Prune(t.Context(), store.PruneOptions{All: all})
		if !errors.Is(err, image.ErrCorrupt) || len(removed) > 0 {
			t.Errorf("removed %+v, %v", removed, err)
		}
	}
	if layers, err := s.Cache.Layers(); err != nil || len(layers) != 2 {
		t.Errorf("left: %+v, %v", layers, err)
	}
}

// TestPruneData: of a pulled layer that was read, the blob stays and the data
// goes; it can be read again with no registry.
func TestPruneData(t *testing.T) {
	root := t.TempDir()
	host, s := serve(t), open(t, root)
	img := pull(t, s, host+"/app/one:1").Image
	read := func() {
		t.Helper()
		tree, err := s.Open(t.Context(), store.Ref{Name: img.Name, Pull: image.PullNever}, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range tree.Layers {
			if err := l.ReadAt(t.Context(), make([]byte, l.Size()), 0); err != nil {
				t.Error(err)
			}
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
		s = reopen(t, s)
	}
	read()
	keys := map[string]bool{}
	layers, err := s.Cache.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		keys[l.Key] = true
	}
	for _, c := range []struct {
		name string
		o    store.PruneOptions
		want int
	}{
		{"mounted", store.PruneOptions{Mounted: store.Mounted{Keys: keys}}, 0},
		{"young", store.PruneOptions{Until: time.Now().Add(-time.Hour)}, 0},
		{"dry run", store.PruneOptions{DryRun: true}, 2},
		{"for good", store.PruneOptions{}, 2},
		{"again", store.PruneOptions{}, 0},
	} {
		removed, err := s.Prune(t.Context(), c.o)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, r := range removed {
			if r.Kind == "data" && r.Freed > 0 && keys[r.Name] {
				n++
			}
		}
		if n != c.want || n != len(removed) {
			t.Errorf("%s: %d, not %d: %+v", c.name, n, c.want, removed)
		}
	}
	read()
}
