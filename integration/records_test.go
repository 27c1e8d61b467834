//go:build integration

package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/registry"
)

// past is longer than records without a mount are left alone.
const past = 6 * time.Second

// stillRight evicts what may be evicted and looks at a file through the kernel, which
// has to read it again.
func stillRight(t *testing.T, s store, other, read string) {
	t.Helper()
	want, err := os.ReadFile(filepath.Join(shared.set.Tree("debian"), "usr/bin/bash"))
	fatal(t, err)
	if _, err := s.Run("--root", other, "--cache-limit", "1M", "cat", shared.set.Ref("python", images.EStargz), "/usr/bin/python3"); err != nil {
		t.Logf("cat: %v", err) // a record that cannot be read is a reason to evict nothing
	}
	unix.Sync()
	fatal(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o600))
	got, err := os.ReadFile(read)
	fatal(t, err)
	if string(got) != string(want) {
		t.Errorf("%s is not what it was: %d bytes, %d are zero", read, len(got), strings.Count(string(got), "\x00"))
	}
}

// TestStoreByAnotherPath: who reaches a store by another path sees its mounts, and
// evicts nothing of what the kernel reads for them.
func TestStoreByAnotherPath(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	dir := s.mount(t, shared.set.Ref("debian", images.Gzip), "--engine", "kernel")
	link := filepath.Join(t.TempDir(), "link")
	fatal(t, os.Symlink(s.Root, link))
	time.Sleep(past)
	if out, err := s.Run("--root", link, "mounts"); err != nil || !strings.Contains(out, dir) {
		t.Errorf("mounts: %v\n%s", err, out)
	}
	stillRight(t, s, link, filepath.Join(dir, "usr/bin/bash"))
}

// TestMountInAnotherNamespace: a mount that only processes of another mount namespace
// see is there, and is gone with the last of them.
func TestMountInAnotherNamespace(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t), t.TempDir()
	inside := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-ec", `"$@"; echo mounted; read wait`, "sh")
	mount := s.MountCommand(dir, shared.set.Ref("debian", images.Gzip), "--engine", "kernel", "--quiet")
	inside.Args = append(inside.Args, mount.Args...)
	inside.Env = mount.Env
	in, err := inside.StdinPipe()
	fatal(t, err)
	out, err := inside.StdoutPipe()
	fatal(t, err)
	fatal(t, inside.Start())
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(past)
	if lamina.Mounted(dir) {
		t.Fatal("it is mounted here, too")
	}
	if out := s.run(t, "mounts"); !strings.Contains(out, dir) {
		t.Errorf("it is not listed:\n%s", out)
	}
	pid := inside.Process.Pid
	stillRight(t, s, s.Root, filepath.Join("/proc", strconv.Itoa(pid), "root", dir, "usr/bin/bash"))
	fatal(t, in.Close())
	_ = inside.Wait() // sh ends with the end of its input
	if out := s.run(t, "mounts"); strings.Contains(out, dir) {
		t.Errorf("the namespace is gone, and it is listed:\n%s", out)
	}
}

// TestDamagedRecord: what a record that cannot be read stands for is neither evicted
// nor pruned nor discarded.
func TestDamagedRecord(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	dir := s.mount(t, shared.set.Ref("debian", images.Gzip), "--engine", "kernel")
	record := filepath.Join(s.Root, "mounts", s.at(t, dir).Name, "state.json")
	whole, err := os.ReadFile(record)
	fatal(t, err)
	fatal(t, os.WriteFile(record, whole[:len(whole)/2], 0o600))
	_, err = s.Run("prune", "--all")
	oneLine(t, err, filepath.Base(filepath.Dir(record)))
	stillRight(t, s, s.Root, filepath.Join(dir, "usr/bin/bash"))
	fatal(t, os.WriteFile(record, whole, 0o600))
	s.umount(t, dir)
}

// TestNameAndMountpoint: a target that is the name of one mount and the place of
// another is refused.
func TestNameAndMountpoint(t *testing.T) {
	t.Parallel()
	s, dir, image := newStore(t), t.TempDir(), smallImage(t)
	for _, m := range []struct{ name, at string }{{"m2", "m1"}, {"z1", "m2"}} {
		fatal(t, os.Mkdir(filepath.Join(dir, m.at), 0o755))
		s.run(t, "mount", "-q", "--rw", "--name", m.name, image, filepath.Join(dir, m.at))
	}
	cmd := s.Command("umount", "--rm", "m2")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "./m2") {
		t.Errorf("umount --rm m2: %v\n%s", err, out)
	}
	if all := s.run(t, "mounts"); !strings.Contains(all, "m2 ") || !strings.Contains(all, "z1 ") {
		t.Errorf("one is gone:\n%s", all)
	}
	cmd = s.Command("umount", "--rm", "./m2")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("umount --rm ./m2: %v\n%s", err, out)
	}
	if all := s.run(t, "mounts", "--all"); !strings.Contains(all, "m2 ") || strings.Contains(all, "z1 ") {
		t.Errorf("not z1 is gone, and m2 left:\n%s", all)
	}
	s.run(t, "umount", "--rm", "m2")
}

// TestRecordsAreLeft: looking at mounts writes nothing.
func TestRecordsAreLeft(t *testing.T) {
	t.Parallel()
	s, dir := newStoreAt(t, filepath.Join(t.TempDir(), "root"), registry.Password), t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--name", "w", smallImage(t), dir)
	s.run(t, "umount", dir)
	record := filepath.Join(s.Root, "mounts", "w", "state.json")
	before, err := os.Stat(record)
	fatal(t, err)
	for _, words := range [][]string{{"mounts", "--all"}, {"df"}, {"stats"}, {"prune"}} {
		s.run(t, words...)
	}
	if after, err := os.Stat(record); err != nil || !os.SameFile(before, after) || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("it was written: %v", err)
	}
	if out, err := s.Run("stats", "w"); err == nil {
		t.Errorf("stats of what is not mounted:\n%s", out)
	}
}
