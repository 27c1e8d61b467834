package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/mount"
	"github.com/laminafs/lamina/store"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "show an image as a folder, fetching only what is read",
		ArgsUsage: "IMAGE DIR",
		Description: `IMAGE is a name as docker knows it (nginx:1.27, host:port/repo:tag,
repo@sha256:...), or something local: oci:DIR[:TAG], oci-archive:FILE[:TAG],
docker-archive:FILE[:REF].

The command returns when the tree can be used; a server goes on in the
background until 'lamina umount DIR'.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "engine", Value: "auto", Usage: "auto, fuse, or kernel (EROFS; root, Linux 6.12)"},
			&cli.StringFlag{Name: "platform", Usage: "choose `OS/ARCH[/VARIANT]` of an image for several"},
			&cli.StringFlag{Name: "pull", Value: "missing", Usage: "ask the registry for the image: missing, always, never"},
			&cli.StringFlag{Name: "index", Value: "auto", Usage: "use an index published beside the image: auto, never, require"},
			&cli.BoolFlag{Name: "foreground", Aliases: []string{"f"}, Usage: "stay in front, log to standard error; ctrl-C unmounts"},
			&cli.BoolFlag{Name: "fill", Usage: "fetch in the background what has not been read"},
			&cli.StringFlag{Name: "fill-rate", Usage: "bound the background fill to `SIZE` a second"},
			&cli.StringFlag{Name: "cache-limit", EnvVars: []string{"LAMINA_CACHE_LIMIT"}, Usage: "keep at most `SIZE` of layer data"},
			&cli.IntFlag{Name: "parallel", Usage: "have at most `N` requests in flight"},
			&cli.DurationFlag{Name: "deadline", Usage: "fail a read that could not be served within `TIME`"},
			&cli.BoolFlag{Name: "plain-http", Usage: "speak HTTP to the registry (loopback needs no telling)"},
			&cli.BoolFlag{Name: "insecure", Usage: "do not verify the registry's TLS certificate"},
			&cli.StringSliceFlag{Name: "hosts-dir", Usage: "look for mirrors and certificates in `DIR`/<host>/hosts.toml"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print no progress"},
		},
		Action: runMount,
	}
}

func runMount(c *cli.Context) error {
	if c.NArg() != 2 {
		return usagef(c, "mount takes an image and a directory, got %d words", c.NArg())
	}
	o, err := mountOptions(c)
	if err != nil {
		return err
	}
	bars := newBars(os.Stderr, c.Bool("quiet"))
	if c.Bool("foreground") {
		return mount.Foreground(c.Context, o, bars, func(s *mount.State) {
			bars.Close()
			fmt.Fprintf(os.Stderr, "%s at %s (%s engine); ctrl-C unmounts\n", s.Image, s.Options.Dir, s.Engine)
		})
	}
	_, err = mount.Mount(c.Context, o, bars)
	bars.Close()
	return err
}

func mountOptions(c *cli.Context) (mount.Options, error) {
	r, err := root(c)
	if err != nil {
		return mount.Options{}, err
	}
	o := mount.Options{
		Root: r, Image: c.Args().Get(0), Platform: c.String("platform"), Pull: c.String("pull"), Index: c.String("index"),
		PlainHTTP: c.Bool("plain-http"), Insecure: c.Bool("insecure"),
		Fill: c.Bool("fill"), Parallel: c.Int("parallel"), Deadline: c.Duration("deadline"),
	}
	if o.Engine, err = mount.ParseEngine(c.String("engine")); err != nil {
		return o, usagef(c, "--engine: %w", err)
	}
	if _, err := image.ParsePolicy(o.Pull); err != nil {
		return o, usagef(c, "--pull: %w", err)
	}
	if _, err := store.ParseIndexPolicy(o.Index); err != nil {
		return o, usagef(c, "--index: %w", err)
	}
	if o.Parallel < 0 || o.Deadline < 0 {
		return o, usagef(c, "--parallel and --deadline take no negative values")
	}
	for _, d := range c.StringSlice("hosts-dir") {
		if d, err = filepath.Abs(d); err != nil {
			return o, err
		}
		o.HostsDirs = append(o.HostsDirs, d)
	}
	for flag, field := range map[string]*int64{"fill-rate": &o.FillRate, "cache-limit": &o.CacheLimit} {
		if s := c.String(flag); s != "" {
			if *field, err = parseSize(s); err != nil {
				return o, usagef(c, "--%s: %w", flag, err)
			}
		}
	}
	o.Dir, err = mount.ResolveDir(c.Args().Get(1))
	if errors.Is(err, fs.ErrNotExist) {
		return o, fmt.Errorf("mountpoint %s does not exist: make it with mkdir first", c.Args().Get(1))
	}
	return o, err
}

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Aliases:   []string{"unmount"},
		Usage:     "end mounts",
		ArgsUsage: "DIR|NAME...",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "lazy", Aliases: []string{"l"}, Usage: "detach a busy mount now, end it when its last user is gone"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "end every mount of this store"},
		},
		Action: func(c *cli.Context) error {
			r, err := root(c)
			if err != nil {
				return err
			}
			targets := c.Args().Slice()
			if c.Bool("all") {
				all, err := mount.List(r)
				if err != nil {
					return err
				}
				for _, m := range all {
					targets = append(targets, m.Name)
				}
			} else if len(targets) == 0 {
				return usagef(c, "umount takes a mountpoint or a mount's name")
			}
			var errs []error
			for _, t := range targets {
				if err := mount.Unmount(c.Context, r, t, c.Bool("lazy")); err != nil {
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
}

func mountsCommand() *cli.Command {
	return &cli.Command{
		Name:   "mounts",
		Usage:  "list mounts",
		Flags:  []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print a JSON array"}},
		Action: runMounts,
	}
}

func runMounts(c *cli.Context) error {
	if c.NArg() != 0 {
		return usagef(c, "mounts takes no words")
	}
	r, err := root(c)
	if err != nil {
		return err
	}
	all, err := mount.List(r)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, all)
	}
	rows := [][]string{{"NAME", "IMAGE", "MOUNTPOINT", "ENGINE", "STATUS"}}
	for _, m := range all {
		rows = append(rows, []string{m.Name, m.Image, m.Options.Dir, string(m.Engine), string(m.Status)})
	}
	return printTable(c.App.Writer, rows)
}

func serveCommand() *cli.Command {
	return &cli.Command{
		Name: mount.ServeVerb, Hidden: true,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "takeover"}},
		Action: func(c *cli.Context) error {
			if c.Bool("takeover") {
				return mount.TakeoverCommand(c.Context, c.Args().Get(0), c.Args().Get(1), os.NewFile(3, "fuse"))
			}
			var o mount.Options
			if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
				return fmt.Errorf("serve: read options: %w", err)
			}
			return mount.ServeCommand(c.Context, c.Args().Get(0), o, os.NewFile(3, "events"))
		},
	}
}

func holdCommand() *cli.Command {
	return &cli.Command{
		Name: mount.HoldVerb, Hidden: true,
		Action: func(c *cli.Context) error {
			return mount.HoldCommand(c.Args().Get(0), c.Args().Get(1), os.NewFile(3, "fuse"))
		},
	}
}
