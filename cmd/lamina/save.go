package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/laminafs/lamina/store"
)

func saveCommand() *cli.Command {
	return &cli.Command{
		Name: "save", Usage: "write images to an archive", ArgsUsage: "IMAGE...",
		Description: `Writes a tar to standard output or a file, with each blob in it once. docker-archive is
what docker load and podman load read, and an OCI image layout besides; oci-archive is
the layout alone. Blobs are as they are in the registry, so digests stay.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, which is replaced when the archive is whole", TakesFile: true},
			&cli.StringFlag{Name: "format", Value: "docker-archive", Usage: "docker-archive or oci-archive"},
			platformFlag(),
			&cli.BoolFlag{Name: "all-platforms", Usage: "save images for several platforms as they are, with all of them"},
			quietFlag(),
		}, networkFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, -1, "the name of an image, such as nginx:1.27"),
		Action:       runSave,
	}
}

func runSave(c *cli.Context) error {
	o := store.SaveOptions{Names: c.Args().Slice(), Platform: c.String("platform"), AllPlatforms: c.Bool("all-platforms")}
	switch format := c.String("format"); {
	case format == "docker-archive" && o.AllPlatforms:
		return usagef(c, "a docker-archive holds images for one platform: write --format oci-archive with --all-platforms")
	case format == "docker-archive":
		o.Docker = true
	case format != "oci-archive":
		return usagef(c, "--format %q: write docker-archive or oci-archive", format)
	case o.AllPlatforms && c.IsSet("platform"):
		return usagef(c, "--platform and --all-platforms exclude each other")
	}
	out := c.String("output")
	if out == "" && term.IsTerminal(int(os.Stdout.Fd())) {
		return errors.New("save: an archive is not written to a terminal: name a file with -o, or redirect the output")
	}
	return withStore(c, func(s *store.Store) error {
		bars := newBars(os.Stderr, c.Bool("quiet"))
		bars.done = "saved"
		defer bars.Close()
		if out != "" {
			if err := store.ToFile(out, func(w io.Writer) error { return s.Save(c.Context, w, o, bars.Layer) }); err != nil {
				return fmt.Errorf("save to %s: %w", out, err)
			}
			return nil
		}
		return store.Buffered(c.App.Writer, func(w io.Writer) error { return s.Save(c.Context, w, o, bars.Layer) })
	})
}
