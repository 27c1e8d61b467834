package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/view"
)

// printJSON writes v as indented JSON.
func printJSON(w io.Writer, v any) error { return encodeJSON(w, "  ", v) }

// encodeJSON writes v as JSON and a line break. It is for terminals and files: what
// only a web page takes for markup stays, as the && in an image's commands.
func encodeJSON(w io.Writer, indent string, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	return e.Encode(v)
}

// printable is text of an image or a registry as a terminal shows it and does
// nothing else with it. Backslashes stay: this is for people, and the commands of a
// history are full of them.
func printable(s string) string { return strings.ReplaceAll(view.Escape(s), `\\`, `\`) }

// oneLine is printable text that has no line breaks and no indentation.
func oneLine(s string) string { return printable(strings.Join(strings.Fields(s), " ")) }

// shorten cuts s to n characters, the last of them an ellipsis if any were more.
func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// printLines writes what line makes of each of all, or all as JSON for --json. An
// error among them is the last; what came before it is written, but not as JSON.
func printLines[T any](c *cli.Context, all iter.Seq2[T, error], line func(T) string) error {
	w := bufio.NewWriter(c.App.Writer)
	list := []T{}
	for v, err := range all {
		if err != nil {
			return errors.Join(w.Flush(), err)
		}
		if c.Bool("json") {
			list = append(list, v)
			continue
		}
		if _, err := w.WriteString(line(v)); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(c.App.Writer, list)
	}
	return w.Flush()
}

// printTable writes rows in columns, the first row being the heading. What a
// terminal would not print is escaped.
func printTable(w io.Writer, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i := range r {
			r[i] = printable(r[i])
		}
		if _, err := fmt.Fprintln(t, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}
