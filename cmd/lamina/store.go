package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/mount"
	"github.com/laminafs/lamina/store"
)

// networkFlags are those of every command that may ask a registry.
func networkFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "parallel", Usage: "have at most `N` requests in flight"},
		&cli.BoolFlag{Name: "plain-http", Usage: "speak HTTP to the registry (loopback needs no telling)"},
		&cli.BoolFlag{Name: "insecure", Usage: "do not verify the registry's TLS certificate"},
		&cli.StringSliceFlag{Name: "hosts-dir", Usage: "look for mirrors and certificates in `DIR`/<host>/hosts.toml"},
	}
}

// imageFlags are those of every command that opens one image.
func imageFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringFlag{Name: "platform", Usage: "choose `OS/ARCH[/VARIANT]` of an image for several"},
		&cli.StringFlag{Name: "pull", Value: "missing", Usage: "ask the registry for the image: missing, always, never"},
		&cli.StringFlag{Name: "index", Value: "auto", Usage: "use an index published beside the image: auto, never, require"},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print no progress"},
	}, networkFlags()...)
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

// withStore calls f with the store that the words of c mean.
func withStore(c *cli.Context, f func(*store.Store) error) (err error) {
	r, err := root(c)
	if err != nil {
		return err
	}
	o := store.Options{
		Root: r, PlainHTTP: c.Bool("plain-http"), Insecure: c.Bool("insecure"), Parallel: c.Int("parallel"),
		Log:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Held: func() (map[string]bool, error) { return mount.Held(r) },
	}
	if o.Parallel < 0 {
		return usagef(c, "--parallel takes no negative values")
	}
	for _, d := range c.StringSlice("hosts-dir") {
		if d, err = filepath.Abs(d); err != nil {
			return err
		}
		o.HostsDirs = append(o.HostsDirs, d)
	}
	s, err := store.New(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return f(s)
}

// withTree calls f with the opened tree of the image called name.
func withTree(c *cli.Context, name string, f func(*store.Tree) error) error {
	index, err := store.ParseIndexPolicy(c.String("index"))
	if err != nil {
		return usagef(c, "--index: %w", err)
	}
	return withTreeOf(c, name, index, func(_ *store.Store, t *store.Tree) error { return f(t) })
}

// withTreeOf is withTree that says how published indexes are used.
func withTreeOf(c *cli.Context, name string, index store.IndexPolicy, f func(*store.Store, *store.Tree) error) error {
	policy, err := image.ParsePolicy(c.String("pull"))
	if err != nil {
		return usagef(c, "--pull: %w", err)
	}
	return withStore(c, func(s *store.Store) (err error) {
		bars := newBars(os.Stderr, c.Bool("quiet"))
		t, err := s.Open(c.Context, store.Ref{Name: name, Platform: c.String("platform"), Pull: policy, Index: index}, bars.Layer)
		bars.Close()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.Close()) }()
		return f(s, t)
	})
}

// mounted returns what the mounts of the store at root use.
func mounted(root string) (store.Mounted, error) {
	m := store.Mounted{Images: map[digest.Digest]bool{}, Blobs: map[digest.Digest]bool{}, Keys: map[string]bool{}, Chains: map[string]bool{}}
	all, err := mount.List(root)
	for _, e := range all {
		m.Images[e.Digest] = true
		m.Chains[e.Chain] = true
		for _, l := range e.Layers {
			m.Keys[l.Key] = true
			m.Blobs[l.Desc.Digest] = true
		}
	}
	return m, err
}
