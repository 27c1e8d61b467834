package difftest

import (
	"bytes"
	"reflect"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// someTree is a tree for the generator to begin with.
func someTree() map[string]*entry {
	t := map[string]*entry{}
	add := func(p string, mode uint32, target string) {
		t[p] = &entry{st: Stat{Mode: mode}, target: target}
	}
	add(".", unix.S_IFDIR, "")
	for _, d := range []string{"a", "a/b", "a/b/c", "d", "\xff"} {
		add(d, unix.S_IFDIR, "")
		add(d+"/f", unix.S_IFREG, "")
		add(d+"/l", unix.S_IFLNK, "/a/b")
		add(d+"/p", unix.S_IFIFO, "")
	}
	return t
}

// sequence makes a sequence that a reference answers with success to all but
// every third.
func sequence(seed uint64, n int) []Op {
	g := newGenerator(seed, nil)
	g.reset(someTree())
	var ops []Op
	for i := range n {
		op := g.next()
		g.learn(op, i%3 > 0)
		ops = append(ops, op)
	}
	return ops
}

func TestSequenceFollowsFromSeed(t *testing.T) {
	a, b := sequence(7, 5000), sequence(7, 5000)
	if !slices.Equal(a, b) {
		t.Error("one seed made two sequences")
	}
	if slices.Equal(a, sequence(8, 5000)) {
		t.Error("two seeds made one sequence")
	}
}

func TestEveryKindComes(t *testing.T) {
	count := map[Kind]int{}
	for _, op := range sequence(1, 20000) {
		count[op.Kind]++
	}
	for _, k := range Kinds() {
		if count[k] == 0 {
			t.Errorf("no %s in 20000 operations", k)
		}
	}
}

func TestWithout(t *testing.T) {
	g := newGenerator(1, []Kind{Rename, Tmpfile})
	g.reset(someTree())
	for range 5000 {
		op := g.next()
		g.learn(op, true)
		if op.Kind == Rename || op.Kind == Tmpfile {
			t.Fatalf("%v was to be left out", op)
		}
	}
}

func TestOpsAreReadAsWritten(t *testing.T) {
	ops := sequence(3, 3000)
	var b bytes.Buffer
	if err := WriteOps(&b, ops); err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n# a comment\n")
	got, err := ReadOps(&b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range ops {
		if i >= len(got) || !reflect.DeepEqual(ops[i], got[i]) {
			t.Fatalf("operation %d: wrote %v", i, ops[i])
		}
	}
}

func TestParseOp(t *testing.T) {
	all := Op{
		Kind: Copy, Path: "a b\"\n\xff=", Path2: "c", Name: "n", Value: "\x00 ", Slot: 1, Slot2: 2, Off: -3,
		Off2: TimeOmit, Len: 4, Flags: 5, Mode: 0o6777, UID: -1, GID: 3000000000, Seed: 6, As: 1000, Look: 2, Shared: 1,
	}
	got, err := ParseOp(all.String())
	if err != nil || got != all {
		t.Errorf("%v is read as %v, error %v", all, got, err)
	}
	for _, bad := range []string{"", "nosuch", "open path", "open path=x", `open path="x`, "open nosuch=1", "open slot=x"} {
		if op, err := ParseOp(bad); err == nil {
			t.Errorf("%q is read as %v", bad, op)
		}
	}
}

func TestShortenFindsWhatMatters(t *testing.T) {
	ops := sequence(5, 3000)
	ops[17].Seed, ops[1234].Seed, ops[2999].Seed = -1, -2, -3
	matter := func(l []Op) (found []int64) {
		for _, op := range l {
			if op.Seed < 0 {
				found = append(found, op.Seed)
			}
		}
		return found
	}
	tries := 0
	got := shorten(t.Context(), ops, func(l []Op) bool {
		tries++
		return slices.Equal(matter(l), []int64{-1, -2, -3})
	})
	if len(got) != 3 || tries > 1000 {
		t.Errorf("%d operations are left after %d tries", len(got), tries)
	}
}

func TestRelated(t *testing.T) {
	ops := []Op{
		{Kind: Open, Slot: 3, Path: "x"},
		{Kind: Mkdir, Path: "other"},
		{Kind: Rename, Path: "old", Path2: "d/f"},
		{Kind: Flock, Slot: 4},
		{Kind: Write, Slot: 3, Path: "d/f"},
	}
	d := &Difference{Op: ops[4], Deltas: []Delta{{Field: "data"}}, Sequence: ops}
	if got, want := related(ops, d), []Op{ops[0], ops[2], ops[4]}; !slices.Equal(got, want) {
		t.Errorf("related are %v, want %v", got, want)
	}
}

func TestModel(t *testing.T) {
	m := newModel(someTree())
	if n, _, _ := m.find("d/l/c/f", true); n == nil || n.path() != "a/b/c/f" {
		t.Errorf("d/l/c/f is not found through the link")
	}
	m.rename("a/b", "d/moved", false)
	if n, _, _ := m.find("d/moved/c/f", false); n == nil || n.path() != "d/moved/c/f" {
		t.Error("what is below a renamed directory has not moved")
	}
	before := m.size()
	m.rename("a/f", "d/moved", true)
	if n, _, _ := m.find("a/f/c/f", false); n == nil || m.size() != before {
		t.Error("exchange of a file and a directory went wrong")
	}
	n, _, _ := m.find("a", false)
	m.remove(n)
	for _, l := range m.all {
		for i, n := range l {
			if n.pos != i || n != m.root && n.path() == "" {
				t.Errorf("%q is listed, but is not in the tree", n.name)
			}
		}
	}
}

func TestDeltas(t *testing.T) {
	want := Result{Data: []byte("abc"), Stats: []Stat{{What: "path", Mode: 0o100644, Mtime: 5, handle: "1"}}}
	same := Result{Data: []byte("abc"), Stats: []Stat{{What: "path", Mode: 0o100644, Mtime: 5, Ino: 9}}}
	if d := deltas(want, same); d != nil {
		t.Errorf("like results differ: %v", d)
	}
	got := Result{Errno: unix.EIO, Data: []byte("abd"), Stats: []Stat{{What: "path", Mode: 0o100600, Mtime: setBefore + 1}}}
	var fields []string
	for _, d := range deltas(want, got) {
		fields = append(fields, d.Field)
	}
	if w := []string{"errno", "data", "path.mode", "path.mtime"}; !slices.Equal(fields, w) {
		t.Errorf("differing are %v, want %v", fields, w)
	}
	now, later := Stat{Mtime: setBefore + 1}, Stat{Mtime: setBefore + 2}
	if !sameTime(now.Mtime, later.Mtime) || sameTime(1, 2) {
		t.Error("times that were set, and no others, are compared")
	}
}

func TestListingCheck(t *testing.T) {
	at := func(names ...string) map[string]dirent {
		m := map[string]dirent{}
		for _, n := range names {
			m[n] = dirent{}
		}
		return m
	}
	l := &listing{
		start:   at("a", "b", "gone", "c", "touched"),
		seen:    map[string]int{"a": 1, "c": 2, "gone": 1, "new": 1, "phantom": 1},
		touched: map[string]bool{"touched": true},
	}
	var res Result
	l.check(at("a", "b", "c", "new", "touched"), &res)
	if len(res.Broken) != 3 { // b never, c twice, phantom
		t.Errorf("broken: %q", res.Broken)
	}
}
