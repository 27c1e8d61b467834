package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/store"
	"github.com/laminafs/lamina/view"
)

// viewOf returns t as an image to look at.
func viewOf(t *store.Tree) *view.Image {
	v := &view.Image{Name: t.Image.Name, Tree: t.Overlay(), Config: t.Image.Config}
	for i, l := range t.Image.Layers {
		v.Layers = append(v.Layers, view.Layer{
			Desc: l.Desc, DiffID: l.DiffID, Key: t.Layers[i].Key(), Index: t.Layers[i].Index(),
		})
	}
	return v
}

// withView calls f with the image that the first argument of c names.
func withView(c *cli.Context, f func(*view.Image) error) error {
	return withTree(c, c.Args().First(), func(t *store.Tree) error { return f(viewOf(t)) })
}

const lookDescription = `The image need not be mounted, nor pulled: of layers that can be read lazily only
what is asked for is fetched. Neither root nor FUSE is needed.`

func lsCommand() *cli.Command {
	return &cli.Command{
		Name: "ls", Usage: "list a folder of an image", ArgsUsage: "IMAGE [PATH...]", Description: lookDescription,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "l", Usage: "with modes, owners, sizes and times"},
			&cli.BoolFlag{Name: "recursive", Aliases: []string{"R"}, Usage: "the folders in it, too"},
			jsonFlag(),
		}, lookFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, -1, "an image and paths in it"),
		Action: func(c *cli.Context) error {
			paths := c.Args().Tail()
			if len(paths) == 0 {
				paths = []string{"/"}
			}
			o := view.ListOptions{Recursive: c.Bool("recursive"), Long: c.Bool("l")}
			return withView(c, func(v *view.Image) error { return list(c, v, paths, o) })
		},
	}
}

func list(c *cli.Context, v *view.Image, paths []string, o view.ListOptions) error {
	if !c.Bool("json") {
		return v.WriteList(c.App.Writer, paths, o)
	}
	entries := []view.Entry{}
	for _, p := range paths {
		for e, err := range v.List(p, o) {
			if err != nil {
				return err
			}
			entries = append(entries, e)
		}
	}
	return printJSON(c.App.Writer, entries)
}

func catCommand() *cli.Command {
	return &cli.Command{
		Name: "cat", Usage: "print files of an image", ArgsUsage: "IMAGE PATH...", Description: lookDescription,
		Flags:        lookFlags(),
		BashComplete: completeImages,
		Before:       takes(2, -1, "an image and a file in it"),
		Action: func(c *cli.Context) error {
			return withView(c, func(v *view.Image) error {
				for _, p := range c.Args().Tail() {
					if err := v.Cat(c.Context, c.App.Writer, p); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func findFilesCommand() *cli.Command {
	return &cli.Command{
		Name: "find", Usage: "find files of an image", ArgsUsage: "IMAGE [PATH]", Description: lookDescription,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "whose name matches `PATTERN`, as in find(1) but for [:classes:]"},
			&cli.StringFlag{Name: "type", Usage: "of type `f`, d, l, c, b, p or s"},
			&cli.StringFlag{Name: "min-size", Usage: "files of at least `SIZE`"},
			&cli.StringFlag{Name: "max-size", Usage: "files of at most `SIZE`"},
			&cli.IntSliceFlag{Name: "layer", Usage: "that layer `N` brings, counted from 0, the bottom one"},
			&cli.BoolFlag{Name: "print0", Aliases: []string{"0"}, Usage: "end paths with a zero byte and escape nothing in them"},
			jsonFlag(),
		}, lookFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, 2, "an image and a path in it"),
		Action:       runFind,
	}
}

func runFind(c *cli.Context) error {
	q := view.Query{Name: c.String("name"), Layers: c.IntSlice("layer")}
	if t := c.String("type"); t != "" {
		if len(t) != 1 || !strings.Contains("fdlcbps", t) {
			return usagef(c, "--type %q: write f, d, l, c, b, p or s", t)
		}
		q.Type = t[0]
	}
	for flag, field := range map[string]**int64{"min-size": &q.MinSize, "max-size": &q.MaxSize} {
		n, err := sizeFlag(c, flag)
		if err != nil {
			return err
		}
		if c.String(flag) != "" {
			*field = &n
		}
	}
	if err := q.Check(); err != nil {
		return usagef(c, "--name: %w", err)
	}
	root := "/"
	if c.NArg() == 2 {
		root = c.Args().Get(1)
	}
	return withView(c, func(v *view.Image) error {
		return printLines(c, v.Find(c.Context, root, q), func(f view.Found) string {
			if c.Bool("print0") {
				return f.Path + "\x00"
			}
			return view.Escape(f.Path) + "\n"
		})
	})
}

func diffCommand() *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "show in which files two images differ, or what changed in a writable mount", ArgsUsage: "IMAGE IMAGE | DIR|NAME",
		Description: `Of a writable mount, prints what docker diff prints: A, C or D and a path for
what was added, changed and deleted, and C for folders above that.

Of two images, prints A, C or D and a path for what was added, changed and deleted, in the form of
docker diff. Unlike docker's, a folder is changed only if its own attributes are, not if
something in it is; what is in a deleted folder is not listed. eStargz has times to the
second only: --no-times compares it with other formats.
` + lookDescription,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "no-times", Usage: "another time alone is no change"},
			&cli.BoolFlag{Name: "dir-times", Usage: "another time of a folder is a change, too"},
			jsonFlag(),
		}, lookFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, 2, "two images, or a writable mount"),
		Action: func(c *cli.Context) error {
			if c.NArg() == 1 {
				return diffWorkspace(c, c.Args().First())
			}
			return withView(c, func(a *view.Image) error {
				return withTree(c, c.Args().Get(1), func(t *store.Tree) error { return diff(c, a, viewOf(t)) })
			})
		},
	}
}

func diff(c *cli.Context, a, b *view.Image) error {
	o := view.DiffOptions{NoTimes: c.Bool("no-times"), DirTimes: c.Bool("dir-times")}
	return printLines(c, view.Diff(c.Context, a, b, o), func(d view.Change) string { return d.String() + "\n" })
}

func whichCommand() *cli.Command {
	return &cli.Command{
		Name: "which", Usage: "tell which layer put a file there, and what it hides", ArgsUsage: "IMAGE PATH",
		Flags:        append([]cli.Flag{jsonFlag()}, lookFlags()...),
		BashComplete: completeImages,
		Before:       takes(2, 2, "an image and a path in it"),
		Action: func(c *cli.Context) error {
			return withView(c, func(v *view.Image) error {
				p, err := v.Which(c.Args().Get(1))
				if err != nil {
					return err
				}
				if c.Bool("json") {
					return printJSON(c.App.Writer, p)
				}
				return printTable(c.App.Writer, provenanceRows(p))
			})
		},
	}
}

func provenanceRows(p *view.Provenance) [][]string {
	ref := func(l view.LayerRef) string {
		s := fmt.Sprintf("layer %d  %s", l.Number, shortDigest(l.Digest.String()))
		if by := oneLine(l.CreatedBy); by != "" {
			s += "  " + by
		}
		return s
	}
	rows := [][]string{{view.Escape(p.Path), ref(p.Layer)}}
	if p.Entry == nil {
		rows[0][0] += " (deleted: " + string(p.How) + ")"
	}
	if p.Content != nil {
		rows = append(rows, []string{"  a hard link to a file of", ref(*p.Content)})
	}
	for _, l := range p.Layers {
		if l.Number != p.Layer.Number {
			rows = append(rows, []string{"  also in", ref(l)})
		}
	}
	for _, h := range p.Hidden {
		what := h.Type
		if h.Type == "file" {
			what += " of " + formatSize(h.Size)
		}
		rows = append(rows, []string{"  hides a " + what + " of", ref(h.Layer)})
	}
	return rows
}

func layersCommand() *cli.Command {
	return &cli.Command{
		Name: "layers", Usage: "list the layers of an image, with what they waste", ArgsUsage: "IMAGE",
		Description:  "WASTED are bytes of files that later layers delete or replace.",
		Flags:        append([]cli.Flag{jsonFlag()}, lookFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, 1, "one image"),
		Action: func(c *cli.Context) error {
			return withTree(c, c.Args().First(), func(t *store.Tree) error {
				stats, err := viewOf(t).LayerStats()
				if err != nil {
					return err
				}
				users, err := layerUsers(c)
				if err != nil {
					return err
				}
				return printLayers(c, t, stats, users)
			})
		},
	}
}

// layerUsers names the images that use each layer.
func layerUsers(c *cli.Context) (map[digest.Digest][]string, error) {
	users := map[digest.Digest][]string{}
	err := withStore(c, func(s *store.Store) error {
		images, err := s.List(c.Context)
		for _, im := range images {
			for _, l := range im.Layers {
				if !slices.Contains(users[l.Digest], im.Name) {
					users[l.Digest] = append(users[l.Digest], im.Name)
				}
			}
		}
		return err
	})
	return users, err
}

// layerLine is one layer in the list that layers prints.
type layerLine struct {
	view.LayerStat
	Size   int64    `json:"size"` // compressed
	Shared []string `json:"sharedWith"`
}

func printLayers(c *cli.Context, t *store.Tree, stats []view.LayerStat, users map[digest.Digest][]string) error {
	lines := []layerLine{}
	rows := [][]string{{"LAYER", "DIGEST", "SIZE", "FILES", "BYTES", "WASTED", "ALSO IN", "CREATED BY"}}
	for i, s := range stats {
		l := layerLine{LayerStat: s, Size: t.Image.Layers[i].Desc.Size, Shared: []string{}}
		for _, name := range users[s.Digest] {
			if name != t.Image.Name {
				l.Shared = append(l.Shared, name)
			}
		}
		lines = append(lines, l)
		others := "-"
		if n := len(l.Shared); n == 1 {
			others = l.Shared[0]
		} else if n > 1 {
			others = fmt.Sprintf("%d images", n)
		}
		rows = append(rows, []string{
			strconv.Itoa(s.Number), shortDigest(s.Digest.String()), formatSize(l.Size), strconv.Itoa(s.Files),
			formatSize(s.Bytes), formatSize(s.Wasted), others, shorten(oneLine(s.CreatedBy), 50),
		})
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, lines)
	}
	return printTable(c.App.Writer, rows)
}

func cpCommand() *cli.Command {
	return &cli.Command{
		Name: "cp", Usage: "copy files out of an image", ArgsUsage: "IMAGE PATH DEST",
		Description: `DEST is a file or folder as for cp(1), or - for a tar archive on standard output.
PATH/. copies what is in a folder. Modes, times, links and holes are kept, owners and
devices by root only.
` + lookDescription,
		Flags:        lookFlags(),
		BashComplete: completeImages,
		Before:       takes(3, 3, "an image, a path in it, and where to copy it"),
		Action: func(c *cli.Context) error {
			return withView(c, func(v *view.Image) error { return copyOut(c, v, c.Args().Get(1), c.Args().Get(2)) })
		},
	}
}

// copyOut copies path of v to dest.
func copyOut(c *cli.Context, v *view.Image, path, dest string) error {
	if dest == "-" {
		return v.CopyTar(c.Context, c.App.Writer, path)
	}
	return v.Copy(c.Context, path, dest, view.CopyOptions{Owners: os.Geteuid() == 0})
}
