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

func platformFlag() cli.Flag {
	return &cli.StringFlag{Name: "platform", Usage: "choose `OS/ARCH[/VARIANT]` of an image for several"}
}

func pullFlag() cli.Flag {
	return &cli.StringFlag{Name: "pull", Value: "missing", Usage: "ask the registry for the image: missing, always, never"}
}

func indexFlag() cli.Flag {
	return &cli.StringFlag{Name: "index", Value: "auto", Usage: "use an index published beside the image: auto, never, require"}
}

func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print no progress"}
}

func cacheLimitFlag() cli.Flag {
	return &cli.StringFlag{Name: "cache-limit", Usage: "keep at most `SIZE` of layer data, as 20G (also LAMINA_CACHE_LIMIT)"}
}

// networkFlags are those of every command that may ask a registry.
func networkFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "parallel", DefaultText: "32", Usage: "have at most `N` requests in flight"},
		&cli.BoolFlag{Name: "plain-http", Usage: "speak HTTP to the registry (loopback needs no telling)"},
		&cli.BoolFlag{Name: "insecure", Usage: "do not verify the registry's TLS certificate"},
		&cli.StringSliceFlag{Name: "hosts-dir", Usage: "look for mirrors and certificates in `DIR`/<host>/hosts.toml"},
	}
}

// refFlags are those of every command that finds an image by its name.
func refFlags() []cli.Flag { return append([]cli.Flag{platformFlag(), pullFlag()}, networkFlags()...) }

// lookFlags are those of every command that opens the layers of an image.
func lookFlags() []cli.Flag { return append([]cli.Flag{indexFlag(), quietFlag()}, refFlags()...) }

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

// refOf is how c asks for the image called name.
func refOf(c *cli.Context, name string) (store.Ref, error) {
	policy, err := image.ParsePolicy(c.String("pull"))
	if err != nil {
		return store.Ref{}, usagef(c, "--pull: %w", err)
	}
	return store.Ref{Name: name, Platform: c.String("platform"), Pull: policy}, nil
}

// indexPolicy is how c uses published indexes.
func indexPolicy(c *cli.Context) (store.IndexPolicy, error) {
	p, err := store.ParseIndexPolicy(c.String("index"))
	if err != nil {
		return p, usagef(c, "--index: %w", err)
	}
	return p, nil
}

// hostsDirs are the directories of --hosts-dir, as absolute paths: servers work
// elsewhere.
func hostsDirs(c *cli.Context) (dirs []string, err error) {
	for _, d := range c.StringSlice("hosts-dir") {
		if d, err = filepath.Abs(d); err != nil {
			return nil, err
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}

// cacheLimit is the limit of the command's own flag or else of the program's.
func cacheLimit(c *cli.Context) (int64, error) {
	for _, at := range c.Lineage() {
		if at.IsSet("cache-limit") {
			return sizeFlag(at, "cache-limit")
		}
	}
	return 0, nil
}

// withStore calls f with the store that the flags of c choose.
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
	if o.HostsDirs, err = hostsDirs(c); err != nil {
		return err
	}
	if o.CacheLimit, err = cacheLimit(c); err != nil {
		return err
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
	index, err := indexPolicy(c)
	if err != nil {
		return err
	}
	return withTreeOf(c, name, index, func(_ *store.Store, t *store.Tree) error { return f(t) })
}

// withTreeOf is withTree that says how published indexes are used.
func withTreeOf(c *cli.Context, name string, index store.IndexPolicy, f func(*store.Store, *store.Tree) error) error {
	ref, err := refOf(c, name)
	if err != nil {
		return err
	}
	ref.Index = index
	return withStore(c, func(s *store.Store) (err error) {
		bars := newBars(os.Stderr, c.Bool("quiet"))
		t, err := s.Open(c.Context, ref, bars.Layer)
		bars.Close()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, t.Close()) }()
		return f(s, t)
	})
}

// mountedImages returns the digests of images that are mounted now.
func mountedImages(root string) (map[digest.Digest]bool, error) {
	all, err := mount.List(root)
	m := map[digest.Digest]bool{}
	for _, e := range all {
		if e.Status != mount.Unmounted {
			m[e.Digest] = true
		}
	}
	return m, err
}

// mounted returns what the mounts and workspaces of the store at root use.
func mounted(root string) (store.Mounted, error) {
	m := store.Mounted{Images: map[digest.Digest]bool{}, Blobs: map[digest.Digest]bool{}, Keys: map[string]bool{}, Chains: map[string]bool{}}
	all, err := mount.InUse(root)
	for _, e := range all {
		m.Images[e.Digest] = true
		switch last, err := e.Committed(); {
		case err != nil:
			return m, err
		case last != nil:
			m.Images[last.Digest] = true // what is written goes on top of it
		}
		m.Chains[e.Chain] = true
		for _, l := range e.Layers {
			m.Keys[l.Key] = true
			m.Blobs[l.Desc.Digest] = true
		}
	}
	return m, err
}
