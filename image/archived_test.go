package image_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/laminafs/lamina/image"
)

// TestArchives: the names in an archive, and what Open finds by them.
func TestArchives(t *testing.T) {
	a, b := platformImage(t, "linux/amd64", true), platformImage(t, "linux/amd64", true)
	layout := tarDir(t, newLayout(t, map[string]mutate.Appendable{"host.example/app:1": a, "just-a-tag": b}))
	found, err := image.Archives(t.Context(), layout)
	check(t, err)
	names := map[string]bool{}
	for _, f := range found {
		names[f.Name] = true
		_, err := image.Open(t.Context(), f.In.String(), image.Options{Platform: "linux/amd64"})
		check(t, err)
	}
	if len(found) != 2 || !names["host.example/app:1"] || !names[""] {
		t.Errorf("%+v", found)
	}
	for what, c := range map[string]struct {
		content string
		want    error
	}{
		"text":  {"no tar at all, and far too long to be taken for the end of one" + string(make([]byte, 512)), image.ErrCorrupt},
		"empty": {"", image.ErrNotFound},
		"gzip":  {"\x1f\x8b\x08\x00", image.ErrNotImage},
	} {
		path := filepath.Join(t.TempDir(), "f")
		check(t, os.WriteFile(path, []byte(c.content), 0o600))
		_, err := image.Archives(t.Context(), path)
		if err == nil {
			t.Errorf("%s: no error", what)
			continue
		}
		oneLine(t, err, c.want)
	}
	_, err = image.Archives(t.Context(), filepath.Join(t.TempDir(), "none"))
	oneLine(t, err, image.ErrNotFound)
}
