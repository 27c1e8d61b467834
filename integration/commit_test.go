//go:build integration

package integration_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/tree"
)

// changer changes a tree at random.
type changer struct {
	t    testing.TB
	rand *rand.Rand
	root string
	n    int
}

// some returns a path in the tree for which ok holds, "" if few do.
func (c *changer) some(ok func(os.FileInfo) bool) string {
	for range 50 {
		p := c.root
		for range c.rand.IntN(6) + 1 {
			list, err := os.ReadDir(p)
			if err != nil || len(list) == 0 {
				break
			}
			p = filepath.Join(p, list[c.rand.IntN(len(list))].Name())
			if fi, err := os.Lstat(p); err != nil || !fi.IsDir() {
				break
			}
		}
		if fi, err := os.Lstat(p); err == nil && p != c.root && ok(fi) {
			return p
		}
	}
	return ""
}

func isFile(fi os.FileInfo) bool {
	// The kernel's overlayfs parts the names of one file when it is copied up.
	return fi.Mode().IsRegular() && fi.Sys().(*syscall.Stat_t).Nlink == 1
}
func isDir(fi os.FileInfo) bool { return fi.IsDir() }
func anything(os.FileInfo) bool { return true }

// fresh returns a name in some directory that is not there yet.
func (c *changer) fresh() string {
	c.n++
	dir := c.some(isDir)
	if dir == "" {
		dir = c.root
	}
	return filepath.Join(dir, fmt.Sprintf("new %d \xff", c.n))
}

func (c *changer) bytes(most int) []byte {
	b := make([]byte, c.rand.IntN(most))
	for i := range b {
		b[i] = byte(c.rand.Uint32() >> 29)
	}
	return b
}

// step makes one change. What cannot be done, for the names that were drawn, is no
// error: the tree is what it is afterwards.
func (c *changer) step() (what string, err error) {
	ops := []struct {
		name string
		do   func() error
	}{
		{"create", func() error { return os.WriteFile(c.fresh(), c.bytes(100_000), 0o640) }},
		{"write", func() error {
			f, err := os.OpenFile(c.some(isFile), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(c.bytes(10_000), int64(c.rand.IntN(50_000)))
			return errors.Join(err, f.Close())
		}},
		{"truncate", func() error { return os.Truncate(c.some(isFile), int64(c.rand.IntN(9000))) }},
		{"replace", func() error {
			p := c.some(isFile)
			return errors.Join(os.Remove(p), os.WriteFile(p, c.bytes(1000), 0o600))
		}},
		{"touch back", func() error { // copied up, and as it was
			p := c.some(isFile)
			fi, err := os.Lstat(p)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return errors.Join(f.Close(), os.Chtimes(p, fi.ModTime(), fi.ModTime()))
		}},
		{"mkdir", func() error { return os.Mkdir(c.fresh(), 0o751) }},
		{"symlink", func() error { return os.Symlink("../somewhere", c.fresh()) }},
		{"link", func() error { return os.Link(c.some(isFile), c.fresh()) }},
		{"fifo", func() error { return unix.Mkfifo(c.fresh(), 0o600) }},
		{"device", func() error { return unix.Mknod(c.fresh(), unix.S_IFCHR|0o620, int(unix.Mkdev(4, 300))) }},
		{"chmod", func() error {
			return os.Chmod(c.some(func(fi os.FileInfo) bool { return fi.Mode()&os.ModeSymlink == 0 }), 0o700)
		}},
		{"suid", func() error { return unix.Chmod(c.some(isFile), 0o4755) }},
		{"chown", func() error { return os.Lchown(c.some(anything), 1234, 5678) }},
		{"xattr", func() error { return unix.Lsetxattr(c.some(isFile), "user.test", c.bytes(100), 0) }},
		{"capability", func() error {
			return unix.Lsetxattr(c.some(isFile), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
		}},
		{"rename", func() error { return os.Rename(c.some(isFile), c.fresh()) }},
		{"rename over", func() error { return os.Rename(c.some(isFile), c.some(isFile)) }},
		{"rename folder", func() error { return os.Rename(c.some(isDir), c.fresh()) }},
		{"exchange", func() error {
			return unix.Renameat2(unix.AT_FDCWD, c.some(anything), unix.AT_FDCWD, c.some(anything), unix.RENAME_EXCHANGE)
		}},
		{"unlink", func() error { return os.Remove(c.some(isFile)) }},
		{"remove folder", func() error {
			// Not near the root: there would be nothing left.
			if p := c.some(isDir); strings.Count(p[len(c.root):], "/") > 2 {
				return os.RemoveAll(p)
			}
			return nil
		}},
		{"make folder again", func() error {
			p := c.some(isDir)
			if strings.Count(p[len(c.root):], "/") <= 2 {
				return nil
			}
			return errors.Join(os.RemoveAll(p), os.Mkdir(p, 0o700), os.WriteFile(filepath.Join(p, "x"), c.bytes(10), 0o600))
		}},
		{"folder becomes file", func() error {
			p := c.some(isDir)
			if strings.Count(p[len(c.root):], "/") <= 2 {
				return nil
			}
			return errors.Join(os.RemoveAll(p), os.WriteFile(p, c.bytes(10), 0o600))
		}},
		{"file becomes folder", func() error {
			p := c.some(isFile)
			return errors.Join(os.Remove(p), os.Mkdir(p, 0o700))
		}},
	}
	op := ops[c.rand.IntN(len(ops))]
	return op.name, op.do()
}

// readUnion reads the tree at dir, but for the link counts of folders: overlayfs
// gives 1 for those that it merges.
func readUnion(t testing.TB, dir string) tree.Tree {
	t.Helper()
	got, err := tree.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range got {
		if e.Mode&unix.S_IFMT == unix.S_IFDIR {
			e.Nlink = 0
			got[name] = e
		}
	}
	return got
}

// TestCommit: what was changed, at random, in a writable mount is in the image
// that is made of it, whatever the layer's format, also after the workspace was
// unmounted and mounted again; hardly anything of the base is fetched for it.
func TestCommit(t *testing.T) {
	t.Parallel()
	seed := number(t, "LAMINA_COMMIT_SEED", 1)
	t.Logf("seed %d", seed)
	for _, base := range []images.Format{images.EStargz, images.Gzip} {
		t.Run(string(base), func(t *testing.T) {
			p := shared.proxy(t, faultproxy.Config{})
			s := newStore(t, p.Host())
			m := t.TempDir()
			ref := p.Host() + "/lamina/debian:" + string(base)
			c := &changer{t: t, rand: rand.New(rand.NewPCG(seed, 1)), root: m}
			for round := range 2 {
				s.run(t, "mount", "-q", "--rw", "--name", "work", ref, m)
				for i, format := range []string{"gzip", "zstd", "estargz", "zstd:chunked"} {
					if i > 1 && (base == images.Gzip || round > 0) {
						continue
					}
					done := map[string]int{}
					for range 60 {
						if what, err := c.step(); err == nil {
							done[what]++
						}
					}
					t.Logf("round %d, %s: %v", round, format, done)
					want := readUnion(t, m)
					image := fmt.Sprintf("example.com/app:%d-%d", round, i)
					var made struct{ Digest, MediaType string }
					s.parse(t, &made, "commit", "-m", "test", "--format", format, "--json", m, image)
					unchanged(t, s, m, want)
					dir := t.TempDir()
					s.run(t, "mount", "-q", image, dir)
					compareCommitted(t, want, readUnion(t, dir), format == "estargz" || round > 0 || i > 2)
					s.run(t, "umount", dir)
				}
				s.run(t, "umount", m)
			}
			s.run(t, "umount", "--rm", "work")
			if out := s.run(t, "mounts", "--all"); strings.Contains(out, "work") {
				t.Errorf("discarded, and still there:\n%s", out)
			}
		})
	}
}

// unchanged looks at what diff says right after a commit: folders above files that
// were changed once, and files with several names.
func unchanged(t *testing.T, s store, m string, want tree.Tree) {
	t.Helper()
	var list []struct{ Kind, Path string }
	s.parse(t, &list, "diff", "--json", m)
	for _, l := range list {
		e, ok := want[strings.TrimPrefix(l.Path, "/")]
		if l.Kind != "C" || ok && e.Mode&unix.S_IFMT != unix.S_IFDIR && e.Nlink < 2 {
			t.Errorf("committed, and still said to be changed: %s %q", l.Kind, l.Path)
		}
	}
}

// TestCommitFetchesLittle commits one changed file of a large image and looks at what
// that has fetched.
func TestCommitFetchesLittle(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	s, m := newStore(t, p.Host()), t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--name", "small", p.Host()+"/lamina/python:"+string(images.EStargz), m)
	if err := os.WriteFile(filepath.Join(m, "etc", "motd"), []byte("changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var made struct{ Added, Changed, Deleted int }
	s.parse(t, &made, "commit", "--json", m, "example.com/small:1")
	if made.Deleted != 0 || made.Added+made.Changed > 2 {
		t.Errorf("one file changed, and the layer has %+v", made)
	}
	var fetched, size int64
	for _, e := range p.Exchanges() {
		fetched += e.Bytes
	}
	d, err := images.Manifest(shared.set.LayoutDir(), images.Tag("python", images.EStargz))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range d.Layers {
		size += l.Size
	}
	t.Logf("mount, change and commit fetched %d of %d bytes", fetched, size)
	if fetched > size/20 {
		t.Errorf("more than a twentieth of the image was fetched")
	}
	s.run(t, "umount", "--rm", "small")
}

// compareCommitted compares the workspace with the image that was made of it; rounded
// says that a layer is an eStargz, which has whole seconds. Of
// files that had several names in the image, how many are left and which is the
// first may differ: overlayfs still shows the image's number after some were copied
// up.
func compareCommitted(t *testing.T, want, got tree.Tree, rounded bool) {
	t.Helper()
	original := shared.truth(t, "debian")
	links := map[string]bool{}
	for _, e := range original {
		if e.Nlink > 1 && e.Mode&unix.S_IFMT == unix.S_IFREG {
			links[fmt.Sprintf("%x", e.Sum)] = true
		}
	}
	for _, name := range slices.Collect(maps.Keys(want)) {
		w, ok := got[name]
		if x := want[name]; ok && links[fmt.Sprintf("%x", x.Sum)] {
			x.Nlink, x.Link = w.Nlink, w.Link
			want[name] = x
		}
	}
	lines := tree.Diff(want, got, tree.Options{})
	if rounded {
		lines = slices.DeleteFunc(lines, func(l string) bool { return strings.Contains(l, ": mtime is ") && !strings.Contains(l, ";") })
	}
	if len(lines) > 0 {
		t.Errorf("the image is not the workspace, in %d entries:\n%s", len(lines), strings.Join(lines[:min(20, len(lines))], "\n"))
	}
}

// TestCommitOthersRead: other tools read a committed image.
func TestCommitOthersRead(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	m := t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--name", "w", shared.set.Ref("debian", images.Gzip), m)
	for _, err := range []error{
		os.WriteFile(filepath.Join(m, "hello"), []byte("#!/bin/sh\necho hello\n"), 0o755),
		os.RemoveAll(filepath.Join(m, "usr/share/doc")),
		os.Rename(filepath.Join(m, "usr/share/man"), filepath.Join(m, "usr/share/moved")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := readUnion(t, m)
	for i, format := range []string{"gzip", "estargz", "zstd", "zstd:chunked"} { // one over the other
		name := fmt.Sprintf("example.com/others:%d", i)
		s.run(t, "commit", "-c", `CMD ["/hello"]`, "-c", "ENV A=b", "--format", format, "w", name)
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			layout := filepath.Join(s.Root, "images")
			for _, words := range [][]string{
				{"skopeo", "inspect", "oci:" + layout + ":" + name},
				{"skopeo", "copy", "-q", "oci:" + layout + ":" + name, "dir:" + filepath.Join(t.TempDir(), "skopeo")},
			} {
				if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
					t.Errorf("%s: %v\n%s", strings.Join(words, " "), err, out)
				}
			}
			if format == "zstd" || format == "zstd:chunked" {
				return // Debian's umoci does not know zstd
			}
			dir := filepath.Join(t.TempDir(), "bundle")
			if out, err := exec.Command("umoci", "unpack", "--image", layout+":"+name, dir).CombinedOutput(); err != nil {
				t.Fatalf("umoci unpack: %v\n%s", err, out)
			}
			lines := tree.Diff(want, readUnion(t, path.Join(dir, "rootfs")), tree.Options{})
			if format == "estargz" {
				lines = slices.DeleteFunc(lines, func(l string) bool {
					return strings.Contains(l, "stargz.index.json") || strings.Contains(l, "landmark")
				})
			}
			if len(lines) > 0 {
				t.Errorf("umoci unpacks another tree:\n%s", strings.Join(lines[:min(20, len(lines))], "\n"))
			}
		})
	}
	podmanReads(t, s, "example.com/others:0", "hello\n")
}

// podmanReads pulls the image called name with podman, mounts it and runs its
// program, without a container: that takes more of the machine than there may be.
func podmanReads(t *testing.T, s store, name, want string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "p") // podman wants a short path
	if err != nil {
		t.Fatal(err)
	}
	podman := func(words ...string) string {
		t.Helper()
		cmd := exec.Command("podman", append([]string{"--root", dir + "/root", "--runroot", dir + "/run"}, words...)...)
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("podman %s: %v", strings.Join(words, " "), err)
		}
		return strings.TrimSpace(string(out))
	}
	defer func() {
		podman("image", "umount", "--all")
		podman("rmi", "--all", "--force")
		_ = os.RemoveAll(dir)
	}()
	id := podman("pull", "-q", "oci:"+filepath.Join(s.Root, "images")+":"+name)
	if got := podman("image", "inspect", "--format", "{{.Config.Cmd}} {{.Config.Env}}", id); !strings.HasPrefix(got, "[/hello] ") || !strings.Contains(got, "A=b") {
		t.Errorf("podman reads the config as %q", got)
	}
	out, err := exec.Command("chroot", podman("image", "mount", id), "/hello").CombinedOutput()
	if err != nil || string(out) != want {
		t.Errorf("it prints %q, not %q: %v", out, want, err)
	}
}
