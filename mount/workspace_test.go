package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// workspaceIn is the record of a writable mount that is not saved yet.
func workspaceIn(t *testing.T, root, name string) *State {
	t.Helper()
	s := &State{Name: name, Chain: "c", Engine: Kernel, Options: Options{Root: root, RW: true, Dir: "/nowhere"}}
	for _, dir := range []string{s.Upper(), s.workDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestWorkspaceStays: the record of a workspace outlives its mount; what was written
// goes by Discard alone.
func TestWorkspaceStays(t *testing.T) {
	root := t.TempDir()
	s := workspaceIn(t, root, "w")
	file := filepath.Join(s.Upper(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	forget(root, "w") // its first mount failed: it is no workspace, but somebody wrote
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	if err := s.made(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first List finds that it is not mounted any more
		all, err := List(root)
		if err != nil || len(all) != 1 || all[0].Status != Unmounted {
			t.Fatalf("%+v, %v", all, err)
		}
	}
	e, err := Find(root, "w")
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(t.Context(), root, "w", false); !isNotMounted(errors.Unwrap(err)) {
		t.Errorf("unmounted once more: %v", err)
	}
	if c, err := e.Committed(); c != nil || err != nil {
		t.Errorf("committed is %v, %v", c, err)
	}
	want := Committed{Image: "app:1", Digest: digest.FromString("app")}
	if err := e.SetCommitted(want); err != nil {
		t.Fatal(err)
	}
	if c, err := e.Committed(); err != nil || *c != want {
		t.Errorf("committed is %v, %v", c, err)
	}
	if err := os.WriteFile(filepath.Join(e.dir(), baseName), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Committed(); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged file: %v", err)
	}
	if err := Discard(t.Context(), root, "w"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(mountsDir(root)); err != nil || len(left) != 0 {
		t.Errorf("%v is left: %v", left, err)
	}
}

// TestWorkspaceAlone: of two processes that mount one workspace, one is refused, and
// does the other no harm.
func TestWorkspaceAlone(t *testing.T) {
	root := t.TempDir()
	one, two := workspaceIn(t, root, "w"), workspaceIn(t, root, "w")
	if err := one.lockUpper(); err != nil {
		t.Fatal(err)
	}
	if err := two.lockUpper(); !errors.Is(err, ErrWorkspace) {
		t.Errorf("the second one: %v", err)
	}
	forget(root, "w")
	if _, err := os.Stat(one.Upper()); err != nil {
		t.Errorf("the loser took the directory away: %v", err)
	}
	if err := one.made(); err != nil {
		t.Fatal(err)
	}
	if err := two.lockUpper(); err != nil { // one is not mounted, whatever it says
		t.Errorf("after the first one: %v", err)
	}
	two.unlockUpper()
}

// TestResume: what may be mounted writable again.
func TestResume(t *testing.T) {
	root := t.TempDir()
	s := workspaceIn(t, root, "w")
	if err := s.made(); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	for _, c := range []struct {
		name string
		o    Options
		ok   bool
	}{
		{"read-only", Options{Root: root, Name: "../x"}, true},
		{"the same", Options{Root: root, RW: true, Name: "w"}, true},
		{"new", Options{Root: root, RW: true, Name: "other.1"}, true},
		{"by its upper directory", Options{Root: root, RW: true, Upper: s.Upper()}, true},
		{"another upper directory", Options{Root: root, RW: true, Name: "w", Upper: other}, false},
		{"bad name", Options{Root: root, RW: true, Name: "../x"}, false},
		{"hidden name", Options{Root: root, RW: true, Name: ".x"}, false},
	} {
		if err := resume(&c.o); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrWorkspace) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.name == "by its upper directory" && c.o.Name != "w" {
			t.Errorf("%s: it is called %q", c.name, c.o.Name)
		}
	}
	// Over other layers it is another tree.
	m := &State{Name: "w", Chain: "another", Options: Options{Root: root, RW: true}}
	if err := m.goOn(); !errors.Is(err, ErrWorkspace) {
		t.Errorf("over other layers: %v", err)
	}
}
