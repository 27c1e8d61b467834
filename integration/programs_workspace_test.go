//go:build integration

package integration_test

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/tree"
)

// workspace is a writable mount in which programs work.
type workspace struct {
	store
	engine, image, dir string
}

// newWorkspace mounts the base image of that name; users other than root may go
// there.
func newWorkspace(t testing.TB, engine, name string) *workspace {
	t.Helper()
	w := &workspace{store: newStore(t), engine: engine, image: shared.set.Ref(name, images.Gzip), dir: t.TempDir()}
	if err := os.Chmod(filepath.Dir(w.dir), 0o755); err != nil {
		t.Fatal(err)
	}
	w.mount(t, engine)
	return w
}

func (w *workspace) mount(t testing.TB, engine string) {
	t.Helper()
	w.run(t, "mount", "-q", "--rw", "--engine", engine, "--name", "work", w.image, w.dir)
	if got := w.at(t, w.dir).Engine; got != engine {
		t.Fatalf("mounted by %s, not %s", got, engine)
	}
}

// remount unmounts the workspace and mounts it again.
func (w *workspace) remount(t testing.TB, engine string) {
	t.Helper()
	w.run(t, "umount", w.dir)
	w.mount(t, engine)
}

// path returns the path of what has a name in the workspace.
func (w *workspace) path(name ...string) string {
	return filepath.Join(append([]string{w.dir}, name...)...)
}

// settled unmounts the workspace and mounts it again, with the same engine and with
// the other: below sub nothing may differ, whoever shows it. It returns what is there
// and leaves the workspace as it was.
func (w *workspace) settled(t testing.TB, sub string) tree.Tree {
	t.Helper()
	other := map[string]string{"fuse": "kernel", "kernel": "fuse"}[w.engine]
	want := readUnion(t, w.path(sub))
	for _, e := range []string{w.engine, other} {
		w.remount(t, e)
		sameUnion(t, "/"+sub+" after "+w.engine+", mounted again by "+e, want, readUnion(t, w.path(sub)))
	}
	w.remount(t, w.engine)
	return want
}

// sameUnion compares what readUnion has read.
func sameUnion(t testing.TB, what string, want, got tree.Tree) {
	t.Helper()
	if lines := tree.Diff(want, got, tree.Options{}); len(lines) > 0 {
		t.Errorf("%s: %d of %d entries differ:\n%s", what, len(lines), len(want), strings.Join(lines[:min(20, len(lines))], "\n"))
	}
}

// filtered returns the entries of a tree that are to be kept.
func filtered(all tree.Tree, keep func(name string, e tree.Entry) bool) tree.Tree {
	kept := maps.Clone(all)
	maps.DeleteFunc(kept, func(name string, e tree.Entry) bool { return !keep(name, e) })
	return kept
}

// programEnv is the environment of programs: none of the tester's own settings.
func programEnv(more ...string) []string {
	return append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C", "TZ=UTC", "DEBIAN_FRONTEND=noninteractive", "HOME=/nonexistent",
	}, more...)
}

// execute runs a program and returns what it prints. One that takes two minutes is
// killed.
func execute(t testing.TB, words ...string) string {
	t.Helper()
	out, err := tryExecute(words...)
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(words, " "), err)
	}
	return out
}

func tryExecute(words ...string) (string, error) {
	ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env, cmd.WaitDelay = programEnv(), 10*time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), &failure{err, string(out) + stderr.String()}
	}
	return string(out), nil
}

// failure is how a program failed, and the end of what it said.
type failure struct {
	err  error
	said string
}

func (f *failure) Error() string {
	return f.err.Error() + "\n" + f.said[max(0, len(f.said)-4000):]
}

// alone returns the words that run a shell script with namespaces of its own: what
// it mounts and starts ends with it, and it reaches no network but its own loopback.
// Unmounting is seen in there, so that it holds nothing that other tests unmount.
func alone(script string, args ...string) []string {
	return append([]string{
		"unshare", "--mount", "--propagation", "slave", "--net", "--pid", "--fork", "--kill-child",
		"sh", "-euc", script, "alone",
	}, args...)
}

// inRoot is a script that runs its second and further arguments in the root that is
// its first.
const inRoot = `root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
chroot "$root" "$@"`

// inside runs a program of the workspace's own with the workspace as its root.
func (w *workspace) inside(t testing.TB, words ...string) string {
	t.Helper()
	return execute(t, alone(inRoot, append([]string{w.dir}, words...)...)...)
}

// write writes a file of the workspace, and makes its directory.
func (w *workspace) write(t testing.TB, name, content string) {
	t.Helper()
	fatal(t, os.MkdirAll(filepath.Dir(w.path(name)), 0o755))
	fatal(t, os.WriteFile(w.path(name), []byte(content), 0o644))
}
