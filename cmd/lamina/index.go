package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/store"
)

func indexCommand() *cli.Command {
	return &cli.Command{
		Name: "index", Usage: "index an unmodified image, for other machines to mount it lazily", ArgsUsage: "IMAGE",
		Description: `Reads gzip and zstd layers once. With --push their indexes are stored in the
image's repository, as an artifact that refers to the image, which stays as it is;
'lamina mount' finds it there. eStargz and zstd:chunked layers need none.`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "push", Usage: "store the indexes in the registry"},
			jsonFlag(), quietFlag(),
		}, refFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, 1, "one image"),
		Action: func(c *cli.Context) error {
			return withTreeOf(c, c.Args().First(), store.IndexNever, func(s *store.Store, t *store.Tree) error {
				made, err := s.PackIndexes(c.Context, t, c.Bool("push"))
				if err != nil {
					return err
				}
				return printIndexes(c, made)
			})
		},
	}
}

func printIndexes(c *cli.Context, made store.Packed) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, made)
	}
	rows := [][]string{{"LAYER", "SIZE", "INDEX", "SHARE"}}
	var size, packed int64
	for _, l := range made.Layers {
		rows = append(rows, []string{shortDigest(l.Digest.String()), formatSize(l.Size), formatSize(l.Packed), percent(l.Packed, l.Size)})
		size += l.Size
		packed += l.Packed
	}
	rows = append(rows, []string{"all", formatSize(size), formatSize(packed), percent(packed, size)})
	if err := printTable(c.App.Writer, rows); err != nil {
		return err
	}
	if made.Artifact != "" {
		_, err := fmt.Fprintf(c.App.Writer, "published as %s\n", made.Artifact)
		return err
	}
	return nil
}
