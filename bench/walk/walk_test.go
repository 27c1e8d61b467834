package walk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/laminafs/lamina/bench/walk"
)

func TestList(t *testing.T) {
	root := t.TempDir()
	for d := range 3 {
		dir := filepath.Join(root, fmt.Sprint(d), "sub")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range 400 { // more than one buffer of directory entries
			name := filepath.Join(dir, fmt.Sprintf("a-rather-long-name-to-fill-the-buffer-%d", f))
			if err := os.WriteFile(name, make([]byte, f*100), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	l, err := walk.NewList(root)
	if err != nil {
		t.Fatal(err)
	}
	if want := 1 + 3*2 + 3*400; l.Len() != want {
		t.Errorf("%d names, want %d", l.Len(), want)
	}
	if want := 3 * (walk.Small/100 + 1); l.Files() != want {
		t.Errorf("%d small files, want %d", l.Files(), want)
	}
	for name, f := range map[string]func(string) error{"walk": l.Walk, "lstat": l.Lstat, "read": l.ReadSmall} {
		if err := f(root); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(filepath.Join(root, "1/sub/a-rather-long-name-to-fill-the-buffer-7")); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(string) error{"walk": l.Walk, "lstat": l.Lstat, "read": l.ReadSmall} {
		if err := f(root); err == nil {
			t.Errorf("%s: a name is missing, yet no error", name)
		}
	}
}

func TestReads(t *testing.T) {
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, make([]byte, 3<<20+17), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := walk.Sequential(f); err != nil || n != 3<<20+17 {
		t.Errorf("%d, %v", n, err)
	}
	if err := walk.Random(f, 100); err != nil {
		t.Error(err)
	}
}
