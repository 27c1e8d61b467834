package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/distribution/reference"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/lookahead"
	"github.com/laminafs/lamina/store"
)

// openStore opens the store that o names, with a Watcher that is told what is
// read of it.
func openStore(o Options, log *slog.Logger, ahead *lookahead.Watcher) (*store.Store, error) {
	return store.New(store.Options{
		Root: o.Root, PlainHTTP: o.PlainHTTP, Insecure: o.Insecure, HostsDirs: o.HostsDirs,
		Parallel: o.Parallel, FillRate: o.FillRate, CacheLimit: o.CacheLimit, Log: log,
		Began: ahead.Began, Came: ahead.Came,
		Held: func() (map[string]bool, error) { return Held(o.Root) },
	})
}

// tree is an image's tree, and what looks ahead of its readers.
type tree struct {
	*store.Tree
	ahead *lookahead.Watcher
}

// Close ends the looking ahead before the layers.
func (t *tree) Close() error {
	t.ahead.Close()
	return t.Tree.Close()
}

// assemble opens the image that o names.
func (s *server) assemble(ctx context.Context, o Options, p Progress) error {
	pull, err := image.ParsePolicy(o.Pull)
	if err != nil {
		return err
	}
	index, err := store.ParseIndexPolicy(o.Index)
	if err != nil {
		return err
	}
	var report store.Progress
	if p != nil {
		report = p.Layer
	}
	opened, err := s.store.Open(ctx, store.Ref{Name: o.Image, Platform: o.Platform, Pull: pull, Index: index}, report)
	if err != nil {
		return err
	}
	s.tree = &tree{opened, s.ahead}
	return nil
}

// reopen opens the layers of a mount that exists, without image or registry.
func (s *server) reopen(ctx context.Context, m *State) error {
	opened, err := m.open(ctx, s.store)
	if err != nil {
		return fmt.Errorf("reopen mount %s: %w", m.Name, err)
	}
	s.tree = &tree{opened, s.ahead}
	return nil
}

// open opens the layers that m was made of.
func (m *State) open(ctx context.Context, st *store.Store) (*store.Tree, error) {
	var repo reference.Named
	if m.Repository != "" {
		var err error
		if repo, err = reference.ParseNormalizedNamed(m.Repository); err != nil {
			return nil, err
		}
	}
	sources := make([]layer.Source, len(m.Layers))
	for i, l := range m.Layers {
		sources[i] = layer.Source{Desc: l.Desc, DiffID: l.DiffID}
		switch {
		case l.File != "":
			file := fetch.OpenFile(l.File, l.Offset, l.Desc.Size, l.Desc.Digest)
			sources[i].Blob = file
			if repo != nil {
				sources[i].Blob = fetch.Fallback(file, st.Client.Blob(repo, l.Desc))
			}
		case repo != nil:
			sources[i].Blob = st.Client.Blob(repo, l.Desc)
		}
	}
	keys := make([]string, len(m.Layers))
	for i, l := range m.Layers {
		keys[i] = l.Key
	}
	opened, err := st.OpenLayers(ctx, sources, keys)
	if err != nil {
		return nil, err
	}
	// The kernel goes on with the nodes and the data of the tree that it knows:
	// another one's bytes would be served as those of the first.
	if opened.Chain.ID != m.Chain {
		_ = opened.Close()
		return nil, errOtherLayers
	}
	return opened, nil
}

// errOtherLayers says that a session cannot be gone on with.
var errOtherLayers = errors.New("layers changed since the mount was made")

// state makes the record of a mount of t called name.
func (t *tree) state(name string, o Options) *State {
	m := &State{
		Name: name, Options: o, Image: t.Image.Name, Digest: t.Image.Digest,
		Chain: t.Chain.ID, Created: time.Now().Truncate(time.Second), Where: here(), Maker: self(),
	}
	if t.Image.Origin != nil {
		m.Repository = t.Image.Origin.Name()
	}
	for i, l := range t.Image.Layers {
		ls := LayerState{Desc: l.Desc, DiffID: l.DiffID, Key: t.Layers[i].Key()}
		if f, ok := l.Blob.(fetch.Local); ok {
			ls.File, ls.Offset = f.File()
		}
		m.Layers = append(m.Layers, ls)
		m.ImageSize += l.Desc.Size
	}
	return m
}

// ResolveDir returns the mountpoint dir as an absolute path free of symbolic
// links. The directory itself need not answer: a dead mount does not. The
// error wraps fs.ErrNotExist when there is nothing at dir.
func ResolveDir(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mountpoint %s: %w", dir, err)
	}
	if fi, err := os.Lstat(abs); err == nil && fi.Mode()&os.ModeSymlink == 0 || abs == "/" || fs.IsStale(abs) {
		parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return "", fmt.Errorf("mountpoint %s: %w", dir, err)
		}
		return filepath.Join(parent, filepath.Base(abs)), nil
	}
	real, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", fmt.Errorf("mountpoint %s: %w", dir, err)
	}
	return real, nil
}
