package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/image"
)

func TestParseUntil(t *testing.T) {
	now := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"24h": now.Add(-24 * time.Hour), "90m": now.Add(-90 * time.Minute),
		"2026-01-31": time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC), "2026-01-31T12:30": time.Date(2026, 1, 31, 12, 30, 0, 0, time.UTC),
		"2026-01-31T12:00:00Z": time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC), "1700000000": time.Unix(1700000000, 0),
	} {
		if got, err := parseUntil(s, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "yesterday", "-1h", "2026-13-01", "12 apples"} {
		if got, err := parseUntil(s, now); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

// TestHistory: lines that changed no file have no layer, and layers that the
// history does not speak of come all the same.
func TestHistory(t *testing.T) {
	img := &image.Image{Layers: []image.Layer{
		{Desc: ocispec.Descriptor{Digest: "sha256:a", Size: 1}},
		{Desc: ocispec.Descriptor{Digest: "sha256:b", Size: 2}},
		{Desc: ocispec.Descriptor{Digest: "sha256:c", Size: 3}},
	}}
	img.Config.History = []ocispec.History{
		{CreatedBy: "ADD"}, {CreatedBy: "ENV", EmptyLayer: true}, {CreatedBy: "RUN"}, {CreatedBy: "CMD", EmptyLayer: true},
	}
	var got []string
	for _, l := range historyOf(img) {
		got = append(got, l.CreatedBy+"="+string(l.Layer))
	}
	if s := strings.Join(got, " "); s != "=sha256:c CMD= RUN=sha256:b ENV= ADD=sha256:a" {
		t.Error(s)
	}
}

// TestCompletion: shells get commands, flags and scripts that name them.
func TestCompletion(t *testing.T) {
	t.Setenv("LAMINA_ROOT", t.TempDir())
	said := func(words ...string) string {
		t.Helper()
		var out bytes.Buffer
		app := newApp()
		app.Writer = &out
		before := os.Args // which the library looks at, too
		os.Args = append([]string{"lamina"}, words...)
		defer func() { os.Args = before }()
		if err := app.RunContext(t.Context(), intersperse(app, append([]string{"lamina"}, words...))); err != nil {
			t.Errorf("%v: %v", words, err)
		}
		return out.String()
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := said("completion", shell); !strings.Contains(got, "generate-bash-completion") {
			t.Errorf("%s: %s", shell, got)
		}
	}
	if got := said(completionWord); !strings.Contains(got, "mount") || !strings.Contains(got, "prune") {
		t.Errorf("commands: %s", got)
	}
	if got := said("mount", "--eng", completionWord); !strings.Contains(got, "--engine") {
		t.Errorf("flags: %s", got)
	}
	if got := said("rmi", completionWord); got != "" {
		t.Errorf("images of an empty store: %s", got)
	}
	if got := said("man"); !strings.Contains(got, ".TH lamina 8") || !strings.Contains(got, "all\\-platforms") && !strings.Contains(got, "all-platforms") {
		t.Errorf("man: %.200s", got)
	}
}

func TestTemplateFuncs(t *testing.T) {
	f := templateFuncs()
	if got, err := f["json"].(func(any) (string, error))(map[string]int{"a": 1}); err != nil || got != `{"a":1}` {
		t.Errorf("%s, %v", got, err)
	}
	if got := f["truncate"].(func(string, int) string)("lamina", 3); got != "lam" {
		t.Error(got)
	}
}

// TestPlainJSON: what only a web page takes for markup is printed as it is.
func TestPlainJSON(t *testing.T) {
	newRoot(t)
	const by = "RUN a && b <c >d"
	img := layout(t, by, []tar.Header{{Name: "f", Typeflag: tar.TypeReg}})
	for _, line := range [][]string{{"inspect"}, {"inspect", "--format", "{{json .History}}"}, {"history", "--json"}} {
		if got := mustLamina(t, append(line, img)...); !strings.Contains(got, `"`+by+`"`) || strings.HasSuffix(got, "\n\n") {
			t.Errorf("%s: %s", line, got)
		}
	}
}

// TestEmptyJSON: lists are arrays, with nothing in them too.
func TestEmptyJSON(t *testing.T) {
	newRoot(t)
	for _, line := range []string{"mounts", "images", "check", "prune", "stats"} {
		if got := mustLamina(t, line, "--json"); got != "[]\n" {
			t.Errorf("%s: %s", line, got)
		}
	}
	if got := mustLamina(t, "history", "--json", layout(t, "")); got != "[]\n" {
		t.Errorf("history: %s", got)
	}
}

// TestRmiTellsAll: what was removed before an error is said all the same.
func TestRmiTellsAll(t *testing.T) {
	const name = "docker.io/library/kept:1"
	writeLayout(t, filepath.Join(newRoot(t), "images"), name, "", [][]tar.Header{{{Name: "f", Typeflag: tar.TypeReg}}})
	out, err := lamina(t, "rmi", name, "not/there:1")
	if err == nil || !strings.Contains(out, "removed image "+name) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := lamina(t, "rmi", "not/there:1"); err == nil || out != "" {
		t.Errorf("%v\n%s", err, out)
	}
}
