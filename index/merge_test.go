package index_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/laminafs/lamina/index"
)

// model is a merged tree as a map of paths, "" the root: slow and plain.
type model map[string]*index.Node

func (m model) drop(path string, itself bool) {
	for p := range m {
		if itself && p == path || strings.HasPrefix(p, path+"/") {
			delete(m, p)
		}
	}
}

// find walks path component by component; there are no symlinks.
func (m model) find(path string) *index.Node {
	at := ""
	parts := strings.Split(strings.TrimRight(path, "/"), "/")
	for _, c := range parts[:len(parts)-1] {
		switch c {
		case "", ".":
		case "..":
			at = at[:max(strings.LastIndexByte(at, '/'), 0)]
		default:
			at += "/" + c
		}
		if n := m[at]; n == nil || !n.IsDir() {
			return nil
		}
	}
	if n := m[at+"/"+parts[len(parts)-1]]; n != nil && !n.IsDir() {
		return n
	}
	return nil
}

func isWhiteout(n *index.Node) bool { return n.Mode&0o170000 == sChar && n.Rdev == 0 }

// hollow: an implicit directory in which the layer has nothing.
func hollow(n *index.Node) bool {
	if !n.IsDir() || n.Flags&index.Implicit == 0 {
		return false
	}
	for _, c := range n.Children() {
		if !isWhiteout(c) && !hollow(c) {
			return false
		}
	}
	return true
}

func isOpaque(n *index.Node) bool {
	return n.IsDir() && slices.ContainsFunc(n.Xattrs, func(x index.Xattr) bool {
		return x.Name == "trusted.overlay.opaque" && string(x.Value) == "y"
	})
}

// paths lists a layer's entries, parents first.
func paths(root *index.Node) (list []string, nodes map[string]*index.Node) {
	nodes = map[string]*index.Node{}
	var walk func(string, *index.Node)
	walk = func(p string, n *index.Node) {
		list = append(list, p)
		nodes[p] = n
		for name, c := range n.Children() {
			walk(p+"/"+name, c)
		}
	}
	walk("", root)
	return list, nodes
}

func (m model) apply(layer *index.Tree, device uint16) {
	list, nodes := paths(layer.Root)
	links := map[*index.Node]*index.Node{} // resolved below
	for _, n := range nodes {
		if n.Flags&index.HardLink != 0 {
			links[n] = m.find(string(n.Target))
		}
	}
	for _, p := range list {
		if isOpaque(nodes[p]) {
			m.drop(p, false)
		}
		if isWhiteout(nodes[p]) {
			m.drop(p, true)
		}
	}
	copies := map[*index.Node]*index.Node{}
	for _, p := range list {
		n := nodes[p]
		if isWhiteout(n) || p != "" && hollow(n) {
			continue
		}
		if n.IsDir() && m[p] != nil && m[p].IsDir() {
			if n.Flags&index.Implicit == 0 {
				m[p] = plain(n, device)
			}
			continue
		}
		m.drop(p, true)
		switch {
		case links[n] != nil:
			m[p] = links[n]
		case n.Flags&index.HardLink != 0:
			m[p] = n // marked by its flag
		default:
			if copies[n] == nil {
				copies[n] = plain(n, device)
			}
			m[p] = copies[n]
		}
	}
	for again := true; again; {
		again = false
		for p, n := range m {
			if n.Flags&index.HardLink == 0 {
				continue
			}
			if t := m.find(string(n.Target)); t != nil && t.Flags&index.HardLink == 0 {
				m[p], again = t, true
			}
		}
	}
	maps.DeleteFunc(m, func(_ string, n *index.Node) bool { return n.Flags&index.HardLink != 0 })
}

// plain copies what a merged node keeps of n.
func plain(n *index.Node, device uint16) *index.Node {
	c := &index.Node{
		Mode: n.Mode, UID: n.UID, GID: n.GID, Rdev: n.Rdev, Mtime: n.Mtime, MtimeNsec: n.MtimeNsec,
		Size: n.Size, Target: n.Target, Extents: slices.Clone(n.Extents),
	}
	for i := range c.Extents {
		c.Extents[i].Device = device
	}
	for _, x := range n.Xattrs {
		if !strings.HasPrefix(x.Name, "trusted.overlay.") {
			c.Xattrs = append(c.Xattrs, x)
		}
	}
	return c
}

func (m model) tree() *index.Tree {
	t := &index.Tree{Root: m[""]}
	for _, p := range slices.Sorted(maps.Keys(m)) {
		if p != "" {
			i := strings.LastIndexByte(p, '/')
			m[p[:i]].SetChild(p[i+1:], m[p])
		}
	}
	return t
}

func TestMergeModel(t *testing.T) {
	left := 0
	for seed := range uint64(400) {
		g := newGen(seed)
		g.layer, g.noLinks = true, true
		m := model{}
		var layers []*index.Index
		for i := range 1 + g.IntN(6) {
			g.files = nil
			tree := g.tree(1 + g.IntN(60))
			layers = append(layers, encode(t, tree))
			m.apply(tree, uint16(i+1))
		}
		got, err := index.Merge(layers)
		if err != nil {
			t.Fatal(err)
		}
		left += len(got.Warnings)
		want := m.tree()
		compare(t, describe(got), describe(want))
		x := encode(t, got)
		checkReaders(t, x, got)
		if t.Failed() {
			t.Fatalf("seed %d, %d layers", seed, len(layers))
		}
	}
	if left == 0 {
		t.Error("no hard link led nowhere: the generator is too tame")
	}
}

// parse makes a tree of lines "path kind [argument]".
func parse(t *testing.T, text string) *index.Tree {
	t.Helper()
	tree := &index.Tree{Root: &index.Node{Mode: sDir | 0o755, Flags: index.Implicit}, Devices: []index.Device{{}}}
	byPath := map[string]*index.Node{"": tree.Root}
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		f := append(strings.Fields(line), "", "", "")
		path, arg := f[0], f[2]
		if path == "" {
			continue
		}
		n := &index.Node{Mode: sReg | 0o644}
		switch f[1] {
		case "file":
			n.UID = uint32(len(arg))
		case "dir":
			n.Mode = sDir | 0o700
		case "implicit":
			n.Mode, n.Flags = sDir|0o755, index.Implicit
		case "opaque":
			n.Mode, n.Xattrs = sDir|0o711, []index.Xattr{{Name: "trusted.overlay.opaque", Value: []byte("y")}}
		case "symlink":
			n.Mode, n.Target = sLink|0o777, []byte(arg)
		case "whiteout":
			n.Mode = sChar
		case "link":
			n.Flags, n.Target = index.HardLink, []byte(arg)
		case "same":
			n = byPath[arg]
		default:
			t.Fatalf("line %q", line)
		}
		i := strings.LastIndexByte(path, '/')
		byPath[path[:max(i, 0)]].SetChild(path[i+1:], n)
		byPath[path] = n
	}
	return tree
}

// render is the inverse of parse, for merged trees.
func render(t *index.Tree) string {
	var lines []string
	first := map[*index.Node]string{}
	var walk func(string, *index.Node)
	walk = func(dir string, n *index.Node) {
		for name, c := range n.Children() {
			p := strings.TrimPrefix(dir+"/"+name, "/")
			s := map[uint32]string{sDir | 0o755: "implicit", sDir | 0o700: "dir", sDir | 0o711: "opaque"}[c.Mode]
			switch {
			case first[c] != "":
				s = "same " + first[c]
			case c.Mode>>12 == 10:
				s = "symlink " + string(c.Target)
			case c.Mode>>12 == 8:
				s = strings.TrimSpace("file " + strings.Repeat("x", int(c.UID)))
			case !c.IsDir():
				s = fmt.Sprintf("mode %o", c.Mode)
			}
			if first[c] = p; c.Flags != 0 || len(c.Xattrs) != 0 {
				s += " marked"
			}
			lines = append(lines, p+" "+s)
			walk(p, c)
		}
	}
	walk("", t.Root)
	return strings.Join(lines, "\n")
}

func TestMerge(t *testing.T) {
	tests := []struct {
		name     string
		layers   []string
		want     string
		warnings int
	}{
		{"nothing", nil, "", 0},
		{"whiteout of nothing", []string{"a file", "b whiteout\nd implicit\nd/e implicit\nd/e/f whiteout"}, "a file", 0},
		{"whiteout in the lowest layer", []string{"a whiteout\nb file"}, "b file", 0},
		{"whiteout of a directory", []string{"d dir\nd/e dir\nd/e/f file", "d whiteout"}, "", 0},
		{"whiteout and again", []string{"d dir\nd/f file", "d whiteout", "d implicit\nd/g file"}, "d implicit\nd/g file", 0},
		{"whiteouts in an unnamed directory", []string{"d dir\nd/f file\nd/g file", "d implicit\nd/f whiteout"}, "d dir\nd/g file", 0},
		{"whiteout below a file", []string{"d file", "d implicit\nd/f whiteout"}, "d file", 0},
		{"opaque", []string{"d dir\nd/f file\nd/s dir\nd/s/x file", "d opaque\nd/g file"}, "d opaque\nd/g file", 0},
		{"opaque, then more", []string{"d dir\nd/f file", "d opaque\nd/g file", "d dir\nd/h file"}, "d dir\nd/g file\nd/h file", 0},
		{"implicit keeps attributes", []string{"d dir", "d implicit\nd/f file"}, "d dir\nd/f file", 0},
		{"explicit over implicit", []string{"d implicit\nd/f file", "d dir"}, "d dir\nd/f file", 0},
		{"file on directory", []string{"d dir\nd/f file", "d file xx"}, "d file xx", 0},
		{"directory on file", []string{"d file xx", "d dir\nd/f file"}, "d dir\nd/f file", 0},
		{"directory on symlink", []string{"l symlink d\nd dir\nd/f file", "l dir\nl/g file"}, "d dir\nd/f file\nl dir\nl/g file", 0},
		{
			"through a symlink",
			[]string{"lib symlink usr/lib\nusr dir\nusr/lib dir\nusr/lib/a file", "lib implicit\nlib/a whiteout\nlib/b file"},
			"lib symlink usr/lib\nusr dir\nusr/lib dir\nusr/lib/b file", 0,
		},
		{
			"through a symlink up",
			[]string{"a dir\na/l symlink ../../../b/./c\nb dir\nb/c dir", "a implicit\na/l implicit\na/l/x file"},
			"a dir\na/l symlink ../../../b/./c\nb dir\nb/c dir\nb/c/x file", 0,
		},
		{"through symlinks in a row", []string{"l symlink /m\nm symlink n\nn dir", "l implicit\nl/x file"}, "l symlink /m\nm symlink n\nn dir\nn/x file", 0},
		{"through a symlink to nothing", []string{"l symlink a/b", "l implicit\nl/x file"}, "a implicit\na/b implicit\na/b/x file\nl symlink a/b", 0},
		{"whiteout through a symlink to nothing", []string{"l symlink a/b", "l implicit\nl/x whiteout"}, "l symlink a/b", 0},
		{"symlink to a file", []string{"l symlink f\nf file", "l implicit\nl/x file"}, "f file\nl implicit\nl/x file", 0},
		{"symlink to itself", []string{"l symlink l", "l implicit\nl/x file"}, "l implicit\nl/x file", 0},
		{"symlink to where it is", []string{"l symlink .", "l implicit\nl/x file\nl/l implicit\nl/l/y file"}, "l symlink .\nx file\ny file", 0},
		{"link inside a layer survives", []string{"a file\nb same a", "a whiteout"}, "b file", 0},
		{"link replaced", []string{"a file x\nb same a", "a file xxx"}, "a file xxx\nb file x", 0},
		{"link to below", []string{"d dir\nd/a file x", "b link d/a\nc link /d/../d/./a"}, "b file x\nc same b\nd dir\nd/a same c", 0},
		{"link to what the layer hides", []string{"a file x", "a whiteout\nb link a"}, "b file x", 0},
		{"link to what the layer replaces", []string{"a file x", "a file xx\nb link a"}, "a file xx\nb file x", 0},
		{"link within", []string{"", "a file x\nd dir\nd/b link a"}, "a file x\nd dir\nd/b same a", 0},
		{"link chain", []string{"", "a link b\nb link c\nc link d\nd file x"}, "a file x\nb same a\nc same b\nd same c", 0},
		{"link circle", []string{"", "a link b\nb link a\nc link c"}, "", 3},
		{"link to nothing", []string{"b file", "a link nothing\nb link x/y"}, "", 2},
		{"link to a directory", []string{"d dir", "a link d"}, "d dir", 1},
		{"link to a symlink", []string{"s symlink nowhere", "a link s"}, "a symlink nowhere\ns same a", 0},
		{
			"link through a symlink",
			[]string{"lib symlink usr/lib\nusr dir\nusr/lib dir\nusr/lib/a file x", "b link lib/a"},
			"b file x\nlib symlink usr/lib\nusr dir\nusr/lib dir\nusr/lib/a same b", 0,
		},
		{"link out of the tree", []string{"a file x", "b link ../../../../a\nc link /.."}, "a file x\nb same a", 1},
		{"link in a directory that moves", []string{"l symlink d\nd dir", "l implicit\nl/a file x\nl/b link d/a"}, "d dir\nd/a file x\nd/b same d/a\nl symlink d", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var layers []*index.Index
			for _, l := range test.layers {
				layers = append(layers, encode(t, parse(t, l)))
			}
			tree, err := index.Merge(layers)
			if err != nil {
				t.Fatal(err)
			}
			if got := render(tree); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
			if len(tree.Warnings) != test.warnings {
				t.Errorf("warnings: %q", tree.Warnings)
			}
			checkReaders(t, encode(t, tree), tree)
			if len(tree.Devices) != len(layers) {
				t.Errorf("devices: %v", tree.Devices)
			}
		})
	}
}
