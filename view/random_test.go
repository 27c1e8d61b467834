package view_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/view"
)

// gen makes random layers whose nodes have the layer's number as owner, by which
// the merged tree says where they come from.
type gen struct {
	*rand.Rand
	owner uint32
	links bool // with symlinks and hard links
	files []*index.Node
	layer *layer
}

func (g *gen) name() string { return string(rune('a' + g.IntN(5))) }

func (g *gen) path() string {
	parts := make([]string, 1+g.IntN(3))
	for i := range parts {
		if parts[i] = g.name(); g.IntN(6) == 0 {
			parts[i] = ".."
		}
	}
	p := strings.Join(parts, "/")
	if g.IntN(3) == 0 {
		p = "/" + p
	}
	return p
}

func (g *gen) node() *index.Node {
	n := &index.Node{Mode: 0o644, UID: g.owner, Mtime: g.Int64N(1e9)}
	switch k := g.IntN(14); {
	case k < 2:
		n.Mode = syscall.S_IFCHR
	case k < 7:
		n.Mode |= syscall.S_IFDIR
		if g.IntN(2) == 0 {
			n.Flags = index.Implicit
		}
		if g.IntN(8) == 0 {
			opaque(n)
		}
	case k < 9 && g.links:
		n.Mode |= syscall.S_IFLNK
		n.Target = []byte(g.path())
	case k < 10 && g.links:
		n.Mode |= syscall.S_IFREG
		n.Flags = index.HardLink
		n.Target = []byte(g.path())
	case k < 11 && len(g.files) > 0:
		return g.files[g.IntN(len(g.files))]
	default:
		n.Mode |= syscall.S_IFREG
		if n.Size = g.Int64N(2000); n.Size > 0 {
			n.Extents = []index.Extent{{Len: n.Size, Off: g.layer.add(strings.Repeat("x", int(n.Size))), Device: 1}}
		}
		g.files = append(g.files, n)
	}
	return n
}

func randomLayer(r *rand.Rand, number int, links bool) *layer {
	g := &gen{Rand: r, owner: uint32(number), links: links, layer: newLayer()}
	g.layer.root.UID = g.owner
	if r.IntN(2) == 0 {
		g.layer.root.Flags = 0
	}
	dirs := []*index.Node{g.layer.root}
	for range 1 + r.IntN(30) {
		dir, name := dirs[r.IntN(len(dirs))], g.name()
		if dir.Child(name) != nil {
			continue
		}
		n := g.node()
		dir.SetChild(name, n)
		if n.IsDir() {
			dirs = append(dirs, n)
		}
	}
	return g.layer
}

// TestOriginsAgreeWithMerge: every entry of the merged tree is found in the layer
// that its owner names, and what the tree lacks is found in none.
func TestOriginsAgreeWithMerge(t *testing.T) {
	through := 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 4))
		var layers []*layer
		for i := range 1 + r.IntN(5) {
			layers = append(layers, randomLayer(r, i, true))
		}
		m := stack(t, layers...)
		paths := map[string]bool{}
		for f, err := range m.Find(t.Context(), "/", view.Query{}) {
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			paths[f.Path] = true
			if f.Content != int(f.UID) {
				t.Errorf("seed %d: %s is of layer %d, Find says %d", seed, f.Path, f.UID, f.Content)
			}
			w, err := m.Which(f.Path)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if w.Layer.Number != f.Layer || w.Path != f.Path {
				t.Errorf("seed %d: %s is of layer %d for Find, %s of %d for Which", seed, f.Path, f.Layer, w.Path, w.Layer.Number)
			}
			if x := m.Layers[f.Layer].Index; missing(x, f.Path) {
				through++
			}
		}
		for range 30 {
			p := "/" + strings.TrimLeft(strings.ReplaceAll(strings.Repeat(fmt.Sprintf("%c/", 'a'+r.IntN(5)), 1+r.IntN(2))+string(rune('a'+r.IntN(5))), "..", "a"), "/")
			w, err := m.Which(p)
			if errors.Is(err, index.ErrCorrupt) || err == nil && w.Entry != nil && !paths[w.Path] {
				t.Errorf("seed %d: %s: %v", seed, p, err)
			}
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	if through == 0 {
		t.Error("no entry came by way of a link: the generator is too tame")
	}
}

// missing reports whether the layer's own tree has no such path.
func missing(x *index.Index, path string) bool {
	nid := x.Root()
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if name == "" {
			break
		}
		var err error
		if nid, err = x.Lookup(nid, name); err != nil {
			return true
		}
	}
	return false
}

// model is a merged tree as a map: slow and plain, and without links.
type model map[string]modelEntry

type modelEntry struct {
	node  *index.Node
	layer int
	dirs  []int
}

func (m model) drop(path string, itself bool) {
	maps.DeleteFunc(m, func(p string, _ modelEntry) bool {
		return itself && p == path || strings.HasPrefix(p, path+"/")
	})
}

func isWhiteout(n *index.Node) bool { return n.Mode == syscall.S_IFCHR }

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

func isOpaque(n *index.Node) bool { return len(n.Xattrs) > 0 }

func (m model) apply(path string, n *index.Node, layer int) {
	switch at, there := m[path]; {
	case isWhiteout(n):
		m.drop(path, true)
		return
	case n.IsDir() && there && at.node.IsDir():
		if n.Flags&index.Implicit == 0 {
			at.node, at.layer = n, layer
		}
		at.dirs = append(at.dirs, layer)
		m[path] = at
	case path != "" && hollow(n):
		return
	default:
		m.drop(path, true)
		m[path] = modelEntry{n, layer, []int{layer}}
	}
	if isOpaque(n) {
		m.drop(path, false)
	}
	for name, c := range n.Children() {
		m.apply(path+"/"+name, c, layer)
	}
}

// TestModel holds Which and LayerStats against the model.
func TestModel(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 5))
		want := model{}
		var layers []*layer
		for i := range 1 + r.IntN(5) {
			l := randomLayer(r, i, false)
			layers = append(layers, l)
			want.apply("", l.root, i)
		}
		m := stack(t, layers...)
		checkModel(t, m, layers, want)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func checkModel(t *testing.T, m *view.Image, layers []*layer, want model) {
	t.Helper()
	got := 0
	for e, err := range m.List("/", view.ListOptions{Recursive: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got++
		if _, ok := want[e.Path]; !ok {
			t.Errorf("%s should not be there", e.Path)
		}
	}
	if got != len(want)-1 {
		t.Errorf("%d entries, want %d", got, len(want)-1)
	}
	for p, e := range want {
		w, err := m.Which("/" + p)
		if err != nil {
			t.Fatal(err)
		}
		if w.Layer.Number != e.layer {
			t.Errorf("%s: layer %d, want %d", p, w.Layer.Number, e.layer)
		}
		var dirs []int
		for _, l := range w.Layers {
			dirs = append(dirs, l.Number)
		}
		if e.node.IsDir() && fmt.Sprint(dirs) != fmt.Sprint(e.dirs) {
			t.Errorf("%s: in layers %v, want %v", p, dirs, e.dirs)
		}
	}
	stats, err := m.LayerStats()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		all, files := nodeBytes(l.root, map[*index.Node]bool{})
		var used int64
		seen := map[*index.Node]bool{}
		for _, e := range want {
			if e.layer == i && !e.node.IsDir() && !seen[e.node] {
				seen[e.node] = true
				used += e.node.Size
			}
		}
		if s := stats[i]; s.Bytes != all || s.Files != files || s.Wasted != all-used || s.Number != i {
			t.Errorf("layer %d: %+v, want %d files, %d bytes, %d wasted", i, s, files, all, all-used)
		}
	}
}

// nodeBytes counts the files below n.
func nodeBytes(n *index.Node, seen map[*index.Node]bool) (size int64, files int) {
	for _, c := range n.Children() {
		switch {
		case c.IsDir():
			s, f := nodeBytes(c, seen)
			size, files = size+s, files+f
		case c.Mode&syscall.S_IFMT == syscall.S_IFREG && !seen[c]:
			seen[c] = true
			size, files = size+c.Size, files+1
		}
	}
	return size, files
}
