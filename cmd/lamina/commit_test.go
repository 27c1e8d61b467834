package main

import (
	"slices"
	"strings"
	"testing"
)

func TestWithReason(t *testing.T) {
	got := withReason([]change{
		{"C", "/a", 0, true},
		{"C", "/a/b", 0, true},
		{"A", "/a/b/c", 1, false},
		{"C", "/d", 0, true},
		{"C", "/d/e", 0, true},
		{"C", "/f", 0, false},
		{"C", "/f/g", 0, true},
	})
	var paths []string
	for _, l := range got {
		paths = append(paths, l.Path)
	}
	if want := []string{"/a", "/a/b", "/a/b/c", "/f"}; !slices.Equal(paths, want) {
		t.Errorf("got %q, want %q", paths, want)
	}
}

// TestCommitArguments: what is wrong is said before anything is done.
func TestCommitArguments(t *testing.T) {
	newRoot(t)
	for _, c := range []struct{ line, want string }{
		{"commit --format lzma w app:1", "unknown layer format"},
		{"commit w app:1", "not a mount of this store"},
		{"diff w", "not a mount of this store"},
		{"mount --name x img dir", "go with --rw"},
	} {
		_, err := lamina(t, strings.Fields(c.line)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.line, err)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := lamina(t, "commit", "w", "app:1"); err == nil || !strings.Contains(err.Error(), "not a number of seconds") {
		t.Error(err)
	}
}
