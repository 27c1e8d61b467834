package index_test

import (
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/laminafs/lamina/index"
)

// bigTree makes a tree like an image's: 20 files and 8 subdirectories to a
// directory. Trees of different seeds have most directories in common, and a
// third of the names.
func bigTree(entries, seed int) *index.Tree {
	t := &index.Tree{Root: dir(), Devices: []index.Device{{Tag: fmt.Sprint(seed)}}}
	dirs := []*index.Node{t.Root}
	for i := range entries {
		at := dirs[i/21]
		if i%21 == 20 || i < 20 {
			d := dir()
			dirs[len(dirs)/8].SetChild(fmt.Sprintf("dir%05d", i), d)
			dirs = append(dirs, d)
			continue
		}
		n := &index.Node{Mode: sReg | 0o644, Mtime: int64(i % 64), Size: int64(i + seed), UID: uint32(seed)}
		if n.Size > 0 {
			n.Extents = []index.Extent{{Len: n.Size, Off: int64(i) * 512, Device: 1}}
		}
		at.SetChild(fmt.Sprintf("file-%d-%05d.py", seed%3, i), n)
	}
	return t
}

func bigIndex(b *testing.B, entries, seed int) *index.Index {
	b.Helper()
	img, err := bigTree(entries, seed).Encode()
	if err != nil {
		b.Fatal(err)
	}
	x, err := index.New(img)
	if err != nil {
		b.Fatal(err)
	}
	return x
}

func BenchmarkBuild(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		bigTree(1_000_000, 1)
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, entries := range []int{23_000, 1_000_000} {
		b.Run(fmt.Sprint(entries), func(b *testing.B) {
			tree := bigTree(entries, 1)
			b.ReportAllocs()
			var n int64
			for b.Loop() {
				var err error
				if n, err = tree.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/float64(entries), "bytes/entry")
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	tree := bigTree(23_000, 1)
	path := filepath.Join(b.TempDir(), "x")
	for b.Loop() {
		if err := tree.Write(path); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, entries := range []int{100, 1_000_000} {
		b.Run(fmt.Sprint(entries), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "x")
			if err := bigTree(entries, 1).Write(path); err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			for b.Loop() {
				x, err := index.Open(path)
				if err != nil {
					b.Fatal(err)
				}
				if err := x.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMerge(b *testing.B) {
	for _, c := range []struct{ layers, entries int }{{1, 23_000}, {5, 20_000}, {1, 1_000_000}} {
		b.Run(fmt.Sprintf("%dx%d", c.layers, c.entries), func(b *testing.B) {
			var layers []*index.Index
			for i := range c.layers {
				layers = append(layers, bigIndex(b, c.entries, i))
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := index.Merge(layers); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// readers are the operations that must not allocate.
func readers(tb testing.TB, x *index.Index) map[string]func() {
	check := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	parent, err := x.Lookup(x.Root(), "dir00003")
	check(err)
	var name string
	var nid index.NID
	check(x.ReadDir(parent, 0, func(d *index.Dirent) bool {
		if d.Type == 8 {
			name, nid = string(d.Name), d.NID
		}
		return true
	}))
	var a index.Attr
	each := func(*index.Dirent) bool { return true }
	piece := func(index.Extent) bool { return true }
	value := func(string, []byte) bool { return true }
	return map[string]func(){
		"attr":       func() { check(x.Attr(nid, &a)) },
		"lookup":     func() { _, err := x.Lookup(parent, name); check(err) },
		"lookupnone": func() { _, _ = x.Lookup(parent, "no such name") },
		"readdir23":  func() { check(x.ReadDir(parent, 0, each)) },
		"extents":    func() { check(x.Extents(nid, 0, 1<<20, piece)) },
		"xattrnone":  func() { _, _ = x.Xattr(nid, "security.capability") },
		"xattrs":     func() { check(x.Xattrs(nid, value)) },
	}
}

func BenchmarkRead(b *testing.B) {
	x := bigIndex(b, 100_000, 1)
	for name, op := range readers(b, x) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				op()
			}
		})
	}
}

// BenchmarkLookupLarge looks up names of a directory of 100,000.
func BenchmarkLookupLarge(b *testing.B) {
	tree := &index.Tree{Root: dir()}
	list := make([]string, 100_000)
	for i := range list {
		list[i] = fmt.Sprintf("%08x-%d", uint32(i)*2654435761, i)
		tree.Root.SetChild(list[i], &index.Node{Mode: sReg})
	}
	img, err := tree.Encode()
	if err != nil {
		b.Fatal(err)
	}
	x, err := index.New(img)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := x.Lookup(x.Root(), list[i%len(list)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func TestReadersDoNotAllocate(t *testing.T) {
	img, err := bigTree(3000, 1).Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(img)
	if err != nil {
		t.Fatal(err)
	}
	for name, op := range readers(t, x) {
		op()
		if n := testing.AllocsPerRun(200, op); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
