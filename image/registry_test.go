package image_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func isError(err, target error) bool { return errors.Is(err, target) }

func host() string { return "linux/" + runtime.GOARCH }

func TestOpenRegistryImage(t *testing.T) {
	r := newRegistry(t)
	for _, oci := range []bool{false, true} {
		want := platformImage(t, host(), oci)
		ref := r.pushImage(t, fmt.Sprintf("a/image:oci-%t", oci), want)
		d, err := want.Digest()
		check(t, err)
		for _, n := range []string{ref, "docker://" + ref, r.host + "/a/image@" + d.String(), ref + "@" + d.String()} {
			t.Run(n, func(t *testing.T) {
				img, err := image.Open(t.Context(), n, image.Options{Client: newClient(t)})
				check(t, err)
				same(t, img, want)
				if img.Index != "" || img.Origin.String() != r.host+"/a/image" || img.Platform.Architecture != runtime.GOARCH {
					t.Errorf("got index %q, origin %v, platform %v", img.Index, img.Origin, img.Platform)
				}
			})
		}
	}
}

// A string that is no platform is told apart from a platform that is not there.
func TestBadPlatform(t *testing.T) {
	for _, s := range []string{"a/b/c/d", "foo", "linux/", "linux/amd64\n"} {
		err := image.CheckPlatform(s)
		oneLine(t, err, image.ErrBadPlatform, "write OS/ARCH")
		if _, opened := image.Open(t.Context(), "oci:"+t.TempDir(), image.Options{Platform: s}); !errors.Is(opened, image.ErrBadPlatform) || errors.Is(opened, image.ErrPlatform) {
			t.Errorf("%q: %v", s, opened)
		}
	}
	for _, s := range []string{"", "arm64", "linux/arm64/v8", "windows/amd64"} {
		check(t, image.CheckPlatform(s))
	}
}

// Which image of an index is taken for which platform.
func TestOpenPlatform(t *testing.T) {
	r := newRegistry(t)
	tests := []struct {
		have       []string
		wanted     string
		want       string // "" for ErrPlatform
		complaints []string
	}{
		{[]string{"linux/arm64", host(), "windows/amd64"}, "", host(), nil},
		{[]string{"linux/amd64", "linux/arm64/v8"}, "linux/arm64", "linux/arm64/v8", nil},
		{[]string{"linux/amd64", "linux/arm64"}, "linux/arm64/v8", "linux/arm64", nil},
		{[]string{"linux/arm/v6", "linux/arm/v7", "linux/arm/v5"}, "linux/arm/v7", "linux/arm/v7", nil},
		{[]string{"linux/arm/v6", "linux/arm/v5"}, "linux/arm/v7", "linux/arm/v6", nil},
		{[]string{"linux/amd64", "linux/arm64"}, "arm64", "linux/arm64", nil},
		{[]string{"linux/386", "linux/arm/v7"}, "linux/amd64", "", []string{"linux/386, linux/arm/v7", "linux/amd64"}},
		{[]string{"linux/s390x"}, "linux/amd64", "", []string{"linux/s390x"}},
		{[]string{"linux/amd64"}, "windows/amd64", "", []string{"linux/amd64"}},
	}
	for i, tt := range tests {
		t.Run(fmt.Sprint(tt.have, " ", tt.wanted), func(t *testing.T) {
			index, images := platformIndex(t, i%2 == 0, tt.have...)
			ref := r.pushIndex(t, fmt.Sprintf("platforms:%d", i), index)
			img, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t), Platform: tt.wanted, Store: newStore(t)})
			if tt.want == "" {
				oneLine(t, err, image.ErrPlatform, tt.complaints...)
				return
			}
			check(t, err)
			same(t, img, images[tt.want])
			if d, _ := index.Digest(); img.Index.String() != d.String() {
				t.Errorf("index %s, want %s", img.Index, d)
			}
		})
	}
}

// An image that exists for one platform only is mounted on any host, but not
// passed off as another.
func TestOpenOnlyPlatform(t *testing.T) {
	r := newRegistry(t)
	want := platformImage(t, "linux/riscv64", true)
	ref := r.pushImage(t, "riscv:1", want)
	img, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t)})
	check(t, err)
	same(t, img, want)
	_, err = image.Open(t.Context(), ref, image.Options{Client: newClient(t), Platform: "linux/amd64"})
	oneLine(t, err, image.ErrPlatform, "linux/riscv64")
}

func TestOpenNestedIndex(t *testing.T) {
	r := newRegistry(t)
	inner, images := platformIndex(t, true, "linux/arm64", "linux/amd64")
	first, _ := platformIndex(t, true, "linux/s390x")
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: first}, mutate.IndexAddendum{Add: inner})
	ref := r.pushIndex(t, "nested:1", outer)
	img, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t), Platform: "linux/arm64"})
	check(t, err)
	same(t, img, images["linux/arm64"])
	_, err = image.Open(t.Context(), ref, image.Options{Client: newClient(t), Platform: "linux/arm/v7"})
	oneLine(t, err, image.ErrPlatform, "linux/amd64, linux/arm64, linux/s390x")

	deep := v1.ImageIndex(inner)
	for range 6 {
		deep = mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: deep})
	}
	ref = r.pushIndex(t, "nested:deep", deep)
	_, err = image.Open(t.Context(), ref, image.Options{Client: newClient(t), Platform: "linux/arm64"})
	oneLine(t, err, image.ErrCorrupt, "nested")
}

// Attestations of buildkit stand in the index beside the image.
func TestOpenSkipsAttestations(t *testing.T) {
	r := newRegistry(t)
	want := platformImage(t, host(), true)
	p, err := v1.ParsePlatform(host())
	check(t, err)
	index := mutate.AppendManifests(
		empty.Index,
		mutate.IndexAddendum{Add: platformImage(t, "linux/mips", true), Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
		}},
		mutate.IndexAddendum{Add: want, Descriptor: v1.Descriptor{Platform: p}},
	)
	img, err := image.Open(t.Context(), r.pushIndex(t, "attested:1", index), image.Options{Client: newClient(t)})
	check(t, err)
	same(t, img, want)
}

// An index of one image that does not say its platform leaves no choice.
func TestOpenIndexWithoutPlatform(t *testing.T) {
	r := newRegistry(t)
	want := platformImage(t, "linux/riscv64", true)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: want})
	ref := r.pushIndex(t, "bare:1", index)
	img, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t)})
	check(t, err)
	same(t, img, want)
	_, err = image.Open(t.Context(), ref, image.Options{Client: newClient(t), Platform: "linux/amd64"})
	oneLine(t, err, image.ErrPlatform, "riscv64")
}

// The hook comes once, with readable layers, before the config is asked for.
func TestOpenOnManifest(t *testing.T) {
	r := newRegistry(t)
	want := platformImage(t, host(), true)
	ref := r.pushImage(t, "hook:1", want)
	store := newStore(t)
	for _, stored := range []bool{false, true} {
		r.took()
		calls := 0
		img, err := image.Open(t.Context(), ref, image.Options{
			Client: newClient(t), Store: store,
			OnManifest: func(known *image.Image) {
				m, layers := known.Manifest, known.Layers
				if known.Digest == "" || known.Origin == nil {
					t.Errorf("manifest %s of %v", known.Digest, known.Origin)
				}
				calls++
				for _, request := range r.took() {
					if strings.Contains(request, "/blobs/") {
						t.Errorf("asked before the hook: %s", request)
					}
				}
				if len(layers) != 2 || len(m.Layers) != 2 {
					t.Fatalf("got %d layers", len(layers))
				}
				for i, l := range layers {
					if _, err := fetch.ReadAll(context.Background(), l.Blob, 1<<20); err != nil || l.Desc.Digest != m.Layers[i].Digest {
						t.Errorf("layer %d: %+v, %v", i, l.Desc, err)
					}
				}
			},
		})
		check(t, err)
		same(t, img, want)
		if calls != 1 {
			t.Errorf("stored %t: %d calls of the hook", stored, calls)
		}
	}
}

// What a registry may serve that is no image, or not the one it says.
func TestOpenRegistryRefuses(t *testing.T) {
	const (
		config   = `"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + hex64 + `","size":2}`
		layer    = `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:` + hex64 + `","size":3}`
		manifest = ocispec.MediaTypeImageManifest
	)
	r := newRegistry(t)
	tests := []struct {
		name, mediaType, body string
		is                    error
		hint                  string
	}{
		{"schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[]}`, image.ErrNotImage, "schema 1"},
		{"helm chart", manifest, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"sha256:` + hex64 + `","size":2},"layers":[]}`, image.ErrNotImage, "application/vnd.cncf.helm.config.v1+json"},
		{"empty config artifact", manifest, `{"schemaVersion":2,"artifactType":"application/x.mine","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:` + hex64 + `","size":2},"layers":[]}`, image.ErrNotImage, "application/x.mine"},
		{"odd layer", manifest, `{"schemaVersion":2,` + config + `,"layers":[{"mediaType":"text/plain","digest":"sha256:` + hex64 + `","size":3}]}`, image.ErrNotImage, "layer 1"},
		{"encrypted", manifest, `{"schemaVersion":2,` + config + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip+encrypted","digest":"sha256:` + hex64 + `","size":3}]}`, image.ErrNotImage, "encrypted"},
		{"both", manifest, `{"schemaVersion":2,` + config + `,"layers":[` + layer + `],"manifests":[]}`, nil, "both"},
		{"contradiction", manifest, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, nil, ""},
		{"index as manifest", manifest, `{"schemaVersion":2,"manifests":[]}`, image.ErrCorrupt, ""},
		{"not JSON", manifest, `hello`, nil, ""},
		{"bad digest", manifest, `{"schemaVersion":2,` + config + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:../../etc","size":3}]}`, image.ErrCorrupt, "layer 1"},
		{"negative size", manifest, `{"schemaVersion":2,` + config + `,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:` + hex64 + `","size":-3}]}`, image.ErrCorrupt, "size -3"},
		{"huge config", manifest, `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + hex64 + `","size":99999999999},"layers":[]}`, image.ErrCorrupt, "config"},
		{"schema 3", manifest, `{"schemaVersion":3,` + config + `,"layers":[]}`, image.ErrCorrupt, "schema version 3"},
		{"missing config", manifest, `{"schemaVersion":2,` + config + `,"layers":[` + layer + `]}`, fetch.ErrNotFound, "config"},
		{"empty index", ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[]}`, image.ErrPlatform, "none"},
		{"newlines", manifest, `{"schemaVersion":2,"config":{"mediaType":"a\nb","digest":"x","size":2}}`, image.ErrNotImage, ""},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tag := fmt.Sprintf("t%d", i)
			r.setTamper(func(w http.ResponseWriter, req *http.Request) bool {
				if !strings.HasSuffix(req.URL.Path, "/manifests/"+tag) {
					return false
				}
				w.Header().Set("Content-Type", tt.mediaType)
				_, _ = fmt.Fprint(w, tt.body)
				return true
			})
			defer r.setTamper(nil)
			_, err := image.Open(t.Context(), r.host+"/bad:"+tag, image.Options{Client: newClient(t)})
			oneLine(t, err, tt.is, "open "+r.host+"/bad:"+tag+": ", tt.hint)
		})
	}
}

// A config that does not fit its manifest: the diff IDs would be wrong.
func TestOpenDiffIDMismatch(t *testing.T) {
	r := newRegistry(t)
	img := platformImage(t, host(), true)
	r.pushImage(t, "mismatch:ok", img)
	m, err := img.Manifest()
	check(t, err)
	m = m.DeepCopy()
	m.Layers = m.Layers[:1]
	raw, err := json.Marshal(m)
	check(t, err)
	r.put(t, "mismatch", "cut", ocispec.MediaTypeImageManifest, raw)
	_, err = image.Open(t.Context(), r.host+"/mismatch:cut", image.Options{Client: newClient(t)})
	oneLine(t, err, image.ErrCorrupt, "2 diff IDs", "1 layers")
}

// Documents that are not what their digest says are not believed.
func TestOpenRegistryWrongBytes(t *testing.T) {
	r := newRegistry(t)
	index, _ := platformIndex(t, true, "linux/amd64")
	ref := r.pushIndex(t, "wrong:1", index)
	for _, what := range []string{"/manifests/sha256:", "/blobs/sha256:"} {
		r.setTamper(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, what) {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_, _ = fmt.Fprint(w, `{"schemaVersion":2}`)
			return true
		})
		_, err := image.Open(t.Context(), ref, image.Options{Client: newClient(t), Platform: "linux/amd64"})
		oneLine(t, err, nil)
	}
}

func TestOpenRegistryMissing(t *testing.T) {
	r := newRegistry(t)
	_, err := image.Open(t.Context(), r.host+"/none:1", image.Options{Client: newClient(t)})
	oneLine(t, err, fetch.ErrNotFound, "open "+r.host+"/none:1: ")
	_, err = image.Open(t.Context(), r.host+"/none:1", image.Options{})
	oneLine(t, err, image.ErrNotFound, "no registry to ask")
}

// The second time, nothing is asked; when asked always, only the manifest is.
func TestOpenPullPolicies(t *testing.T) {
	r := newRegistry(t)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, "policy:1", index)
	o := image.Options{Client: newClient(t), Store: newStore(t), Platform: "linux/amd64", Pull: image.PullNever}
	_, err := image.Open(t.Context(), ref, o)
	oneLine(t, err, image.ErrNotFound, "not stored")

	o.Pull = image.PullMissing
	img, err := image.Open(t.Context(), ref, o)
	check(t, err)
	same(t, img, images["linux/amd64"])
	r.took()

	for _, pull := range []image.Policy{image.PullMissing, image.PullNever} {
		o.Pull = pull
		img, err = image.Open(t.Context(), ref, o)
		check(t, err)
		if got := r.took(); len(got) > 0 {
			t.Errorf("pull %s asked %v", pull, got)
		}
		same(t, img, images["linux/amd64"])
		r.took()
	}

	o.Pull = image.PullAlways
	_, err = image.Open(t.Context(), ref, o)
	check(t, err)
	if got := r.took(); len(got) != 1 || !strings.HasSuffix(got[0], "/manifests/1") {
		t.Errorf("pull always asked %v", got)
	}

	// The tag moves: unnoticed, unless asked always.
	moved, images2 := platformIndex(t, true, "linux/amd64")
	r.pushIndex(t, "policy:1", moved)
	o.Pull = image.PullMissing
	img, err = image.Open(t.Context(), ref, o)
	check(t, err)
	same(t, img, images["linux/amd64"])
	o.Pull = image.PullAlways
	img, err = image.Open(t.Context(), ref, o)
	check(t, err)
	same(t, img, images2["linux/amd64"])
	o.Pull = image.PullNever
	img, err = image.Open(t.Context(), ref, o)
	check(t, err)
	same(t, img, images2["linux/amd64"])

	// What the old tag had is not stored for the new one.
	o.Platform = "linux/arm64"
	_, err = image.Open(t.Context(), ref, o)
	oneLine(t, err, image.ErrNotFound, "not for linux/arm64")

	// The registry is gone: what is stored stays usable.
	r.Close()
	o.Platform, o.Pull = "linux/amd64", image.PullMissing
	_, err = image.Open(t.Context(), ref, o)
	check(t, err)
}

// A stored image for a worse platform does not hide a better one.
func TestOpenPrefersIndexOverStored(t *testing.T) {
	r := newRegistry(t)
	index, images := platformIndex(t, true, "linux/arm/v6", "linux/arm/v7", "linux/arm64")
	ref := r.pushIndex(t, "better:1", index)
	o := image.Options{Client: newClient(t), Store: newStore(t)}
	for _, p := range []string{"linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/arm/v6"} {
		o.Platform = p
		img, err := image.Open(t.Context(), ref, o)
		check(t, err)
		same(t, img, images[p])
	}
	entries, err := o.Store.List()
	check(t, err)
	if len(entries) != 3 {
		t.Errorf("stored: %+v", entries)
	}
}

func TestParsePolicy(t *testing.T) {
	for _, p := range []image.Policy{image.PullMissing, image.PullAlways, image.PullNever} {
		if got, err := image.ParsePolicy(p.String()); err != nil || got != p {
			t.Errorf("%s: %v, %v", p, got, err)
		}
	}
	if p, err := image.ParsePolicy(""); err != nil || p != image.PullMissing {
		t.Errorf("default: %v, %v", p, err)
	}
	_, err := image.ParsePolicy("sometimes")
	oneLine(t, err, nil, "missing, always or never")
}
