package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/opencontainers/go-digest"
)

// platformImage makes an image of two layers for a platform, with docker's
// media types or OCI's.
func platformImage(t testing.TB, platform string, oci bool) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 2)
	check(t, err)
	p, err := v1.ParsePlatform(platform)
	check(t, err)
	config, err := img.ConfigFile()
	check(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = p.OS, p.Architecture, p.Variant
	config.Config.Env = []string{"PLATFORM=" + platform}
	img, err = mutate.ConfigFile(img, config)
	check(t, err)
	if oci {
		img = mutate.MediaType(img, types.OCIManifestSchema1)
		img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	}
	return img
}

// platformIndex makes an index of images for the platforms.
func platformIndex(t testing.TB, oci bool, platforms ...string) (v1.ImageIndex, map[string]v1.Image) {
	t.Helper()
	images := make(map[string]v1.Image)
	index := v1.ImageIndex(empty.Index)
	for _, platform := range platforms {
		images[platform] = platformImage(t, platform, oci)
		p, err := v1.ParsePlatform(platform)
		check(t, err)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: images[platform], Descriptor: v1.Descriptor{Platform: p}})
	}
	if !oci {
		index = mutate.IndexMediaType(index, types.DockerManifestList)
	}
	return index, images
}

// testRegistry is a registry on loopback that notes what it is asked for.
type testRegistry struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	requests []string                                          // "GET /v2/…" of everything but pings and pushes
	tamper   func(w http.ResponseWriter, r *http.Request) bool // true: it has answered
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r := &testRegistry{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		if (req.Method == http.MethodGet || req.Method == http.MethodHead) && req.URL.Path != "/v2/" {
			r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		}
		tamper := r.tamper
		r.mu.Unlock()
		if tamper != nil && tamper(w, req) {
			return
		}
		inner.ServeHTTP(w, req)
	}))
	t.Cleanup(r.Close)
	r.host = strings.TrimPrefix(r.URL, "http://")
	return r
}

// took returns the requests since the last call.
func (r *testRegistry) took() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.requests = nil }()
	return r.requests
}

func (r *testRegistry) setTamper(f func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tamper = f
}

func (r *testRegistry) pushImage(t testing.TB, ref string, img v1.Image) string {
	t.Helper()
	n, err := name.ParseReference(r.host + "/" + ref)
	check(t, err)
	check(t, remote.Write(n, img))
	r.took()
	return n.Name()
}

func (r *testRegistry) pushIndex(t testing.TB, ref string, index v1.ImageIndex) string {
	t.Helper()
	n, err := name.ParseReference(r.host + "/" + ref)
	check(t, err)
	check(t, remote.WriteIndex(n, index))
	r.took()
	return n.Name()
}

// put uploads a manifest of any content and returns its digest.
func (r *testRegistry) put(t testing.TB, repo, tag, mediaType string, raw []byte) digest.Digest {
	t.Helper()
	req, err := http.NewRequest(http.MethodPut, r.URL+"/v2/"+repo+"/manifests/"+tag, bytes.NewReader(raw))
	check(t, err)
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusCreated {
		body, _ := io.ReadAll(resp.Body)
		t.Fatalf("put %s: %s: %s", tag, resp.Status, body)
	}
	return digest.FromBytes(raw)
}

// newClient is a client that reads nothing of the machine's set-up and gives
// up soon.
func newClient(t testing.TB) *fetch.Client {
	t.Helper()
	c := fetch.New(fetch.Options{HostsDirs: []string{t.TempDir()}, Retries: 1})
	t.Cleanup(c.Close)
	return c
}

func newStore(t testing.TB) *image.Store {
	t.Helper()
	s, err := image.OpenStore(filepath.Join(t.TempDir(), "images"))
	check(t, err)
	return s
}

// newLayout writes images, by their ref.name, into an OCI layout.
func newLayout(t testing.TB, images map[string]mutate.Appendable) string {
	t.Helper()
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	check(t, err)
	for ref, add := range images {
		var o []layout.Option
		if ref != "" {
			o = append(o, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref}))
		}
		switch add := add.(type) {
		case v1.Image:
			check(t, l.AppendImage(add, o...))
		case v1.ImageIndex:
			check(t, l.AppendIndex(add, o...))
		}
	}
	return dir
}

// tarDir archives a directory as tar -C dir -c . does.
func tarDir(t testing.TB, dir string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "archive.tar")
	f, err := os.Create(file)
	check(t, err)
	w := tar.NewWriter(f)
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h, err := tar.FileInfoHeader(info, "")
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		h.Name = "./" + rel
		if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}))
	check(t, w.Close())
	check(t, f.Close())
	return file
}

// same checks an opened image against the one it should be, to the last byte
// of its layers.
func same(t testing.TB, got *image.Image, want v1.Image) {
	t.Helper()
	d, err := want.Digest()
	check(t, err)
	if got.Digest.String() != d.String() || digest.FromBytes(got.RawManifest) != got.Digest {
		t.Fatalf("got the image %s, want %s", got.Digest, d)
	}
	sameContent(t, got, want)
}

// sameContent is same for images whose manifest was rewritten on the way.
func sameContent(t testing.TB, got *image.Image, want v1.Image) {
	t.Helper()
	config, err := want.RawConfigFile()
	check(t, err)
	if !bytes.Equal(got.RawConfig, config) || digest.FromBytes(config) != got.Manifest.Config.Digest {
		t.Fatalf("got the config %s, want %s", got.RawConfig, config)
	}
	layers, err := want.Layers()
	check(t, err)
	if len(got.Layers) != len(layers) {
		t.Fatalf("got %d layers, want %d", len(got.Layers), len(layers))
	}
	for i, l := range got.Layers {
		diffID, err := layers[i].DiffID()
		check(t, err)
		if l.DiffID.String() != diffID.String() {
			t.Errorf("layer %d has the diff ID %s, want %s", i, l.DiffID, diffID)
		}
		if l.Blob.Size() != l.Desc.Size || l.Blob.Digest() != l.Desc.Digest || l.Desc.Digest != got.Manifest.Layers[i].Digest {
			t.Errorf("layer %d: the blob contradicts its descriptor %+v", i, l.Desc)
		}
		if _, err := fetch.ReadAll(context.Background(), l.Blob, 1<<20); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// logTo returns a logger and what it was told.
func logTo() (*slog.Logger, *bytes.Buffer) {
	var b bytes.Buffer
	return slog.New(slog.NewTextHandler(&b, nil)), &b
}

// oneLine checks an error's form and that it says what it should.
func oneLine(t testing.TB, err error, is error, hints ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if is != nil && !isError(err, is) {
		t.Errorf("error %q does not wrap %q", err, is)
	}
	if strings.ContainsAny(err.Error(), "\n\r\x00") {
		t.Errorf("error has several lines: %q", err)
	}
	for _, h := range hints {
		if !strings.Contains(err.Error(), h) {
			t.Errorf("error %q does not say %q", err, h)
		}
	}
}

// writeTar writes members in order.
func writeTar(t testing.TB, members ...*member) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "made.tar")
	check(t, os.WriteFile(file, tarBytes(t, members...), 0o600))
	return file
}

func tarBytes(t testing.TB, members ...*member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(m.data))}
		if m.link != "" {
			h.Typeflag, h.Linkname = m.kind, m.link
		}
		check(t, w.WriteHeader(h))
		_, err := fmt.Fprint(w, m.data)
		check(t, err)
	}
	check(t, w.Close())
	return b.Bytes()
}

// member is one file or link of an archive made by a test.
type member struct {
	name, data string
	link       string
	kind       byte // tar.TypeSymlink or tar.TypeLink, with link
}

// marshal is v as JSON.
func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	return string(b)
}
