//go:build integration

package integration_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/difftest"
	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/registry"
)

// oneLine holds that err is one line that says one of says.
func oneLine(t *testing.T, err error, says ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	said := strings.TrimSpace(err.Error())
	if !slices.ContainsFunc(says, func(w string) bool { return strings.Contains(said, w) }) || strings.Contains(said, "\n") {
		t.Errorf("says %q, want one of %q in one line", said, says)
	}
}

// smallImage is an image of a small tree, with one file of a megabyte in it.
func smallImage(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	fatal(t, os.Mkdir(dir, 0o755))
	fatal(t, difftest.MakeTree(dir, 1))
	fatal(t, os.WriteFile(filepath.Join(dir, "megabyte"), bytes.Repeat([]byte("lamina: "), 1<<17), 0o644))
	return treeImage(t, dir)
}

// mounted mounts what is not lamina's at a directory of its own for one test.
func mounted(t *testing.T, source, kind, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(source, dir, kind, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", kind, err)
		}
	})
	return dir
}

// TestUpperRefused: what cannot be an upper directory is refused, by each engine, in
// one line, and nothing is mounted.
func TestUpperRefused(t *testing.T) {
	t.Parallel()
	image := smallImage(t)
	lower, upper := t.TempDir(), t.TempDir()
	fatal(t, os.MkdirAll(filepath.Join(upper, "u"), 0o755))
	fatal(t, os.MkdirAll(filepath.Join(upper, "w"), 0o755))
	for name, c := range map[string]struct {
		dir  string
		says string
	}{
		"no xattrs":    {mounted(t, "none", "ramfs", ""), "upper"},
		"no whiteouts": {mounted(t, "overlay", "overlay", "lowerdir="+lower+",upperdir="+upper+"/u,workdir="+upper+"/w"), "upper"},
	} {
		for _, engine := range engines() {
			t.Run(name+"/"+engine, func(t *testing.T) {
				s, m := newStore(t), t.TempDir()
				_, err := s.Run("mount", "-q", "--rw", "--engine", engine, "--name", "w", "--upper", filepath.Join(c.dir, "upper-"+engine), image, m)
				oneLine(t, err, c.says)
				if lamina.Mounted(m) {
					t.Error("it is mounted")
				}
				if all, err := s.Mounts(); err != nil || len(all) > 0 {
					t.Errorf("there are mounts: %v, %v", all, err)
				}
			})
		}
	}
}

// TestUpperOfAnotherImage: an upper directory that refers to what the image does not
// have gives errors where it does, and no commit, and stays as it is.
func TestUpperOfAnotherImage(t *testing.T) {
	t.Parallel()
	image, upper := smallImage(t), filepath.Join(t.TempDir(), "upper")
	fatal(t, os.MkdirAll(filepath.Join(upper, "moved"), 0o755))
	fatal(t, unix.Setxattr(filepath.Join(upper, "moved"), "trusted.overlay.redirect", []byte("/not/there"), 0))
	fatal(t, os.WriteFile(filepath.Join(upper, "new"), []byte("new"), 0o644))
	s, m := newStore(t), t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--engine", "fuse", "--name", "w", "--upper", upper, image, m)
	if b, err := os.ReadFile(filepath.Join(m, "new")); err != nil || string(b) != "new" {
		t.Errorf("what is right is not there: %q, %v", b, err)
	}
	_, err := s.Run("commit", m, "example.com/foreign:1")
	oneLine(t, err, "/not/there")
	if out := s.run(t, "images"); strings.Contains(out, "foreign") {
		t.Errorf("it is an image:\n%s", out)
	}
	s.run(t, "umount", m)
	s.run(t, "umount", "--rm", "w")
	if _, err := os.Stat(filepath.Join(upper, "new")); err != nil {
		t.Errorf("somebody else's directory was removed: %v", err)
	}
}

// TestUpperFull fills the upper directory's disk while a file is copied up: it stays
// what it was, and is changed once there is room.
func TestUpperFull(t *testing.T) {
	t.Parallel()
	image, small := smallImage(t), disk(t, "16M")
	s, m := newStore(t), t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--engine", "fuse", "--name", "w", "--upper", filepath.Join(small, "upper"), image, m)
	defer s.run(t, "umount", m)
	ballast := filepath.Join(small, "ballast")
	f, err := os.Create(ballast)
	fatal(t, err)
	for block := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(block)
	}
	if err := errors.Join(err, f.Sync()); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	fatal(t, f.Close())
	big := filepath.Join(m, "megabyte")
	want, err := os.ReadFile(big)
	fatal(t, err)
	appendTo := func() error {
		f, err := os.OpenFile(big, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("more")
		return errors.Join(err, f.Sync(), f.Close())
	}
	if err := appendTo(); !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) {
		t.Errorf("append on a full disk: %v", err)
	}
	if err := unix.Chmod(big, 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Errorf("chmod on a full disk: %v", err)
	}
	fatal(t, os.Remove(ballast))
	s.run(t, "umount", m)
	s.run(t, "mount", "-q", "--rw", "--name", "w", image, m)
	got, err := os.ReadFile(big)
	fatal(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("after the disk was full it has %d bytes, not the %d it had", len(got), len(want))
	}
	fatal(t, appendTo())
	if got, err = os.ReadFile(big); err != nil || string(got) != string(want)+"more" {
		t.Errorf("once there was room it has %d bytes, want %d: %v", len(got), len(want)+4, err)
	}
}

// TestCommitFull commits into a store whose disk becomes full, or cannot be written
// to: no image, nothing left, and the next one is right.
func TestCommitFull(t *testing.T) {
	t.Parallel()
	image, small := smallImage(t), disk(t, "24M")
	s := newStoreAt(t, filepath.Join(small, "root"), registry.Password)
	m, upper := t.TempDir(), filepath.Join(t.TempDir(), "upper")
	s.run(t, "mount", "-q", "--rw", "--name", "w", "--upper", upper, image, m)
	noise := make([]byte, 30<<20)
	state := uint64(1)
	for i := range noise {
		state = state*6364136223846793005 + 1442695040888963407
		noise[i] = byte(state >> 56)
	}
	fatal(t, os.WriteFile(filepath.Join(m, "noise"), noise, 0o644))
	free := func() uint64 {
		var st unix.Statfs_t
		unix.Sync()
		fatal(t, unix.Statfs(small, &st))
		return st.Bfree * uint64(st.Bsize)
	}
	before := free()
	_, err := s.Run("commit", m, "example.com/full:1")
	oneLine(t, err, "no space left")
	if after := free(); after+256<<10 < before {
		t.Errorf("%d bytes were free, and are %d", before, after)
	}
	s.run(t, "check")
	s.run(t, "umount", m)
	fatal(t, unix.Mount("", small, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err = s.Run("commit", "w", "example.com/full:2")
	oneLine(t, err, "read-only")
	fatal(t, unix.Mount("", small, "", unix.MS_REMOUNT, ""))
	s.run(t, "mount", "-q", "--rw", "--name", "w", image, m)
	if out := s.run(t, "images"); strings.Contains(out, "example.com/full") {
		t.Errorf("it is an image:\n%s", out)
	}
	fatal(t, os.WriteFile(filepath.Join(m, "noise"), noise[:1000], 0o644))
	s.run(t, "commit", m, "example.com/full:3")
	if out := s.run(t, "cat", "example.com/full:3", "/noise"); out != string(noise[:1000]) {
		t.Errorf("the image has %d bytes of it", len(out))
	}
	s.run(t, "umount", m)
}

// TestCommitBaseGone: the image that a workspace was made over is neither in the
// store nor in its registry any more.
func TestCommitBaseGone(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	s, m := newStore(t, p.Host()), t.TempDir()
	ref := p.Host() + "/lamina/debian:" + string(images.EStargz)
	s.run(t, "mount", "-q", "--rw", "--name", "w", ref, m)
	fatal(t, os.WriteFile(filepath.Join(m, "kept"), []byte("kept"), 0o644))
	s.run(t, "umount", m)
	s.run(t, "rmi", "--force", ref)
	s.run(t, "prune", "--all")
	fatal(t, p.Close())
	_, err := s.Run("commit", "w", "example.com/gone:1")
	oneLine(t, err, p.Host())
	if out := s.run(t, "mounts", "--all"); !strings.Contains(out, "w") {
		t.Errorf("the workspace is gone:\n%s", out)
	}
	b, err := os.ReadFile(filepath.Join(s.Root, "mounts", "w", "upper", "kept"))
	if err != nil || string(b) != "kept" {
		t.Errorf("what was written is gone: %q, %v", b, err)
	}
}
