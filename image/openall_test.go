package image_test

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
)

// sameAll checks images, in their order.
func sameAll(t testing.TB, got []*image.Image, want ...v1.Image) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d images, want %d", len(got), len(want))
	}
	for i := range want {
		same(t, got[i], want[i])
	}
}

func TestOpenAll(t *testing.T) {
	r := newRegistry(t)
	platforms := []string{"linux/amd64", "linux/arm/v7", "linux/arm64", "linux/s390x", "windows/amd64"}
	var index v1.ImageIndex = empty.Index
	_, images := platformIndex(t, true, platforms...)
	var want []v1.Image
	for _, s := range platforms {
		p, err := v1.ParsePlatform(s)
		check(t, err)
		want = append(want, images[s])
		index = mutate.AppendManifests(index,
			mutate.IndexAddendum{Add: images[s], Descriptor: v1.Descriptor{Platform: p}},
			mutate.IndexAddendum{Add: platformImage(t, "linux/mips", true), Descriptor: v1.Descriptor{
				Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
				Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
			}})
	}
	ref := r.pushIndex(t, "all:1", index)
	s := newStore(t)
	o := image.Options{Client: newClient(t), Store: s, Platform: "no/platform/at/all", Pull: image.PullNever}
	_, err := image.OpenAll(t.Context(), ref, o)
	oneLine(t, err, image.ErrNotFound, "open "+ref+": ", "not stored")

	// One platform is stored before: the others are fetched.
	o.Pull, o.Platform = image.PullMissing, "linux/arm64"
	_, err = image.Open(t.Context(), ref, o)
	check(t, err)
	o.Platform = ""
	_, err = image.OpenAll(t.Context(), ref, image.Options{Store: s, Pull: image.PullNever, Client: o.Client})
	oneLine(t, err, image.ErrNotFound, "not stored")
	r.took()
	manifests := 0
	o.OnManifest = func(*image.Image) { manifests++ }
	got, err := image.OpenAll(t.Context(), ref, o)
	check(t, err)
	if asked := r.took(); len(asked) != 8 || manifests != 5 {
		t.Errorf("%d calls of the hook, asked %v", manifests, asked)
	}
	sameAll(t, got, want...)
	d, err := index.Digest()
	check(t, err)
	for i, img := range got {
		one, err := image.Open(t.Context(), ref, image.Options{Store: s, Client: o.Client, Platform: platforms[i]})
		check(t, err)
		if img.Name != one.Name || img.Index != one.Index || img.Index.String() != d.String() || img.Origin.String() != one.Origin.String() ||
			img.Platform.Architecture+img.Platform.Variant != one.Platform.Architecture+one.Platform.Variant {
			t.Errorf("%s: got %+v, Open gives %+v", platforms[i], img, one)
		}
	}
	uniqueNames(t, s)
	r.took()
	for _, o.Pull = range []image.Policy{image.PullMissing, image.PullNever} {
		got, err = image.OpenAll(t.Context(), ref, o)
		check(t, err)
		if asked := r.took(); len(asked) > 0 {
			t.Errorf("pull %s: asked %v", o.Pull, asked)
		}
		sameAll(t, got, want...)
		r.took()
	}
	o.Pull = image.PullAlways
	_, err = image.OpenAll(t.Context(), ref, o)
	check(t, err)
	if asked := r.took(); !slices.Equal(asked, []string{"GET /v2/all/manifests/1"}) {
		t.Errorf("pull always: asked %v", asked)
	}

	// Without a registry it needs the layers too.
	o.Pull, o.Client = image.PullMissing, nil
	_, err = image.OpenAll(t.Context(), ref, o)
	oneLine(t, err, image.ErrNotFound, "not stored")
	for _, img := range got {
		fetchLayers(t, s, img)
	}
	r.Close()
	got, err = image.OpenAll(t.Context(), ref, o)
	check(t, err)
	sameAll(t, got, want...)
}

// Images that are no index, and indexes in files.
func TestOpenAllOne(t *testing.T) {
	r := newRegistry(t)
	one := platformImage(t, "linux/riscv64", true)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: one}, mutate.IndexAddendum{Add: index}, mutate.IndexAddendum{Add: one})
	dir := newLayout(t, map[string]mutate.Appendable{"one": one, "two": index})
	c := newClient(t)
	for name, want := range map[string][]v1.Image{
		r.pushImage(t, "one:1", one):             {one},
		r.pushIndex(t, "nested:1", outer):        {one, images["linux/amd64"], images["linux/arm64"]},
		"oci:" + dir + ":one":                    {one},
		"oci:" + dir + ":two":                    {images["linux/amd64"], images["linux/arm64"]},
		"oci-archive:" + tarDir(t, dir) + ":two": {images["linux/amd64"], images["linux/arm64"]},
	} {
		s := newStore(t)
		for range 2 {
			got, err := image.OpenAll(t.Context(), name, image.Options{Client: c, Store: s})
			check(t, err)
			sameAll(t, got, want...)
		}
	}
	got, err := image.OpenAll(t.Context(), "docker-archive:"+dockerTar(t, one, "a:1"), image.Options{})
	check(t, err)
	sameContent(t, got[0], one)
}

func TestOpenAllRefuses(t *testing.T) {
	r := newRegistry(t)
	_, err := image.OpenAll(t.Context(), "A", image.Options{})
	oneLine(t, err, image.ErrName)
	_, err = image.OpenAll(t.Context(), r.host+"/none:1", image.Options{Client: newClient(t)})
	oneLine(t, err, fetch.ErrNotFound)
	_, err = image.OpenAll(t.Context(), r.pushIndex(t, "empty:1", empty.Index), image.Options{Client: newClient(t)})
	oneLine(t, err, image.ErrNotFound, "no image")
	index, _ := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, "half:1", index)
	r.setTamper(func(w http.ResponseWriter, req *http.Request) bool {
		m, err := index.IndexManifest()
		check(t, err)
		if req.URL.Path != "/v2/half/manifests/"+m.Manifests[1].Digest.String() {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	s := newStore(t)
	_, err = image.OpenAll(t.Context(), ref, image.Options{Client: newClient(t), Store: s})
	oneLine(t, err, fetch.ErrNotFound)
	if got := names(t, s); len(got) > 0 {
		t.Errorf("stored: %v", got)
	}
	deep := v1.ImageIndex(index)
	for range 6 {
		deep = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: deep})
	}
	r.setTamper(nil)
	_, err = image.OpenAll(t.Context(), r.pushIndex(t, "deep:1", deep), image.Options{Client: newClient(t)})
	oneLine(t, err, image.ErrCorrupt, "nested")
}

// Platforms that only their name holds together keep it.
func TestOpenAllEntries(t *testing.T) {
	r := newRegistry(t)
	ref, s, images := twoPlatforms(t, r, "entries:1")
	x := readIndexJSON(t, s)
	for i := range x.Manifests {
		delete(x.Manifests[i].Annotations, "io.github.laminafs.image.index")
	}
	check(t, write("index.json", marshal(t, x))(s.Dir()))
	want := names(t, s)
	got, err := image.OpenAll(t.Context(), ref, image.Options{Client: newClient(t), Store: s})
	check(t, err)
	sameAll(t, got, images["linux/amd64"], images["linux/arm64"])
	if got := names(t, s); len(want) != 2 || !slices.Equal(got, want) {
		t.Errorf("stored: %v, want %v", got, want)
	}
}

// A registry is asked for as many manifests at once however deep they are.
func TestOpenAllParallel(t *testing.T) {
	const parallel = 4
	r := newRegistry(t)
	outer := v1.ImageIndex(empty.Index)
	for range 4 {
		inner, _ := platformIndex(t, true, "linux/amd64", "linux/arm64", "linux/s390x", "linux/riscv64")
		outer = mutate.AppendManifests(outer, mutate.IndexAddendum{Add: inner})
	}
	ref := r.pushIndex(t, "parallel:1", outer)
	var now, most atomic.Int32
	r.setTamper(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/manifests/sha256:") {
			n := now.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			time.Sleep(20 * time.Millisecond)
			now.Add(-1)
		}
		return false
	})
	got, err := image.OpenAll(t.Context(), ref, image.Options{Client: newClient(t)})
	if err != nil || len(got) != 16 || most.Load() > parallel {
		t.Errorf("%d images, %d requests at once, %v", len(got), most.Load(), err)
	}
}
