package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/lookahead"
)

// store is the opened store with the client that fills it.
type store struct {
	log    *slog.Logger
	client *fetch.Client
	images *image.Store
	cache  *cache.Store
	ahead  *lookahead.Watcher
}

func openStore(o Options, log *slog.Logger) (*store, error) {
	client := fetch.New(fetch.Options{
		HostsDirs: o.HostsDirs, PlainHTTP: o.PlainHTTP, Insecure: o.Insecure,
		Parallel: o.Parallel, FillRate: rate.Limit(o.FillRate),
	})
	images, err := image.OpenStore(filepath.Join(o.Root, "images"))
	if err != nil {
		return nil, err
	}
	ahead := lookahead.New()
	layers, err := cache.Open(o.Root, cache.Options{
		Limit: o.CacheLimit, Log: log, Link: client.Link, Began: ahead.Began, Came: ahead.Came,
		Held: func() (map[string]bool, error) { return held(o.Root) },
	})
	if err != nil {
		return nil, err
	}
	return &store{log: log, client: client, images: images, cache: layers, ahead: ahead}, nil
}

func (s *store) Close() error {
	err := s.cache.Close()
	s.client.Close()
	return err
}

// tree is an image whose layers are opened and merged.
type tree struct {
	image  *image.Image
	layers []*cache.Layer
	chain  *cache.Chain
	ahead  *lookahead.Watcher // ended before the layers
}

func (t *tree) Close() error {
	var errs []error
	if t.chain != nil {
		errs = append(errs, t.chain.Close())
	}
	if t.ahead != nil {
		t.ahead.Close()
	}
	for _, l := range t.layers {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// complete reports whether the kernel can be given every layer's data as it is.
func (t *tree) complete() bool {
	for _, l := range t.layers {
		if _, ok := l.DataFile(); !ok {
			return false
		}
	}
	return true
}

// assemble resolves the image that o names, opens its layers, all at once, and
// merges them. Tables of contents are fetched while the config is still under
// way: a mount costs one round trip less.
func (s *store) assemble(ctx context.Context, o Options, p Progress) (t *tree, err error) {
	early, cancel := context.WithCancel(ctx)
	var ahead sync.WaitGroup
	defer func() { cancel(); ahead.Wait() }()
	done := make(chan struct{})
	defer close(done)
	pull, err := image.ParsePolicy(o.Pull)
	if err != nil {
		return nil, err
	}
	img, err := image.Open(ctx, o.Image, image.Options{
		Platform: o.Platform, Pull: pull, Client: s.client, Store: s.images,
		Log: s.log,
		OnManifest: func(_ *ocispec.Manifest, layers []image.Layer) {
			for _, l := range layers {
				if _, f, _ := layer.Key(layer.Source(l)); f != layer.EStargz && f != layer.ZstdChunked {
					continue
				}
				ahead.Go(func() {
					// Open until the layers below are: what fails is tried again
					// there, where errors are reported.
					if opened, err := s.cache.Layer(early, layer.Source(l), nil); err == nil {
						<-done
						_ = opened.Close()
					}
				})
			}
		},
	})
	if err != nil {
		return nil, err
	}
	t = &tree{image: img, ahead: s.ahead, layers: make([]*cache.Layer, len(img.Layers))}
	defer func() {
		if err != nil {
			_ = t.Close()
			t = nil
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	for i, l := range img.Layers {
		g.Go(func() (err error) {
			report := func(done, total int64) {
				if p != nil {
					p.Layer(i, l.Desc.Digest.String(), done, total)
				}
			}
			t.layers[i], err = s.cache.Layer(gctx, layer.Source(l), report)
			return err
		})
	}
	if err = g.Wait(); err != nil {
		return t, fmt.Errorf("%s: %w", img.Name, err)
	}
	if t.chain, err = s.cache.Chain(ctx, t.layers); err != nil {
		return t, fmt.Errorf("%s: %w", img.Name, err)
	}
	return t, nil
}

// reopen opens the layers of a mount that exists, without image or registry.
func (s *store) reopen(ctx context.Context, m *State) (t *tree, err error) {
	t = &tree{ahead: s.ahead, layers: make([]*cache.Layer, len(m.Layers))}
	defer func() {
		if err != nil {
			_ = t.Close()
			t = nil
		}
	}()
	var repo reference.Named
	if m.Repository != "" {
		if repo, err = reference.ParseNormalizedNamed(m.Repository); err != nil {
			return t, fmt.Errorf("reopen mount %s: %w", m.Name, err)
		}
	}
	for i, l := range m.Layers {
		src := layer.Source{Desc: l.Desc, DiffID: l.DiffID}
		switch {
		case l.File != "":
			src.Blob = fetch.OpenFile(l.File, l.Offset, l.Desc.Size, l.Desc.Digest)
		case repo != nil:
			src.Blob = s.client.Blob(repo, l.Desc)
		}
		if t.layers[i], err = s.cache.Layer(ctx, src, nil); err != nil {
			return t, fmt.Errorf("reopen mount %s: %w", m.Name, err)
		}
	}
	if t.chain, err = s.cache.Chain(ctx, t.layers); err != nil {
		return t, fmt.Errorf("reopen mount %s: %w", m.Name, err)
	}
	return t, nil
}

// state makes the record of a mount of t called name.
func (t *tree) state(name string, o Options) *State {
	m := &State{
		Name: name, Options: o, Image: t.image.Name, Digest: t.image.Digest,
		Chain: t.chain.ID, Created: time.Now().Truncate(time.Second),
	}
	if t.image.Origin != nil {
		m.Repository = t.image.Origin.Name()
	}
	for i, l := range t.image.Layers {
		ls := LayerState{Desc: l.Desc, DiffID: l.DiffID, Key: t.layers[i].Key()}
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
	if fi, err := os.Lstat(abs); err == nil && fi.Mode()&os.ModeSymlink == 0 || abs == "/" || stale(abs) {
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
