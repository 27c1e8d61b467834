package main

import (
	"archive/tar"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
)

func TestIntersperse(t *testing.T) {
	app := newApp()
	for _, tt := range []struct{ in, want []string }{
		{[]string{"lamina"}, []string{"lamina"}},
		{
			[]string{"lamina", "mount", "img", "dir", "--engine", "fuse"},
			[]string{"lamina", "mount", "--engine", "fuse", "--", "img", "dir"},
		},
		{
			[]string{"lamina", "--root", "/r", "mount", "img", "-f", "dir", "--engine=kernel"},
			[]string{"lamina", "--root", "/r", "mount", "-f", "--engine=kernel", "--", "img", "dir"},
		},
		{
			[]string{"lamina", "mount", "--", "-img", "dir"},
			[]string{"lamina", "mount", "--", "-img", "dir"},
		},
		{
			[]string{"lamina", "cat", "img", "--", "-file", "--", "-q"},
			[]string{"lamina", "cat", "--", "img", "-file", "--", "-q"},
		},
		{
			[]string{"lamina", "ls", "img", "-lR", "dir"},
			[]string{"lamina", "ls", "-l", "-R", "--", "img", "dir"},
		},
		{
			[]string{"lamina", "cp", "img", "dir", "-"},
			[]string{"lamina", "cp", "--", "img", "dir", "-"},
		},
		{ // -f takes a value in inspect, and none in mount
			[]string{"lamina", "inspect", "img", "-f", "{{.Id}}", "--raw"},
			[]string{"lamina", "inspect", "-f", "{{.Id}}", "--raw", "--", "img"},
		},
		{[]string{"lamina", "nonsense", "--x"}, []string{"lamina", "nonsense", "--x"}},
	} {
		if got := intersperse(app, tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("intersperse(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// TestSplitShort: of short flags in one the last one may take a value.
func TestSplitShort(t *testing.T) {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}}, &cli.BoolFlag{Name: "l"},
		&cli.StringFlag{Name: "format", Aliases: []string{"f"}}, &cli.BoolFlag{Name: "ql"},
	}
	for w, want := range map[string]struct {
		split string
		value bool
	}{
		"-f": {"-f", true}, "--format": {"--format", true}, "-format": {"-format", true}, "-qf": {"-q -f", true},
		"-lqf": {"-l -q -f", true}, "-lq": {"-l -q", false}, "-q": {"-q", false}, "-ql": {"-ql", false},
		"--lq": {"--lq", false}, "-xf": {"-xf", false}, "-f=x": {"-f=x", false}, "--lqf": {"--lqf", false},
	} {
		got := splitShort(flags, w)
		if strings.Join(got, " ") != want.split || takesValue(flags, got[len(got)-1]) != want.value {
			t.Errorf("%s: %q", w, got)
		}
	}
}

// TestArguments: what is too few or too many is a usage error of the command, before
// anything is done.
func TestArguments(t *testing.T) {
	newRoot(t)
	for _, line := range []string{
		"mount img", "mount img dir more", "umount", "umount --all dir", "mounts x", "stats a b", "ls", "cat img", "cp img path",
		"find", "find img path more", "diff", "diff a b c", "commit dir", "which img", "layers", "pull", "images x", "inspect", "history a b", "tag a",
		"rmi", "index", "df x", "prune x", "check x", "completion", "completion bash extra", "completion tcsh", "man x",
		"nonsense", "ls --nonsense img", "mount --engine none img dir", "cat --pull maybe img path", "ls --index maybe img",
		"--cache-limit much images", "mount --cache-limit much img dir", "ls --parallel -1 img",
	} {
		var usage *usageError
		if out, err := lamina(t, strings.Fields(line)...); !errors.As(err, &usage) || out != "" {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
		if code := run(t.Context(), append([]string{"lamina"}, strings.Fields(line)...)); code != 2 {
			t.Errorf("%s: exit status %d", line, code)
		}
	}
}

// TestNoNames: names and platforms that are none make no sense either; those of
// nothing that is there do.
func TestNoNames(t *testing.T) {
	newRoot(t)
	img, dir := layout(t, "", []tar.Header{{Name: "f", Typeflag: tar.TypeReg}}), t.TempDir()
	for _, c := range []struct {
		line []string
		want int
	}{
		{[]string{"ls", "BAD NAME"}, 2},
		{[]string{"ls", "Nginx"}, 2},
		{[]string{"ls", "oci:"}, 2},
		{[]string{"inspect", "Nginx"}, 2},
		{[]string{"pull", "Nginx"}, 2},
		{[]string{"rmi", "Nginx"}, 2},
		{[]string{"tag", "nginx", "Nginx"}, 2},
		{[]string{"mount", "Nginx", dir}, 2},
		{[]string{"ls", "--platform", "foo/bar/baz/x", img}, 2},
		{[]string{"inspect", "--platform", "foo", img}, 2},
		{[]string{"pull", "--platform", "foo/bar/baz/x", "nginx"}, 2},
		{[]string{"mount", "--platform", "foo/bar/baz/x", img, dir}, 2},
		{[]string{"ls", "oci:/nonexistent"}, 1},
		{[]string{"ls", "--platform", "linux/mips", img}, 1},
		{[]string{"ls", "--pull", "never", "nginx"}, 1},
		{[]string{"ls", img}, 0},
	} {
		if code := run(t.Context(), append([]string{"lamina"}, c.line...)); code != c.want {
			t.Errorf("%q: exit status %d, want %d", c.line, code, c.want)
		}
	}
}

// TestHelp: help is a word that docker's users try.
func TestHelp(t *testing.T) {
	newRoot(t)
	if got := mustLamina(t, "help"); !strings.Contains(got, "130 interrupted") || !strings.Contains(got, "prune") {
		t.Error(got)
	}
	if got := mustLamina(t, "help", "mount"); !strings.Contains(got, "--engine") || strings.Contains(got, "default: false") {
		t.Error(got)
	}
	var usage *usageError
	if _, err := lamina(t, "help", "nonsense"); !errors.As(err, &usage) {
		t.Error(err)
	}
}

// TestBehindDashes: what is behind -- is an argument, whatever it looks like.
func TestBehindDashes(t *testing.T) {
	newRoot(t)
	img := layout(t, "", []tar.Header{{Name: "-q", Typeflag: tar.TypeReg, Linkname: "data"}})
	if got := mustLamina(t, "cat", img, "--", "-q"); got != "data" {
		t.Errorf("%q", got)
	}
}

// TestCacheLimit: the program's flag and its variable hold for every command, and
// the command's own comes first.
func TestCacheLimit(t *testing.T) {
	for _, c := range []struct {
		env, line string
		want      int64
	}{
		{"", "probe", 0},
		{"", "--cache-limit 3k probe", 3 << 10},
		{"2k", "probe", 2 << 10},
		{"2k", "--cache-limit 3k probe", 3 << 10},
		{"2k", "probe --cache-limit 1k", 1 << 10},
		{"", "--cache-limit 3k probe --cache-limit 1k", 1 << 10},
	} {
		if c.env != "" {
			t.Setenv("LAMINA_CACHE_LIMIT", c.env)
		} else {
			_ = os.Unsetenv("LAMINA_CACHE_LIMIT")
		}
		var got int64
		app := newApp()
		app.Commands = append(app.Commands, &cli.Command{Name: "probe", Flags: []cli.Flag{cacheLimitFlag()}, Action: func(c *cli.Context) (err error) {
			got, err = cacheLimit(c)
			return err
		}})
		args := append([]string{"lamina"}, strings.Fields(c.line)...)
		if err := app.RunContext(t.Context(), intersperse(app, args)); err != nil || got != c.want {
			t.Errorf("%s, variable %q: %d, %v", c.line, c.env, got, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "512": 512, "1k": 1024, "1K": 1024, "1.5M": 3 << 19, "20G": 20 << 30,
		"20GiB": 20 << 30, "7GB": 7 << 30, "1T": 1 << 40,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1X", "NaN", "9999999999T"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 1000 << 20: "1.0 GiB",
		300 << 20: "300 MiB", 5 << 40: "5.0 TiB",
	} {
		if got := formatSize(in); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", in, got, want)
		}
	}
}
