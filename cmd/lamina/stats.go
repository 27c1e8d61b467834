package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/mount"
)

func statsCommand() *cli.Command {
	return &cli.Command{
		Name:         "stats",
		Usage:        "show what mounts have cost and served",
		ArgsUsage:    "[DIR|NAME]",
		Flags:        []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON: one object, or an array when no mount is named"}},
		BashComplete: completeMounts,
		Before:       takes(0, 1, "one mountpoint or mount's name at the most"),
		Action:       runStats,
	}
}

func runStats(c *cli.Context) error {
	r, err := root(c)
	if err != nil {
		return err
	}
	all, err := mount.Measure(r, c.Args().First())
	if c.Bool("json") {
		if all == nil {
			all = []mount.Stats{}
		}
		if c.NArg() == 1 && err == nil {
			return printJSON(c.App.Writer, all[0])
		} else if err == nil {
			return printJSON(c.App.Writer, all)
		}
		return err
	}
	// One that does not answer is told by the error.
	all = slices.DeleteFunc(all, func(s mount.Stats) bool { return s.Name == "" })
	for i, s := range all {
		if i > 0 {
			_, _ = fmt.Fprintln(c.App.Writer)
		}
		if err := printStats(c.App.Writer, s); err != nil {
			return err
		}
	}
	return err
}

func printStats(w io.Writer, s mount.Stats) error {
	rows := [][]string{
		{"image", s.Image},
		{"digest", s.Digest.String()},
		{"mounted at", s.Mountpoint},
		{"engine", string(s.Engine)},
	}
	if s.Reason != "" {
		rows = append(rows, []string{"not kernel", s.Reason})
	}
	if !s.Served {
		rows = append(rows, []string{"server", "none: every layer is complete and the kernel reads it by itself"})
		return printTable(w, rows)
	}
	var hits, misses int64
	complete := 0
	for _, l := range s.Layers {
		hits += l.Cache.Hits
		misses += l.Cache.Misses
		if l.Cache.Complete {
			complete++
		}
	}
	rows = append(rows,
		[]string{"fetched", fmt.Sprintf("%s of %s (%s), %d requests", formatSize(s.Fetch.Bytes),
			formatSize(s.ImageSize), percent(s.Fetch.Bytes, s.ImageSize), s.Fetch.Requests)},
		[]string{"layers", fmt.Sprintf("%d, %d complete", len(s.Layers), complete)},
		[]string{"reads", fmt.Sprintf("%s from the cache, %d of them waited", percent(hits, hits+misses), misses)},
		[]string{"requests", requests(s)},
		[]string{"server memory", formatSize(s.Resident)},
	)
	for i, r := range s.FS.Slowest[:min(5, len(s.FS.Slowest))] {
		name := ""
		if i == 0 {
			name = "slowest reads"
		}
		rows = append(rows, []string{name, fmt.Sprintf("%v  node %d, %s at %d", r.Took.Round(100*time.Microsecond),
			r.Node, formatSize(int64(r.Bytes)), r.Offset)})
	}
	return printTable(w, rows)
}

func percent(part, whole int64) string {
	if whole == 0 {
		return "0%"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}

// requests lists the kernel's requests by kind, the most frequent first.
func requests(s mount.Stats) string {
	type count struct {
		op string
		n  uint64
	}
	var all []count
	for op, n := range s.FS.Requests {
		if n > 0 {
			all = append(all, count{op, n})
		}
	}
	slices.SortFunc(all, func(a, b count) int {
		if a.n != b.n {
			return int(int64(b.n) - int64(a.n))
		}
		return strings.Compare(a.op, b.op)
	})
	var words []string
	for _, c := range all {
		words = append(words, fmt.Sprintf("%s %d", c.op, c.n))
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}
