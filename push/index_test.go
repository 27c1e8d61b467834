package push_test

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/push"
)

// TestIndex: an image index comes with all that it leads to.
func TestIndex(t *testing.T) {
	index, err := random.Index(1000, 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendIndex(index); err != nil {
		t.Fatal(err)
	}
	documents, _, err := image.Documents(t.Context(), "oci:"+dir, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var blobs []push.Blob
	for _, d := range documents {
		for _, b := range d.Blobs {
			blobs = append(blobs, push.Blob{Desc: b.Desc, From: b.Blob})
		}
	}
	f := newFake(t)
	r := open(t, f, "team/app")
	result, err := r.Blobs(t.Context(), blobs, nil)
	if err != nil || result.Sent != 9 { // three configs, and twice three layers
		t.Fatalf("%+v, %v", result, err)
	}
	for i, d := range documents {
		tag := ""
		if i == len(documents)-1 {
			tag = "1.0"
		}
		if err := r.Manifest(t.Context(), d.Desc, d.Raw, tag); err != nil {
			t.Fatal(err)
		}
	}
	if f.objects["team/app 1.0"] == nil || len(f.objects) != 4 {
		t.Errorf("%d manifests", len(f.objects))
	}
	for _, b := range blobs {
		if int64(len(f.has("team/app", b.Desc.Digest))) != b.Desc.Size {
			t.Errorf("blob %s is not there", b.Desc.Digest)
		}
	}
}
