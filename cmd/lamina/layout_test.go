package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// lamina runs a command line with a store of the test's own, and returns what it
// prints on standard output.
func lamina(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := newApp()
	app.Writer = &out
	err := app.RunContext(t.Context(), intersperse(app, append([]string{"lamina"}, args...)))
	return out.String(), err
}

// mustLamina is lamina that may not fail.
func mustLamina(t *testing.T, args ...string) string {
	t.Helper()
	out, err := lamina(t, args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return out
}

// newRoot has the commands of the test use a store that is empty.
func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	t.Setenv("LAMINA_ROOT", root)
	return root
}

// layout writes an image of plain tar layers, made of these files, to an OCI layout,
// and returns its name. The history says that each was made by the given command.
func layout(t *testing.T, createdBy string, layers ...[]tar.Header) string {
	t.Helper()
	dir := t.TempDir()
	writeLayout(t, dir, "t", createdBy, layers)
	return "oci:" + dir + ":t"
}

// writeLayout writes the image of layout to dir, under the given name.
func writeLayout(t *testing.T, dir, name, createdBy string, layers [][]tar.Header) {
	t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS.Type = "layers"
	for _, files := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range files {
			h.Mode |= 0o600
			h.Size = int64(len(h.Linkname))
			content := h.Linkname // of a regular file
			h.Linkname = ""
			if h.Typeflag == tar.TypeDir {
				h.Mode |= 0o100
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(content)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		d := blob(t, dir, ocispec.MediaTypeImageLayer, b.Bytes())
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
		config.History = append(config.History, ocispec.History{CreatedBy: createdBy})
	}
	m.Config = blob(t, dir, ocispec.MediaTypeImageConfig, asJSON(t, config))
	index := ocispec.Index{Versioned: m.Versioned, Manifests: []ocispec.Descriptor{blob(t, dir, m.MediaType, asJSON(t, m))}}
	index.Manifests[0].Annotations = map[string]string{ocispec.AnnotationRefName: name, "io.containerd.image.name": name}
	for name, b := range map[string][]byte{
		ocispec.ImageLayoutFile: asJSON(t, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}), ocispec.ImageIndexFile: asJSON(t, index),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// blob writes a blob to the layout in dir.
func blob(t *testing.T, dir, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := digest.FromBytes(b)
	path := filepath.Join(dir, "blobs", "sha256", d.Encoded())
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
