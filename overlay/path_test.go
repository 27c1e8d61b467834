package overlay_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// put adds n to the tree at path, with folders on the way.
func put(root *index.Node, path string, n *index.Node) {
	names := strings.Split(path, "/")
	for _, name := range names[:len(names)-1] {
		dir := root.Child(name)
		if dir == nil {
			dir = &index.Node{Mode: unix.S_IFDIR | 0o755}
			root.SetChild(name, dir)
		}
		root = dir
	}
	root.SetChild(names[len(names)-1], n)
}

func symlink(target string) *index.Node {
	return &index.Node{Mode: unix.S_IFLNK | 0o777, Size: int64(len(target)), Target: []byte(target)}
}

// merged returns the tree below root over these layers, of whose devices there
// may be more.
func merged(t testing.TB, root *index.Node, devices int, layers ...overlay.Data) *overlay.Tree {
	t.Helper()
	tree := &index.Tree{Root: root}
	for range devices {
		tree.Devices = append(tree.Devices, index.Device{Size: 1 << 30})
	}
	b, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return overlay.New(x, layers)
}

func TestResolve(t *testing.T) {
	root := &index.Node{Mode: unix.S_IFDIR | 0o755}
	// Every file has a size of its own, by which it is recognised.
	for path, size := range map[string]int64{
		"etc/passwd":              1,
		"usr/lib/libc.so.6":       2,
		"usr/lib/x86/libm.so.6":   3,
		"usr/share/doc/a/b/c/end": 4,
		"top":                     5,
	} {
		put(root, path, &index.Node{Mode: unix.S_IFREG | 0o644, Size: size})
	}
	for path, target := range map[string]string{
		"lib":                 "usr/lib",
		"lib64":               "/usr/lib",
		"usr/lib/up":          "../../top",
		"usr/lib/far":         "../../../../../../../top",
		"usr/lib/x86/deep":    "../../../lib/x86/../up",
		"usr/share/libs":      "../lib/x86/",
		"usr/abs":             "/etc/../etc/./passwd",
		"usr/slash":           "/",
		"usr/dot":             ".",
		"gone":                "etc/nothing",
		"through":             "top/x",
		"self":                "self",
		"ping":                "usr/pong",
		"usr/pong":            "../ping",
		"usr/share/doc/a/out": "b/c/end",
		"chain0":              "top",
	} {
		put(root, path, symlink(target))
	}
	for i := range 41 {
		put(root, fmt.Sprintf("chain%d", i+1), symlink(fmt.Sprintf("chain%d", i)))
	}
	tree := merged(t, root, 0)
	isDir := int64(-1)
	for _, c := range []struct {
		path string
		size int64
		err  error
	}{
		{"/etc/passwd", 1, nil},
		{"etc/passwd", 1, nil},
		{"//etc/./passwd", 1, nil},
		{"/usr/lib/libc.so.6", 2, nil},
		{"/lib/libc.so.6", 2, nil},
		{"/lib64/libc.so.6", 2, nil},
		{"/lib64/../lib/x86/libm.so.6", 3, nil}, // of where the link leads
		{"/lib/../etc/passwd", 0, index.ErrNotExist},
		{"/lib/../../etc/passwd", 1, nil},
		{"/usr/lib/up", 5, nil},
		{"/lib/up", 5, nil},
		{"/usr/lib/far", 5, nil},
		{"/usr/lib/x86/deep", 5, nil},
		{"/usr/share/libs/libm.so.6", 3, nil},
		{"/usr/share/libs/../libc.so.6", 2, nil},
		{"/usr/abs", 1, nil},
		{"/usr/slash/top", 5, nil},
		{"/usr/dot/dot/dot/abs", 1, nil},
		{"/usr/share/doc/a/out", 4, nil},
		{"/../../../etc/passwd", 1, nil},
		{"../..", isDir, nil},
		{"/", isDir, nil},
		{"/usr/lib", isDir, nil},
		{"/usr/lib/", isDir, nil},
		{"/lib", isDir, nil},
		{"/usr/slash", isDir, nil},
		{"/nothing", 0, index.ErrNotExist},
		{"/etc/nothing/at/all", 0, index.ErrNotExist},
		{"/gone", 0, index.ErrNotExist},
		{"/gone/x", 0, index.ErrNotExist},
		{"/etc/passwd/x", 0, index.ErrNotDir},
		{"/etc/passwd/..", 0, index.ErrNotDir},
		{"/etc/passwd/", 0, index.ErrNotDir},
		{"/usr/abs/", 0, index.ErrNotDir},
		{"/usr/abs/..", 0, index.ErrNotDir},
		{"/through", 0, index.ErrNotDir},
		{"/self", 0, unix.ELOOP},
		{"/self/x", 0, unix.ELOOP},
		{"/ping", 0, unix.ELOOP},
		{"/usr/pong/..", 0, unix.ELOOP},
		{"/chain39", 5, nil}, // 40 links
		{"/chain40", 0, unix.ELOOP},
		{"/chain30/../lib/up", 0, index.ErrNotDir},
		{"/lib/up", 5, nil},
	} {
		nid, err := tree.Resolve(c.path)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.path, err, c.err)
		}
		if err != nil {
			if !strings.Contains(err.Error(), c.path) {
				t.Errorf("%s: message %q", c.path, err)
			}
			continue
		}
		var a index.Attr
		if err := tree.Attr(nid, &a); err != nil {
			t.Errorf("%s: %v", c.path, err)
		}
		if dir := a.Mode&unix.S_IFMT == unix.S_IFDIR; dir != (c.size == isDir) || !dir && a.Size != c.size {
			t.Errorf("%s: mode %o, size %d, want %d", c.path, a.Mode, a.Size, c.size)
		}
	}
	if nid, err := tree.Resolve("/usr/lib/../../.."); err != nil || nid != tree.Root() {
		t.Errorf("above the root: node %d, %v", nid, err)
	}
}

// FuzzResolve: a path leads to a node of the tree, or nowhere, and that soon.
func FuzzResolve(f *testing.F) {
	for _, s := range []string{"/a/l/../l/f", "../../a//./f/", "a/r/a/r/a/r", "a/\x00", strings.Repeat("a/d/", 50)} {
		f.Add(s, "/a")
	}
	f.Fuzz(func(t *testing.T, path, target string) {
		if target == "" || len(target) > 4095 || strings.Contains(target, "\x00") {
			return
		}
		root := &index.Node{Mode: unix.S_IFDIR | 0o755}
		put(root, "a/f", &index.Node{Mode: unix.S_IFREG, Size: 1})
		put(root, "a/l", symlink(target))
		put(root, "a/r", symlink("/"))
		put(root, "a/d", symlink("../a"))
		tree := merged(t, root, 0)
		nid, err := tree.Resolve(path)
		if err != nil {
			return
		}
		var a index.Attr
		if err := tree.Attr(nid, &a); err != nil || a.Mode&unix.S_IFMT == unix.S_IFLNK {
			t.Errorf("%q: mode %o, %v", path, a.Mode, err)
		}
	})
}

// Data in places that are none is a fault of the index; a file in too many places
// is only one that this does not answer for.
func TestLocateFails(t *testing.T) {
	root := &index.Node{Mode: unix.S_IFDIR | 0o755}
	put(root, "stray", &index.Node{Mode: unix.S_IFREG, Size: 512, Extents: []index.Extent{{Len: 512, Device: 2}}})
	put(root, "here", &index.Node{Mode: unix.S_IFREG, Size: 512, Extents: []index.Extent{{Len: 512, Device: 1}}})
	scattered := &index.Node{Mode: unix.S_IFREG}
	for i := range int64(1100) {
		scattered.Extents = append(scattered.Extents, index.Extent{FileOff: i * 1024, Off: i * 2048, Len: 512, Device: 1})
		scattered.Size = i*1024 + 512
	}
	put(root, "scattered", scattered)
	tree := merged(t, root, 2, nil)
	for path, want := range map[string]error{"stray": index.ErrCorrupt, "here": nil, "scattered": unix.EINVAL, "/": unix.EINVAL} {
		if got, err := tree.Locate(path); !errors.Is(err, want) || err != nil && errors.Is(err, unix.EINVAL) != (want == unix.EINVAL) {
			t.Errorf("%s: %v, %v", path, got, err)
		}
	}
}
