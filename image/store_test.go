package image_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/laminafs/lamina/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// opened opens an image through a new store.
func opened(t testing.TB, r *testRegistry, ref, platform string) (*image.Image, *image.Store) {
	t.Helper()
	s := newStore(t)
	img, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t), Store: s, Platform: platform})
	check(t, err)
	r.took()
	return img, s
}

func TestStoreLookup(t *testing.T) {
	r := newRegistry(t)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, "team/app:1", index)
	img, s := opened(t, r, ref, "linux/arm64")
	repo := r.host + "/team/app"
	found := []string{ref, repo + "@" + img.Digest.String(), repo + "@" + img.Index.String(), ref + "@" + img.Index.String()}
	for _, n := range found {
		got, err := s.Lookup(t.Context(), n, "linux/arm64", newClient(t))
		check(t, err)
		if asked := r.took(); len(asked) > 0 {
			t.Errorf("%s: asked %v", n, asked)
		}
		same(t, got, images["linux/arm64"])
		if got.Origin == nil || got.Origin.String() != repo {
			t.Errorf("%s: origin %v", n, got.Origin)
		}
		r.took()
	}
	for _, n := range []string{repo + ":2", repo, "app:1", repo + "x:1", r.host + "/other@" + img.Digest.String(), repo + "@sha256:" + hex64} {
		_, err := s.Lookup(t.Context(), n, "linux/arm64", nil)
		oneLine(t, err, image.ErrNotFound, "not stored")
	}
	_, err := s.Lookup(t.Context(), ref, "linux/amd64", nil)
	oneLine(t, err, image.ErrNotFound, "not for linux/amd64")
	_, err = s.Lookup(t.Context(), ref, "linux/mips", nil)
	oneLine(t, err, image.ErrNotFound, "not for linux/mips")
	_, err = s.Lookup(t.Context(), repo+"@"+img.Digest.String(), "linux/amd64", nil)
	oneLine(t, err, image.ErrNotFound)
	_, err = s.Lookup(t.Context(), "oci:x", "", nil)
	oneLine(t, err, image.ErrName)

	got, err := s.Lookup(t.Context(), ref, "linux/arm64", nil)
	check(t, err)
	for i, l := range got.Layers {
		if l.Blob != nil {
			t.Errorf("layer %d has a blob from nowhere", i)
		}
	}
	_, err = image.Open(t.Context(), ref, image.Options{Store: s, Platform: "linux/arm64"})
	oneLine(t, err, nil, "no registry")
}

// The store is a layout for others, and for our own oci: transport the missing
// layers come from where the image came from.
func TestStoreIsLayout(t *testing.T) {
	r := newRegistry(t)
	want := platformImage(t, host(), true)
	ref := r.pushImage(t, "layout/app:1", want)
	img, s := opened(t, r, ref, "")

	l, err := layout.FromPath(s.Dir())
	check(t, err)
	h, err := v1.NewHash(img.Digest.String())
	check(t, err)
	other, err := l.Image(h)
	check(t, err)
	config, err := other.RawConfigFile()
	check(t, err)
	if string(config) != string(img.RawConfig) {
		t.Errorf("another reader sees the config %s", config)
	}

	name := "oci:" + s.Dir() + ":" + ref
	_, err = image.Open(t.Context(), name, image.Options{})
	oneLine(t, err, image.ErrCorrupt, "layer 1", "not in the layout")
	again, err := image.Open(t.Context(), name, image.Options{Store: s, Client: newClient(t)})
	check(t, err)
	same(t, again, want)

	// Layers that somebody copied into the store are read there.
	layers, err := want.Layers()
	check(t, err)
	for _, layer := range layers {
		d, err := layer.Digest()
		check(t, err)
		rc, err := layer.Compressed()
		check(t, err)
		check(t, l.WriteBlob(d, rc))
	}
	r.Close()
	again, err = image.Open(t.Context(), ref, image.Options{Store: s})
	check(t, err)
	same(t, again, want)
}

func readIndexJSON(t testing.TB, s *image.Store) ocispec.Index {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir(), "index.json"))
	check(t, err)
	var x ocispec.Index
	check(t, json.Unmarshal(b, &x))
	return x
}

// The names in index.json: unique for tools that know no others, and kept by
// all platforms for us.
func TestStoreNames(t *testing.T) {
	r := newRegistry(t)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, "names:1", index)
	s := newStore(t)
	o := image.Options{Client: newClient(t), Store: s}
	for _, o.Platform = range []string{"linux/amd64", "linux/arm64", "linux/amd64"} {
		o.Pull = image.PullAlways
		_, err := image.Open(t.Context(), ref, o)
		check(t, err)
		x := readIndexJSON(t, s)
		var named []string
		for _, d := range x.Manifests {
			if d.Annotations["io.containerd.image.name"] != ref || d.Platform == nil {
				t.Errorf("entry %+v", d)
			}
			if d.Annotations[ocispec.AnnotationRefName] == ref {
				named = append(named, d.Platform.OS+"/"+d.Platform.Architecture)
			}
		}
		if len(named) != 1 || named[0] != o.Platform {
			t.Errorf("after %s: the name is with %v", o.Platform, named)
		}
	}
	for p, want := range images {
		got, err := s.Lookup(t.Context(), ref, p, o.Client)
		check(t, err)
		same(t, got, want)
	}

	// Entries of other tools are kept, and found if they have a full name.
	x := readIndexJSON(t, s)
	d := x.Manifests[0]
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "other:2", "x": "y"}
	x.Manifests = append(x.Manifests, d)
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "bare"}
	x.Manifests = append(x.Manifests, d)
	edited, err := json.Marshal(x)
	check(t, err)
	check(t, write("index.json", string(edited))(s.Dir()))
	_, err = s.Lookup(t.Context(), "other:2", "", nil)
	check(t, err)
	_, err = s.Lookup(t.Context(), "bare", "", nil)
	oneLine(t, err, image.ErrNotFound)
	o.Platform = ""
	second := r.pushImage(t, "names:2", platformImage(t, host(), true))
	_, err = image.Open(t.Context(), second, o)
	check(t, err)
	if x := readIndexJSON(t, s); len(x.Manifests) != 5 || x.Manifests[2].Annotations["x"] != "y" {
		t.Errorf("entries of others: %s became %+v", edited, x)
	}
	entries, err := s.List()
	check(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	if want := []string{ref, ref, second, "docker.io/library/other:2"}; !slices.Equal(names, want) {
		t.Errorf("List: %v, want %v", names, want)
	}
}

// Any damage to the store is noticed, reported and repaired from the registry.
func TestStoreDamaged(t *testing.T) {
	r := newRegistry(t)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, "damaged:1", index)
	img, _ := opened(t, r, ref, "linux/amd64")
	blob := func(d fmt.Stringer) string { return "blobs/sha256/" + strings.TrimPrefix(d.String(), "sha256:") }
	files := []string{blob(img.Digest), blob(img.Manifest.Config.Digest), blob(img.Index), "index.json"}
	for _, file := range files {
		for name, harm := range map[string]func(string) func(string) error{
			"gone": remove, "flipped": flip,
			"empty": func(f string) func(string) error { return write(f, "") },
			"cut": func(f string) func(string) error {
				return func(dir string) error { return os.Truncate(filepath.Join(dir, f), 20) }
			},
		} {
			if file == "index.json" && name == "flipped" {
				continue // nothing in it has a digest: see the next test
			}
			t.Run(name+" "+file[:6], func(t *testing.T) {
				_, s := opened(t, r, ref, "linux/amd64")
				check(t, harm(file)(s.Dir()))
				_, err := s.Lookup(t.Context(), ref, "linux/amd64", nil)
				oneLine(t, err, nil)
				if file == "index.json" && name == "gone" {
					return // an empty store: nothing to report
				}
				oneLine(t, err, image.ErrCorrupt)
				l, told := logTo()
				o := image.Options{Client: newClient(t), Store: s, Platform: "linux/amd64", Log: l}
				got, err := image.Open(t.Context(), ref, o)
				check(t, err)
				same(t, got, images["linux/amd64"])
				if !strings.Contains(told.String(), "unusable") {
					t.Errorf("log: %s", told)
				}
				told.Reset()
				r.took()
				o.Pull = image.PullNever
				_, err = image.Open(t.Context(), ref, o)
				check(t, err)
				if told.Len() > 0 || len(r.took()) > 0 {
					t.Errorf("not repaired: %s", told)
				}
			})
		}
	}
}

// An entry of index.json that leads to the wrong document.
func TestStoreWrongEntry(t *testing.T) {
	r := newRegistry(t)
	ref := r.pushImage(t, "entry:1", platformImage(t, host(), true))
	img, s := opened(t, r, ref, "")
	x := readIndexJSON(t, s)
	x.Manifests[0].Digest, x.Manifests[0].Size = img.Manifest.Config.Digest, img.Manifest.Config.Size
	b, err := json.Marshal(x)
	check(t, err)
	check(t, write("index.json", string(b))(s.Dir()))
	_, err = s.Lookup(t.Context(), ref, "", nil)
	oneLine(t, err, image.ErrCorrupt)
	check(t, s.Put(img))
	_, err = s.Lookup(t.Context(), ref, "", nil)
	check(t, err)
}

// What a writer that was killed leaves behind is removed by the next one, and
// is in nobody's way before.
func TestStoreLeftovers(t *testing.T) {
	r := newRegistry(t)
	ref := r.pushImage(t, "left:1", platformImage(t, host(), true))
	img, s := opened(t, r, ref, "")
	left := filepath.Join(s.Dir(), ".tmp-123")
	check(t, os.WriteFile(left, []byte("{"), 0o600))
	_, err := s.Lookup(t.Context(), ref, "", nil)
	check(t, err)
	check(t, s.Put(img))
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("left over: %v", err)
	}
	// Killed after the blobs and before index.json: they are found again.
	check(t, os.Remove(filepath.Join(s.Dir(), "index.json")))
	_, err = s.Lookup(t.Context(), ref, "", nil)
	oneLine(t, err, image.ErrNotFound)
	check(t, s.Put(img))
	_, err = s.Lookup(t.Context(), ref, "", nil)
	check(t, err)
}

// A store that cannot be written costs the next mount a round trip, no more.
func TestStoreUnwritable(t *testing.T) {
	r := newRegistry(t)
	want := platformImage(t, host(), true)
	ref := r.pushImage(t, "unwritable:1", want)
	root := t.TempDir()
	check(t, os.WriteFile(filepath.Join(root, "locks"), nil, 0o600)) // no directory
	s, err := image.OpenStore(filepath.Join(root, "images"))
	check(t, err)
	l, told := logTo()
	img, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t), Store: s, Log: l})
	check(t, err)
	same(t, img, want)
	if !strings.Contains(told.String(), "not stored") {
		t.Errorf("log: %s", told)
	}
	_, err = image.OpenStore(filepath.Join(root, "locks"))
	oneLine(t, err, nil, "not a directory")
}

func TestStorePutRefuses(t *testing.T) {
	r := newRegistry(t)
	img, s := opened(t, r, r.pushImage(t, "refuse:1", platformImage(t, host(), true)), "")
	wrong := *img
	wrong.RawConfig = []byte("{}")
	oneLine(t, s.Put(&wrong), image.ErrCorrupt, "store image")
	wrong = *img
	wrong.Name = "oci:x"
	oneLine(t, s.Put(&wrong), image.ErrName)
}

// Many writers, in this process and in others: every image is there at the end.
func TestStoreConcurrentPut(t *testing.T) {
	const writers, each = 4, 5
	r := newRegistry(t)
	s := newStore(t)
	var wait, readers sync.WaitGroup
	var want []string
	written := make(chan struct{})
	for i := range writers {
		var refs []string
		for j := range each {
			refs = append(refs, r.pushImage(t, fmt.Sprintf("put%d:%d", i, j), platformImage(t, host(), true)))
		}
		want = append(want, refs...)
		wait.Go(func() {
			if i%2 == 0 {
				cmd := exec.Command(os.Args[0], "-test.run=^TestStorePutChild$", "-test.v")
				cmd.Env = append(os.Environ(), "LAMINA_TEST_STORE="+s.Dir(), "LAMINA_TEST_REFS="+strings.Join(refs, " "))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("child: %v: %s", err, out)
				}
				return
			}
			putAll(t, s, refs)
		})
		readers.Go(func() { // they see a whole index at any time
			for {
				if _, err := s.List(); err != nil {
					t.Error(err)
				}
				select {
				case <-written:
					return
				default:
				}
			}
		})
	}
	wait.Wait()
	close(written)
	readers.Wait()
	for _, ref := range want {
		if _, err := s.Lookup(t.Context(), ref, "", nil); err != nil {
			t.Error(err)
		}
	}
	if entries, err := s.List(); err != nil || len(entries) != writers*each {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	files, err := os.ReadDir(s.Dir())
	check(t, err)
	if len(files) != 3 {
		t.Errorf("files in the store: %v", files)
	}
}

func putAll(t *testing.T, s *image.Store, refs []string) {
	c := newClient(t)
	for _, ref := range refs {
		if _, err := image.Open(t.Context(), ref, image.Options{Client: c, Store: s}); err != nil {
			t.Error(err)
		}
	}
}

// TestStorePutChild is the body of TestStoreConcurrentPut's other processes.
func TestStorePutChild(t *testing.T) {
	dir := os.Getenv("LAMINA_TEST_STORE")
	if dir == "" {
		return
	}
	s, err := image.OpenStore(dir)
	check(t, err)
	putAll(t, s, strings.Fields(os.Getenv("LAMINA_TEST_REFS")))
}

func BenchmarkStoreLookup(b *testing.B) {
	for _, entries := range []int{1, 100} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			r := newRegistry(b)
			index, _ := platformIndex(b, true, "linux/amd64", "linux/arm64")
			ref := r.pushIndex(b, "bench:1", index)
			img, s := opened(b, r, ref, "linux/amd64")
			for i := range entries - 1 {
				other := *img
				other.Name = fmt.Sprintf("%s/bench:other%d", r.host, i)
				check(b, s.Put(&other))
			}
			c := newClient(b)
			for b.Loop() {
				_, err := s.Lookup(b.Context(), ref, "linux/amd64", c)
				check(b, err)
			}
		})
	}
}

func BenchmarkStorePut(b *testing.B) {
	r := newRegistry(b)
	img, s := opened(b, r, r.pushImage(b, "bench:1", platformImage(b, host(), true)), "")
	i := 0
	for b.Loop() {
		other := *img
		other.Name = fmt.Sprintf("%s/bench:put%d", r.host, i%50)
		i++
		check(b, os.RemoveAll(filepath.Join(s.Dir(), "blobs")))
		check(b, s.Put(&other))
	}
}

// What is usable of a damaged index.json stays when an image is put, also one
// that is in it.
func TestPutSalvages(t *testing.T) {
	r := newRegistry(t)
	s, images := pulled(t, r, "salvage:1", "salvage:2")
	for _, img := range images {
		bad := readIndexJSON(t, s).Manifests[0]
		bad.Digest = "sha256:../../x"
		addEntry(t, s, bad)
		_, err := s.List()
		oneLine(t, err, image.ErrCorrupt)
		check(t, s.Put(img))
		if got := names(t, s); len(got) != 2 {
			t.Errorf("left: %v", got)
		}
		if b, err := os.ReadFile(filepath.Join(s.Dir(), "index.json.corrupt")); err != nil || !strings.Contains(string(b), "../../x") {
			t.Errorf("kept: %s, %v", b, err)
		}
		got, err := s.Unused(t.Context())
		sameBlobs(t, "unused", got, err)
	}
}

// Load goes by the digest, also where name and platform are those of others, and
// says what is damaged.
func TestLoad(t *testing.T) {
	r := newRegistry(t)
	s, images := pulled(t, r, "load:1", "load:2")
	x := readIndexJSON(t, s)
	for i := range x.Manifests {
		x.Manifests[i].Annotations = map[string]string{"io.containerd.image.name": "host/one:1"}
	}
	check(t, write("index.json", marshal(t, x))(s.Dir()))
	entries, err := s.List()
	check(t, err)
	for i, e := range entries {
		img, err := s.Load(t.Context(), e)
		check(t, err)
		if img.Name != "host/one:1" || img.Digest != e.Digest || !slices.ContainsFunc(images, func(o *image.Image) bool { return o.Digest == img.Digest }) {
			t.Errorf("entry %d: %s %s, want %s", i, img.Name, img.Digest, e.Digest)
		}
	}
	e := entries[0]
	e.Index = "sha256:" + hex64
	_, err = s.Load(t.Context(), e)
	oneLine(t, err, image.ErrCorrupt, "load host/one:1: ", hex64)
	check(t, os.Remove(blobFile(s, entries[0].Digest)))
	_, err = s.Load(t.Context(), entries[0])
	oneLine(t, err, image.ErrCorrupt, "not stored")
	entries[0].Digest = "sha256:../x"
	_, err = s.Load(t.Context(), entries[0])
	oneLine(t, err, image.ErrCorrupt)
}
