package image

import (
	"errors"
	"testing"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestCheckLayerType(t *testing.T) {
	tests := map[string]bool{
		"application/vnd.oci.image.layer.v1.tar":                           true,
		"application/vnd.oci.image.layer.v1.tar+gzip":                      true,
		"application/vnd.oci.image.layer.v1.tar+zstd":                      true,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":     true,
		"application/vnd.docker.image.rootfs.diff.tar":                     true,
		"application/vnd.docker.image.rootfs.diff.tar.gzip":                true,
		"application/vnd.docker.image.rootfs.diff.tar.zstd":                true,
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":        true,
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted":            false,
		"application/vnd.oci.image.layer.v1.tar+bzip2":                     false,
		"application/vnd.oci.image.layer.v1.tar+":                          false,
		"application/vnd.docker.image.rootfs.diff.tar.gzip+gzip":           false,
		"application/vnd.cncf.helm.chart.content.v1.tar+gzip":              false,
		"application/vnd.in-toto+json":                                     false,
		"":                                                                 false,
		"application/vnd.oci.image.layer.v1.tar+gzip\napplication/vnd.oci": false,
	}
	for mediaType, ok := range tests {
		if err := checkLayerType(mediaType); (err == nil) != ok {
			t.Errorf("%q: %v", mediaType, err)
		} else if err != nil && !errors.Is(err, ErrNotImage) {
			t.Errorf("%q: %v is not ErrNotImage", mediaType, err)
		}
	}
}

// What is in no media type: the shape decides, and must be one only.
func TestParseDocumentShape(t *testing.T) {
	const config = `"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"` + someDigest + `","size":2}`
	tests := []struct {
		name, announced, raw string
		manifest, index      bool
		is                   error
	}{
		{"manifest", "", `{"schemaVersion":2,` + config + `,"layers":[]}`, true, false, nil},
		{"manifest as octets", "application/octet-stream", `{"schemaVersion":2,` + config + `,"layers":[]}`, true, false, nil},
		{"manifest with a charset", "application/vnd.oci.image.manifest.v1+json; charset=utf-8", `{"schemaVersion":2,` + config + `,"layers":[]}`, true, false, nil},
		{"index", "", `{"schemaVersion":2,"manifests":[]}`, false, true, nil},
		{"list", dockerManifestList, `{"schemaVersion":2,"manifests":[]}`, false, true, nil},
		{"old config type", "", `{"schemaVersion":2,"config":{"mediaType":"application/octet-stream","digest":"` + someDigest + `","size":2},"layers":[]}`, true, false, nil},
		{"both", "", `{"schemaVersion":2,` + config + `,"layers":[],"manifests":[]}`, false, false, ErrCorrupt},
		{"index with config", "", `{"schemaVersion":2,` + config + `,"manifests":[]}`, false, false, ErrCorrupt},
		{"contradiction", dockerManifest, `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `",` + config + `,"layers":[]}`, false, false, ErrCorrupt},
		{"manifest called index", ocispec.MediaTypeImageIndex, `{"schemaVersion":2,` + config + `,"layers":[]}`, false, false, ErrCorrupt},
		{"index called manifest", ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"manifests":[]}`, false, false, ErrCorrupt},
		{"neither", "", `{"schemaVersion":2}`, false, false, ErrCorrupt},
		{"array", "", `[]`, false, false, ErrCorrupt},
		{"null", "", `null`, false, false, ErrCorrupt},
		{"schema 1", "", `{"schemaVersion":1,"name":"a"}`, false, false, ErrNotImage},
		{"other type", "application/vnd.other+json", `{"schemaVersion":2}`, false, false, ErrNotImage},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc, err := parseDocument([]byte(tt.raw), tt.announced)
			if !errors.Is(err, tt.is) || (doc.manifest != nil) != tt.manifest || (doc.index != nil) != tt.index {
				t.Errorf("got %+v, %v", doc, err)
			}
		})
	}
}

// This host takes older variants, and 386 for amd64; a platform that was asked
// for keeps its architecture.
func TestTarget(t *testing.T) {
	tests := []struct {
		spec, image string
		ok          bool
	}{
		{"", platforms.Format(platforms.DefaultSpec()), true},
		{"", "linux/nosuch", false},
		{"linux/amd64", "linux/386", false},
		{"linux/amd64/v3", "linux/amd64/v2", true},
		{"linux/amd64/v2", "linux/amd64/v3", false},
		{"linux/arm64", "linux/arm64/v8", true},
		{"linux/arm64/v8", "linux/arm64", true},
		{"linux/arm64", "linux/arm/v7", false},
		{"linux/x86_64", "linux/amd64", true},
		{"aarch64", "linux/arm64", true},
	}
	for _, tt := range tests {
		want, err := parseTarget(tt.spec)
		if err != nil {
			t.Fatal(err)
		}
		p := platforms.MustParse(tt.image)
		if got := want.matcher.Match(p); got != tt.ok {
			t.Errorf("wanted %q: %s matches: %t", tt.spec, tt.image, got)
		}
		if !want.accepts(ocispec.Platform{}) {
			t.Errorf("wanted %q: an image of no platform is refused", tt.spec)
		}
	}
}

func TestListBounded(t *testing.T) {
	var names []string
	for i := range 100 {
		names = append(names, string(rune('!'+i%90)), "a\nb")
	}
	got := list(names)
	if len(got) > 200 || got == "" {
		t.Errorf("got %q", got)
	}
	for _, r := range got {
		if r == '\n' {
			t.Errorf("got %q", got)
		}
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"`+someDigest+`","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"`+someDigest+`","size":2}]}`), ocispec.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+dockerManifest+`","digest":"`+someDigest+`","size":2,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}`), "")
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), dockerSchema1Sig)
	f.Add([]byte(`{"manifests":null,"layers":[],"layers":{}}`), "a/b; c=d")
	want, err := parseTarget("linux/arm64")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte, mediaType string) {
		doc, err := parseDocument(raw, mediaType)
		switch {
		case err != nil:
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotImage) {
				t.Errorf("%v is no sentinel", err)
			}
			if doc.manifest != nil || doc.index != nil {
				t.Errorf("a document with the error %v", err)
			}
		case doc.index != nil:
			if d, ok := want.pick(doc.index.Manifests); ok && d.Digest.Validate() != nil {
				t.Errorf("picked %+v", d)
			}
			for _, d := range doc.index.Manifests {
				_ = platforms.Format(ocispec.Platform{})
				if storedName(d) != "" && entryName(d) == "" {
					t.Errorf("entry %+v", d)
				}
			}
		case doc.manifest != nil:
			for _, d := range doc.manifest.Layers {
				if d.Size < 0 || d.Digest.Validate() != nil {
					t.Errorf("layer %+v", d)
				}
			}
		default:
			t.Error("nothing, and no error")
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["`+someDigest+`"]}}`), 1)
	f.Add([]byte(`{"rootfs":{"type":"","diff_ids":["sha256:../x"]},"created":"yesterday"}`), 1)
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		c, err := parseConfig(raw, n)
		if err != nil {
			return
		}
		if len(c.RootFS.DiffIDs) != n {
			t.Errorf("%d diff IDs for %d layers", len(c.RootFS.DiffIDs), n)
		}
	})
}
