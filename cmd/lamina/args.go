package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// takes is a Before that lets a command have from least to most arguments, which
// what names; a negative most is no bound.
func takes(least, most int, what string) cli.BeforeFunc {
	return func(c *cli.Context) error {
		if n := c.NArg(); n < least || most >= 0 && n > most {
			return usagef(c, "%s takes %s (%d given)", c.Command.Name, what, n)
		}
		return nil
	}
}

// intersperse moves a command's flags before its arguments, so that `mount IMAGE
// DIR --engine fuse` works as docker's users expect: the command-line library stops
// at the first argument. What is behind `--` is an argument, whatever it looks like.
func intersperse(app *cli.App, args []string) []string {
	at, command := findCommand(app, args)
	if command == nil || args[len(args)-1] == completionWord {
		return args
	}
	var flags, rest []string
	for i := at + 1; i < len(args); i++ {
		w := args[i]
		if w == "--" {
			rest = append(rest, args[i+1:]...)
			break
		}
		if len(w) < 2 || w[0] != '-' {
			rest = append(rest, w)
			continue
		}
		flags = append(flags, splitShort(command.Flags, w)...)
		if takesValue(command.Flags, flags[len(flags)-1]) && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	out := append([]string{}, args[:at+1]...)
	out = append(append(out, flags...), "--")
	return append(out, rest...)
}

// findCommand returns the command that args name and its position.
func findCommand(app *cli.App, args []string) (int, *cli.Command) {
	for i := 1; i < len(args); i++ {
		if strings.HasPrefix(args[i], "-") {
			if takesValue(app.Flags, args[i]) {
				i++
			}
			continue
		}
		return i, app.Command(args[i])
	}
	return 0, nil
}

// takesValue reports whether w is a flag whose value is the next argument.
func takesValue(flags []cli.Flag, w string) bool {
	f := findFlag(flags, strings.TrimLeft(w, "-"))
	_, isBool := f.(*cli.BoolFlag)
	return f != nil && !isBool
}

// splitShort returns the flags that w is: several if it is short ones in one, as -lR.
// The library could do it, but fails when it then completes a flag that was begun.
func splitShort(flags []cli.Flag, w string) []string {
	name := strings.TrimPrefix(w, "-")
	if len(name) < 2 || strings.HasPrefix(name, "-") || findFlag(flags, name) != nil {
		return []string{w}
	}
	var split []string
	for _, r := range name {
		if findFlag(flags, string(r)) == nil {
			return []string{w}
		}
		split = append(split, "-"+string(r))
	}
	return split
}

// findFlag returns the flag called name, nil if there is none.
func findFlag(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

// parseSize reads a number of bytes with an optional unit: k, M, G, T (powers
// of 1024), optionally followed by B or iB.
func parseSize(s string) (int64, error) {
	t := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), "I")
	unit := int64(1)
	if n := len(t); n > 0 {
		if i := strings.IndexByte("KMGT", t[n-1]); i >= 0 {
			unit <<= 10 * (i + 1)
			t = t[:n-1]
		}
	}
	n, err := strconv.ParseFloat(t, 64)
	if err != nil || !(n >= 0) || n*float64(unit) >= 1<<62 {
		return 0, fmt.Errorf("size %q: write a number and a unit, as in 512M or 20G", s)
	}
	return int64(n * float64(unit)), nil
}

// formatSize writes n bytes for people, in powers of 1024 as parseSize reads.
func formatSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1000 && unit < 3 {
		f, unit = f/1024, unit+1
	}
	digits := 1
	if f >= 100 {
		digits = 0
	}
	return fmt.Sprintf("%.*f %ciB", digits, f, "KMGT"[unit])
}

// sizeFlag reads the size that the flag called name has, 0 if it is not given.
func sizeFlag(c *cli.Context, name string) (int64, error) {
	s := c.String(name)
	if s == "" {
		return 0, nil
	}
	n, err := parseSize(s)
	if err != nil {
		return 0, usagef(c, "--%s: %w", name, err)
	}
	return n, nil
}
