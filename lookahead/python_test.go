package lookahead

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

const stdlib = "/usr/lib/python3.11/"

// pythonImage is an image with Debian's Python 3.11 and a program in /app.
func pythonImage() *image {
	m := newImage(2)
	for _, source := range []string{
		stdlib + "os.py", stdlib + "types.py",
		stdlib + "json/__init__.py", stdlib + "json/decoder.py", stdlib + "json/encoder.py",
		stdlib + "collections/__init__.py", stdlib + "collections/abc.py",
		stdlib + "xml/__init__.py", stdlib + "xml/etree/__init__.py", stdlib + "xml/etree/ElementTree.py",
		"/usr/lib/python3/dist-packages/yaml/__init__.py", "/usr/lib/python3/dist-packages/yaml/loader.py",
		"/usr/local/lib/python3.11/dist-packages/local.py",
	} {
		m.module(0, 11, source)
	}
	for _, path := range []string{
		"_json.cpython-311-x86_64-linux-gnu.so", "_arm.cpython-311-aarch64-linux-gnu.so",
		"_musl.cpython-311-x86_64-linux-musl.so", "_armusl.cpython-311-aarch64-linux-musl.so",
		"_stable.abi3.so", "_plain.so",
		"_old.cpython-310-x86_64-linux-gnu.so", "_other.pypy39-pp73-x86_64-linux-gnu.so",
		"_both.cpython-311-x86_64-linux-gnu.so", "_both.abi3.so",
	} {
		m.add(0, stdlib+"lib-dynload/"+path, []byte(path))
	}
	for _, source := range []string{
		"/app/top.py", "/app/types.py",
		"/app/pkg/__init__.py", "/app/pkg/a.py", "/app/pkg/b.py", "/app/pkg/fast.py",
		"/app/pkg/sub/__init__.py", "/app/pkg/sub/mod.py", "/app/pkg/sub/beside.py",
		"/app/pkg/a/ignored.py", "/app/space/inner.py",
	} {
		m.module(1, 11, source)
	}
	m.module(1, 10, "/app/other.py")
	m.add(1, "/app/pkg/fast.cpython-311-x86_64-linux-gnu.so", []byte("fast"))
	m.add(1, "/app/pkg/sub.abi3.so", []byte("sub"))
	put(m.root, "/app/pkg/dir.so/x", &index.Node{Mode: unix.S_IFREG})
	return m
}

func TestImports(t *testing.T) {
	const dyn, dist = stdlib + "lib-dynload/", "/usr/lib/python3/dist-packages/"
	for name, c := range map[string]struct {
		at   string // the module that imports
		list []importing
		want []string
	}{
		"nothing": {stdlib + "re.py", nil, nil},
		"packages and modules": {
			stdlib + "re.py",
			[]importing{{name: "types"}, {name: "json"}, {name: "collections.abc"}, {name: "xml.etree.ElementTree"}},
			[]string{
				stdlib + "types.py", stdlib + "json/__init__.py",
				stdlib + "collections/__init__.py", stdlib + "collections/abc.py",
				stdlib + "xml/__init__.py", stdlib + "xml/etree/__init__.py", stdlib + "xml/etree/ElementTree.py",
			},
		},
		"modules and names of a package": {
			stdlib + "re.py",
			[]importing{{name: "json", from: []string{"decoder", "loads", "encoder"}}},
			[]string{stdlib + "json/__init__.py", stdlib + "json/decoder.py", stdlib + "json/encoder.py"},
		},
		"of a package in a package": {
			stdlib + "re.py",
			[]importing{{name: "xml.etree", from: []string{"ElementTree"}}},
			[]string{stdlib + "xml/__init__.py", stdlib + "xml/etree/__init__.py", stdlib + "xml/etree/ElementTree.py"},
		},
		"all names":            {stdlib + "re.py", []importing{{name: "json", from: []string{"*"}}}, []string{stdlib + "json/__init__.py"}},
		"names of a module":    {stdlib + "re.py", []importing{{name: "types", from: []string{"json"}}}, []string{stdlib + "types.py"}},
		"below a module":       {stdlib + "re.py", []importing{{name: "types.json"}}, []string{stdlib + "types.py"}},
		"what is not there":    {stdlib + "re.py", []importing{{name: "nothing"}, {name: "sys", from: []string{"json"}}}, nil},
		"missing on the way":   {stdlib + "re.py", []importing{{name: "xml.nothing.ElementTree", from: []string{"etree"}}}, []string{stdlib + "xml/__init__.py"}},
		"of another version":   {"/app/main.py", []importing{{name: "other"}}, nil},
		"of no package":        {"/app/main.py", []importing{{name: "space.inner"}}, nil},
		"in another's package": {"/app/main.py", []importing{{name: "a"}}, nil},
		"each once": {
			stdlib + "re.py",
			[]importing{{name: "json"}, {name: "json", from: []string{"decoder", "decoder"}}, {name: "json.decoder"}, {name: "types"}, {name: "types"}},
			[]string{stdlib + "json/__init__.py", stdlib + "json/decoder.py", stdlib + "types.py"},
		},
		"extensions": {
			"/app/main.py",
			[]importing{{name: "_json"}, {name: "_arm"}, {name: "_musl"}, {name: "_armusl"}, {name: "_stable"}, {name: "_plain"}, {name: "_old"}, {name: "_other"}, {name: "_both"}},
			[]string{
				dyn + "_json.cpython-311-x86_64-linux-gnu.so", dyn + "_arm.cpython-311-aarch64-linux-gnu.so",
				dyn + "_musl.cpython-311-x86_64-linux-musl.so", dyn + "_armusl.cpython-311-aarch64-linux-musl.so",
				dyn + "_stable.abi3.so", dyn + "_plain.so", dyn + "_both.cpython-311-x86_64-linux-gnu.so",
			},
		},
		"packages before extensions before modules": {
			"/app/main.py",
			[]importing{{name: "pkg.sub"}, {name: "pkg.fast"}, {name: "pkg.dir"}, {name: "pkg.a"}},
			[]string{"/app/pkg/__init__.py", "/app/pkg/sub/__init__.py", "/app/pkg/fast.cpython-311-x86_64-linux-gnu.so", "/app/pkg/a.py"},
		},
		"installed by Debian": {
			"/app/main.py",
			[]importing{{name: "yaml", from: []string{"loader"}}, {name: "local"}},
			[]string{dist + "yaml/__init__.py", dist + "yaml/loader.py", "/usr/local/lib/python3.11/dist-packages/local.py"},
		},
		"from its own root": {
			"/app/pkg/sub/mod.py",
			[]importing{{name: "pkg.a"}, {name: "top"}, {name: "beside"}, {name: "json"}},
			[]string{"/app/pkg/__init__.py", "/app/pkg/a.py", "/app/top.py", stdlib + "json/__init__.py"},
		},
		"the first root that has it": {"/app/main.py", []importing{{name: "types"}}, []string{stdlib + "types.py"}},
		"relative": {
			"/app/pkg/sub/mod.py",
			[]importing{{level: 1, from: []string{"beside", "a", "types"}}, {level: 2, from: []string{"a", "sub"}}, {level: 2, name: "b", from: []string{"top"}}},
			[]string{"/app/pkg/sub/beside.py", "/app/pkg/a.py", "/app/pkg/sub/__init__.py", "/app/pkg/b.py"},
		},
		"relative to a package": {
			"/app/pkg/__init__.py",
			[]importing{{level: 1, from: []string{"a"}}, {level: 1, name: "sub.mod", from: []string{"beside"}}, {level: 1, name: "json"}},
			[]string{"/app/pkg/a.py", "/app/pkg/sub/__init__.py", "/app/pkg/sub/mod.py"},
		},
		"relative to what is above all": {
			"/app/pkg/sub/mod.py",
			[]importing{{level: 4, name: "app.top"}, {level: 5, from: []string{"root"}}, {level: math.MaxInt32, name: "root"}},
			[]string{"/root.py"},
		},
		"negative level": {"/app/main.py", []importing{{level: -1, name: "json"}}, []string{stdlib + "json/__init__.py"}},
		"names that lead elsewhere": {
			"/app/pkg/sub/mod.py",
			[]importing{
				{name: ".."},
				{name: "/app/top"},
				{name: "pkg/a"},
				{name: "pkg..a"},
				{name: ".pkg"},
				{name: "__pycache__"},
				{level: 1, name: "../a"},
				{level: 1, name: "/beside"},
				{level: 1, from: []string{"..", "../a", "/beside", "sub/beside", "beside.", ".", "", "be\x00side"}},
			},
			[]string{"/app/pkg/__init__.py"},
		},
	} {
		for _, sure := range []bool{true, false} {
			m := pythonImage()
			m.module(0, 11, "/root.py")
			m.module(1, 11, c.at, c.list...)
			s := m.scene(t)
			if wishes, err := imports(t.Context(), s, m.files[stdlib+"os.py"]); err != nil || len(wishes) > 0 {
				t.Fatalf("%v, %v", wishes, err)
			}
			f := m.files[c.at]
			f.sure = sure
			wishes, err := imports(t.Context(), s, f)
			if got := m.paths(wishes); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%s: %v\n%s\nwant\n%s", name, err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			for _, w := range wishes {
				if w.sure != sure || !w.ends {
					t.Errorf("%s: wish %+v of a module that is sure: %v", name, w, sure)
				}
			}
			// What was wished for is not wished for again.
			if again, err := imports(t.Context(), s, f); err != nil || len(again) > 0 {
				t.Errorf("%s: again %q, %v", name, m.paths(again), err)
			}
		}
	}
}

// TestImportsVersions: a module imports those that its own Python compiled.
func TestImportsVersions(t *testing.T) {
	m := newImage(1)
	for minor := range magics {
		m.module(0, minor, fmt.Sprintf("/app/only%d.py", minor))
		m.module(0, minor, fmt.Sprintf("/app/pkg%d/__init__.py", minor))
		m.add(0, fmt.Sprintf("/app/ext%d.cpython-3%d-x86_64-linux-gnu.so", minor, minor), []byte{0})
	}
	for minor := range magics {
		var list []importing
		for n := range magics {
			list = append(list, importing{name: fmt.Sprint("only", n)}, importing{name: fmt.Sprint("pkg", n)}, importing{name: fmt.Sprint("ext", n)})
		}
		m.module(0, minor, "/app/main.py", list...)
		wishes, err := imports(t.Context(), m.scene(t), m.files["/app/main.py"])
		got := m.paths(wishes)
		want := []string{
			fmt.Sprintf("/app/only%d.py", minor), fmt.Sprintf("/app/pkg%d/__init__.py", minor),
			fmt.Sprintf("/app/ext%d.cpython-3%d-x86_64-linux-gnu.so", minor, minor),
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("3.%d: %q, %v", minor, got, err)
		}
	}
}

// TestRoots: the folders in which modules are looked for are those in which
// modules are, and what goes with the standard library.
func TestRoots(t *testing.T) {
	m := pythonImage()
	for _, source := range []string{
		"/usr/local/lib/python3.13/os.py", "/usr/local/lib/python3.13/site-packages/x.py", "/usr/local/lib/python3.13/lib-dynload/x.py",
	} {
		m.module(1, 13, source)
	}
	for name, c := range map[string]struct {
		began []string
		want  []string
	}{
		"Debian": {
			[]string{stdlib + "json/decoder.py", stdlib + "types.py", stdlib + "os.py"},
			[]string{"/usr/lib/python3.11", stdlib + "lib-dynload", "/usr/local/lib/python3.11/dist-packages", "/usr/lib/python3/dist-packages"},
		},
		"python.org": {
			[]string{"/usr/local/lib/python3.13/os.py"},
			[]string{"/usr/local/lib/python3.13", "/usr/local/lib/python3.13/lib-dynload", "/usr/local/lib/python3.13/site-packages"},
		},
		"of a package": {[]string{"/app/pkg/sub/mod.py", "/app/pkg/__init__.py", "/app/top.py"}, []string{"/app"}},
		"of none":      {[]string{"/app/space/inner.py"}, []string{"/app/space"}},
		"installed, then the library": {
			[]string{"/usr/lib/python3/dist-packages/yaml/loader.py", stdlib + "xml/etree/ElementTree.py"},
			[]string{"/usr/lib/python3/dist-packages", "/usr/lib/python3.11", stdlib + "lib-dynload", "/usr/local/lib/python3.11/dist-packages"},
		},
	} {
		s := m.scene(t)
		for _, source := range c.began {
			if _, err := imports(t.Context(), s, m.files[source]); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !slices.Equal(s.python.roots, c.want) {
			t.Errorf("%s: %q, want %q", name, s.python.roots, c.want)
		}
	}
}

// TestRootsBounded: modules in very many folders do not make imports slow.
func TestRootsBounded(t *testing.T) {
	m := newImage(1)
	for i := range 3 * maxRoots {
		m.module(0, 11, fmt.Sprintf("/app%d/m.py", i))
	}
	s := m.scene(t)
	for i := range 3 * maxRoots {
		if _, err := imports(t.Context(), s, m.files[fmt.Sprintf("/app%d/m.py", i)]); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.python.roots); n != maxRoots {
		t.Errorf("%d roots", n)
	}
}

// TestPlacesBounded: a module that imports very many others is looked at for so
// long only.
func TestPlacesBounded(t *testing.T) {
	for n, want := range map[int]int{10: 1, maxImports - 1: 0} {
		m := newImage(1)
		var list []importing
		for i := range n {
			list = append(list, importing{name: fmt.Sprint("none", i)})
		}
		m.module(0, 11, "/app/m.py", append(list, importing{name: "there"})...)
		m.module(0, 11, "/app/there.py")
		wishes, err := imports(t.Context(), m.scene(t), m.files["/app/m.py"])
		if err != nil || len(wishes) != want {
			t.Errorf("%d imports: %q, %v", n, m.paths(wishes), err)
		}
	}
}

// TestSeenBounded: what is remembered of all modules does not grow without end.
func TestSeenBounded(t *testing.T) {
	m := newImage(1)
	m.module(0, 11, "/app/m.py", importing{name: "one"}, importing{name: "two"})
	m.module(0, 11, "/app/one.py")
	m.module(0, 11, "/app/two.py")
	s := m.scene(t)
	s.python.seen = make(map[string]bool)
	for i := range maxSeen - 1 {
		s.python.seen[fmt.Sprint(i)] = true
	}
	wishes, err := imports(t.Context(), s, m.files["/app/m.py"])
	if got := m.paths(wishes); err != nil || !slices.Equal(got, []string{"/app/one.py"}) || len(s.python.seen) != maxSeen {
		t.Errorf("%q, %v, %d are remembered", got, err, len(s.python.seen))
	}
}

// TestImportsElsewhere: a module that is not where it says that its source is
// is left alone, and nothing is learnt from it.
func TestImportsElsewhere(t *testing.T) {
	json := importing{name: "json"}
	for name, filename := range map[string]string{
		"moved":                "/usr/lib/python3.12/mod.py",
		"another module":       "/app/pkg/a.py",
		"a folder":             "/app/pkg",
		"the root":             "/",
		"nothing":              "",
		"built in":             "<frozen os>",
		"relative":             "mod.py",
		"relative, of a place": "app/pkg/sub/mod.py",
		"below here":           "./app/pkg/sub/mod.py",
		"above here":           "../app/pkg/sub/mod.py",
		"of an odd suffix":     "/app/pkg/sub/mod.pyw",
		"very long":            "/" + strings.Repeat("a", 1<<20) + ".py",
	} {
		m := pythonImage()
		m.add(1, "/app/pkg/sub/__pycache__/mod.cpython-311.pyc", pyc(11, filename, json))
		s := m.scene(t)
		wishes, err := imports(t.Context(), s, m.files["/app/pkg/sub/__pycache__/mod.cpython-311.pyc"])
		if !errors.Is(err, errNotCompiled) || wishes != nil || s.python.roots != nil {
			t.Errorf("%s: %q, %v, roots %q", name, m.paths(wishes), err, s.python.roots)
		}
	}
	// At the root of the tree even a relative name would be right.
	for _, filename := range []string{"__init__.py", "../__init__.py", "./../x/../__init__.py"} {
		m := newImage(1)
		m.add(0, "/__pycache__/__init__.cpython-311.pyc", pyc(11, filename, json))
		if _, err := imports(t.Context(), m.scene(t), m.files["/__pycache__/__init__.cpython-311.pyc"]); !errors.Is(err, errNotCompiled) {
			t.Errorf("%s: %v", filename, err)
		}
	}
	// The root itself may be a package.
	m := newImage(1)
	m.module(0, 11, "/__init__.py", importing{name: "mod"})
	m.module(0, 11, "/mod.py")
	wishes, err := imports(t.Context(), m.scene(t), m.files["/__init__.py"])
	if got := m.paths(wishes); err != nil || !slices.Equal(got, []string{"/mod.py"}) {
		t.Errorf("in the root: %q, %v", got, err)
	}
}

// TestImportsPlace: the place is that of the data, whatever path leads there.
func TestImportsPlace(t *testing.T) {
	m := pythonImage()
	put(m.root, "/opt/link", symlink("../app"))
	m.add(0, "/app/__pycache__/linked.cpython-311.pyc", pyc(11, "/opt/./link//linked.py", importing{name: "top"}))
	m.add(1, "/app/__pycache__/faster.cpython-311.opt-1.pyc", pyc(11, "/app/faster.py", importing{name: "top"}))
	s := m.scene(t)
	wishes, err := imports(t.Context(), s, m.files["/app/__pycache__/linked.cpython-311.pyc"])
	if got := m.paths(wishes); err != nil || !slices.Equal(got, []string{"/app/top.py"}) {
		t.Errorf("through a link: %q, %v", got, err)
	}
	if _, err := imports(t.Context(), s, m.files["/app/__pycache__/faster.cpython-311.opt-1.pyc"]); !errors.Is(err, errNotCompiled) {
		t.Errorf("optimized: %v", err)
	}
	// Both lie at the same offset in their layers.
	m = newImage(2)
	m.module(0, 11, "/app/main.py", importing{name: "top"})
	below := m.files["/app/main.py"]
	m.module(1, 11, "/app/main.py", importing{name: "top"})
	if _, err := imports(t.Context(), m.scene(t), below); !errors.Is(err, errNotCompiled) {
		t.Errorf("hidden by a layer above: %v", err)
	}
}

// TestImportsLayerTwice: an image may have a layer twice. The cache knows it by
// its key, and the files are those of the upper one.
func TestImportsLayerTwice(t *testing.T) {
	m := newImage(3)
	m.add(2, "/other", []byte{0})
	m.module(2, 11, "/app/top.py")
	m.module(2, 11, "/app/main.py", importing{name: "top"})
	m.layers[0], m.layers[2].key = m.layers[2], "twice"
	f := m.files["/app/main.py"]
	f.layer = 0
	wishes, err := imports(t.Context(), m.scene(t), f)
	if got := m.paths(wishes); err != nil || !slices.Equal(got, []string{"/app/top.py"}) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestImportsErrors(t *testing.T) {
	m := pythonImage()
	m.module(1, 11, "/app/main.py", importing{name: "json"})
	s := m.scene(t)
	f := m.files["/app/main.py"]
	for name, change := range map[string]func(f *file){
		"nothing":            func(f *file) { f.len = 0 },
		"a header":           func(f *file) { f.len = headerLen },
		"its beginning":      func(f *file) { f.len-- },
		"something else":     func(f *file) { f.off-- },
		"larger than can be": func(f *file) { f.len = maxModule + 1 },
	} {
		g := f
		change(&g)
		m.layers[1].read, m.layers[1].tries = 0, 0
		wishes, err := imports(t.Context(), s, g)
		if !errors.Is(err, errNotCompiled) || wishes != nil {
			t.Errorf("%s: %v, %v", name, wishes, err)
		}
		if end := g.off + g.len; m.layers[1].read > end || g.len > maxModule && m.layers[1].tries > 0 {
			t.Errorf("%s: read up to %d of %d", name, m.layers[1].read, end)
		}
	}
	g := f
	g.len = 1 << 20
	if _, err := imports(t.Context(), s, g); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), fmt.Sprintf("data at %d of layer 1", f.off)) {
		t.Errorf("past the end of the layer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := imports(ctx, s, f); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestImportsFolder: when four modules of a folder were named for certain, its other
// modules are guessed, once, and nothing is looked for in them; what guesses name does
// not count.
func TestImportsFolder(t *testing.T) {
	m := newImage(1)
	for i := range 8 {
		m.module(0, 11, fmt.Sprintf("/app/m%d.py", i))
	}
	m.module(0, 10, "/app/old.py")
	m.add(0, "/app/__pycache__/m0.cpython-311.opt-1.pyc", []byte("optimised"))
	main := func(n int, names ...string) file {
		var list []importing
		for _, name := range names {
			list = append(list, importing{name: name})
		}
		at := fmt.Sprintf("/bin%d/main%d.py", n, n)
		m.module(0, 11, at, list...)
		return m.files[at]
	}
	files := []file{main(0, "m0", "m1", "m2"), main(1, "m3"), main(2, "m4")}
	m.module(0, 11, "/app/start.py")

	s := m.scene(t)
	look := func(f file) []wish {
		t.Helper()
		wishes, err := imports(t.Context(), s, f)
		if err != nil {
			t.Fatal(err)
		}
		return wishes
	}
	look(m.files["/app/start.py"]) // now /app is where modules are looked for
	guess := files[0]
	guess.sure = false
	look(guess)
	s.python.seen = nil // as if nobody had wished for them
	if got := look(files[0]); len(got) != 3 {
		t.Errorf("%q after three", m.paths(got))
	}
	got := look(files[1])
	want := []string{"/app/m3.py"} // named
	for i := range 8 {
		want = append(want, fmt.Sprintf("/app/m%d.py", i))
	}
	want = append(want, "/app/start.py")
	if paths := m.paths(got); !slices.Equal(paths, want) {
		t.Errorf("%q after four, want %q", paths, want)
	}
	for i, w := range got {
		if !w.ends || w.sure != (i == 0) || w.alone != (i > 0) {
			t.Errorf("wish %d: %+v", i, w)
		}
	}
	if got := look(files[2]); len(got) != 1 || !got[0].sure || got[0].alone {
		t.Errorf("%+v after five", got)
	}
}

// TestFolderBounded: a folder of very many modules makes us look for some of them.
func TestFolderBounded(t *testing.T) {
	m := newImage(1)
	var list []importing
	for i := range maxFolder + 100 {
		m.module(0, 11, fmt.Sprintf("/app/m%d.py", i))
		if i < fewModules {
			list = append(list, importing{name: fmt.Sprintf("m%d", i)})
		}
	}
	m.module(0, 11, "/app/start.py", list...)
	wishes, err := imports(t.Context(), m.scene(t), m.files["/app/start.py"])
	if n := len(wishes) - fewModules; err != nil || n > maxFolder || n < maxFolder-2 { // "." and ".." are listed too
		t.Errorf("%d guesses, %v", n, err)
	}
}
