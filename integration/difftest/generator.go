package difftest

import (
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// held is what the model knows of a slot.
type held struct {
	used   bool
	dir    bool
	shared bool // of the shared directory, where nothing may be changed
	at     *node
}

// generator makes the sequence. It depends on nothing but its seed, the trees it
// is reset to, and what it learns.
type generator struct {
	*rand.Rand
	m      *model
	slots  [Slots + 1]held
	gone   []string // names that there were
	shared []Op     // ways to read the shared directory, but for what to do
	makers []maker
	total  int
	serial int64
}

// maker makes operations of a kind.
type maker struct {
	kind   Kind
	weight int
	make   func(*generator) Op
}

// limit is how many names the tree may have before names are rather removed than
// made.
const limit = 600

func newGenerator(seed uint64, without []Kind) *generator {
	g := &generator{Rand: newRand(seed)}
	for _, m := range makers() {
		if !slices.Contains(without, m.kind) {
			g.makers = append(g.makers, m)
			g.total += m.weight
		}
	}
	return g
}

// reset has the generator believe that the tree is this one.
func (g *generator) reset(tree map[string]*entry) {
	var paths [Slots + 1]string
	for i, s := range g.slots {
		if s.at != nil {
			paths[i] = s.at.path()
		}
	}
	g.m = newModel(tree)
	for i := range g.slots {
		g.slots[i].at = nil
		if paths[i] != "" {
			g.slots[i].at, _, _ = g.m.find(paths[i], false)
		}
	}
}

// readShared has the generator know the directory that all workers read.
func (g *generator) readShared(dir string) error {
	r, err := OpenRoot(Shared, dir)
	if err != nil {
		return err
	}
	defer r.Close()
	tree, _ := r.snapshot()
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		op := Op{Path: filepath.Clean(p), Shared: 1}
		switch classOf(tree[p].st.Mode) {
		case aFile:
			op.Kind = Read
		case aDir:
			op.Kind = List
		case aLink:
			op.Kind = Readlink
		default:
			op.Kind = StatFile
		}
		g.shared = append(g.shared, op)
	}
	return nil
}

// next makes an operation.
func (g *generator) next() Op {
	if len(g.shared) > 0 && g.chance(12) {
		return g.readOnly()
	}
	n := g.IntN(g.total)
	i := 0
	for n >= g.makers[i].weight {
		n -= g.makers[i].weight
		i++
	}
	op := g.makers[i].make(g)
	if g.m.size() > limit && g.chance(60) {
		op = g.lessen(op)
	}
	op.Kind = g.kindOf(op, g.makers[i].kind)
	switch op.Kind {
	case Opendir, Readdir, Rewind:
	default:
		if g.chance(15) {
			op.As = 1000
		}
	}
	switch {
	case op.Kind == StatFile:
	case g.chance(15):
		op.Look = 2
	case g.chance(80):
		op.Look = 1
	}
	return op
}

// kindOf is the kind that an operation has, unless a maker gave it one.
func (g *generator) kindOf(op Op, k Kind) Kind {
	if op.Kind != "" {
		return op.Kind
	}
	return k
}

// lessen makes an operation that removes something of one that makes something.
func (g *generator) lessen(op Op) Op {
	switch {
	case op.Kind != "" || op.Slot != 0:
		return op
	case g.chance(30):
		return Op{Kind: Rmdir, Path: g.emptyDir()}
	}
	return Op{Kind: Unlink, Path: g.pick(aFile, aFile, aLink, aNode)}
}

// readOnly makes an operation on the shared directory. It never follows a link,
// which could lead to another worker's directory.
func (g *generator) readOnly() Op {
	op := g.shared[g.IntN(len(g.shared))]
	op.Look = 1
	if n := 1 + g.IntN(Slots); g.slots[n].shared {
		// Descriptors for reading change owners and times too, so that no other
		// operation is made with them.
		op = Op{Kind: some(g, Read, Holes, MapOwn, StatFile), Slot: int64(n)}
		op.Off, op.Len, op.Look, op.Seed = g.offset(), g.length(), 1, g.seed()
		return op
	}
	if op.Kind == Read {
		op.Flags = unix.O_NOFOLLOW
		op.Off, op.Len = g.offset(), g.length()
		switch g.IntN(4) {
		case 0:
			op.Kind, op.Slot, op.Off, op.Len = Open, g.free(), 0, 0
		case 1:
			op.Kind, op.Flags, op.Seed, op.Off = MapOwn, 0, g.seed(), op.Off%65536
		}
	}
	return op
}

// learn has the generator know how an operation went in the reference.
func (g *generator) learn(op Op, ok bool) {
	if op.Kind == Close || op.Kind == Open || op.Kind == Opendir || op.Kind == Tmpfile {
		g.slots[op.Slot] = held{}
	}
	if !ok {
		return
	}
	switch op.Kind {
	case Open, Opendir, Tmpfile:
		g.learnOpen(op)
	case Write:
		if op.Slot == 0 && op.Flags&unix.O_CREAT != 0 {
			g.m.add(op.Path, aFile, "")
		}
	case Mkdir:
		g.m.add(op.Path, aDir, "")
	case Symlink:
		g.m.add(op.Path, aLink, op.Name)
	case Mknod:
		g.m.add(op.Path, classOf(uint32(op.Mode)), "")
	case Link:
		g.learnLink(op)
	case Unlink, Rmdir:
		n, _, _ := g.m.find(op.Path, false)
		g.m.remove(n)
		g.forget(op.Path)
	case Rename:
		g.m.rename(op.Path, op.Path2, op.Flags&unix.RENAME_EXCHANGE != 0)
		g.forget(op.Path)
	}
}

func (g *generator) learnOpen(op Op) {
	if op.Slot == 0 {
		return
	}
	h := held{used: true, dir: op.Kind == Opendir, shared: op.Shared != 0}
	if op.Shared == 0 && op.Kind != Tmpfile {
		if op.Flags&unix.O_CREAT != 0 {
			g.m.add(op.Path, aFile, "")
		}
		h.at, _, _ = g.m.find(op.Path, true)
	}
	g.slots[op.Slot] = h
}

func (g *generator) learnLink(op Op) {
	c, target := aFile, ""
	if op.Slot == 0 {
		n, _, _ := g.m.find(op.Path, op.Flags&unix.AT_SYMLINK_FOLLOW != 0)
		if n == nil {
			return
		}
		c, target = n.class, n.target
	}
	n, dir, name := g.m.find(op.Path2, false)
	if n == nil && dir != nil {
		g.m.add(join2(dir.path(), name), c, target)
	}
}

func join2(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// forget keeps a name to try again.
func (g *generator) forget(p string) {
	if len(g.gone) < 64 {
		g.gone = append(g.gone, p)
		return
	}
	g.gone[g.IntN(len(g.gone))] = p
}

func (g *generator) chance(percent int) bool { return g.IntN(100) < percent }

func some[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// node returns a node of one of the classes, nil if there is none.
func (g *generator) node(of ...class) *node {
	l := g.m.all[some(g, of...)]
	if len(l) == 0 {
		return nil
	}
	return l[g.IntN(len(l))]
}

// pick returns a path that is mostly one of an existing file of the given classes.
func (g *generator) pick(of ...class) string {
	switch n := g.IntN(100); {
	case n < 4:
		return g.fresh()
	case n < 8:
		of = []class{aFile, aDir, aLink, aNode}
	case n < 10:
		return g.under(aFile, aNode, aLink)
	case n < 12:
		if len(g.gone) > 0 {
			return some(g, g.gone...)
		}
	}
	n := g.node(of...)
	if n == nil || n == g.m.root {
		return g.fresh()
	}
	return g.decorate(n)
}

// decorate returns one of the ways to write a node's path.
func (g *generator) decorate(n *node) string {
	p := n.path()
	switch g.IntN(60) {
	case 0:
		return p + "/"
	case 1:
		return "./" + p
	case 2:
		return join2(n.up.path(), "./"+n.name)
	case 3:
		if d := n.up; d.up != nil {
			return d.path() + "/../" + d.name + "/" + n.name
		}
	case 4, 5, 6:
		l := g.node(aLink)
		if l == nil {
			return p
		}
		if d, _, _ := g.m.find(l.path(), true); d != nil && d.class == aDir && len(d.kids) > 0 {
			return l.path() + "/" + d.kids[g.IntN(len(d.kids))].name
		}
	}
	return p
}

// under returns a path below something that may not be a directory.
func (g *generator) under(of ...class) string {
	n := g.node(of...)
	if n == nil {
		return g.name()
	}
	return join2(n.path(), g.name())
}

// maxDepth bounds how deep names are made.
const maxDepth = 7

// fresh returns a path that mostly is none of an existing file, in an existing
// directory.
func (g *generator) fresh() string {
	if len(g.gone) > 0 && g.chance(25) {
		return some(g, g.gone...)
	}
	d := g.m.root
	for range 8 {
		if d = g.node(aDir); d.depth() < maxDepth {
			break
		}
	}
	if g.chance(2) {
		return join2(d.path(), g.name()) + "/"
	}
	return join2(d.path(), g.name())
}

// name returns a name; those that have been used come again.
func (g *generator) name() string {
	if g.chance(12) {
		return some(g, oddNames()...)
	}
	if g.chance(1) {
		return longName(256, 'x')
	}
	return "n" + string(rune('a'+g.IntN(26))) + string(rune('0'+g.IntN(10)))
}

func (g *generator) emptyDir() string {
	for range 12 {
		if n := g.node(aDir); len(n.kids) == 0 && n.up != nil {
			return n.path()
		}
	}
	return g.pick(aDir)
}

// seed is what written bytes are made from.
func (g *generator) seed() int64 {
	if g.chance(10) {
		return 0
	}
	g.serial++
	return g.serial
}

func (g *generator) offset() int64 {
	switch g.IntN(12) {
	case 0, 1, 2:
		return 0
	case 3, 4:
		return int64(g.IntN(64)) * 4096
	case 5:
		return int64(g.IntN(8 << 20))
	case 6:
		return int64(g.IntN(64)*4096) + some[int64](g, 1, 4095)
	}
	return int64(g.IntN(20000))
}

func (g *generator) length() int64 {
	switch g.IntN(12) {
	case 0:
		return 0
	case 1, 2:
		return int64(1+g.IntN(16)) * 4096
	case 3:
		return int64(g.IntN(160 << 10))
	}
	return int64(1 + g.IntN(5000))
}

// free returns a slot to fill: an empty one if there is one.
func (g *generator) free() int64 {
	n := int64(1 + g.IntN(Slots))
	for range 4 {
		if !g.slots[n].used {
			break
		}
		n = int64(1 + g.IntN(Slots))
	}
	return n
}

// full returns a slot that has a file, or a listing, and its path; 0 if it finds
// none.
func (g *generator) full(dir bool) (int64, string) {
	for range 12 {
		n := 1 + g.IntN(Slots)
		if s := g.slots[n]; s.used && s.dir == dir && !s.shared {
			p := ""
			if s.at != nil {
				p = s.at.path()
			}
			return int64(n), p
		}
	}
	return 0, ""
}
