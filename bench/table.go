package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// samples are the times of one measurement of one subject.
type samples []time.Duration

func (s samples) median() time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[len(sorted)/2]
}

// grid collects samples by row, what was measured, and column, of what.
type grid struct {
	rows, columns []string
	cells         map[[2]string]samples
}

func (g *grid) add(row, column string, d time.Duration) {
	if g.cells == nil {
		g.cells = map[[2]string]samples{}
	}
	if !slices.Contains(g.rows, row) {
		g.rows = append(g.rows, row)
	}
	if !slices.Contains(g.columns, column) {
		g.columns = append(g.columns, column)
	}
	g.cells[[2]string{row, column}] = append(g.cells[[2]string{row, column}], d)
}

// markdown prints medians in milliseconds, each with its ratio to the base
// column's.
func (g *grid) markdown(base string) string {
	rows := [][]string{append([]string{"ms"}, g.columns...)}
	for _, r := range g.rows {
		cells := []string{r}
		of := g.cells[[2]string{r, base}].median()
		for _, c := range g.columns {
			m := g.cells[[2]string{r, c}].median()
			switch {
			case m == 0:
				cells = append(cells, "")
			case c == base || of == 0:
				cells = append(cells, ms(m))
			default:
				cells = append(cells, fmt.Sprintf("%s (%.2f)", ms(m), float64(m)/float64(of)))
			}
		}
		rows = append(rows, cells)
	}
	return markdown(rows)
}

func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

// markdown formats a table; the first row is its head.
func markdown(rows [][]string) string {
	var b strings.Builder
	for i, r := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
		if i == 0 {
			fmt.Fprintf(&b, "|%s\n", strings.Repeat("---|", len(r)))
		}
	}
	return b.String()
}
