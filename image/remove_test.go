package image_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/laminafs/lamina/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// twoPlatforms stores both platforms of an image index.
func twoPlatforms(t testing.TB, r *testRegistry, name string) (string, *image.Store, map[string]v1.Image) {
	t.Helper()
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, name, index)
	s := newStore(t)
	_, err := image.OpenAll(t.Context(), ref, image.Options{Client: newClient(t), Store: s})
	check(t, err)
	r.took()
	return ref, s, images
}

// names lists what is stored, as NAME PLATFORM.
func names(t testing.TB, s *image.Store) []string {
	t.Helper()
	entries, err := s.List()
	check(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name+" "+e.Platform.Architecture)
	}
	return list
}

// uniqueNames checks that each name of the layout's own annotation is there
// once.
func uniqueNames(t testing.TB, s *image.Store) {
	t.Helper()
	count := make(map[string]int)
	for _, d := range readIndexJSON(t, s).Manifests {
		count[d.Annotations["io.containerd.image.name"]] += 0
		if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
			count[name]++
		}
	}
	for name, n := range count {
		if n != 1 {
			t.Errorf("%d entries are called %s", n, name)
		}
	}
}

func TestTag(t *testing.T) {
	r := newRegistry(t)
	ref, s, images := twoPlatforms(t, r, "tag:1")
	check(t, s.Tag(ref, "mine"))
	check(t, s.Tag(ref, ref))
	check(t, s.Tag("mine", "mine"))
	const mine = "docker.io/library/mine:latest"
	want := []string{ref + " amd64", ref + " arm64", mine + " amd64", mine + " arm64"}
	slices.Sort(want)
	if got := names(t, s); !slices.Equal(got, want) {
		t.Errorf("stored: %v", got)
	}
	uniqueNames(t, s)
	for p, want := range images {
		got, err := s.Lookup(t.Context(), "mine", p, newClient(t))
		check(t, err)
		same(t, got, want) // layers come from where they were
		if got.Name != mine || got.Index == "" {
			t.Errorf("got %s of the index %q", got.Name, got.Index)
		}
	}
	all, err := image.OpenAll(t.Context(), "mine", image.Options{Client: newClient(t), Store: s})
	check(t, err)
	for _, img := range all {
		same(t, img, images["linux/"+img.Platform.Architecture])
	}

	// One platform's manifest: the name stands for that one.
	arm, err := s.Lookup(t.Context(), ref, "linux/arm64", nil)
	check(t, err)
	for _, from := range []string{r.host + "/tag@" + arm.Digest.String(), "arm:0"} {
		check(t, s.Tag(from, "arm:0"))
		got, err := s.Lookup(t.Context(), "arm:0", "", newClient(t))
		check(t, err)
		same(t, got, images["linux/arm64"])
		if got.Index != "" {
			t.Errorf("it stands for the index %s", got.Index)
		}
	}

	// A name moves.
	other := r.pushImage(t, "other:1", platformImage(t, host(), true))
	_, err = image.Open(t.Context(), other, image.Options{Client: newClient(t), Store: s})
	check(t, err)
	check(t, s.Tag(other, "mine"))
	if got := names(t, s); len(got) != 5 {
		t.Errorf("stored: %v", got)
	}
	uniqueNames(t, s)

	oneLine(t, s.Tag("none:1", "x"), image.ErrNotFound, "tag none:1 as x: ", "lamina images")
	oneLine(t, s.Tag(ref, "x@sha256:"+hex64), image.ErrName, "REPOSITORY[:TAG]")
	oneLine(t, s.Tag(ref, "oci:x"), image.ErrName)
	oneLine(t, s.Tag(ref, "X"), image.ErrName, "lower case")
	oneLine(t, s.Tag("oci:x", "x"), image.ErrName)
	check(t, write("index.json", "{")(s.Dir()))
	oneLine(t, s.Tag(ref, "x"), image.ErrCorrupt, "lamina check")
}

func TestRemove(t *testing.T) {
	r := newRegistry(t)
	// Each removes so many of the two platforms.
	tests := []struct {
		name func(ref string, arm *image.Image) string
		n    int
	}{
		{func(ref string, _ *image.Image) string { return ref }, 2},
		{func(ref string, arm *image.Image) string { return ref + "@" + arm.Digest.String() }, 1},
		{func(ref string, arm *image.Image) string { return ref + "@" + arm.Index.String() }, 2},
		{func(_ string, arm *image.Image) string { return arm.Digest.String() }, 1},
		{func(_ string, arm *image.Image) string { return arm.Digest.Encoded() }, 1},
		{func(_ string, arm *image.Image) string { return arm.Digest.Encoded()[:12] }, 1},
		{func(_ string, arm *image.Image) string { return arm.Digest.String()[:19] }, 1},
		{func(_ string, arm *image.Image) string { return arm.Index.Encoded()[:20] }, 2},
	}
	for i, tt := range tests {
		ref, s, images := twoPlatforms(t, r, fmt.Sprintf("remove%d:1", i))
		arm, err := s.Lookup(t.Context(), ref, "linux/arm64", nil)
		check(t, err)
		name := tt.name(ref, arm)
		removed, err := s.Remove(name)
		check(t, err)
		if len(removed) != tt.n || removed[tt.n-1].Digest != arm.Digest || removed[0].Name != ref {
			t.Errorf("%s: removed %+v", name, removed)
		}
		if got := names(t, s); len(got) != 2-tt.n {
			t.Errorf("%s: left %v", name, got)
		}
		if _, err := s.Lookup(t.Context(), ref, "linux/arm64", nil); !isError(err, image.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		if tt.n == 1 {
			uniqueNames(t, s)
			got, err := s.Lookup(t.Context(), ref, "linux/amd64", newClient(t))
			check(t, err)
			same(t, got, images["linux/amd64"])
		}
		if _, err := os.Stat(blobFile(s, arm.Digest)); err != nil {
			t.Errorf("%s: the blobs went too: %v", name, err)
		}
		_, err = s.Remove(name)
		oneLine(t, err, image.ErrNotFound, "remove image "+name+": ", "lamina images")
	}
}

func TestRemoveRefuses(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"none", "0123456789ab", "sha256:" + hex64, hex64, "host/a@sha256:" + hex64} {
		_, err := s.Remove(name)
		oneLine(t, err, image.ErrNotFound, "lamina images")
	}
	if _, err := os.Stat(s.Dir()); !os.IsNotExist(err) {
		t.Errorf("removing made the store: %v", err)
	}
	for _, name := range []string{"", "oci:x", "A", "0123456789AB"} {
		_, err := s.Remove(name)
		oneLine(t, err, image.ErrName)
	}
	r := newRegistry(t)
	img, s := opened(t, r, r.pushImage(t, "refuse:1", platformImage(t, host(), true)), "")
	check(t, s.Tag(img.Name, "second"))
	_, err := s.Remove(img.Digest.Encoded()[:12])
	oneLine(t, err, image.ErrName, "several images", "second", img.Name)

	// Names go before digests that begin so.
	short := img.Digest.Encoded()[:12]
	check(t, s.Tag("second", short))
	removed, err := s.Remove(short)
	check(t, err)
	if len(removed) != 1 || removed[0].Name != "docker.io/library/"+short+":latest" {
		t.Errorf("removed %+v", removed)
	}

	// Digests that begin alike.
	x := readIndexJSON(t, s).Manifests
	x[0].Digest, x[1].Digest = "sha256:"+hex64, digest.Digest("sha256:"+hex64[:63]+"0")
	check(t, write("index.json", marshal(t, ocispec.Index{Manifests: x, Versioned: readIndexJSON(t, s).Versioned}))(s.Dir()))
	_, err = s.Remove(hex64[:12])
	oneLine(t, err, image.ErrName, "several digests", hex64)
	_, err = s.Remove(hex64)
	check(t, err)

	check(t, write("index.json", "{")(s.Dir()))
	_, err = s.Remove("second")
	oneLine(t, err, image.ErrCorrupt, "lamina check")
}

// Many who tag and remove at once in several stores on one directory.
func TestTagRemoveTogether(t *testing.T) {
	r := newRegistry(t)
	ref, s, _ := twoPlatforms(t, r, "together:1")
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			s, err := image.OpenStore(s.Dir())
			if err != nil {
				t.Error(err)
			}
			for j := range 5 {
				name := fmt.Sprintf("together%d:%d", i, j)
				if err := s.Tag(ref, name); err != nil {
					t.Error(err)
				}
				if j%2 == 1 {
					continue
				}
				if removed, err := s.Remove(name); err != nil || len(removed) != 2 {
					t.Error(removed, err)
				}
			}
		})
	}
	wait.Wait()
	if got := names(t, s); len(got) != 2+8*2*2 {
		t.Errorf("stored: %v", got)
	}
	uniqueNames(t, s)
	files, err := filepath.Glob(filepath.Join(s.Dir(), ".*"))
	if err != nil || len(files) > 0 {
		t.Errorf("left over: %v, %v", files, err)
	}
	if problems, err := s.Check(t.Context(), image.CheckOptions{}); err != nil || len(problems) > 0 {
		t.Errorf("check: %v, %v", problems, err)
	}
}

// FuzzIndexJSON reads an index.json that was edited by hand. Nothing must
// panic, and no blob that the edited one leads to may be called unused.
func FuzzIndexJSON(f *testing.F) {
	r := newRegistry(f)
	ref, s, _ := twoPlatforms(f, r, "fuzz:1")
	whole, err := os.ReadFile(filepath.Join(s.Dir(), "index.json"))
	check(f, err)
	f.Add(string(whole))
	f.Add(strings.Replace(string(whole), "sha256:", "blake3:", 1))
	f.Add(strings.ReplaceAll(string(whole), "io.github.laminafs.image.index", "x"))
	f.Add(strings.ReplaceAll(string(whole), ref, "tag"))
	f.Add(`{"schemaVersion":2,"manifests":[{"digest":"sha256:../x","size":1,"annotations":{"io.containerd.image.name":"a"}}]}`)
	f.Add(`{"schemaVersion":2,"manifests":null}`)
	f.Fuzz(func(t *testing.T, edited string) {
		check(t, os.WriteFile(filepath.Join(s.Dir(), "index.json"), []byte(edited), 0o600))
		entries, err := s.List()
		unused, unusedErr := s.Unused(t.Context())
		if err != nil && unusedErr == nil {
			t.Errorf("unused of an index.json that cannot be read: %v", unused)
		}
		for _, e := range entries {
			for _, b := range unused {
				if b.Digest == e.Digest || b.Digest == e.Index {
					t.Errorf("unused: %v of %+v", b, e)
				}
			}
		}
		_, _ = s.Lookup(t.Context(), ref, "linux/amd64", nil)
		_, _ = image.OpenAll(t.Context(), ref, image.Options{Store: s, Pull: image.PullNever})
		_ = s.Tag(ref, "x")
		_, _ = s.Remove(ref)
		if _, err := s.Check(t.Context(), image.CheckOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// Find returns what Remove would, and removes nothing.
func TestFind(t *testing.T) {
	r := newRegistry(t)
	ref, s, _ := twoPlatforms(t, r, "find:1")
	arm, err := s.Lookup(t.Context(), ref, "linux/arm64", nil)
	check(t, err)
	for name, n := range map[string]int{ref: 2, r.host + "/find@" + arm.Index.String(): 2, arm.Digest.Encoded()[:12]: 1} {
		found, err := s.Find(name)
		check(t, err)
		if len(found) != n || found[n-1].Digest != arm.Digest || found[n-1].Index != arm.Index || found[0].Name != ref {
			t.Errorf("%s: found %+v", name, found)
		}
	}
	if got := names(t, s); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
	_, err = s.Find("none:1")
	oneLine(t, err, image.ErrNotFound, "find image none:1: ", "lamina images")
	_, err = s.Find("oci:x")
	oneLine(t, err, image.ErrName)
	check(t, write("index.json", "{")(s.Dir()))
	_, err = s.Find(ref)
	oneLine(t, err, image.ErrCorrupt)
}

// RemoveEntries removes one platform of a name, and leaves its others.
func TestRemoveEntries(t *testing.T) {
	r := newRegistry(t)
	ref, s, images := twoPlatforms(t, r, "entries:1")
	arm, err := s.Lookup(t.Context(), ref, "linux/arm64", nil)
	check(t, err)
	removed, err := s.RemoveEntries(func(e image.Entry) bool { return e.Name == ref && e.Digest == arm.Digest })
	if err != nil || len(removed) != 1 || removed[0].Digest != arm.Digest {
		t.Errorf("removed %+v, %v", removed, err)
	}
	uniqueNames(t, s)
	got, err := s.Lookup(t.Context(), ref, "linux/amd64", newClient(t))
	check(t, err)
	same(t, got, images["linux/amd64"])
	removed, err = s.RemoveEntries(func(image.Entry) bool { return false })
	if err != nil || len(removed) > 0 {
		t.Errorf("removed %+v, %v", removed, err)
	}
	check(t, write("index.json", "{")(s.Dir()))
	_, err = s.RemoveEntries(func(image.Entry) bool { return true })
	oneLine(t, err, image.ErrCorrupt, "lamina check")
}
