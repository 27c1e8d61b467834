package index_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"testing"

	"github.com/laminafs/lamina/index"
)

// place is an entry.
type place struct {
	nid, dir index.NID
	name     string
}

// walkPlaces returns all entries in the order of a walk that lists a directory and
// then goes into its subdirectories.
func walkPlaces(t testing.TB, x *index.Index) []place {
	t.Helper()
	var all []place
	var walk func(dir index.NID)
	walk = func(dir index.NID) {
		var subs []index.NID
		err := x.ReadDir(dir, 0, func(d *index.Dirent) bool {
			if s := string(d.Name); s == "." || s == ".." {
				return true
			}
			all = append(all, place{d.NID, dir, string(d.Name)})
			if d.Type == 4 {
				subs = append(subs, d.NID)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range subs {
			walk(s)
		}
	}
	walk(x.Root())
	return all
}

// checkParents compares Parent and Linked with a walk, and asks Parent for every
// number that is no inode too.
func checkParents(t *testing.T, x *index.Index) {
	t.Helper()
	single := map[index.NID]place{}
	linked := map[index.NID][]index.Link{}
	var a index.Attr
	for _, p := range walkPlaces(t, x) {
		if err := x.Attr(p.nid, &a); err != nil {
			t.Fatal(err)
		}
		if a.Mode&0o170000 == sDir || a.Nlink == 1 {
			single[p.nid] = p
		} else {
			linked[p.nid] = append(linked[p.nid], index.Link{Dir: p.dir, Name: p.name})
		}
	}
	for nid := range index.NID(x.Len()/32 + 3) {
		dir, name, err := x.Parent(nid)
		want, ok := single[nid]
		switch {
		case nid == x.Root():
			if dir != nid || len(name) != 0 || err != nil {
				t.Fatalf("root: %d, %q, %v", dir, name, err)
			}
		case ok:
			if err != nil || dir != want.dir || string(name) != want.name {
				t.Fatalf("inode %d: %d, %q, %v, want %d, %q", nid, dir, name, err, want.dir, want.name)
			}
		case err != index.ErrNotExist && !errors.Is(err, index.ErrCorrupt):
			t.Fatalf("inode %d: %d, %q, %v, want none", nid, dir, name, err)
		}
	}
	got, err := x.Linked()
	if err != nil || !maps.EqualFunc(got, linked, slices.Equal) {
		t.Fatalf("linked: %v, %v, want %v", got, err, linked)
	}
	for nid, list := range linked {
		if err := x.Attr(nid, &a); err != nil || int(a.Nlink) != len(list) {
			t.Fatalf("inode %d: %d names, nlink %d", nid, len(list), a.Nlink)
		}
	}
}

// forest makes a tree of files without content, with names as odd as they can be
// and links to files in all places.
type forest struct {
	*gen
	root  *index.Node
	dirs  []*index.Node
	files []*index.Node
	links int // of 16 entries, how many are links
}

func newForest(seed uint64) *forest {
	f := &forest{gen: newGen(seed), root: dir()}
	f.dirs = []*index.Node{f.root}
	f.links = []int{0, 2, 8, 14}[seed%4]
	return f
}

func (f *forest) name() string {
	s := []string{"", "-", "\x01", "!", ".", "..", "+", ",", "a", "z", "\xff", "long long long long long long name "}[f.IntN(12)]
	s += fmt.Sprintf("%x", f.IntN(1<<20))
	if s == "." || s == ".." {
		return "x"
	}
	return s
}

func (f *forest) file() *index.Node {
	n := &index.Node{Mode: sReg}
	if f.chance(6) {
		n = &index.Node{Mode: sLink, Target: make([]byte, f.IntN(700))}
		for i := range n.Target {
			n.Target[i] = 't'
		}
	}
	f.xattr(n)
	f.files = append(f.files, n)
	return n
}

func (f *forest) xattr(n *index.Node) {
	if f.chance(5) {
		v := fmt.Appendf(nil, "%*d", f.IntN(250), f.Uint64())
		n.Xattrs = []index.Xattr{{Name: "user.x", Value: v}}
	}
}

func (f *forest) subdir(d *index.Node) *index.Node {
	n := dir()
	f.xattr(n)
	d.SetChild(f.name(), n)
	f.dirs = append(f.dirs, n)
	return n
}

// fill puts entries into d. Links to files of directories that do not exist yet are
// made when they do: a file is linked backwards and forwards.
func (f *forest) fill(d *index.Node, entries int) {
	for range entries {
		if len(f.files) > 0 && f.IntN(16) < f.links {
			d.SetChild(f.name(), f.files[f.IntN(len(f.files))])
			continue
		}
		d.SetChild(f.name(), f.file())
	}
}

// grow makes a random tree of about so many entries.
func (f *forest) grow(entries int) *index.Tree {
	for left := entries; left > 0; {
		// Mostly near the end, so that the tree is deep, or anywhere.
		d := f.dirs[len(f.dirs)-1-f.IntN(min(len(f.dirs), 3))]
		if f.chance(2) {
			d = f.dirs[f.IntN(len(f.dirs))]
		}
		n := 0
		switch f.IntN(8) {
		case 0, 1, 2: // empty as yet
			f.subdir(d)
			n = 1
		case 3: // a directory of links only
			sub := f.subdir(d)
			for range f.IntN(60) {
				if len(f.files) > 0 {
					sub.SetChild(f.name(), f.files[f.IntN(len(f.files))])
				}
				n++
			}
		case 4:
			n = f.IntN(200)
			f.fill(d, n)
		default:
			n = f.IntN(6)
			f.fill(d, n)
		}
		left -= n + 1
	}
	return &index.Tree{Root: f.root}
}

func TestParentRandom(t *testing.T) {
	for seed := range uint64(60) {
		f := newForest(seed)
		checkParents(t, encode(t, f.grow(f.IntN(4000))))
	}
	for seed := range uint64(100) { // all that layers can have
		g := newGen(seed)
		g.layer = seed%2 == 0
		checkParents(t, encode(t, g.tree(g.IntN(300))))
	}
}

// TestParentMerged goes the way of an image: layers, merged, written, opened.
func TestParentMerged(t *testing.T) {
	for seed := range uint64(20) {
		var layers []*index.Index
		for i := range uint64(3) {
			f := newForest(3*seed + i)
			layers = append(layers, encode(t, f.grow(1000)))
		}
		tree, err := index.Merge(layers)
		if err != nil {
			t.Fatal(err)
		}
		path := t.TempDir() + "/x"
		if err := tree.Write(path); err != nil {
			t.Fatal(err)
		}
		x, err := index.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		checkParents(t, x)
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParentWide(t *testing.T) {
	for seed := range uint64(8) {
		f := newForest(seed)
		f.fill(f.subdir(f.root), 300)
		wide := f.subdir(f.root)
		for range seed % 4 * 7 { // directories far apart, next to each other, none
			sub := f.subdir(wide)
			f.fill(sub, f.IntN(50))
			f.fill(f.subdir(sub), f.IntN(50))
		}
		f.fill(wide, 20000)
		f.fill(f.subdir(f.root), 300)
		checkParents(t, encode(t, &index.Tree{Root: f.root}))
	}
}

// TestParentSparse has directories of all kinds, far apart, among many files.
func TestParentSparse(t *testing.T) {
	for seed := range uint64(24) {
		f := newForest(seed)
		f.links = 0
		f.fill(f.subdir(f.subdir(f.root)), 30)
		at := f.subdir(f.root)
		f.fill(f.subdir(f.subdir(f.root)), 30)
		for i := range 4000 {
			n := &index.Node{Mode: sReg}
			if f.chance(100) { // its target is between the blocks of directories
				n = &index.Node{Mode: sLink, Target: bytes.Repeat([]byte("."), 500+f.IntN(3000))}
			}
			at.SetChild(fmt.Sprintf("%060d", uint32(i)*2654435761), n)
		}
		for i := range 16 {
			sub := dir()
			at.SetChild(fmt.Sprintf("%060d", f.Uint32()), sub)
			switch f.IntN(5) {
			case 0: // empty
			case 1:
				for k := range 1 + f.IntN(500) {
					sub.SetChild(fmt.Sprint(k), f.files[f.IntN(len(f.files))])
				}
			case 2:
				for k := range 100 { // blocks before that of "."
					sub.SetChild(fmt.Sprintf("-%020d", k), &index.Node{Mode: sReg})
				}
			case 3:
				f.fill(f.subdir(f.subdir(sub)), 3)
			default:
				sub.SetChild("x", &index.Node{Mode: sReg, UID: uint32(i)})
			}
		}
		checkParents(t, encode(t, &index.Tree{Root: f.root}))
	}
}

func TestParentDeep(t *testing.T) {
	f := newForest(1)
	d := f.root
	for range 3000 {
		f.fill(d, f.IntN(3))
		d = f.subdir(d)
	}
	checkParents(t, encode(t, &index.Tree{Root: f.root}))
}

// TestParentShapes goes through combinations of a few kinds of entries in a few
// directories. (It has been run with all of them, too.)
func TestParentShapes(t *testing.T) {
	const dirs, slots, kinds = 3, 3, 4
	total := 1
	for range dirs * slots {
		total *= kinds
	}
	for shape := 0; shape < total; shape += 53 {
		linked := []*index.Node{{Mode: sReg}, {Mode: sReg}}
		root := dir()
		tree := &index.Tree{Root: root}
		at, s := root, shape
		for i := range dirs {
			for k := range slots {
				name := []string{"-", "b", "d"}[k]
				switch s % kinds {
				case 1:
					at.SetChild(name, &index.Node{Mode: sReg})
				case 2:
					at.SetChild(name, linked[0])
				case 3:
					at.SetChild(name, linked[1])
				}
				s /= kinds
			}
			next := dir()
			if i == 0 || shape%2 == 0 {
				at.SetChild("c", next)
			} else {
				root.SetChild("a", next)
			}
			at = next
		}
		checkParents(t, encode(t, tree))
	}
}

func TestParentDoesNotAllocate(t *testing.T) {
	f := newForest(2)
	f.grow(3000)
	x := encode(t, &index.Tree{Root: f.root})
	for _, p := range walkPlaces(t, x) {
		n := testing.AllocsPerRun(1, func() { _, _, _ = x.Parent(p.nid) })
		if n != 0 {
			t.Fatalf("inode %d: %v allocations", p.nid, n)
		}
	}
}

// FuzzParent asks damaged images for the parent of everything, and goes all the way
// up. The superblock's checksum is made right, as in FuzzIndex.
func FuzzParent(f *testing.F) {
	for seed := range uint64(12) {
		w := newForest(seed)
		b, err := w.grow(10 + w.IntN(60)).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1536+seed*977), uint64(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint32, with uint64) {
		if len(b) > 1<<16 {
			return
		}
		b = slices.Clone(b)
		if len(b) >= 1536 {
			if i := int(at) % (len(b) - 8); with != 0 {
				binary.LittleEndian.PutUint64(b[i:], with)
			}
			clear(b[1028:1032])
			sum := ^crc32.Checksum(b[1024:1536], crc32.MakeTable(crc32.Castagnoli))
			binary.LittleEndian.PutUint32(b[1028:], sum)
		}
		x, err := index.New(b)
		if err != nil {
			return
		}
		climb(t, x)
	})
}

// climb goes up from every number to the root or an error.
func climb(t *testing.T, x *index.Index) {
	numbers := []index.NID{1<<59 - 1, 1 << 59, 1<<64 - 1}
	for nid := range index.NID(x.Len()/32 + 2) {
		numbers = append(numbers, nid)
	}
	for _, nid := range numbers {
		for nid != x.Root() {
			dir, name, err := x.Parent(nid)
			if err != nil {
				if err != index.ErrNotExist && !errors.Is(err, index.ErrCorrupt) {
					t.Fatal(err)
				}
				break
			}
			if dir >= nid || len(name) == 0 {
				t.Fatalf("inode %d: parent %d, name %q", nid, dir, name)
			}
			nid = dir
		}
	}
	links, err := x.Linked()
	if err != nil && !errors.Is(err, index.ErrCorrupt) {
		t.Fatal(err)
	}
	for nid, list := range links {
		if len(list) == 0 {
			t.Fatalf("inode %d: no names", nid)
		}
	}
}

// TestParentDamaged puts numbers everywhere into small images.
func TestParentDamaged(t *testing.T) {
	for seed := range uint64(40) {
		w := newForest(seed)
		sound, err := w.grow(10 + w.IntN(60)).Encode()
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			b := slices.Clone(sound)
			for range 1 + w.IntN(4) {
				i := 1536 + w.IntN(len(b)-1536-8)
				switch w.IntN(4) {
				case 0: // another inode
					binary.LittleEndian.PutUint64(b[i&^3:], uint64(w.IntN(len(b)/32)))
				case 1:
					binary.LittleEndian.PutUint16(b[i&^1:], uint16(w.IntN(600)))
				case 2:
					b[i] ^= 1 << w.IntN(8)
				default:
					copy(b[i:], b[1536+w.IntN(len(b)-1536):][:8])
				}
			}
			x, err := index.New(b)
			if err != nil {
				continue
			}
			climb(t, x)
		}
	}
}

// BenchmarkParent asks for the parents of files: of a directory of 100,000, of an
// ordinary tree, of three directories among 100,000 files, and beside directories
// whose 100,000 entries are of files with two names.
func BenchmarkParent(b *testing.B) {
	wide := func() *index.Node {
		d := dir()
		for i := range 100_000 {
			d.SetChild(fmt.Sprintf("%08x-%d", uint32(i)*2654435761, i), &index.Node{Mode: sReg})
		}
		return d
	}
	addDirs := func(d *index.Node) {
		for _, name := range []string{"0", "9", "f"} {
			sub := dir()
			for i := range 100 {
				sub.SetChild(fmt.Sprint(i), &index.Node{Mode: sReg})
			}
			d.SetChild(name, sub)
		}
	}
	sparse := wide()
	addDirs(sparse)
	links := dir()
	addDirs(links)
	links.SetChild("8", wide())
	links.SetChild("z", dir())
	for name, n := range links.Child("8").Children() {
		links.Child("z").SetChild(name, n)
	}
	for _, c := range []struct {
		name   string
		root   *index.Node
		inRoot bool // ask for the files of the root, too
	}{
		{"wide", wide(), true},
		{"tree", bigTree(1_000_000, 1).Root, true},
		{"sparse", sparse, false},
		{"links", links, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			x := encode(b, &index.Tree{Root: c.root, Devices: []index.Device{{}}})
			var files []index.NID
			var a index.Attr
			for _, p := range walkPlaces(b, x) {
				if err := x.Attr(p.nid, &a); err != nil {
					b.Fatal(err)
				}
				if a.Nlink == 1 && (c.inRoot || p.dir != x.Root()) {
					files = append(files, p.nid)
				}
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i = (i + 7919) % len(files)
				if _, _, err := x.Parent(files[i]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLinked has a million entries, in the second case half of them second
// names.
func BenchmarkLinked(b *testing.B) {
	for _, links := range []bool{false, true} {
		b.Run(fmt.Sprint(links), func(b *testing.B) {
			benchmarkLinked(b, links)
		})
	}
}

func benchmarkLinked(b *testing.B, links bool) {
	tree := bigTree(1_000_000, 1)
	if links {
		tree = bigTree(500_000, 1)
		second := dir()
		for todo := []*index.Node{tree.Root}; len(todo) > 0; {
			d := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			for _, n := range d.Children() {
				if n.IsDir() {
					todo = append(todo, n)
				} else {
					second.SetChild(fmt.Sprintf("%07d", second.Len()), n)
				}
			}
		}
		tree.Root.SetChild("second", second)
	}
	x := encode(b, tree)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x.Linked(); err != nil {
			b.Fatal(err)
		}
	}
}
