package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/laminafs/lamina/store"
)

func loadCommand() *cli.Command {
	return &cli.Command{
		Name: "load", Usage: "take the images of an archive into the store", ArgsUsage: "[NAME]",
		Description: `Reads what docker save, podman save, skopeo and 'lamina save' write, from standard
input or a file, compressed by gzip, zstd, xz or bzip2 or not at all. NAME is for an
image that has none in the archive. To look into an archive it need not be loaded:
'lamina ls oci-archive:FILE /'.`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "read `FILE`", TakesFile: true},
			quietFlag(), jsonFlag(),
		},
		Before: takes(0, 1, "the name of an image that has none in the archive"),
		Action: runLoad,
	}
}

func runLoad(c *cli.Context) error {
	o := store.LoadOptions{Path: c.String("input"), From: os.Stdin, Name: c.Args().First()}
	if o.Path == "" && term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("load: there is nothing to read on a terminal: name a file with -i, or redirect the input")
	}
	return withStore(c, func(s *store.Store) error {
		bars := newBars(os.Stderr, c.Bool("quiet"))
		bars.done = "loaded"
		loaded, err := s.Load(c.Context, o, bars.Layer)
		bars.Close()
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, loaded)
		}
		for _, l := range loaded {
			if _, err := fmt.Fprintf(c.App.Writer, "%s@%s\n", l.Name, l.Digest); err != nil {
				return err
			}
		}
		return nil
	})
}
