package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/mount"
)

func mountCommand() *cli.Command {
	return &cli.Command{
		Name:      "mount",
		Usage:     "show an image as a folder, fetching only what is read",
		ArgsUsage: "IMAGE DIR",
		Description: `IMAGE is a name as docker knows it (nginx:1.27, host:port/repo:tag,
repo@sha256:...), or something local: oci:DIR[:TAG], oci-archive:FILE[:TAG],
docker-archive:FILE[:REF]. A colon in DIR or FILE is written \:.

The command returns when the tree can be used; a server goes on in the
background until 'lamina umount DIR'.`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "rw", Usage: "make it writable: what changes is kept, by --name, until 'lamina umount --rm'"},
			&cli.StringFlag{Name: "name", Usage: "call the writable mount `NAME`, or go on with the one of that name"},
			&cli.StringFlag{Name: "upper", Usage: "keep what changes in `DIR`, an upper directory as overlayfs has it"},
			&cli.StringFlag{Name: "engine", Value: "auto", Usage: "auto, fuse, or kernel (EROFS; root, Linux 6.12)"},
			&cli.BoolFlag{Name: "foreground", Aliases: []string{"f"}, Usage: "stay in front, log to standard error; ctrl-C unmounts"},
			&cli.BoolFlag{Name: "fill", Usage: "fetch in the background what has not been read"},
			&cli.StringFlag{Name: "fill-rate", Usage: "bound the background fill to `SIZE` a second"},
			cacheLimitFlag(),
			&cli.DurationFlag{Name: "deadline", DefaultText: "1m", Usage: "fail a read that could not be served within `TIME`"},
		}, lookFlags()...),
		BashComplete: completeImages,
		Before:       takes(2, 2, "an image and a directory"),
		Action:       runMount,
	}
}

func runMount(c *cli.Context) error {
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
	if _, err := refOf(c, o.Image); err != nil {
		return o, err
	}
	if _, err := indexPolicy(c); err != nil {
		return o, err
	}
	if o.RW = c.Bool("rw"); !o.RW && (c.IsSet("name") || c.IsSet("upper")) {
		return o, usagef(c, "--name and --upper go with --rw")
	}
	o.Name = c.String("name")
	if u := c.String("upper"); u != "" {
		if o.Upper, err = filepath.Abs(u); err != nil {
			return o, err
		}
	}
	if o.Parallel < 0 || o.Deadline < 0 {
		return o, usagef(c, "--parallel and --deadline take no negative values")
	}
	if o.HostsDirs, err = hostsDirs(c); err != nil {
		return o, err
	}
	if o.FillRate, err = sizeFlag(c, "fill-rate"); err != nil {
		return o, err
	}
	if o.CacheLimit, err = cacheLimit(c); err != nil {
		return o, err
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
			&cli.BoolFlag{Name: "rm", Usage: "discard what was written, too"},
		},
		BashComplete: completeMounts,
		Before: func(c *cli.Context) error {
			if c.Bool("all") {
				return takes(0, 0, "no mountpoint with --all")(c)
			}
			return takes(1, -1, "a mountpoint or a mount's name")(c)
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
					if m.Status != mount.Unmounted && m.Status != mount.Detached {
						targets = append(targets, m.Name)
					}
				}
			}
			var errs []error
			for _, t := range targets {
				if err := unmount(c, r, t); err != nil {
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
}

// unmount ends the mount that target means, and with --rm the workspace.
func unmount(c *cli.Context, root, target string) error {
	if !c.Bool("rm") {
		return mount.Unmount(c.Context, root, target, c.Bool("lazy"))
	}
	e, err := mount.Find(root, target)
	if err != nil {
		return fmt.Errorf("umount: %w", err)
	}
	if e.Status != mount.Unmounted {
		if err := mount.Unmount(c.Context, root, target, c.Bool("lazy")); err != nil {
			return err
		}
	}
	if !e.Options.RW {
		return nil
	}
	return mount.Discard(c.Context, root, e.Name)
}

func mountsCommand() *cli.Command {
	return &cli.Command{
		Name:      "mounts",
		Usage:     "list mounts",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "list writable mounts that are not mounted now, too"},
		},
		Before: takes(0, 0, "no arguments"),
		Action: runMounts,
	}
}

func runMounts(c *cli.Context) error {
	r, err := root(c)
	if err != nil {
		return err
	}
	all, err := mount.List(r)
	if err != nil {
		return err
	}
	if !c.Bool("all") {
		all = slices.DeleteFunc(all, func(e mount.Entry) bool { return e.Status == mount.Unmounted })
	}
	if c.Bool("json") {
		if all == nil {
			all = []mount.Entry{}
		}
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
