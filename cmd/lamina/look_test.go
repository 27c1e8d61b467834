package main

import (
	"archive/tar"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/view"
)

// small is an image of two layers, with names and a history that would speak to a
// terminal.
func small(t *testing.T) string {
	t.Helper()
	return layout(t, "RUN \x1b[31m a\\b\n\tc",
		[]tar.Header{
			{Name: "one/", Typeflag: tar.TypeDir},
			{Name: "one/empty", Typeflag: tar.TypeReg},
			{Name: "both/", Typeflag: tar.TypeDir},
			{Name: "odd\x1b[2J", Typeflag: tar.TypeReg, Linkname: "four"},
		},
		[]tar.Header{{Name: "both/", Typeflag: tar.TypeDir}, {Name: "both/f", Typeflag: tar.TypeReg, Linkname: "data"}})
}

func TestLs(t *testing.T) {
	newRoot(t)
	img := small(t)
	if got := mustLamina(t, "ls", img, "/one", "/both/f", "/both"); got != "/both/f\n\n/both:\nf\n\n/one:\nempty\n" {
		t.Errorf("%q", got)
	}
	// Short flags come in one word, before or behind the image.
	if got := mustLamina(t, "ls", img, "-lR", "/one"); !strings.HasPrefix(got, "/one:\n-rw") {
		t.Errorf("%q", got)
	}
	if got := mustLamina(t, "ls", "-Rql", img, "/one"); !strings.HasPrefix(got, "/one:\n-rw") {
		t.Errorf("%q", got)
	}
}

func TestFind(t *testing.T) {
	newRoot(t)
	img := small(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--max-size", "0"}, "/one/empty\n"},
		{[]string{"--min-size", "0", "/both"}, "/both/f\n"},
		{[]string{"--name", "[!a-n]*", "--type", "f"}, `/odd\033[2J` + "\n"},
		{[]string{"--name", "odd*", "-0"}, "/odd\x1b[2J\x00"},
		{[]string{"--layer", "1", "--type", "f"}, "/both/f\n"},
	} {
		if got := mustLamina(t, append([]string{"find", img}, c.args...)...); got != c.want {
			t.Errorf("find %q: %q, want %q", c.args, got, c.want)
		}
	}
	for _, n := range []string{"2", "-1"} {
		if _, err := lamina(t, "find", img, "--layer", n); !errors.Is(err, view.ErrNoLayer) {
			t.Errorf("layer %s: %v", n, err)
		}
	}
	var usage *usageError
	if _, err := lamina(t, "find", "oci:/nowhere:x", "--name", "["); !errors.As(err, &usage) {
		t.Errorf("a bad pattern: %v", err)
	}
}

// TestWhich: a layer is named once, and what the image's author wrote does nothing
// to a terminal.
func TestWhich(t *testing.T) {
	newRoot(t)
	img := small(t)
	if got := mustLamina(t, "which", img, "/one"); strings.Contains(got, "also in") || !strings.Contains(got, `layer 0`) {
		t.Error(got)
	}
	got := mustLamina(t, "which", img, "/both")
	if strings.Count(got, "also in") != 1 || strings.Count(got, "layer 0") != 1 || strings.Count(got, "layer 1") != 1 {
		t.Error(got)
	}
	if !strings.Contains(got, `RUN \033[31m a\b c`) || strings.Contains(got, "\x1b") {
		t.Errorf("%q", got)
	}
	if got := mustLamina(t, "which", img, "/odd\x1b[2J"); !strings.HasPrefix(got, `/odd\033[2J`) {
		t.Errorf("%q", got)
	}
	if _, err := lamina(t, "cat", img, "/none\x1b"); err == nil || strings.Contains(oneLine(err.Error()), "\x1b") {
		t.Errorf("%v", err)
	}
	for _, command := range []string{"layers", "history"} {
		if got := mustLamina(t, command, img); strings.Contains(got, "\x1b") || !strings.Contains(got, `\033`) {
			t.Errorf("%s: %q", command, got)
		}
	}
}

func TestDiffTimes(t *testing.T) {
	newRoot(t)
	a := layout(t, "", []tar.Header{{Name: "d/", Typeflag: tar.TypeDir}})
	b := layout(t, "", []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, ModTime: time.Unix(7, 0)}})
	if got := mustLamina(t, "diff", a, b); got != "" {
		t.Error(got)
	}
	if got := mustLamina(t, "diff", a, b, "--dir-times"); got != "C /d\n" {
		t.Error(got)
	}
}
