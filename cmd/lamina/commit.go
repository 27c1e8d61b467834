package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/commit"
	"github.com/laminafs/lamina/commit/config"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/encode"
	"github.com/laminafs/lamina/mount"
	"github.com/laminafs/lamina/overlay"
	"github.com/laminafs/lamina/store"
	"github.com/laminafs/lamina/view"
)

func commitCommand() *cli.Command {
	return &cli.Command{
		Name: "commit", Usage: "make an image of what changed in a writable mount", ArgsUsage: "DIR|NAME IMAGE",
		Description: `What changed becomes a layer, which is stored with the new image; the layers of
the image beneath are referred to. The mount goes on, and a later commit adds to the
new image what has changed since.

-c takes instructions of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK,
LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME, WORKDIR. With SOURCE_DATE_EPOCH in
the environment no time in the image is later, and the same work done again gives
the same digest.

Nothing stops programs from writing meanwhile. What they write during the commit
may or may not be in it; a file that gets shorter makes it fail.`,
		Flags: slices.Concat(newImageFlags(), []cli.Flag{
			&cli.BoolFlag{Name: "squash", Usage: "make one layer of everything"},
			quietFlag(), jsonFlag(),
		}, networkFlags()),
		BashComplete: completeMounts,
		Before:       takes(2, 2, "a writable mount and a name for the image"),
		Action:       runCommit,
	}
}

// newImageFlags are those of commands that make an image with a new layer.
func newImageFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "say `TEXT` in the history"},
		&cli.StringFlag{Name: "author", Aliases: []string{"a"}, Usage: "`NAME` of the author"},
		&cli.StringSliceFlag{Name: "change", Aliases: []string{"c"}, Usage: "carry out `INSTRUCTION` on the image's config"},
		&cli.StringFlag{Name: "format", Value: "gzip", Usage: "of the new layer: gzip, zstd, estargz, zstd:chunked"},
	}
}

// newImage returns what newImageFlags say, and the time that SOURCE_DATE_EPOCH does, zero
// if it does not.
func newImage(c *cli.Context) (f layer.Format, edit config.Edit, latest time.Time, err error) {
	if f, err = encode.ParseFormat(c.String("format")); err != nil {
		return f, edit, latest, usagef(c, "--format: %w", err)
	}
	edit = config.Edit{
		Instructions: c.StringSlice("change"), Author: c.String("author"), Comment: c.String("message"),
		CreatedBy: "lamina " + c.Command.Name, Created: time.Now().UTC(),
	}
	if latest, err = sourceDate(); !latest.IsZero() {
		edit.Created = latest
	}
	return f, edit, latest, err
}

// sourceDate returns what SOURCE_DATE_EPOCH says, zero if it is not set.
func sourceDate() (time.Time, error) {
	s := os.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return time.Time{}, nil
	}
	sec, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%q: not a number of seconds", s)
	}
	return time.Unix(sec, 0).UTC(), nil
}

func runCommit(c *cli.Context) error {
	o := commit.Options{Name: c.Args().Get(1), Squash: c.Bool("squash")}
	var err error
	if o.Format, o.Edit, o.Latest, err = newImage(c); err != nil {
		return err
	}
	return withWorkspace(c, c.Args().First(), func(s *store.Store, e *mount.Entry, w *mount.Workspace) error {
		if err := w.Freeze(e); err != nil {
			return err
		}
		o.Base, o.Lower, o.Upper, o.Since, o.Frozen = w.Image, w.Lower.Overlay(), w.Upper, w.Since(), w.Frozen
		r, err := commit.Commit(c.Context, s.Images, o)
		if err != nil {
			return err
		}
		if err := e.SetCommitted(mount.Committed{Image: r.Name, Digest: r.Digest}); err != nil {
			return fmt.Errorf("%s was made, but the next commit will not be over it: %w", r.Name, err)
		}
		for _, name := range r.Sockets {
			fmt.Fprintf(os.Stderr, "left out %s: a layer cannot hold sockets\n", view.Escape(name))
		}
		if c.Bool("json") {
			return printJSON(c.App.Writer, committed{
				Digest: r.Digest.String(), Layer: r.Layer.Digest.String(), Size: r.Layer.Size, MediaType: r.Layer.MediaType,
				Added: r.Added, Changed: r.Modified, Deleted: r.Deleted,
			})
		}
		_, err = fmt.Fprintln(c.App.Writer, r.Digest)
		return err
	})
}

// committed is what commit prints with --json.
type committed struct {
	Digest    string `json:"digest"`
	Layer     string `json:"layer"`
	Size      int64  `json:"size"`
	MediaType string `json:"mediaType"`
	Added     int    `json:"added"`
	Changed   int    `json:"changed"`
	Deleted   int    `json:"deleted"`
}

// withWorkspace calls f with the workspace that target means, opened.
func withWorkspace(c *cli.Context, target string, f func(*store.Store, *mount.Entry, *mount.Workspace) error) error {
	r, err := root(c)
	if err != nil {
		return err
	}
	e, err := mount.Find(r, target)
	if err != nil {
		return err
	}
	return withStore(c, func(s *store.Store) (err error) {
		w, err := e.OpenWorkspace(c.Context, s)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.Close()) }()
		return f(s, e, w)
	})
}

// change is a line of diff of a writable mount.
type change struct {
	Kind string `json:"kind"`
	Path string `json:"path"`
	Size int64  `json:"size"`

	above bool // it is there for what is beneath it alone
}

// withReason leaves out folders that are not changed and in which nothing is.
func withReason(list []change) []change {
	needed := map[string]bool{}
	for _, l := range list {
		for dir := path.Dir(l.Path); !l.above && !needed[dir]; dir = path.Dir(dir) {
			needed[dir] = true
		}
	}
	return slices.DeleteFunc(list, func(l change) bool { return l.above && !needed[l.Path] })
}

// diffWorkspace lists what changed in the writable mount that target means, since
// it was made or committed.
func diffWorkspace(c *cli.Context, target string) error {
	return withWorkspace(c, target, func(_ *store.Store, _ *mount.Entry, w *mount.Workspace) error {
		list := []change{}
		add := func(d *overlay.Change) error {
			if d.Path != "." {
				list = append(list, change{string(d.Kind), "/" + d.Path, d.Attr.Size, d.Unchanged})
			}
			return nil
		}
		var err error
		if since := w.Since(); since != nil {
			err = overlay.ChangesSince(c.Context, w.Upper, w.Lower.Overlay(), *since, add)
			slices.SortFunc(list, func(a, b change) int { return strings.Compare(a.Path, b.Path) })
		} else {
			err = overlay.Changes(c.Context, w.Upper, w.Lower.Overlay(), add)
		}
		if err != nil {
			return err
		}
		list = withReason(list)
		if c.Bool("json") {
			return printJSON(c.App.Writer, list)
		}
		for _, l := range list {
			if _, err := fmt.Fprintf(c.App.Writer, "%s %s\n", l.Kind, view.Escape(l.Path)); err != nil {
				return err
			}
		}
		return nil
	})
}
