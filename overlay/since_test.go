package overlay_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// committed is what was made of image once: new/file was added, b and a/deep were
// deleted, a/one has another mode.
func committed(t *testing.T) overlay.Base {
	t.Helper()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	dir := func() *index.Node {
		return &index.Node{Mode: unix.S_IFDIR | 0o755, Mtime: mtime, UID: uid, GID: gid}
	}
	file := func(off int64, mode uint32) *index.Node {
		return &index.Node{
			Mode: unix.S_IFREG | mode, Mtime: mtime, UID: uid, GID: gid, Size: 3,
			Extents: []index.Extent{{Len: 3, Off: off, Device: 1}},
		}
	}
	white := &index.Node{Mode: unix.S_IFCHR}
	top := dir()
	put(top, "new", dir())
	put(top, "new/file", file(512, 0o644))
	put(top, "b", white)
	put(top, "a", dir())
	put(top, "a/deep", white)
	put(top, "a/one", file(0, 0o600))
	b, err := (&index.Tree{Root: top, Devices: []index.Device{{Size: 1024}}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}

	data := append(memory("one"), make([]byte, 1021)...)
	copy(data[512:], "two")
	return overlay.Base{Lower: image(t), Layers: []*overlay.Tree{overlay.New(x, []overlay.Data{data})}}
}

func TestChangesSince(t *testing.T) {
	lower, base := image(t), committed(t)
	// as it was when base was made of it
	then := func(u above) {
		u.mkdir("new")
		u.write("new/file", "two")
		u.mkdir("a")
		u.write("a/one", "one")
		u.must(os.Chmod(u.path("a/one"), 0o600))
		u.whiteout("a/deep")
		u.whiteout("b")
		u.old("a")
		u.old("new")
	}
	for _, c := range []struct {
		name string
		make func(u above)
		want []string
	}{
		{"nothing", func(above) {}, nil},
		{"added and deleted", func(u above) {
			u.write("new/more", "x")
			u.old("new")
			u.whiteout("a/two")
			u.old("a")
		}, []string{"D a/two", "A new/more"}},
		{"what was added is gone", func(u above) { u.must(os.RemoveAll(u.path("new"))) }, []string{"D new"}},
		{"a part of it", func(u above) {
			u.must(os.Remove(u.path("new/file")))
			u.old("new")
		}, []string{"D new/file"}},
		{"what was deleted is back", func(u above) {
			u.must(os.Remove(u.path("b")))
			u.write("b", "one")
			u.must(os.Remove(u.path("a/deep")))
			u.mkdir("a/deep")
			u.mark("a/deep", "opaque", "y")
			u.old("a")
			u.old("a/deep")
		}, []string{"A a/deep", "A b"}},
		{"what was changed is back as it was in the image", func(u above) {
			u.must(os.Chmod(u.path("a/one"), 0o644))
		}, []string{"C a/one"}},
		{"another kind", func(u above) {
			u.must(os.RemoveAll(u.path("new")))
			u.write("new", "x")
			u.must(os.RemoveAll(u.path("a")))
			u.whiteout("a")
		}, []string{"D a", "C new"}},
		{"made again", func(u above) {
			u.must(os.RemoveAll(u.path("a")))
			u.mkdir("a")
			u.mark("a", "opaque", "y")
			u.write("a/two", "two")
			u.old("a")
		}, []string{"D a/one"}},
		{"renamed", func(u above) {
			u.must(os.Rename(u.path("new"), u.path("old")))
		}, []string{"D new", "A old", "A old/file"}},
		{"a time of less than a second apart", func(u above) {
			ts := []unix.Timespec{{Sec: mtime - 1, Nsec: 600_000_000}, {Sec: mtime - 1, Nsec: 600_000_000}}
			u.must(unix.UtimesNanoAt(unix.AT_FDCWD, u.path("new/file"), ts, 0))
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := above{t, t.TempDir()}
			u.must(os.Chmod(u.dir, 0o755))
			then(u)
			c.make(u)
			u.old(".")
			var got []string
			err := overlay.ChangesSince(context.Background(), overlay.Upper{Dir: u.dir, UserXattr: true}, lower, base, func(c *overlay.Change) error {
				if c.Opaque || c.Covered {
					t.Errorf("%s: opaque or covered", c.Path)
				}
				if !c.Unchanged {
					got = append(got, string(c.Kind)+" "+c.Path)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got, func(a, b string) int { return strings.Compare(a[2:], b[2:]) })
			if !slices.Equal(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
