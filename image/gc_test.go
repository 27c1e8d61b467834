package image_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/laminafs/lamina/image"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// pulled stores images with all their layers, and makes it look as if that was
// long ago.
func pulled(t testing.TB, r *testRegistry, names ...string) (*image.Store, []*image.Image) {
	t.Helper()
	s := newStore(t)
	var images []*image.Image
	for _, name := range names {
		ref := r.pushImage(t, name, platformImage(t, host(), true))
		img, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t), Store: s})
		check(t, err)
		fetchLayers(t, s, img)
		images = append(images, img)
	}
	age(t, s)
	return s, images
}

// age makes all blobs of a store a day old.
func age(t testing.TB, s *image.Store) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(s.Dir()), "images", "blobs", "*", "*"))
	check(t, err)
	partials, err := filepath.Glob(filepath.Join(filepath.Dir(s.Dir()), "partial", "*"))
	check(t, err)
	for _, f := range append(files, partials...) {
		old := time.Now().Add(-24 * time.Hour)
		check(t, os.Chtimes(f, old, old))
	}
}

// blobsOf are the digests of all blobs of an image, sorted.
func blobsOf(images ...*image.Image) []digest.Digest {
	var all []digest.Digest
	for _, img := range images {
		all = append(all, img.Digest, img.Manifest.Config.Digest)
		for _, l := range img.Layers {
			all = append(all, l.Desc.Digest)
		}
	}
	slices.Sort(all)
	return all
}

// sameBlobs checks what Unused or Prune returned.
func sameBlobs(t testing.TB, what string, got []image.BlobInfo, err error, want ...digest.Digest) {
	t.Helper()
	check(t, err)
	var digests []digest.Digest
	for _, b := range got {
		digests = append(digests, b.Digest)
	}
	if !slices.Equal(digests, want) {
		t.Errorf("%s: got %v, want %v", what, digests, want)
	}
}

// putBlob writes a blob into the layout as another tool would.
func putBlob(t testing.TB, s *image.Store, mediaType, text string) ocispec.Descriptor {
	t.Helper()
	d := digest.FromString(text)
	check(t, os.MkdirAll(filepath.Dir(blobFile(s, d)), 0o755))
	check(t, os.WriteFile(blobFile(s, d), []byte(text), 0o600))
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(text))}
}

// putPartial writes the beginning of a blob.
func putPartial(t testing.TB, s *image.Store, d digest.Digest, text string) string {
	t.Helper()
	path := partialFile(s, d)
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func addEntry(t testing.TB, s *image.Store, entries ...ocispec.Descriptor) {
	t.Helper()
	x := readIndexJSON(t, s)
	x.Manifests = append(x.Manifests, entries...)
	check(t, write("index.json", marshal(t, x))(s.Dir()))
}

func TestPrune(t *testing.T) {
	s := newStore(t)
	got, err := s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "an empty store", got, err)
	if _, err := os.Stat(filepath.Join(filepath.Dir(s.Dir()), "locks")); !os.IsNotExist(err) {
		t.Errorf("pruning nothing made files: %v", err)
	}

	r := newRegistry(t)
	s, images := pulled(t, r, "prune:1", "prune:2")
	got, err = s.Unused(t.Context())
	sameBlobs(t, "all in use", got, err)
	_, err = s.Remove(images[1].Name)
	check(t, err)
	gone := blobsOf(images[1])
	got, err = s.Unused(t.Context())
	sameBlobs(t, "unused", got, err, gone...)
	for _, b := range got {
		if st, err := os.Stat(blobFile(s, b.Digest)); err != nil || st.Size() != b.Size || !st.ModTime().Equal(b.ModTime) || b.Partial {
			t.Errorf("%+v: %v", b, err)
		}
	}

	// What the options spare.
	layer := images[1].Layers[0].Desc
	got, err = s.Prune(t.Context(), image.PruneOptions{DryRun: true})
	sameBlobs(t, "dry run", got, err, gone...)
	got, err = s.Prune(t.Context(), image.PruneOptions{OlderThan: 25 * time.Hour})
	sameBlobs(t, "older", got, err)
	got, err = s.Prune(t.Context(), image.PruneOptions{DryRun: true, OlderThan: 23 * time.Hour, Keep: func(d digest.Digest) bool { return d == layer.Digest }})
	sameBlobs(t, "kept", got, err, slices.DeleteFunc(slices.Clone(gone), func(d digest.Digest) bool { return d == layer.Digest })...)

	// This process has fetched, so what it fetches again is young.
	check(t, s.Fetch(t.Context(), layer, nil, nil))
	got, err = s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "pruned", got, err, slices.DeleteFunc(slices.Clone(gone), func(d digest.Digest) bool { return d == layer.Digest })...)
	if !s.HasBlob(layer) {
		t.Error("a blob that was just asked for is gone")
	}
	age(t, s)
	got, err = s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "pruned later", got, err, layer.Digest)
	if s.HasBlob(layer) {
		t.Error("a pruned blob is there")
	}
	read, err := s.Lookup(t.Context(), images[0].Name, "", nil)
	check(t, err)
	for _, l := range read.Layers {
		if !s.HasBlob(l.Desc) {
			t.Errorf("the layer %s of a stored image is gone", l.Desc.Digest)
		}
	}
}

// What a process fetched and never put is removed as soon as it has ended.
func TestPruneAfterProcess(t *testing.T) {
	server, s := newBlobServer(t, digest.SHA512, 1<<20), newStore(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestFetchChild$")
	cmd.Env = append(os.Environ(), "LAMINA_TEST_STORE="+s.Dir(), "LAMINA_TEST_BLOB="+server.url)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("child: %v: %s", err, out)
	}
	stored(t, s, server.desc, server.raw)
	for _, dry := range []bool{true, false} {
		got, err := s.Prune(t.Context(), image.PruneOptions{DryRun: dry})
		sameBlobs(t, "pruned", got, err, server.desc.Digest)
	}
	check(t, s.Fetch(t.Context(), server.desc, server.blob(t), nil))
	for _, dry := range []bool{true, false} {
		got, err := s.Prune(t.Context(), image.PruneOptions{DryRun: dry})
		sameBlobs(t, "while this process lives", got, err)
	}
}

func TestPrunePartials(t *testing.T) {
	r := newRegistry(t)
	s, images := pulled(t, r, "partials:1")
	layers := images[0].Layers
	check(t, os.Remove(blobFile(s, layers[0].Desc.Digest)))
	interrupted := putPartial(t, s, layers[0].Desc.Digest, "of a stored image")
	whole := putPartial(t, s, layers[1].Desc.Digest, "of one that is there")
	stale := putPartial(t, s, digest.FromString("stale"), "nobody's")
	busy := putPartial(t, s, digest.FromString("busy"), "under way")
	odd := filepath.Join(filepath.Dir(stale), "notes.txt")
	check(t, os.WriteFile(odd, nil, 0o600))
	f, err := os.Open(busy)
	check(t, err)
	defer func() { _ = f.Close() }()
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	age(t, s)
	want := []digest.Digest{digest.FromString("stale"), layers[1].Desc.Digest}
	slices.Sort(want)
	got, err := s.Unused(t.Context())
	sameBlobs(t, "unused", got, err, want...)
	for _, b := range got {
		if !b.Partial || b.Size == 0 {
			t.Errorf("%+v", b)
		}
	}
	got, err = s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "pruned", got, err, want...)
	for path, there := range map[string]bool{interrupted: true, whole: false, stale: false, busy: true, odd: true} {
		if _, err := os.Stat(path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// All that manifests of any kind lead to is in use.
func TestUnusedFollows(t *testing.T) {
	r := newRegistry(t)
	s, _ := pulled(t, r, "follows:1")
	blob := func(text string) ocispec.Descriptor { return putBlob(t, s, "text/plain", text) }
	const manifest, index = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	v2 := specs.Versioned{SchemaVersion: 2}
	absent := ocispec.Descriptor{MediaType: manifest, Digest: "sha256:" + hex64, Size: 3}
	inner := putBlob(t, s, manifest, marshal(t, ocispec.Manifest{Versioned: v2, Config: blob("config"), Layers: []ocispec.Descriptor{blob("layer"), absent}}))
	nested := putBlob(t, s, index, marshal(t, ocispec.Index{Versioned: v2, Manifests: []ocispec.Descriptor{inner, absent}}))
	subject := putBlob(t, s, manifest, marshal(t, ocispec.Manifest{Versioned: v2, Config: blob("config of the subject")}))
	referrer := putBlob(t, s, manifest, marshal(t, ocispec.Manifest{
		Versioned: v2, ArtifactType: "application/x.index", Config: blob("{}"),
		Layers: []ocispec.Descriptor{blob("chunks")}, Subject: &subject,
	}))
	artifact := putBlob(t, s, "application/vnd.oci.artifact.manifest.v1+json", `{"blobs":[`+marshal(t, blob("artifact's"))+`]}`)
	old := putBlob(t, s, "application/vnd.docker.distribution.manifest.v1+json", `{"schemaVersion":1,"fsLayers":[{"blobSum":"`+blob("old").Digest.String()+`"}]}`)
	odd := putBlob(t, s, "application/x.zip", "PK no JSON")
	unknown := absent
	unknown.Digest = "blake3:" + hex64
	check(t, os.MkdirAll(filepath.Dir(blobFile(s, unknown.Digest)), 0o755))
	check(t, os.WriteFile(blobFile(s, unknown.Digest), []byte(`{"layers":[`+marshal(t, blob("of blake3"))+`]}`), 0o600))
	check(t, os.WriteFile(filepath.Join(s.Dir(), "blobs", "sha256", "notes.txt"), nil, 0o600))
	addEntry(t, s,
		putBlob(t, s, index, marshal(t, ocispec.Index{Versioned: v2, Manifests: []ocispec.Descriptor{nested}})),
		referrer, artifact, old, odd, unknown)
	lost := blob("nobody's")
	got, err := s.Unused(t.Context())
	sameBlobs(t, "unused", got, err, lost.Digest)
	age(t, s)
	got, err = s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "pruned", got, err, lost.Digest)
}

// A document that cannot be read may need anything: nothing is removed.
func TestPruneDamaged(t *testing.T) {
	r := newRegistry(t)
	index, _ := platformIndex(t, true, host(), "linux/s390x")
	ref := r.pushIndex(t, "damaged:1", index)
	img, _ := opened(t, r, ref, "")
	tests := map[string]func(dir string) error{"index.json": write("index.json", "{")}
	for _, d := range []digest.Digest{img.Digest, img.Index} {
		file := "blobs/sha256/" + d.Encoded()
		tests["gone "+file] = remove(file)
		tests["flipped "+file] = flip(file)
		tests["empty "+file] = write(file, "")
		tests["no JSON "+file] = write(file, "x")
	}
	for name, harm := range tests {
		t.Run(name[:7], func(t *testing.T) {
			_, s := opened(t, r, ref, "")
			lost := putBlob(t, s, "", "perhaps a layer")
			check(t, harm(s.Dir()))
			_, err := s.Unused(t.Context())
			oneLine(t, err, image.ErrCorrupt, "lamina check")
			_, err = s.Prune(t.Context(), image.PruneOptions{})
			oneLine(t, err, image.ErrCorrupt, "prune "+s.Dir(), "lamina check")
			if !s.HasBlob(lost) {
				t.Error("it was removed")
			}
			_, err = s.Check(t.Context(), image.CheckOptions{Repair: true})
			check(t, err)
			if _, err = s.Prune(t.Context(), image.PruneOptions{}); err != nil || s.HasBlob(lost) {
				t.Errorf("after the repair: %v", err)
			}
		})
	}
}

// Prune beside many who fetch, put and remove: what they need is there.
func TestPruneTogether(t *testing.T) {
	const workers, rounds = 4, 4
	r := newRegistry(t)
	s := newStore(t)
	done := make(chan struct{})
	var wait, pruners sync.WaitGroup
	for range 2 {
		pruners.Go(func() {
			s, err := image.OpenStore(s.Dir())
			if err != nil {
				t.Error(err)
			}
			for {
				if _, err := s.Prune(t.Context(), image.PruneOptions{}); err != nil {
					t.Error(err)
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range workers {
		var refs []string
		for j := range rounds {
			refs = append(refs, r.pushImage(t, fmt.Sprintf("beside%d:%d", i, j), platformImage(t, host(), true)))
		}
		wait.Go(func() {
			s, err := image.OpenStore(s.Dir())
			if err != nil {
				t.Error(err)
			}
			for j, ref := range refs {
				// The layers before the entry, or after it.
				o := image.Options{Client: newClient(t), Store: s}
				if j%2 == 0 {
					o.Store = nil
				}
				img, err := image.Open(t.Context(), ref, o)
				if err != nil {
					t.Error(err)
					return
				}
				for range 2 {
					for _, l := range img.Layers {
						if err := s.Fetch(t.Context(), l.Desc, l.Blob, nil); err != nil {
							t.Error(err)
						}
					}
				}
				if err := s.Put(img); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
				if got, err := s.Lookup(t.Context(), ref, "", nil); err != nil || slices.ContainsFunc(got.Layers, func(l image.Layer) bool { return l.Blob == nil }) {
					t.Errorf("%s: blobs are gone: %v", ref, err)
				}
				if j != rounds-1 {
					if _, err := s.Remove(ref); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wait.Wait()
	close(done)
	pruners.Wait()
	if problems, err := s.Check(t.Context(), image.CheckOptions{}); err != nil || len(problems) > 0 {
		t.Errorf("check: %v, %v", problems, err)
	}
	age(t, s)
	_, err := s.Prune(t.Context(), image.PruneOptions{})
	check(t, err)
	files, err := filepath.Glob(filepath.Join(s.Dir(), "blobs", "*", "*"))
	check(t, err)
	if len(files) != workers*4 {
		t.Errorf("%d blobs of %d images are left: %s", len(files), workers, strings.Join(files, " "))
	}
}

// Without index.json nobody knows what is needed: nothing is removed.
func TestPruneMissingIndex(t *testing.T) {
	r := newRegistry(t)
	s, images := pulled(t, r, "missing:1")
	check(t, os.Remove(filepath.Join(s.Dir(), "index.json")))
	_, err := s.Unused(t.Context())
	oneLine(t, err, image.ErrCorrupt, "index.json is missing", "lamina check --repair")
	_, err = s.Prune(t.Context(), image.PruneOptions{})
	oneLine(t, err, image.ErrCorrupt, "lamina check --repair")
	removed, err := s.RemoveEntries(func(image.Entry) bool { return true })
	if err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
	_, err = s.Prune(t.Context(), image.PruneOptions{})
	oneLine(t, err, image.ErrCorrupt, "lamina check --repair")
	problems, err := s.Check(t.Context(), image.CheckOptions{Repair: true})
	if err != nil || len(problems) != 1 || problems[0].What != "missing" || !problems[0].Repaired {
		t.Errorf("%+v, %v", problems, err)
	}
	got, err := s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "after the repair", got, err, blobsOf(images...)...)
}

// What a foreign index calls a manifest, and is a layer, leads nowhere.
func TestUnusedForeignManifest(t *testing.T) {
	r := newRegistry(t)
	s, images := pulled(t, r, "foreign:1")
	layer := images[0].Layers[0].Desc
	large := putBlob(t, s, "", strings.Repeat("x", 9<<20))
	layer.MediaType, large.MediaType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageManifest
	layer.Platform, large.Platform = &ocispec.Platform{OS: "plan9", Architecture: "mips"}, &ocispec.Platform{OS: "plan9", Architecture: "arm"}
	addEntry(t, s, putBlob(t, s, ocispec.MediaTypeImageIndex, marshal(t, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{layer, large},
	})))
	got, err := s.Unused(t.Context())
	sameBlobs(t, "unused", got, err)
	check(t, os.WriteFile(blobFile(s, large.Digest), []byte(strings.Repeat("y", 9<<20)), 0o600))
	_, err = s.Unused(t.Context())
	oneLine(t, err, image.ErrCorrupt, large.Digest.String())
}

// Without says what a removal would leave, in a dry run only.
func TestPruneWithout(t *testing.T) {
	r := newRegistry(t)
	s, images := pulled(t, r, "without:1", "without:2")
	o := image.PruneOptions{DryRun: true, Without: func(e image.Entry) bool { return e.Digest == images[0].Digest }}
	got, err := s.Prune(t.Context(), o)
	sameBlobs(t, "dry run", got, err, blobsOf(images[0])...)
	o.DryRun = false
	got, err = s.Prune(t.Context(), o)
	sameBlobs(t, "pruned", got, err)
}

// A store that was closed holds Prune back no longer.
func TestClose(t *testing.T) {
	server, s := newBlobServer(t, digest.SHA256, 1000), newStore(t)
	check(t, s.Close())
	check(t, s.Fetch(t.Context(), server.desc, server.blob(t), nil))
	got, err := s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "fetched now", got, err)
	check(t, s.Close())
	check(t, s.Close())
	got, err = s.Prune(t.Context(), image.PruneOptions{})
	sameBlobs(t, "closed", got, err, server.desc.Digest)
}
