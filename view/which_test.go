package view_test

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/view"
)

// layered is an image of four layers that do all that layers do to one another.
func layered(t testing.TB) *view.Image {
	t.Helper()
	base := newLayer()
	base.root.Flags = 0
	base.dir("/etc", 0o755)
	base.file("/etc/os-release", 0o644, "old")
	base.file("/etc/gone", 0o644, strings.Repeat("g", 1000))
	base.file("/etc/kept", 0o644, "kept")
	base.dir("/usr/lib", 0o755)
	base.link("/lib", "usr/lib")
	base.file("/var/cache/a", 0o644, strings.Repeat("a", 5000))
	base.file("/var/cache/b/c", 0o644, "c")
	base.dir("/opt/tool", 0o755)
	base.file("/opt/tool/x", 0o644, "x")

	second := newLayer()
	second.dir("/etc", 0o700)
	second.file("/etc/os-release", 0o644, "newer")
	second.file("/lib/libc.so", 0o755, "libc") // /lib is not named: it is in /usr/lib
	opaque(second.dir("/var/cache", 0o755))
	second.file("/var/cache/n", 0o644, "n")

	third := newLayer()
	third.whiteout("/etc/gone")
	third.hardLink("/etc/again", "/etc/kept")
	third.file("/etc/os-release", 0o644, "new")
	third.file("/opt/tool", 0o755, "#!")

	top := newLayer()
	top.file("/etc/gone/not", 0o644, "")
	top.whiteout("/usr/lib/libc.so")
	return stack(t, base, second, third, top)
}

func hidden(w *view.Provenance) string {
	var list []string
	for _, h := range w.Hidden {
		list = append(list, fmt.Sprintf("%d:%s:%d:%s:%d", h.Layer.Number, h.Type, h.Size, h.How, h.By.Number))
	}
	return strings.Join(list, " ")
}

func TestWhich(t *testing.T) {
	m := layered(t)
	for _, c := range []struct {
		path, at      string
		layer, origin int
		how           view.Hiding
		layers        []int
		hidden        string
	}{
		{path: "/etc/kept", layer: 0, origin: 0},
		{path: "/etc/os-release", layer: 2, origin: 2, hidden: "0:file:3:replaced:1 1:file:5:replaced:2"},
		{path: "/etc", layer: 1, origin: 1, layers: []int{0, 1, 2, 3}},
		{path: "/", layer: 0, origin: 0, layers: []int{0, 1, 2, 3}},
		{path: "/etc/again", layer: 2, origin: 0},
		{path: "/etc/gone", layer: 3, origin: 3, layers: []int{3}, hidden: "0:file:1000:whiteout:2"},
		{path: "/lib", layer: 0, origin: 0},
		{path: "/lib/libc.so", at: "/usr/lib/libc.so", layer: 3, how: view.Whiteout, hidden: "1:file:4:whiteout:3"},
		{path: "/usr/lib", layer: 0, origin: 0, layers: []int{0, 1, 3}},
		{path: "/var/cache/a", layer: 1, how: view.Opaque, hidden: "0:file:5000:opaque:1"},
		{path: "/var/cache/b/c", layer: 1, how: view.Opaque, hidden: "0:file:1:opaque:1"},
		{path: "/var/cache/n", layer: 1, origin: 1},
		{path: "/opt/tool", layer: 2, origin: 2, hidden: "0:directory:0:replaced:2"},
		{path: "/opt/tool/x", layer: 2, how: view.Replaced, hidden: "0:file:1:replaced:2"},
		{path: "/var/../etc/kept", at: "/etc/kept", layer: 0, origin: 0},
	} {
		w, err := m.Which(c.path)
		if err != nil {
			t.Error(err)
			continue
		}
		if c.at == "" {
			c.at = c.path
		}
		content := w.Layer.Number
		if w.Content != nil {
			content = w.Content.Number
		}
		var layers []int
		for _, l := range w.Layers {
			layers = append(layers, l.Number)
		}
		got := hidden(w)
		if w.Path != c.at || w.Layer.Number != c.layer || c.how == "" && content != c.origin ||
			w.How != c.how || (w.Entry == nil) != (c.how != "") || !slices.Equal(layers, c.layers) || got != c.hidden {
			t.Errorf("which %s: %+v\nlayers %v hidden %s", c.path, w, layers, got)
		}
		if h := fmt.Sprint("RUN ", c.layer); w.Layer.CreatedBy != h || w.Layer.DiffID != m.Layers[c.layer].DiffID {
			t.Errorf("which %s: %+v, want %s", c.path, w.Layer, h)
		}
	}
	for path, text := range map[string]string{
		"/none": "no layer", "/etc/none/x": "no layer", "/etc/kept/x": "no layer", "/none/../etc": "",
	} {
		if _, err := m.Which(path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), text) {
			t.Errorf("which %s: %v", path, err)
		}
	}
}

func TestLinkToNothing(t *testing.T) {
	l := newLayer()
	l.file("a", 0o644, "a")
	up := newLayer()
	up.hardLink("a", "/none")
	if _, err := stack(t, l, up).Which("/a"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "hard link") {
		t.Error(err)
	}
}

func TestLayerStats(t *testing.T) {
	stats, err := layered(t).LayerStats()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range stats {
		got = append(got, strings.TrimSpace(fmt.Sprintln(s.Number, s.Entries, s.Files, s.Whiteouts, s.Bytes, s.Wasted, s.CreatedBy)))
	}
	want := []string{
		"0 15 6 0 6009 6005 RUN 0", "1 7 3 0 10 9 RUN 1", "2 5 2 1 5 0 RUN 2", "3 5 1 1 0 0 RUN 3",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestFind(t *testing.T) {
	m := layered(t)
	for _, c := range []struct {
		root string
		q    view.Query
		want string
	}{
		{"/opt", view.Query{}, "/opt:0 /opt/tool:2"},
		{"/", view.Query{Name: "*s-*", Type: 'f'}, "/etc/os-release:2"},
		{"/var/cache/n", view.Query{}, "/var/cache/n:1"},
		{"/", view.Query{Type: 'l'}, "/lib:0"},
		{"/", view.Query{MinSize: new(int64(3))}, "/etc/again:2/0 /etc/kept:0 /etc/os-release:2"},
		{"/", view.Query{MaxSize: new(int64(2)), Type: 'f'}, "/etc/gone/not:3 /opt/tool:2 /var/cache/n:1"},
		{"/", view.Query{Layers: []int{0}, Type: 'f'}, "/etc/again:2/0 /etc/kept:0"},
		{"/", view.Query{Layers: []int{1, 3}}, "/etc:1 /etc/gone:3 /etc/gone/not:3 /var/cache:1 /var/cache/n:1"},
		{"/", view.Query{Layers: []int{}}, ""},
		{"/etc", view.Query{MaxSize: new(int64(0))}, "/etc/gone/not:3"},
		{"/opt", view.Query{MinSize: new(int64(0))}, "/opt/tool:2"},
		{"/", view.Query{Name: "[!a-z]"}, "/:0"},
		{"/", view.Query{Name: "/"}, "/:0"},
		{"/opt", view.Query{Name: "*"}, "/opt:0 /opt/tool:2"},
		{"/", view.Query{Name: "[!]x-]s-[!]]*"}, "/etc/os-release:2"},
		{"/", view.Query{Name: "os[]-]release"}, "/etc/os-release:2"},
		{"/", view.Query{Name: "os[]x-]release"}, "/etc/os-release:2"},
		{"/", view.Query{Name: `\os[\-]release`}, "/etc/os-release:2"},
	} {
		var got []string
		for f, err := range m.Find(t.Context(), c.root, c.q) {
			if err != nil {
				t.Fatal(err)
			}
			s := fmt.Sprintf("%s:%d", f.Path, f.Layer)
			if f.Content != f.Layer {
				s += fmt.Sprintf("/%d", f.Content)
			}
			got = append(got, s)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("find %s %+v:\n%s, want\n%s", c.root, c.q, s, c.want)
		}
	}
	for _, err := range m.Find(t.Context(), "/", view.Query{Name: "["}) {
		if !errors.Is(err, path.ErrBadPattern) {
			t.Error(err)
		}
	}
	for _, n := range []int{-1, 4} {
		errs := 0
		for _, err := range m.Find(t.Context(), "/", view.Query{Layers: []int{0, n}}) {
			if errors.Is(err, view.ErrNoLayer) {
				errs++
			}
		}
		if errs != 1 {
			t.Errorf("layer %d of 4: %d errors", n, errs)
		}
	}
	for _, err := range m.Find(t.Context(), "/none", view.Query{}) {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
}

func TestFoundJSON(t *testing.T) {
	for f, err := range layered(t).Find(t.Context(), "/etc/again", view.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		b, err := f.MarshalJSON()
		want := `{"path":"/etc/again","name":"again","type":"file","mode":"0644","size":4,"uid":0,"gid":0,` +
			`"mtime":"2001-09-09T01:46:40Z","nlink":2,"layer":2,"contentLayer":0}`
		if err != nil || string(b) != want {
			t.Errorf("%s, %v", b, err)
		}
	}
}

func changes(t *testing.T, a, b *view.Image, o view.DiffOptions) string {
	t.Helper()
	var got []string
	for c, err := range view.Diff(t.Context(), a, b, o) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c.String())
	}
	return strings.Join(got, ", ")
}

func TestDiff(t *testing.T) {
	// one makes an image of a layer below that both have and one of its own.
	one := func(edit func(l *layer)) (*view.Image, *layer, *layer) {
		base, l := newLayer(), newLayer()
		base.dir("/d", 0o755)
		base.file("/d/shared", 0o644, "shared")
		l.file("/same", 0o644, "same contents")
		l.file("/text", 0o644, "some text")
		l.file("/type", 0o644, "")
		l.dir("/gone/with", 0o755)
		l.file("/gone/with/all", 0o644, "x")
		edit(l)
		return stack(t, base, l), base, l
	}
	a, base, _ := one(func(*layer) {})
	b, again, _ := one(func(l *layer) {
		l.root.RemoveChild("gone")
		l.file("/text", 0o644, "same size")
		l.root.RemoveChild("type")
		l.dir("/type", 0o755)
		l.file("/type/new", 0o600, "n")
		l.put("/d", &index.Node{Mode: syscall.S_IFDIR | 0o755, Mtime: 7})
		l.file("/d/\x01", 0o600, "")
	})
	if got := changes(t, a, b, view.DiffOptions{}); got != `A /d/\001, D /gone, C /text, C /type, A /type/new` {
		t.Error(got)
	}
	if base.reads.Load() != 0 || again.reads.Load() != 0 {
		t.Error("the layer that both have was read")
	}
	if got := changes(t, a, b, view.DiffOptions{DirTimes: true}); !strings.HasPrefix(got, `C /d, A /d/\001,`) {
		t.Error(got)
	}
	if got := changes(t, a, a, view.DiffOptions{DirTimes: true}); got != "" {
		t.Error(got)
	}
	touched, _, _ := one(func(l *layer) {
		l.file("/same", 0o644, "same contents").Mtime = 5
		l.root.Child("text").Xattrs = []index.Xattr{{Name: "user.a", Value: []byte("b")}}
	})
	if got := changes(t, a, touched, view.DiffOptions{}); got != "C /same, C /text" {
		t.Error(got)
	}
	if got := changes(t, a, touched, view.DiffOptions{NoTimes: true}); got != "C /text" {
		t.Error(got)
	}
}

// TestDiffOfLiars: an image whose layer claims the diff ID of another's is compared
// byte by byte, unless the store has verified both layers' data.
func TestDiffOfLiars(t *testing.T) {
	one := func(content string) (*view.Image, *layer) {
		l := newLayer()
		l.file("/f", 0o644, content)
		return stack(t, l), l
	}
	a, _ := one("true")
	b, lie := one("lies")
	b.Layers[0].DiffID = a.Layers[0].DiffID
	for _, keys := range [][2]string{{"a", "b"}, {"", ""}} {
		a.Layers[0].Key, b.Layers[0].Key = keys[0], keys[1]
		if got := changes(t, a, b, view.DiffOptions{}); got != "C /f" {
			t.Errorf("keys %q: %q", keys, got)
		}
	}
	same, known := one("true")
	same.Layers[0].Key, a.Layers[0].Key = "a", "a"
	if got := changes(t, a, same, view.DiffOptions{}); got != "" || known.reads.Load() != 0 {
		t.Errorf("%q after %d reads", got, known.reads.Load())
	}
	if lie.reads.Load() == 0 {
		t.Error("nothing was read to compare")
	}
}
