package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// mtime is that of all files of the lower tree of these tests.
const mtime = 1_600_000_000

// image is the lower tree of these tests.
func image(t *testing.T) *overlay.Tree {
	t.Helper()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	dir := func() *index.Node {
		return &index.Node{Mode: unix.S_IFDIR | 0o755, Mtime: mtime, UID: uid, GID: gid}
	}
	data := memory("one")
	data = append(data, make([]byte, 1024-len(data))...)
	copy(data[512:], "two")
	file := func(off int64) *index.Node {
		return &index.Node{
			Mode: unix.S_IFREG | 0o644, Mtime: mtime, UID: uid, GID: gid, Size: 3,
			Extents: []index.Extent{{Len: 3, Off: off, Device: 1}},
		}
	}
	root := dir()
	put(root, "a", dir())
	put(root, "a/one", file(0))
	put(root, "a/two", file(512))
	put(root, "a/deep", dir())
	put(root, "a/deep/one", file(0))
	put(root, "b", file(0))
	put(root, "l", &index.Node{Mode: unix.S_IFLNK | 0o777, Mtime: mtime, UID: uid, GID: gid, Target: []byte("b")})
	linked := file(512)
	put(root, "h1", linked)
	put(root, "h2", linked)
	return merged(t, root, 1, data)
}

// above is an upper directory that is being made.
type above struct {
	t   *testing.T
	dir string
}

func (u above) path(name string) string { return filepath.Join(u.dir, name) }

func (u above) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

func (u above) mkdir(name string) { u.t.Helper(); u.must(os.Mkdir(u.path(name), 0o755)) }

func (u above) write(name, content string) {
	u.t.Helper()
	u.must(os.WriteFile(u.path(name), []byte(content), 0o644))
	u.old(name)
}

// old gives name the times of the image's files.
func (u above) old(name string) {
	u.t.Helper()
	ts := []unix.Timespec{{Sec: mtime}, {Sec: mtime}}
	u.must(unix.UtimesNanoAt(unix.AT_FDCWD, u.path(name), ts, unix.AT_SYMLINK_NOFOLLOW))
}

// mark sets one of overlayfs's xattrs.
func (u above) mark(name, xattr, value string) {
	u.t.Helper()
	u.must(unix.Lsetxattr(u.path(name), "user.overlay."+xattr, []byte(value), 0))
}

// whiteout hides name as overlayfs does where it cannot make devices.
func (u above) whiteout(name string) {
	u.t.Helper()
	u.write(name, "")
	u.mark(name, "whiteout", "y")
	if dir := filepath.Dir(name); !hasXattr(u.path(dir), "user.overlay.opaque") {
		u.mark(dir, "opaque", "x")
	}
}

func hasXattr(path, name string) bool {
	_, err := unix.Lgetxattr(path, name, nil)
	return err == nil
}

// seen returns the changes as text, one for each: kind and path; then = for what
// is unchanged, opq, (covered), the contents, and -> the link or target.
func seen(t *testing.T, dir string, lower *overlay.Tree) []string {
	t.Helper()
	var got []string
	err := overlay.Changes(context.Background(), overlay.Upper{Dir: dir, UserXattr: true}, lower, func(c *overlay.Change) error {
		s := string(c.Kind) + " " + c.Path
		if c.Attr.Mode&unix.S_IFMT == unix.S_IFDIR {
			s += "/"
		}
		if c.Unchanged {
			s += " ="
		}
		if c.Opaque {
			s += " opq"
		}
		if c.Covered {
			s += " covered"
		}
		if c.Target+c.Link != "" {
			s += " -> " + c.Target + c.Link
		}
		if c.Kind != overlay.Deleted && c.Attr.Mode&unix.S_IFMT == unix.S_IFREG {
			r, err := c.Open(context.Background())
			if err != nil {
				return err
			}
			b, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close()); err != nil {
				return err
			}
			s += fmt.Sprintf(" %q", b)
		}
		for _, x := range c.Xattrs {
			s += fmt.Sprintf(" %s=%s", x.Name, x.Value)
		}
		got = append(got, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestChanges(t *testing.T) {
	lower := image(t)
	for _, c := range []struct {
		name string
		make func(u above)
		want []string
	}{
		{"nothing", func(above) {}, nil},
		{"added", func(u above) {
			u.mkdir("new")
			u.write("new/file", "new")
			u.must(os.Symlink("file", u.path("new/link")))
		}, []string{"A new/", `A new/file "new"`, "A new/link -> file"}},
		{"changed and changed back", func(u above) {
			u.write("b", "ONE")
			u.mkdir("a")
			u.write("a/one", "one") // as it was
			u.write("a/two", "two")
			u.must(os.Chmod(u.path("a/two"), 0o600))
		}, []string{"C a/", `C a/two "two"`, `C b "ONE"`}},
		{"parent unchanged", func(u above) {
			u.mkdir("a")
			u.write("a/new", "x")
			u.old("a")
		}, []string{"C a/ =", `A a/new "x"`}},
		{"xattrs", func(u above) {
			u.write("b", "one")
			u.must(unix.Lsetxattr(u.path("b"), "user.k", []byte("v"), 0))
			u.mark("b", "origin", "somewhere")
		}, []string{`C b "one" user.k=v`}},
		{"deleted", func(u above) {
			u.whiteout("b")
			u.whiteout("nothing")
			u.mkdir("a")
			u.whiteout("a/deep")
			u.old("a")
		}, []string{"C a/ =", "D a/deep/", "D b"}},
		{"an empty file is no whiteout", func(u above) { u.write("b", "") }, []string{`C b ""`}},
		{"type changed", func(u above) {
			u.mkdir("b")
			u.write("b/in", "x")
			u.write("a", "y")
		}, []string{`C a "y"`, "C b/", `A b/in "x"`}},
		{"made again", func(u above) {
			u.mkdir("a")
			u.mark("a", "opaque", "y")
			u.write("a/two", "two")
		}, []string{"C a/ opq", "D a/deep/ covered", "D a/one covered", `C a/two "two"`}},
		{"directory renamed", func(u above) {
			u.whiteout("a")
			u.mkdir("z")
			u.mark("z", "redirect", "a")
			u.write("z/three", "3")
			u.whiteout("z/one")
			u.mark("z", "opaque", "x")
		}, []string{"D a/", "A z/", "A z/deep/", `A z/deep/one "one"`, `A z/three "3"`, `A z/two "two"`}},
		{"renamed over another, and out of a directory", func(u above) {
			u.mkdir("a")
			u.mark("a", "redirect", "/a/deep")
		}, []string{"C a/ opq", "D a/deep/ covered", `C a/one "one"`, "D a/two covered"}},
		{"renamed away and back beneath a directory made again", func(u above) {
			u.mkdir("a")
			u.mark("a", "opaque", "y")
			u.mkdir("a/deep")
			u.mark("a/deep", "redirect", "/a/deep")
		}, []string{"C a/ opq", "C a/deep/", `C a/deep/one "one"`, "D a/one covered", "D a/two covered"}},
		{"only attributes copied up", func(u above) {
			u.write("b", "\x00\x00\x00")
			u.must(os.Chmod(u.path("b"), 0o600))
			u.mark("b", "metacopy", "")
			u.mkdir("a")
			u.write("a/moved", "\x00\x00\x00")
			u.mark("a/moved", "metacopy", "")
			u.mark("a/moved", "redirect", "/h1")
			u.old("a")
		}, []string{"C a/ =", `A a/moved "two"`, `C b "one"`}},
		{"names of one file", func(u above) {
			u.write("b", "one")
			u.must(os.Link(u.path("b"), u.path("k")))
		}, []string{`C b "one"`, `A k -> b "one"`}},
		{"one of two names copied up", func(u above) { u.write("h1", "two") }, []string{`C h1 "two"`}},
		{"the whole image replaced", func(u above) {
			u.mark(".", "opaque", "y")
			u.write("b", "one")
		}, []string{"D a/ covered", `C b "one"`, "D h1 covered", "D h2 covered", "D l covered -> b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := above{t, t.TempDir()}
			u.must(os.Chmod(u.dir, 0o755))
			c.make(u)
			u.old(".")
			got := seen(t, u.dir, lower)
			if len(got) == 0 || !strings.HasPrefix(got[0], "C ./") {
				t.Fatalf("the root is not told of first: %q", got)
			}
			if !slices.Equal(got[1:], c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got[1:], "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

func TestChangesFail(t *testing.T) {
	lower := image(t)
	gone := errors.New("the consumer has gone")
	for _, c := range []struct {
		name string
		make func(u above)
		fn   error
		want error
	}{
		{"redirect to nothing", func(u above) { u.mkdir("z"); u.mark("z", "redirect", "/nothing/here") }, nil, overlay.ErrUpper},
		{"redirect through a file", func(u above) { u.mkdir("z"); u.mark("z", "redirect", "/b/x") }, nil, overlay.ErrUpper},
		{"redirect out of the image", func(u above) { u.mkdir("z"); u.mark("z", "redirect", "/../a") }, nil, overlay.ErrUpper},
		{"redirect to a relative path", func(u above) { u.mkdir("z"); u.mark("z", "redirect", "a/deep") }, nil, overlay.ErrUpper},
		{"no data", func(u above) { u.write("z", "x"); u.mark("z", "metacopy", "") }, nil, overlay.ErrUpper},
		{"data of a directory", func(u above) { u.write("a", "x"); u.mark("a", "metacopy", "") }, nil, overlay.ErrUpper},
		{"the function's error", func(u above) { u.write("z", "x") }, gone, gone},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := above{t, t.TempDir()}
			c.make(u)
			err := overlay.Changes(context.Background(), overlay.Upper{Dir: u.dir, UserXattr: true}, lower, func(ch *overlay.Change) error {
				if ch.Path == "." {
					return nil
				}
				return c.fn
			})
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		u := above{t, t.TempDir()}
		u.write("z", "x")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := overlay.Changes(ctx, overlay.Upper{Dir: u.dir}, lower, func(*overlay.Change) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no such directory", func(t *testing.T) {
		err := overlay.Changes(context.Background(), overlay.Upper{Dir: t.TempDir() + "/none"}, lower, nil)
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
}

// TestChangesOrphan: a link that a server keeps of what was unlinked is no name. The
// file has not changed, and is not told of as if it had several names.
func TestChangesOrphan(t *testing.T) {
	u, lower := above{t, t.TempDir()}, image(t)
	orphans := t.TempDir()
	u.write("b", "one")
	var st unix.Stat_t
	u.must(unix.Lstat(u.path("b"), &st))
	u.must(os.Link(u.path("b"), filepath.Join(orphans, overlay.OrphanName(st.Ino))))
	for dir, told := range map[string]bool{"": true, filepath.Join(orphans, "none"): true, t.TempDir(): true, orphans: false} {
		got := false
		err := overlay.Changes(context.Background(), overlay.Upper{Dir: u.dir, UserXattr: true, Orphans: dir}, lower, func(c *overlay.Change) error {
			got = got || c.Path == "b"
			return nil
		})
		if err != nil || got != told {
			t.Errorf("orphans in %q: told of the file: %v, %v", dir, got, err)
		}
	}
}
