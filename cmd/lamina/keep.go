package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/store"
)

func tagCommand() *cli.Command {
	return &cli.Command{
		Name:         "tag",
		Usage:        "give an image that is kept here another name",
		ArgsUsage:    "IMAGE NAME",
		BashComplete: completeImages,
		Before:       takes(2, 2, "an image and its new name"),
		Action: func(c *cli.Context) error {
			return withStore(c, func(s *store.Store) error {
				return s.Images.Tag(c.Args().Get(0), c.Args().Get(1))
			})
		},
	}
}

func rmiCommand() *cli.Command {
	return &cli.Command{
		Name:      "rmi",
		Usage:     "remove images, with what no other image uses of them",
		ArgsUsage: "IMAGE|DIGEST...",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "remove the name of an image that is mounted; the mount stays"},
		},
		BashComplete: completeImages,
		Before:       takes(1, -1, "the name or digest of an image"),
		Action: func(c *cli.Context) error {
			return withStore(c, func(s *store.Store) error {
				removed, err := removeAll(c, s)
				// What is gone is gone, whatever came after it.
				if err != nil && len(removed) == 0 {
					return err
				}
				return errors.Join(err, printRemoved(c, removed, "removed"))
			})
		},
	}
}

// removeAll removes the images that c names, up to the first that it cannot, and
// returns what was removed.
func removeAll(c *cli.Context, s *store.Store) (all []store.Removed, err error) {
	for _, name := range c.Args().Slice() {
		m, err := mounted(s.Root)
		if err != nil {
			return all, err
		}
		removed, err := s.Remove(c.Context, name, store.RemoveOptions{Mounted: m, Force: c.Bool("force")})
		all = append(all, removed...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

func pruneCommand() *cli.Command {
	return &cli.Command{
		Name:      "prune",
		Usage:     "throw away what nobody uses",
		ArgsUsage: " ",
		Description: `Removes layers, merged trees and blobs that no image and no mount uses, and of
pulled layers the uncompressed data that reading them has left, unless they are
mounted; with --all also every image that is not mounted. Mounts, pulls and
readers may go on meanwhile: what they use stays.`,
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "remove images that are not mounted, too"},
			&cli.StringSliceFlag{Name: "filter", Usage: "`until=TIME`: only what is older, as 24h or 2026-01-31[T12:00:00]"},
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "only print what would be removed"},
		},
		Before: takes(0, 0, "no arguments ('lamina rmi' removes one image)"),
		Action: runPrune,
	}
}

func runPrune(c *cli.Context) error {
	o := store.PruneOptions{All: c.Bool("all"), DryRun: c.Bool("dry-run")}
	for _, f := range c.StringSlice("filter") {
		value, ok := strings.CutPrefix(f, "until=")
		if !ok {
			return usagef(c, "--filter %q: only until=TIME is known", f)
		}
		var err error
		if o.Until, err = parseUntil(value, time.Now()); err != nil {
			return usagef(c, "--filter: %w", err)
		}
	}
	r, err := root(c)
	if err != nil {
		return err
	}
	if o.Mounted, err = mounted(r); err != nil {
		return err
	}
	return withStore(c, func(s *store.Store) error {
		removed, err := s.Prune(c.Context, o)
		verb := "removed"
		if o.DryRun {
			verb = "would remove"
		}
		if perr := printRemoved(c, removed, verb); err == nil {
			err = perr
		}
		return err
	})
}

// parseUntil reads a time as docker's filters do: a duration before now, a date,
// a time, or seconds since 1970.
func parseUntil(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	var seconds int64
	if n, err := fmt.Sscanf(s+"\n", "%d\n", &seconds); err == nil && n == 1 {
		return time.Unix(seconds, 0), nil
	}
	return time.Time{}, fmt.Errorf("until=%q: write a duration such as 24h, or a date such as 2026-01-31", s)
}

func printRemoved(c *cli.Context, removed []store.Removed, verb string) error {
	if c.Bool("json") {
		if removed == nil {
			removed = []store.Removed{}
		}
		return printJSON(c.App.Writer, removed)
	}
	var freed int64
	for _, r := range removed {
		freed += r.Freed
		line := printable(fmt.Sprintf("%s %s %s", verb, r.Kind, r.Name))
		if r.Kind != "image" {
			line += "  " + formatSize(r.Freed)
		}
		if _, err := fmt.Fprintln(c.App.Writer, line); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.App.Writer, "%s in all\n", formatSize(freed))
	return err
}

func dfCommand() *cli.Command {
	return &cli.Command{
		Name:      "df",
		Usage:     "show what images take on the disk, and what sharing saves",
		ArgsUsage: " ",
		Flags:     []cli.Flag{jsonFlag()},
		Before:    takes(0, 0, "no arguments"),
		Action: func(c *cli.Context) error {
			r, err := root(c)
			if err != nil {
				return err
			}
			m, err := mounted(r)
			if err != nil {
				return err
			}
			if m.Images, err = mountedImages(r); err != nil {
				return err
			}
			return withStore(c, func(s *store.Store) error {
				u, err := s.Usage(c.Context, m)
				if err != nil {
					return err
				}
				return printUsage(c, u)
			})
		},
	}
}

func printUsage(c *cli.Context, u store.Usage) error {
	if c.Bool("json") {
		return printJSON(c.App.Writer, u)
	}
	rows := [][]string{{"NAME", "SIZE", "FETCHED", "ON DISK", "SHARED", "UNIQUE", "MOUNTED"}}
	for _, im := range u.Images {
		mounted := ""
		if im.Mounted {
			mounted = "yes"
		}
		rows = append(rows, []string{
			im.Name, formatSize(im.Size), formatSize(im.Here), formatSize(im.Disk),
			formatSize(im.Shared), formatSize(im.Unique), mounted,
		})
	}
	if err := printTable(c.App.Writer, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.App.Writer, "\non disk %s; sharing saves %s; nobody uses %s ('lamina prune' frees it)\n",
		formatSize(u.Disk), formatSize(u.Saved), formatSize(u.Unused))
	return err
}

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "verify every blob, index and cached chunk",
		ArgsUsage: " ",
		Flags: []cli.Flag{
			jsonFlag(),
			&cli.BoolFlag{Name: "repair", Usage: "throw away what is wrong, so that it is fetched again"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print problems only"},
		},
		Before: takes(0, 0, "no arguments"),
		Action: runCheck,
	}
}

func runCheck(c *cli.Context) error {
	return withStore(c, func(s *store.Store) error {
		// What was found, and dropped, is told of also if something could not be checked.
		problems, failed := s.Check(c.Context, c.Bool("repair"))
		if c.Bool("json") {
			if err := printJSON(c.App.Writer, problems); err != nil {
				return errors.Join(failed, err)
			}
		}
		left := 0
		for _, p := range problems {
			state := "'lamina check --repair' drops it"
			switch {
			case p.Repaired:
				state = "dropped"
			case p.Failed != "":
				state = p.Failed
			}
			if !p.Repaired {
				left++
			}
			if !c.Bool("json") {
				_, _ = fmt.Fprintf(c.App.Writer, "%s\n", oneLine(p.Object+": "+p.What+"; "+state))
			}
		}
		if left > 0 {
			failed = errors.Join(failed, fmt.Errorf("check: %d of %d problems are left", left, len(problems)))
		}
		if failed != nil {
			return failed
		}
		if len(problems) == 0 && !c.Bool("json") && !c.Bool("quiet") {
			_, _ = fmt.Fprintln(c.App.Writer, "everything is as it should be")
		}
		return nil
	})
}
