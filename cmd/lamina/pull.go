package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/store"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "make a full local copy of images",
		ArgsUsage: "IMAGE...",
		Description: `Fetches the blobs that are not here yet, each once, and goes on in the middle
of one where an earlier pull was interrupted. The copy is an OCI image layout
that other tools read: skopeo, crane and umoci know it as oci:ROOT/images.
Nothing has to be pulled to be mounted.`,
		Flags: append([]cli.Flag{
			platformFlag(),
			&cli.BoolFlag{Name: "all-platforms", Usage: "pull every platform of an image for several"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing but digests"},
		}, networkFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, -1, "the name of an image, such as nginx:1.27"),
		Action:       runPull,
	}
}

func runPull(c *cli.Context) error {
	if c.Bool("all-platforms") && c.IsSet("platform") {
		return usagef(c, "--platform and --all-platforms exclude each other")
	}
	return withStore(c, func(s *store.Store) error {
		for _, name := range c.Args().Slice() {
			bars := newBars(os.Stderr, c.Bool("quiet"))
			pulled, err := s.Pull(c.Context, store.PullOptions{
				Name: name, Platform: c.String("platform"), AllPlatforms: c.Bool("all-platforms"), Policy: image.PullAlways,
			}, bars.Layer)
			bars.Close()
			if err != nil {
				return err
			}
			for _, p := range pulled {
				if c.Bool("quiet") {
					_, _ = fmt.Fprintln(c.App.Writer, p.Image.Digest)
					continue
				}
				var size int64
				for _, l := range p.Image.Layers {
					size += l.Desc.Size
				}
				_, _ = fmt.Fprintf(c.App.Writer, "%s  %s  %s, %s fetched\n", p.Image.Name+"@"+p.Image.Digest.String(),
					printable(p.Image.Platform.OS+"/"+p.Image.Platform.Architecture), formatSize(size), formatSize(p.Fetched))
			}
		}
		return nil
	})
}
