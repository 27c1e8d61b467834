package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/platforms"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/laminafs/lamina/commit"
	"github.com/laminafs/lamina/mount"
	"github.com/laminafs/lamina/overlay"
	"github.com/laminafs/lamina/store"
	"github.com/laminafs/lamina/view"
)

func importCommand() *cli.Command {
	return &cli.Command{
		Name: "import", Usage: "make an image of one layer from a tar", ArgsUsage: "FILE|- IMAGE",
		Description: `The tar may be compressed by gzip, zstd, xz or bzip2. It becomes the layer as it is.
-c takes the instructions that 'lamina commit -c' does. With SOURCE_DATE_EPOCH in the
environment the same tar gives the same digest.`,
		Flags: append(newImageFlags(),
			&cli.StringFlag{Name: "platform", Usage: "`OS/ARCH[/VARIANT]` that it is for, this machine's if not said"},
			jsonFlag(),
		),
		Before: takes(2, 2, "a tar file, or - for standard input, and a name for the image"),
		Action: runImport,
	}
}

func runImport(c *cli.Context) (err error) {
	o := commit.ImportOptions{Name: c.Args().Get(1), Platform: platforms.DefaultSpec()}
	if o.Format, o.Edit, _, err = newImage(c); err != nil {
		return err
	}
	if s := c.String("platform"); s != "" {
		if o.Platform, err = platforms.Parse(s); err != nil {
			return usagef(c, "--platform: %w", err)
		}
	}
	in := os.Stdin
	if path := c.Args().First(); path != "-" {
		if in, err = os.Open(path); err != nil {
			return fmt.Errorf("import: %w", err)
		}
		defer func() { _ = in.Close() }()
	} else if term.IsTerminal(int(in.Fd())) {
		return errors.New("import: there is nothing to read on a terminal: name a file, or redirect the input")
	}
	r, err := store.Decompressed(in)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	defer func() { _ = r.Close() }()
	o.From = r
	return withStore(c, func(s *store.Store) error {
		made, err := commit.Import(c.Context, s.Images, o)
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, committed{
				Digest: made.Digest.String(), Layer: made.Layer.Digest.String(), Size: made.Layer.Size,
				MediaType: made.Layer.MediaType, Added: made.Added,
			})
		}
		_, err = fmt.Fprintln(c.App.Writer, made.Digest)
		return err
	})
}

func exportCommand() *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "write the tree of an image or a writable mount as a tar", ArgsUsage: "IMAGE|DIR|NAME",
		Description: `Writes to standard output or a file, in the order of names. Of a writable mount, by
its name or directory, it is what is there now; it need not be mounted.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, which is replaced when the tar is whole", TakesFile: true},
		}, refFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, 1, "an image, or a writable mount"),
		Action:       runExport,
	}
}

func runExport(c *cli.Context) error {
	latest, err := sourceDate()
	if err != nil {
		return err
	}
	out := c.String("output")
	if out == "" && term.IsTerminal(int(os.Stdout.Fd())) {
		return errors.New("export: a tar is not written to a terminal: name a file with -o, or redirect the output")
	}
	write := func(upper overlay.Upper, lower *overlay.Tree) error {
		var sum commit.Summary
		to := func(w io.Writer) (err error) {
			sum, err = commit.Export(c.Context, w, upper, lower, latest)
			return err
		}
		if out != "" {
			err = store.ToFile(out, to)
		} else {
			err = store.Buffered(c.App.Writer, to)
		}
		for _, name := range sum.Sockets {
			fmt.Fprintf(os.Stderr, "left out %s: a tar cannot hold sockets\n", view.Escape(name))
		}
		return err
	}
	target := c.Args().First()
	if r, err := root(c); err == nil {
		if e, err := mount.Find(r, target); err == nil && e.Options.RW {
			return withWorkspace(c, target, func(_ *store.Store, e *mount.Entry, w *mount.Workspace) error {
				if err := w.Freeze(e); err != nil {
					return err
				}
				return errors.Join(write(w.Upper, w.Lower.Overlay()), w.Frozen())
			})
		}
	}
	return withTree(c, target, func(t *store.Tree) error { return write(overlay.Upper{}, t.Overlay()) })
}
