//go:build integration

package integration_test

import (
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/tree"
	"github.com/laminafs/lamina/published/soci"
	"github.com/laminafs/lamina/published/soci/ztoctest"
)

// sociIndex publishes python:gzip in repo with a SOCI index of all its layers, of
// version 1 or 2, each ztoc changed by change before. It returns the layers' size.
// Where the index is a part of the image, that is another image.
func sociIndex(t *testing.T, repo string, version int, change func(layer int, z *ztoctest.Ztoc)) (size int64) {
	t.Helper()
	set := shared.set.LayoutDir()
	tag := images.Tag("python", images.Gzip)
	tags, err := images.Tagged(set)
	fatal(t, err)
	image, err := images.Manifest(set, tag)
	fatal(t, err)
	dir, err := os.MkdirTemp(shared.dir, "soci-")
	fatal(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	out, err := images.NewLayout(dir)
	fatal(t, err)
	add := func(b []byte) ocispec.Descriptor {
		d, n, err := out.AddBlob(func(w io.Writer) error { _, err := w.Write(b); return err })
		fatal(t, err)
		return ocispec.Descriptor{Digest: d, Size: n}
	}
	index := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: add([]byte("{}")),
	}
	var ztocs int64
	for i, l := range image.Layers {
		blob, err := os.ReadFile(images.BlobFile(set, l))
		fatal(t, err)
		z, err := ztoctest.New(blob, 4<<20)
		fatal(t, err)
		if change != nil {
			change(i, z)
		}
		d := add(z.Bytes())
		d.MediaType, d.Annotations = soci.LayerMediaType, map[string]string{soci.AnnotationLayer: l.Digest.String()}
		index.Layers = append(index.Layers, d)
		size, ztocs = size+l.Size, ztocs+d.Size
	}
	t.Logf("index of %d bytes for %d, %.2f%%", ztocs, size, 100*float64(ztocs)/float64(size))
	subject := tags[tag]
	if version == 1 {
		index.Config.MediaType = soci.TypeV1
		index.Subject = &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	} else {
		index.Config.MediaType = soci.TypeV2
	}
	desc, err := out.AddJSON(ocispec.MediaTypeImageManifest, index)
	fatal(t, err)
	if version == 1 {
		// The registry has no referrers API: this is where clients look instead.
		desc.ArtifactType = soci.TypeV1
		list, err := out.AddJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
			Manifests: []ocispec.Descriptor{desc},
		})
		fatal(t, err)
		out.Tag(list, strings.Replace(subject.Digest.String(), ":", "-", 1))
		fatal(t, shared.registry.AddLayout(set, func(name string) (string, string) {
			if name != tag {
				return "", ""
			}
			return repo, "gzip"
		}))
	} else {
		for _, d := range append(image.Layers, image.Config) {
			fatal(t, os.Link(images.BlobFile(set, d), out.BlobPath(d.Digest)))
		}
		image.Annotations = map[string]string{soci.AnnotationIndex: desc.Digest.String()}
		enabled, err := out.AddJSON(ocispec.MediaTypeImageManifest, image)
		fatal(t, err)
		out.Tag(enabled, "gzip")
		out.Tag(desc, "index")
	}
	fatal(t, out.Close())
	fatal(t, shared.registry.AddLayout(dir, func(name string) (string, string) { return repo, name }))
	return size
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSOCI: an image that has a SOCI index is mounted lazily as it is, with every
// byte right in the end.
func TestSOCI(t *testing.T) {
	for version, e := range map[int]string{1: "fuse", 2: "kernel"} {
		t.Run(e, func(t *testing.T) {
			p := shared.proxy(t, faultproxy.Config{HTTP2: true})
			repo := "soci/" + path.Base(e)
			size := sociIndex(t, repo, version, nil)
			s := newStore(t, p.Host())
			name := p.Host() + "/" + repo + ":gzip"
			began := time.Now()
			dir := s.mount(t, name, "--index", "require", "--engine", e)
			t.Logf("version %d, %s: mounted after %v, %d bytes", version, e, time.Since(began), faultproxy.Sum(p.Exchanges(), "/v2/").Bytes)
			if b, err := os.ReadFile(filepath.Join(dir, "etc/debian_version")); err != nil || len(b) == 0 {
				t.Errorf("%q, %v", b, err)
			}
			got := faultproxy.Sum(p.Exchanges(), "/v2/").Bytes
			t.Logf("one file after %v, %d bytes, %.1f%% of the image", time.Since(began), got, 100*float64(got)/float64(size))
			if got*4 > size {
				t.Errorf("%d of %d bytes were fetched for one file", got, size)
			}
			prog := programs()[2]
			if out, err := prog.command(dir).CombinedOutput(); err != nil || !strings.Contains(string(out), prog.want) {
				t.Errorf("%v: %v\n%s", prog.words, err, out)
			}
			got = faultproxy.Sum(p.Exchanges(), "/v2/").Bytes
			t.Logf("%v after %v, %d bytes, %.1f%% of the image", prog.words, time.Since(began), got, 100*float64(got)/float64(size))
			if got*4 > size*3 {
				t.Errorf("%d of %d bytes were fetched for a program", got, size)
			}
			s.kill(t) // and the next mount finds the index in the store
			_, _ = s.Run("umount", "--lazy", dir)
			p.Reset()
			dir = s.mount(t, name, "--engine", e)
			for _, x := range p.Exchanges() {
				if strings.Contains(x.Path, "referrers") || strings.Contains(x.Path, "/manifests/") {
					t.Errorf("asked again: %s", x.Path)
				}
			}
			sameTree(t, shared.truth(t, "python"), dir, images.Gzip)
			if twice := faultproxy.SentTwice(chunks(p.Exchanges())); len(twice) > 0 {
				t.Logf("sent more than once: %v", twice)
			}
		})
	}
}

// TestSOCIWrong: a wrong digest of a span is no way to other bytes: reads of it fail,
// and the next mount streams the layer.
func TestSOCIWrong(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{HTTP2: true})
	sociIndex(t, "soci/wrong", 1, func(layer int, z *ztoctest.Ztoc) {
		if layer == 1 {
			z.Spans[3].Digest = digest.FromString("other bytes").String()
		}
	})
	s := newStore(t, p.Host())
	name := p.Host() + "/soci/wrong:gzip"
	dir := s.mount(t, name)
	if _, err := tree.Read(dir); err == nil {
		t.Error("all could be read")
	}
	s.umount(t, dir)
	p.Reset()
	dir = s.mount(t, name)
	sameTree(t, shared.truth(t, "python"), dir, images.Gzip)
	image, err := images.Manifest(shared.set.LayoutDir(), images.Tag("python", images.Gzip))
	fatal(t, err)
	wrong := image.Layers[1]
	if got := faultproxy.Sum(p.Exchanges(), wrong.Digest.String()); got.Bytes < wrong.Size {
		t.Errorf("%d of %d bytes of the layer were fetched: not streamed", got.Bytes, wrong.Size)
	}
}

// TestSOCIUnusable: a ztoc that does not fit its layer is not used at all.
func TestSOCIUnusable(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{HTTP2: true})
	sociIndex(t, "soci/unusable", 1, func(_ int, z *ztoctest.Ztoc) { z.Compressed++ })
	s := newStore(t, p.Host())
	name := p.Host() + "/soci/unusable:gzip"
	if _, err := s.Run("ls", "-q", "--index", "require", name, "/"); err == nil || !strings.Contains(err.Error(), "invalid published index") {
		t.Errorf("required: %v", err)
	}
	dir := s.mount(t, name)
	sameTree(t, shared.truth(t, "python"), dir, images.Gzip)
}
