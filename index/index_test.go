package index_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/laminafs/lamina/index"
)

func encode(t testing.TB, tree *index.Tree) *index.Index {
	t.Helper()
	b, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// describe returns a line for each path of a tree, and the group of names each
// hard-linked file has.
func describe(t *index.Tree) map[string]string {
	out := map[string]string{}
	first := map[*index.Node]string{}
	var walk func(path string, n *index.Node)
	walk = func(path string, n *index.Node) {
		if first[n] == "" {
			first[n] = path
		}
		xattrs := map[string]string{}
		for _, x := range n.Xattrs {
			xattrs[x.Name] = string(x.Value)
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%o %d %d %x %d.%09d f%d %d %q ", n.Mode, n.UID, n.GID, n.Rdev, n.Mtime, n.MtimeNsec, n.Flags, n.Size, n.Target)
		for _, k := range slices.Sorted(maps.Keys(xattrs)) {
			fmt.Fprintf(&b, "%s=%x ", k, xattrs[k])
		}
		fmt.Fprintf(&b, "%v link %q", joined(n.Extents), first[n])
		out[path] = b.String()
		for name, child := range n.Children() {
			walk(path+"/"+name, child)
		}
	}
	walk("", t.Root)
	return out
}

// joined returns extents with those that continue each other made one.
func joined(list []index.Extent) []index.Extent {
	var out []index.Extent
	for _, e := range list {
		if n := len(out); n > 0 {
			l := &out[n-1]
			if l.Device == e.Device && l.FileOff+l.Len == e.FileOff && l.Off+l.Len == e.Off {
				l.Len += e.Len
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	bad := 0
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if got[p] != want[p] && bad < 5 {
			t.Errorf("%q:\n got %s\nwant %s", p, got[p], want[p])
			bad++
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok && bad < 5 {
			t.Errorf("%q: not wanted: %s", p, got[p])
			bad++
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(150) {
		g := newGen(seed)
		g.devices = 1 + g.IntN(5)
		g.layer = g.chance(2)
		tree := g.tree(1 + g.IntN(400))
		x := encode(t, tree)
		got, err := x.Tree()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		compare(t, describe(got), describe(tree))
		if !slices.Equal(got.Devices, tree.Devices) {
			t.Fatalf("seed %d: devices %v, want %v", seed, got.Devices, tree.Devices)
		}
		checkReaders(t, x, tree)
		again, err := got.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := tree.Encode(); !bytes.Equal(again, b) {
			t.Fatalf("seed %d: encoding what was decoded gives other bytes", seed)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// checkReaders compares everything the readers say with the tree.
func checkReaders(t *testing.T, x *index.Index, tree *index.Tree) {
	t.Helper()
	nlink := map[*index.Node]uint32{}
	ids := map[*index.Node]index.NID{}
	var count func(n *index.Node)
	count = func(n *index.Node) {
		for _, c := range n.Children() {
			if nlink[c]++; c.IsDir() {
				nlink[n]++
				count(c)
			}
		}
		if n.IsDir() {
			nlink[n]++
		}
	}
	count(tree.Root)
	nlink[tree.Root]++
	var walk func(n *index.Node, nid, parent index.NID)
	walk = func(n *index.Node, nid, parent index.NID) {
		if id, ok := ids[n]; ok && id != nid {
			t.Fatalf("one node has inodes %d and %d", id, nid)
		}
		ids[n] = nid
		checkNode(t, x, n, nid, nlink[n])
		if !n.IsDir() {
			if _, err := x.Lookup(nid, "a"); err != index.ErrNotDir {
				t.Fatalf("lookup in a file: %v", err)
			}
			return
		}
		for _, dot := range []struct {
			name string
			nid  index.NID
		}{{".", nid}, {"..", parent}} {
			if got, err := x.Lookup(nid, dot.name); err != nil || got != dot.nid {
				t.Fatalf("lookup %s: %d, %v, want %d", dot.name, got, err, dot.nid)
			}
		}
		for _, missing := range []string{"", "!", "zzz", "\xff\xff\xff", "f", ".,"} {
			if _, err := x.Lookup(nid, missing); n.Child(missing) == nil && err != index.ErrNotExist {
				t.Fatalf("lookup %q: %v", missing, err)
			}
		}
		checkDir(t, x, n, nid)
		for name, c := range n.Children() {
			id, err := x.Lookup(nid, name)
			if err != nil {
				t.Fatalf("lookup %q: %v", name, err)
			}
			walk(c, id, nid)
		}
	}
	walk(tree.Root, x.Root(), x.Root())
	if x.Inodes() != uint64(len(ids)) {
		t.Fatalf("%d inodes, want %d", x.Inodes(), len(ids))
	}
}

func checkNode(t *testing.T, x *index.Index, n *index.Node, nid index.NID, nlink uint32) {
	t.Helper()
	var a index.Attr
	if err := x.Attr(nid, &a); err != nil {
		t.Fatal(err)
	}
	if nid < 2 || a.Mode != n.Mode || a.UID != n.UID || a.GID != n.GID || a.Mtime != n.Mtime || a.MtimeNsec != n.MtimeNsec ||
		a.Rdev != n.Rdev || a.Nlink != nlink {
		t.Fatalf("attr %+v of %d, want %+v, nlink %d", a, nid, n, nlink)
	}
	if f, err := x.Flags(nid); err != nil || f != n.Flags {
		t.Fatalf("flags %v %v, want %v", f, err, n.Flags)
	}
	if n.Mode&0o170000 == sReg && n.Flags == 0 && a.Size != n.Size {
		t.Fatalf("size %d, want %d", a.Size, n.Size)
	}
	if n.Target != nil {
		if l, err := x.Readlink(nid); err != nil || !bytes.Equal(l, n.Target) {
			t.Fatalf("readlink %q %v, want %q", l, err, n.Target)
		}
	}
	for _, want := range n.Xattrs {
		if v, err := x.Xattr(nid, want.Name); err != nil || !bytes.Equal(v, want.Value) {
			t.Fatalf("xattr %s: %x %v, want %x", want.Name, v, err, want.Value)
		}
	}
	for _, name := range []string{"user.none", "security.", "other", "system.posix_acl_access2"} {
		if _, err := x.Xattr(nid, name); err != index.ErrNoXattr {
			t.Fatalf("xattr %s: %v", name, err)
		}
	}
}

// checkDir reads a directory as a whole and from every cookie on.
func checkDir(t *testing.T, x *index.Index, n *index.Node, nid index.NID) {
	t.Helper()
	want := []string{".", ".."}
	for name := range n.Children() {
		want = append(want, name)
	}
	slices.Sort(want)
	var got []string
	cookies := []uint64{0}
	err := x.ReadDir(nid, 0, func(d *index.Dirent) bool {
		got = append(got, string(d.Name))
		cookies = append(cookies, d.Next)
		var a index.Attr
		if err := x.Attr(d.NID, &a); err != nil || uint32(d.Type) != a.Mode>>12 {
			t.Fatalf("entry %q: type %d, mode %o, %v", d.Name, d.Type, a.Mode, err)
		}
		return true
	})
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("readdir: %q, %v, want %q", got, err, want)
	}
	for i, c := range cookies {
		k := i
		err := x.ReadDir(nid, c, func(d *index.Dirent) bool {
			if string(d.Name) != want[k] {
				t.Fatalf("readdir from %d: %q, want %q", c, d.Name, want[k])
			}
			k++
			return k < i+3
		})
		if err != nil || k < min(i+3, len(want)) {
			t.Fatalf("readdir from %d: %d entries, %v", c, k-i, err)
		}
	}
}

func TestWriteOpen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "index.erofs")
	tree := newGen(1).tree(300)
	for range 2 { // the second time it replaces
		if err := tree.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("files left: %v %v", files, err)
	}
	x, err := index.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	x.Release()
	checkReaders(t, x, tree)
	x.Release()
	got, err := x.Tree()
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal("closed twice:", err)
	}
	compare(t, describe(got), describe(tree)) // got does not refer to the mapping

	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, cut := range []int{0, 1, 1024, 1535, 1536, len(b) - 512, len(b) - 1} {
		if err := os.WriteFile(path, b[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := index.Open(path); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", cut, err)
		}
	}
	for i := 1024; i < 1152; i++ {
		c := bytes.Clone(b)
		c[i] ^= 0x10
		if _, err := index.New(c); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("superblock byte %d flipped: %v", i-1024, err)
		}
	}
	if _, err := index.Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := tree.Write(filepath.Join(dir, "none", "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("write into no directory: %v", err)
	}
}

// brokenWriter fails after so many bytes.
type brokenWriter int

func (w *brokenWriter) Write(b []byte) (int, error) {
	if len(b) > int(*w) {
		return int(*w), errBroken
	}
	*w -= brokenWriter(len(b))
	return len(b), nil
}

var errBroken = errors.New("broken")

func TestWriteFails(t *testing.T) {
	tree := bigTree(10000, 1)
	for _, after := range []brokenWriter{0, 1 << 10, 1 << 20} {
		if _, err := tree.WriteTo(&after); !errors.Is(err, errBroken) {
			t.Errorf("error %v", err)
		}
	}
	// The new index cannot take the place of a directory: nothing may be left.
	base := t.TempDir()
	if err := os.MkdirAll(filepath.Join(base, "index.erofs", "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := tree.Write(filepath.Join(base, "index.erofs")); err == nil {
		t.Error("wrote a directory")
	}
	if files, err := os.ReadDir(base); err != nil || len(files) != 1 {
		t.Errorf("left: %v, %v", files, err)
	}
}

func TestConcurrentReaders(t *testing.T) {
	tree := newGen(3).tree(300)
	path := filepath.Join(t.TempDir(), "x")
	if err := tree.Write(path); err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	want := describe(tree)
	done := make(chan error)
	for i := range 4 {
		go func() {
			got, err := x.Tree()
			if err == nil && !maps.Equal(describe(got), want) {
				err = errors.New("another tree")
			}
			if i == 0 {
				x.Release()
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}
