package cache_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/layer"
)

// TestLayerAt: of one blob the store may have two layers, with data in other places.
// Who knows one of them gets that, whichever was made first, and after it was
// removed, too.
func TestLayerAt(t *testing.T) {
	f := estargzFixture(t, files(90, 20, 20<<10))
	s := openStore(t, t.TempDir(), cache.Options{})
	defer func() { _ = s.Close() }()
	toc, _, _ := layer.Key(f.src)
	plain := layer.DiffKey(f.src)
	for _, removed := range []bool{false, true} {
		for _, key := range []string{toc, plain, toc} {
			l, err := s.LayerAt(t.Context(), key, f.src)
			if err != nil {
				t.Fatal(err)
			}
			if l.Key() != key {
				t.Errorf("got %s, not %s", l.Key(), key)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			if _, err := s.RemoveLayer(t.Context(), key); removed && err != nil {
				t.Error(err)
			}
		}
	}
	for _, key := range []string{layer.IndexedKey(gzipFixture(t, files(91, 2, 100)).src), "file-" + plain, plain + "-0123456789abcdef"} {
		if l, err := s.LayerAt(t.Context(), key, f.src); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, %v", key, l, err)
		}
	}
	if _, err := s.LayerAt(t.Context(), "../x", f.src); !errors.Is(err, layer.ErrFormat) {
		t.Errorf("no key: %v", err)
	}
}
