package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/store"
)

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name:      "images",
		Usage:     "list the images that are kept here, whole or in part",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only digests"},
			&cli.BoolFlag{Name: "digests", Usage: "print digests in full"},
		},
		Before: takes(0, 0, "no arguments"),
		Action: func(c *cli.Context) error {
			return withStore(c, func(s *store.Store) error {
				all, err := s.List(c.Context)
				if err != nil {
					return err
				}
				return printImages(c, all)
			})
		},
	}
}

func printImages(c *cli.Context, all []store.Image) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, all)
	}
	rows := [][]string{{"NAME", "PLATFORM", "DIGEST", "CREATED", "SIZE", "HERE"}}
	for _, im := range all {
		if c.Bool("quiet") {
			if _, err := fmt.Fprintln(c.App.Writer, im.Digest); err != nil {
				return err
			}
			continue
		}
		id := shortDigest(im.Digest.String())
		if c.Bool("digests") {
			id = im.Digest.String()
		}
		platform := ""
		if im.Platform != nil {
			platform = platforms.Format(*im.Platform)
		}
		here := formatSize(im.Here)
		if im.Here == im.Size {
			here = "all"
		}
		if im.Damaged != "" {
			here = "damaged: 'lamina check' tells more"
		}
		rows = append(rows, []string{im.Name, platform, id, ago(im.Created), formatSize(im.Size), here})
	}
	if c.Bool("quiet") {
		return nil
	}
	return printTable(c.App.Writer, rows)
}

// ago says how long ago something was made, as docker does.
func ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return "unknown"
	}
	return units.HumanDuration(time.Since(*t)) + " ago"
}

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print the manifest and config of images",
		ArgsUsage: "IMAGE...",
		Description: `Prints a JSON array, with docker's names for what docker prints.
--format takes a Go template, as docker's: '{{.Config.Env}}', '{{json .RootFS}}'.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "print what the Go `TEMPLATE` makes of each image"},
			&cli.BoolFlag{Name: "raw", Usage: "print the bytes of the manifest"},
			&cli.BoolFlag{Name: "config", Usage: "print the bytes of the config"},
		}, refFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, -1, "the name of an image"),
		Action:       runInspect,
	}
}

// inspected is an image with docker's names for its parts.
type inspected struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      *time.Time
	Author       string
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string //nolint:revive // docker's spelling
	Size         int64
	Config       ocispec.ImageConfig
	RootFS       rootFS
	History      []ocispec.History
	Digest       digest.Digest
	Manifest     ocispec.Manifest
}

type rootFS struct {
	Type   string
	Layers []digest.Digest
}

func inspectionOf(img *image.Image) inspected {
	in := inspected{
		ID: img.Manifest.Config.Digest.String(), Created: img.Config.Created, Author: img.Config.Author,
		Architecture: img.Platform.Architecture, Variant: img.Platform.Variant, Os: img.Platform.OS,
		Config: img.Config.Config, RootFS: rootFS{img.Config.RootFS.Type, img.Config.RootFS.DiffIDs},
		History: img.Config.History, Digest: img.Digest, Manifest: img.Manifest,
	}
	for _, l := range img.Layers {
		in.Size += l.Desc.Size
	}
	if n, err := image.ParseName(img.Name); err == nil && n.Transport == image.Registry {
		if !strings.Contains(img.Name, "@") {
			in.RepoTags = []string{img.Name}
		}
		if img.Origin != nil {
			in.RepoDigests = []string{img.Origin.Name() + "@" + img.Digest.String()}
		}
	}
	return in
}

func runInspect(c *cli.Context) error {
	var tmpl *template.Template
	if f := c.String("format"); f != "" {
		var err error
		if tmpl, err = template.New("format").Funcs(templateFuncs()).Parse(f); err != nil {
			return usagef(c, "--format: %w", err)
		}
	}
	ref, err := refOf(c, "")
	if err != nil {
		return err
	}
	return withStore(c, func(s *store.Store) error {
		all := []inspected{}
		for _, ref.Name = range c.Args().Slice() {
			img, err := s.Image(c.Context, ref)
			if err != nil {
				return err
			}
			switch {
			case c.Bool("raw"):
				_, err = c.App.Writer.Write(img.RawManifest)
			case c.Bool("config"):
				_, err = c.App.Writer.Write(img.RawConfig)
			case tmpl != nil:
				if err = tmpl.Execute(c.App.Writer, inspectionOf(img)); err == nil {
					_, err = io.WriteString(c.App.Writer, "\n")
				}
			default:
				all = append(all, inspectionOf(img))
			}
			if err != nil {
				return fmt.Errorf("inspect %s: %w", ref.Name, err)
			}
		}
		if c.Bool("raw") || c.Bool("config") || tmpl != nil {
			return nil
		}
		return printJSON(c.App.Writer, all)
	})
}

// templateFuncs are those that docker's templates have.
func templateFuncs() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) (string, error) {
			var b strings.Builder
			err := encodeJSON(&b, "", v)
			return strings.TrimSuffix(b.String(), "\n"), err
		},
		"split": strings.Split, "join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper,
		"pad": func(s string, before, after int) string {
			return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
		},
		"truncate": func(s string, n int) string { return s[:min(len(s), n)] },
	}
}

func historyCommand() *cli.Command {
	return &cli.Command{
		Name:      "history",
		Usage:     "show how an image was made",
		ArgsUsage: "IMAGE",
		Flags: append([]cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "no-trunc", Usage: "print commands in full"},
		}, refFlags()...),
		BashComplete: completeImages,
		Before:       takes(1, 1, "one image"),
		Action:       runHistory,
	}
}

// historyLine is one line of an image's history, the newest first.
type historyLine struct {
	Layer     digest.Digest `json:"layer,omitempty"` // empty: it changed no file
	Created   *time.Time    `json:"created,omitempty"`
	CreatedBy string        `json:"createdBy"`
	Size      int64         `json:"size"` // compressed
	Comment   string        `json:"comment,omitempty"`
}

func runHistory(c *cli.Context) error {
	ref, err := refOf(c, c.Args().First())
	if err != nil {
		return err
	}
	return withStore(c, func(s *store.Store) error {
		img, err := s.Image(c.Context, ref)
		if err != nil {
			return err
		}
		lines := historyOf(img)
		if c.Bool("json") {
			return printJSON(c.App.Writer, lines)
		}
		rows := [][]string{{"LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"}}
		for _, l := range lines {
			by := oneLine(l.CreatedBy)
			if !c.Bool("no-trunc") {
				by = shorten(by, 60)
			}
			id := "-"
			if l.Layer != "" {
				id = shortDigest(l.Layer.String())
			}
			rows = append(rows, []string{id, ago(l.Created), by, formatSize(l.Size), oneLine(l.Comment)})
		}
		return printTable(c.App.Writer, rows)
	})
}

// historyOf lists the history of img, the newest line first. Layers that it does
// not speak of come with no command.
func historyOf(img *image.Image) []historyLine {
	lines := []historyLine{}
	next := 0
	for _, h := range img.Config.History {
		l := historyLine{Created: h.Created, CreatedBy: h.CreatedBy, Comment: h.Comment}
		if !h.EmptyLayer && next < len(img.Layers) {
			l.Layer, l.Size = img.Layers[next].Desc.Digest, img.Layers[next].Desc.Size
			next++
		}
		lines = append(lines, l)
	}
	for ; next < len(img.Layers); next++ {
		lines = append(lines, historyLine{Layer: img.Layers[next].Desc.Digest, Size: img.Layers[next].Desc.Size})
	}
	slices.Reverse(lines)
	return lines
}
