package mount

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/lookahead"
	"github.com/laminafs/lamina/store"
)

// plainLayer is a tar with one file, written behind skip bytes of something else.
func plainLayer(t *testing.T, name string, skip int64) layer.Source {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(name))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(name)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, append(bytes.Repeat([]byte("x"), int(skip)), b.Bytes()...), 0o600); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(b.Bytes())
	return layer.Source{
		Desc:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(b.Len())},
		DiffID: d, Blob: fetch.OpenFile(path, skip, int64(b.Len()), d),
	}
}

// The kernel takes a device from its first byte on: a tar that lies somewhere in
// an archive must not be given to it, for it would show the archive's bytes as
// the files', and nothing verifies what the kernel reads.
func TestDevicesOfTars(t *testing.T) {
	layers, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := layers.Close(); err != nil {
			t.Error(err)
		}
	}()
	alone, inside := plainLayer(t, "alone", 0), plainLayer(t, "inside", 1536)
	tr := tree{&store.Tree{}, lookahead.New()}
	for _, src := range []layer.Source{alone, inside} {
		l, err := layers.Layer(t.Context(), src, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !l.Complete() {
			t.Errorf("layer %s is not complete", l.Key())
		}
		tr.Layers = append(tr.Layers, l)
	}
	defer func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	}()
	m := &State{Layers: []LayerState{{}, {Direct: true}}} // as a clone that failed left it
	got := tr.devices(m)
	path, _ := alone.Blob.(fetch.Local).File()
	if got[0] != path || !m.Layers[0].Direct {
		t.Errorf("a tar of its own: device %q, direct %v", got[0], m.Layers[0].Direct)
	}
	if got[1] != "" || m.Layers[1].Direct {
		t.Errorf("a tar inside an archive: device %q, direct %v", got[1], m.Layers[1].Direct)
	}
	if tr.Complete() {
		t.Error("a chain with a tar inside an archive would be mounted without a server")
	}
}
