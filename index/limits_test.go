package index_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/index"
)

func dir() *index.Node { return &index.Node{Mode: sDir | 0o755} }

// one is a tree with the single entry "n".
func one(n *index.Node) *index.Tree {
	t := &index.Tree{Root: dir(), Devices: []index.Device{{Tag: "1"}, {Tag: "2"}}}
	t.Root.SetChild("n", n)
	return t
}

func file(size int64, extents ...index.Extent) *index.Tree {
	return one(&index.Node{Mode: sReg, Size: size, Extents: extents})
}

func TestRefused(t *testing.T) {
	named := func(name string) *index.Tree {
		tree := one(dir())
		tree.Root.Child("n").SetChild(name, dir())
		return tree
	}
	twice := one(dir())
	twice.Root.SetChild("m", twice.Root.Child("n"))
	circle := one(dir())
	circle.Root.Child("n").SetChild("m", circle.Root)
	many := one(dir())
	many.Devices = make([]index.Device, 20000)
	inlined := &index.Node{Mode: sReg}
	for i := range 2000 {
		inlined.Xattrs = append(inlined.Xattrs, index.Xattr{Name: fmt.Sprintf("user.%d", i), Value: make([]byte, 200)})
	}
	const tb = 1 << 40
	tests := []struct {
		name   string
		tree   *index.Tree
		tooBig bool
	}{
		{"no root", &index.Tree{}, false},
		{"root is a file", &index.Tree{Root: &index.Node{Mode: sReg}}, false},
		{"name of 256 bytes", named(strings.Repeat("x", 256)), true},
		{"empty name", named(""), false},
		{"dot", named("."), false},
		{"dot dot", named(".."), false},
		{"slash", named("a/b"), false},
		{"zero byte", named("a\x00b"), false},
		{"no type", one(&index.Node{Mode: 0o644}), false},
		{"entries in a file", one(func() *index.Node { n := &index.Node{Mode: sReg}; n.SetChild("x", dir()); return n }()), false},
		{"no node", one(nil), false},
		{"directory twice", twice, false},
		{"circle", circle, false},
		{"symlink of 4096 bytes", one(&index.Node{Mode: sLink, Target: bytes.Repeat([]byte("x"), 4096)}), true},
		{"symlink with a zero byte", one(&index.Node{Mode: sLink, Target: []byte("a\x00b")}), false},
		{"negative size", file(-1), false},
		{"extents of an empty file", file(0, index.Extent{Len: 1, Device: 1}), false},
		{"extent too long", file(5, index.Extent{Len: 6, Device: 1}), false},
		{"empty extent", file(5, index.Extent{Len: 0, Device: 1}), false},
		{"odd data offset", file(5, index.Extent{Len: 5, Off: 7, Device: 1}), false},
		{"odd file offset", file(5, index.Extent{FileOff: 1, Len: 4, Device: 1}), false},
		{"negative offset", file(5, index.Extent{Len: 5, Off: -512, Device: 1}), false},
		{"no device", file(5, index.Extent{Len: 5}), false},
		{"device not there", file(5, index.Extent{Len: 5, Device: 3}), false},
		{"overlap", file(2000, index.Extent{Len: 513, Device: 1}, index.Extent{FileOff: 512, Len: 5, Device: 1}), false},
		{"wrong order", file(2000, index.Extent{FileOff: 512, Len: 5, Device: 1}, index.Extent{Len: 5, Device: 1}), false},
		{"past 2 TiB", file(1024, index.Extent{Len: 1024, Off: 2*tb - 1024, Device: 1}), true},
		{"far past 2 TiB", file(512, index.Extent{Len: 512, Off: 4 * tb, Device: 1}), true},
		{"far past everything", file(1<<62, index.Extent{Len: 1 << 62, Off: 1<<62 - 512, Device: 1}), true},
		{"huge and odd", file(1<<50, index.Extent{FileOff: 512, Len: 512, Device: 1}), true},
		{"device of 2 TiB", &index.Tree{Root: dir(), Devices: []index.Device{{Size: 2*tb - 1}}}, true},
		{"tag of 65 bytes", &index.Tree{Root: dir(), Devices: []index.Device{{Tag: strings.Repeat("a", 65)}}}, true},
		{"too many devices", many, true},
		{"xattr of 64 KiB", one(&index.Node{Mode: sReg, Xattrs: []index.Xattr{{Name: "user.x", Value: make([]byte, 1<<16)}}}), true},
		{"too many xattrs", one(inlined), true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := test.tree.Encode()
			if err == nil || errors.Is(err, index.ErrTooBig) != test.tooBig {
				t.Errorf("%v", err)
			}
			if n, err := test.tree.WriteTo(io.Discard); err == nil || n != 0 {
				t.Errorf("%d bytes written, %v", n, err)
			}
		})
	}
}

// TestKept has what is close to a limit and must survive.
func TestKept(t *testing.T) {
	const tb = 1 << 40
	full := &index.Node{Mode: sReg}
	for i := range 300 {
		full.Xattrs = append(full.Xattrs, index.Xattr{Name: fmt.Sprintf("user.%d", i), Value: make([]byte, 700)})
	}
	full.Xattrs = append(full.Xattrs, index.Xattr{Name: "trusted.big", Value: bytes.Repeat([]byte("b"), 1<<16-1)},
		index.Xattr{Name: "user." + strings.Repeat("n", 250)}, index.Xattr{Name: "system.posix_acl_access", Value: []byte("acl")})
	deep := dir()
	top := deep
	for range 20000 {
		n := dir()
		n.SetChild("d", top)
		top = n
	}
	odd := one(dir())
	odd.Root.SetChild(strings.Repeat("\xff", 255), dir())
	tests := map[string]*index.Tree{
		"end of the last block": file(1024, index.Extent{Len: 1024, Off: 2*tb - 1536, Device: 2}),
		"6 TiB of nothing":      file(6 * tb),
		"1 TiB chunk":           file(tb, index.Extent{Len: tb, Device: 1}),
		"3 TiB, two extents": file(3*tb-5, index.Extent{FileOff: tb, Len: tb, Off: 512, Device: 1},
			index.Extent{FileOff: 2 * tb, Len: tb - 5, Off: 1024, Device: 2}),
		"hole at the end":     file(1<<30+1, index.Extent{Len: 512, Device: 1}),
		"symlink of 4095":     one(&index.Node{Mode: sLink, Target: bytes.Repeat([]byte("x"), 4095)}),
		"empty symlink":       one(&index.Node{Mode: sLink}),
		"xattrs":              one(full),
		"xattrs of a symlink": one(&index.Node{Mode: sLink, Target: bytes.Repeat([]byte("y"), 480), Xattrs: full.Xattrs[:3]}),
		"root with xattrs":    {Root: &index.Node{Mode: sDir, Xattrs: full.Xattrs}},
		"deep":                {Root: top},
		"odd names":           odd,
		"before 1970":         one(&index.Node{Mode: sFifo, Mtime: -1 << 40, MtimeNsec: 999999999}),
		"largest numbers":     one(&index.Node{Mode: sChar | 0o7777, UID: 1<<32 - 1, GID: 1<<32 - 1, Rdev: 1<<32 - 1}),
	}
	for name, tree := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := encode(t, tree).Tree()
			if err != nil {
				t.Fatal(err)
			}
			if name == "deep" {
				return // describe would take the square of it
			}
			compare(t, describe(got), describe(tree))
			checkReaders(t, encode(t, tree), tree)
		})
	}
}

func TestXattrsLeftOut(t *testing.T) {
	n := &index.Node{Mode: sReg, Xattrs: []index.Xattr{
		{Name: "user.b", Value: []byte("old")},
		{Name: "lustre.lov"},
		{Name: "user."},
		{Name: ""},
		{Name: "system.nfs4_acl"},
		{Name: "user.z\x00"},
		{Name: "user." + strings.Repeat("n", 251)},
		{Name: "user.b", Value: []byte("new")},
		{Name: "security.a"},
	}}
	tree := one(n)
	x := encode(t, tree)
	id, err := x.Lookup(x.Root(), "n")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = x.Xattrs(id, func(name string, value []byte) bool {
		got = append(got, name+"="+string(value))
		return true
	})
	if err != nil || strings.Join(got, " ") != "security.a= user.b=new" {
		t.Errorf("xattrs %q, %v", got, err)
	}
	if len(tree.Warnings) != 6 || !strings.HasPrefix(tree.Warnings[0], "/n: ") {
		t.Errorf("warnings: %q", tree.Warnings)
	}
}

// TestInlineTargets has every length around the largest inline one, behind xattrs
// of every size: there must always be a place.
func TestInlineTargets(t *testing.T) {
	tree := &index.Tree{Root: dir()}
	for length := 400; length < 520; length += 3 {
		for size := range 140 {
			n := &index.Node{Mode: sLink, Target: bytes.Repeat([]byte("t"), length)}
			n.Xattrs = []index.Xattr{{Name: "user.a", Value: make([]byte, 4*(size&63))}, {Name: "user.b", Value: make([]byte, 4*size)}}
			tree.Root.SetChild(fmt.Sprintf("%d-%d", length, size), n)
		}
	}
	got, err := encode(t, tree).Tree()
	if err != nil {
		t.Fatal(err)
	}
	compare(t, describe(got), describe(tree))
}

// TestExtents asks for parts of files.
func TestExtents(t *testing.T) {
	x := encode(t, file(5000, index.Extent{FileOff: 512, Len: 1024, Off: 4096, Device: 1},
		index.Extent{FileOff: 1536, Len: 100, Off: 5120, Device: 1}, index.Extent{FileOff: 3072, Len: 1928, Off: 0, Device: 2}))
	id, err := x.Lookup(x.Root(), "n")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		off, n int64
		want   string
	}{
		{0, 5000, "[{512 1536 4096 1} {3072 1928 0 2}]"}, // an extent ends with its block
		{0, 1 << 62, "[{512 1536 4096 1} {3072 1928 0 2}]"},
		{-10, 600, "[{512 78 4096 1}]"},
		{0, 512, "[]"},
		{511, 2, "[{512 1 4096 1}]"},
		{1000, 100, "[{1000 100 4584 1}]"},
		{1500, 100, "[{1500 100 5084 1}]"},
		{2048, 1024, "[]"},
		{4999, 10, "[{4999 1 1927 2}]"},
		{5000, 10, "[]"},
		{1 << 62, 1 << 62, "[]"},
		{100, 0, "[]"},
		{100, -5, "[]"},
	}
	for _, test := range tests {
		var got []index.Extent
		err := x.Extents(id, test.off, test.n, func(e index.Extent) bool { got = append(got, e); return true })
		if err != nil || fmt.Sprint(got) != test.want {
			t.Errorf("%d+%d: %v %v, want %s", test.off, test.n, got, err, test.want)
		}
	}
	calls := 0
	if err := x.Extents(id, 0, 5000, func(index.Extent) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("stopped: %d calls, %v", calls, err)
	}
	if err := x.Extents(x.Root(), 0, 1, func(index.Extent) bool { return true }); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("of a directory: %v", err)
	}
}

// TestChildren fills directories in several orders; large ones change their form.
func TestChildren(t *testing.T) {
	for _, size := range []int{0, 1, 10, 255, 256, 257, 3000} {
		d := dir()
		want := map[string]*index.Node{}
		for i := range size * 2 {
			name := fmt.Sprintf("%x", uint32(i%(size+size/2+1))*2654435761)
			n := dir()
			d.SetChild(name, n)
			want[name] = n
			if i%5 == 0 {
				gone := fmt.Sprintf("%x", uint32(i/2)*2654435761)
				d.RemoveChild(gone)
				delete(want, gone)
			}
			if i == size {
				for range d.Children() {
					break
				}
			}
		}
		if d.Len() != len(want) {
			t.Fatalf("size %d: %d children, want %d", size, d.Len(), len(want))
		}
		for name, n := range want {
			if d.Child(name) != n {
				t.Fatalf("size %d: child %s", size, name)
			}
		}
		last, count := "", 0
		for name, n := range d.Children() {
			if name <= last || want[name] != n {
				t.Fatalf("size %d: child %q after %q", size, name, last)
			}
			last = name
			count++
			d.RemoveChild(name)
		}
		if count != len(want) || d.Len() != 0 || d.Child(last) != nil {
			t.Fatalf("size %d: %d iterated, %d left", size, count, d.Len())
		}
	}
}

func TestCheckExtents(t *testing.T) {
	many := []index.Extent{{Len: 512, Device: 1}, {FileOff: 1024, Len: 512, Off: 512, Device: 2}}
	for name, c := range map[string]struct {
		sizes   []int64
		extents []index.Extent
		ok      bool
	}{
		"none":               {nil, nil, true},
		"fits":               {[]int64{1024}, []index.Extent{{Len: 512, Off: 512, Device: 1}}, true},
		"beyond":             {[]int64{1024}, []index.Extent{{Len: 512, Off: 1024, Device: 1}}, false},
		"ends beyond":        {[]int64{1024}, []index.Extent{{Len: 1024, Off: 512, Device: 1}}, false},
		"out of this world":  {[]int64{1024}, []index.Extent{{Len: 1<<63 - 1, Off: 512, Device: 1}}, false},
		"negative":           {[]int64{1024}, []index.Extent{{Len: 512, Off: -512, Device: 1}}, false},
		"empty":              {[]int64{1024}, []index.Extent{{Off: 512, Device: 1}}, false},
		"no device":          {[]int64{1024}, []index.Extent{{Len: 512}}, false},
		"unknown device":     {[]int64{1024}, []index.Extent{{Len: 512, Device: 2}}, false},
		"two":                {[]int64{512, 1024}, many, true},
		"two, the last not":  {[]int64{512, 512}, many, false},
		"two, the first not": {[]int64{0, 1024}, many, false},
	} {
		tree := file(2048, c.extents...)
		tree.Root.SetChild("other", tree.Root.Child("n"))
		tree.Devices = nil
		for _, n := range c.sizes {
			tree.Devices = append(tree.Devices, index.Device{Size: n})
		}
		if err := tree.CheckExtents(); (err == nil) != c.ok || err != nil && !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSharedXattrsOverlap: ids of shared xattrs that lead into the middle of others
// do not make much of a small image.
func TestSharedXattrsOverlap(t *testing.T) {
	// Wherever an entry is taken to begin, it has the longest value there is.
	entry := []byte{0, 1, 0xff, 0xff}
	large := bytes.Repeat(entry, 1<<14)[:1<<16-1]
	tree := &index.Tree{Root: dir()}
	tree.Root.Xattrs = []index.Xattr{{Name: "user.aaaa", Value: large}, {Name: "user.bbbb", Value: large}}
	const files, each = 30, 255
	for i := range files {
		n := &index.Node{Mode: sReg}
		for k := range each {
			n.Xattrs = append(n.Xattrs, index.Xattr{Name: fmt.Sprintf("user.%d", k)})
		}
		tree.Root.SetChild(fmt.Sprint(i), n)
	}
	b, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Tree(); err != nil {
		t.Fatalf("as it was made: %v", err)
	}
	shared := int(binary.LittleEndian.Uint32(b[1024+44:])) << 9
	id := uint32(bytes.Index(b, large)-shared) / 4
	for i := range files {
		nid, err := x.Lookup(x.Root(), fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		for k := range each {
			binary.LittleEndian.PutUint32(b[int(nid)*32+64+12+4*k:], id)
			id++
		}
	}
	if _, err := x.Tree(); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("an image of %d bytes, %d of whose xattrs have 64 KiB each: %v", len(b), files*each, err)
	}
}

// TestXattrsLeftOutOfMany: a path is looked for only if somebody is told of it. It
// takes a look at all that is in the folder.
func TestXattrsLeftOutOfMany(t *testing.T) {
	const files = 60_000
	encode := func(name string) (tree *index.Tree, took time.Duration) {
		x := index.Xattr{Name: name}
		tree = one(&index.Node{Mode: sReg})
		for i := range files {
			tree.Root.SetChild(fmt.Sprintf("%05d", i), &index.Node{Mode: sReg, Xattrs: []index.Xattr{x}})
		}
		// The same again and again is one warning, and leaves room for more.
		tree.Root.Child("n").Xattrs = slices.Repeat([]index.Xattr{x}, files)
		began := time.Now()
		if _, err := tree.Encode(); err != nil {
			t.Fatal(err)
		}
		return tree, time.Since(began)
	}
	_, least := encode("user.a")
	tree, took := encode("lustre.lov")
	if took > 5*least+time.Second {
		t.Errorf("%d xattrs left out in %v, kept in %v", 2*files, took, least)
	}
	if n := len(tree.Warnings); n != 65 {
		t.Errorf("%d warnings", n)
	}
	tree = one(&index.Node{Mode: sReg, Xattrs: slices.Repeat([]index.Xattr{{Name: "lustre.lov"}}, 3)})
	if _, err := tree.Encode(); err != nil || len(tree.Warnings) != 1 {
		t.Errorf("%q, %v", tree.Warnings, err)
	}
}
