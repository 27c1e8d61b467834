package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/atomicfile"
	"github.com/laminafs/lamina/store"
)

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "send an image to a registry, a layout or an archive",
		ArgsUsage: "IMAGE [NAME]",
		Description: `Sends the blobs that the registry lacks, and then the manifest, as NAME or else as
IMAGE. Layers that are not here are not fetched for it: they are mounted from the
repository that they came from where that is in the same registry, and streamed from
there otherwise. Nothing is encoded anew, so digests stay. NAME may also be
oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME].`,
		Flags: append([]cli.Flag{
			platformFlag(),
			&cli.BoolFlag{Name: "all-platforms", Usage: "push an image for several platforms as it is, with all of them"},
			&cli.BoolFlag{Name: "with-index", Usage: "publish the indexes of gzip and zstd layers beside it, as 'lamina index --push' does"},
			&cli.StringFlag{Name: "digestfile", Usage: "write the digest of what was pushed to `FILE`", TakesFile: true},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print nothing but the digest"},
			jsonFlag(),
		}, networkFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, 2, "the name of an image, and the name to push it as if that is another"),
		Action:       runPush,
	}
}

func runPush(c *cli.Context) error {
	switch {
	case c.Bool("all-platforms") && c.IsSet("platform"):
		return usagef(c, "--platform and --all-platforms exclude each other")
	case c.Bool("all-platforms") && c.Bool("with-index"):
		return usagef(c, "--with-index is for one platform: push each with --platform, or run 'lamina index --push'")
	}
	return withStore(c, func(s *store.Store) error {
		bars := newBars(os.Stderr, c.Bool("quiet"))
		bars.done = "pushed"
		pushed, err := s.Push(c.Context, store.PushOptions{
			Name: c.Args().Get(0), To: c.Args().Get(1), Platform: c.String("platform"),
			AllPlatforms: c.Bool("all-platforms"), WithIndex: c.Bool("with-index"),
		}, bars.Layer)
		bars.Close()
		if err != nil {
			return err
		}
		if path := c.String("digestfile"); path != "" {
			if err := atomicfile.WriteBytes(path, path+".", []byte(pushed.Digest.String()+"\n")); err != nil {
				return err
			}
		}
		switch {
		case c.Bool("json"):
			return printJSON(c.App.Writer, pushed)
		case c.Bool("quiet"):
			_, err = fmt.Fprintln(c.App.Writer, pushed.Digest)
		default:
			_, err = fmt.Fprintf(c.App.Writer, "%s@%s  %s sent, %s mounted, %s there already (%s)\n", pushed.Image, pushed.Digest,
				count(pushed.Sent, "blob"), count(pushed.Mounted, "blob"), count(pushed.Present, "blob"), formatSize(pushed.Bytes))
		}
		if err == nil && pushed.Index != "" && !c.Bool("quiet") {
			_, err = fmt.Fprintf(c.App.Writer, "index published as %s\n", pushed.Index)
		}
		return err
	})
}

// count writes a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
