package tree_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/integration/tree"
)

// plant makes a small tree with something of everything that needs no root.
func plant(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "d"), 0o755),
		os.WriteFile(filepath.Join(dir, "d", "f"), []byte("hello"), 0o644),
		os.Link(filepath.Join(dir, "d", "f"), filepath.Join(dir, "g")),
		os.Symlink("d/f", filepath.Join(dir, "s")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	at := time.Unix(1_600_000_000, 123_456_789)
	for _, n := range []string{"d/f", "d"} {
		if err := os.Chtimes(filepath.Join(dir, n), at, at); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDiffFindsEveryChange(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(dir string) error
		want   string // part of a line
	}{
		{"none", func(string) error { return nil }, ""},
		{"content", func(d string) error {
			return writeKeepingTime(filepath.Join(d, "g"), "jello")
		}, "content differs"},
		{"mode", func(d string) error { return os.Chmod(filepath.Join(d, "d"), 0o700) }, "mode is"},
		{"time", func(d string) error {
			at := time.Unix(1_600_000_000, 123_456_790)
			return os.Chtimes(filepath.Join(d, "d"), at, at)
		}, "mtime is"},
		{"hard link", func(d string) error { return os.Remove(filepath.Join(d, "g")) }, "link count is"},
		{"name", func(d string) error { return os.Mkdir(filepath.Join(d, "n"), 0o755) }, "must not be there"},
		{"target", func(d string) error {
			s := filepath.Join(d, "s")
			if err := os.Remove(s); err != nil {
				return err
			}
			return os.Symlink("elsewhere", s)
		}, "target is"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := plant(t)
			want, err := tree.Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			// A symbolic link's own time is now: let it differ in nothing else.
			o := tree.Options{AnyMtime: []string{"s"}}
			if err := tc.change(dir); err != nil {
				t.Fatal(err)
			}
			got, err := tree.Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Join(tree.Diff(want, got, o), "\n")
			if (tc.want == "") != (lines == "") || !strings.Contains(lines, tc.want) {
				t.Errorf("differences:\n%s\nwant one with %q", lines, tc.want)
			}
		})
	}
}

func writeKeepingTime(path, s string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
		return err
	}
	return os.Chtimes(path, info.ModTime(), info.ModTime())
}
