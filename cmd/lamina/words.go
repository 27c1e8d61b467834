package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

// intersperse moves a command's flags before its other arguments, so that
// `mount IMAGE DIR --engine fuse` works as docker's users expect: the
// command-line library stops at the first word that is not a flag. Words after
// `--` stay where they are.
func intersperse(app *cli.App, args []string) []string {
	at, command := findCommand(app, args)
	if command == nil || args[len(args)-1] == completionWord {
		return args
	}
	var flags, words []string
	rest := args[at+1:]
	for i := 0; i < len(rest); i++ {
		w := rest[i]
		if w == "--" {
			words = append(words, rest[i:]...)
			break
		}
		if len(w) < 2 || w[0] != '-' {
			words = append(words, w)
			continue
		}
		flags = append(flags, w)
		if takesValue(command.Flags, w) && i+1 < len(rest) {
			i++
			flags = append(flags, rest[i])
		}
	}
	out := append([]string{}, args[:at+1]...)
	return append(append(out, flags...), words...)
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

// takesValue reports whether the word w is a flag whose value is the next word.
func takesValue(flags []cli.Flag, w string) bool {
	name := strings.TrimLeft(w, "-")
	if strings.Contains(name, "=") {
		return false
	}
	for _, f := range flags {
		for _, n := range f.Names() {
			if n == name {
				_, isBool := f.(*cli.BoolFlag)
				return !isBool
			}
		}
	}
	return false
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

// oneLine keeps an error to the one line that a person reads.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
