package mount

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/lookahead"
)

// reopenable is the record of a mount of the layers sources, and a server that
// may take it over.
func reopenable(t *testing.T, sources ...layer.Source) (*server, *State) {
	t.Helper()
	s := &server{log: slog.New(slog.DiscardHandler), ahead: lookahead.New()}
	m := &State{Name: "m", Options: Options{Root: t.TempDir(), HostsDirs: []string{}}}
	var err error
	if s.store, err = openStore(m.Options, s.log, s.ahead); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.store.Close(); err != nil {
			t.Error(err)
		}
	})
	keys := make([]string, len(sources))
	for i, src := range sources {
		keys[i], _, _ = layer.Key(src)
	}
	opened, err := s.store.OpenLayers(t.Context(), sources, keys)
	if err != nil {
		t.Fatal(err)
	}
	m.Chain = opened.Chain.ID
	for i, src := range sources {
		l := LayerState{Desc: src.Desc, DiffID: src.DiffID, Key: opened.Layers[i].Key()}
		l.File, l.Offset = src.Blob.(fetch.Local).File()
		m.Layers = append(m.Layers, l)
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	return s, m
}

// A session goes on with the tree that the kernel knows, or not at all: a file
// that was written again is another layer.
func TestReopenChanged(t *testing.T) {
	src := plainLayer(t, "layer", 0)
	s, m := reopenable(t, src)
	if err := s.reopen(t.Context(), m); err != nil {
		t.Fatalf("nothing changed: %v", err)
	}
	if err := s.tree.Close(); err != nil {
		t.Fatal(err)
	}
	s.tree, s.ahead = nil, lookahead.New()
	path := m.Layers[0].File
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(path, later, later); err != nil {
		t.Fatal(err)
	}
	err := s.reopen(t.Context(), m)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "its file has changed") {
		t.Errorf("the file changed: %v", err)
	}
	if s.tree != nil {
		t.Error("the other tree is kept")
	}
}
