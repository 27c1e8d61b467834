package index_test

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/laminafs/lamina/index"
)

const (
	sReg  = 0o100000
	sDir  = 0o040000
	sLink = 0o120000
	sChar = 0o020000
	sBlk  = 0o060000
	sFifo = 0o010000
	sSock = 0o140000
)

// names is a small set, so that layers meet; some are odd.
var names = []string{
	"a", "b", "c", "usr", "lib", "bin", "!first", "-", ".-", ".!", "..a", "...", ".hidden",
	"\xff\xfe", "\x80", "a\nb", "ü", strings.Repeat("n", 255), strings.Repeat("\xf0", 255), strings.Repeat("m", 200),
}

// gen makes random trees.
type gen struct {
	*rand.Rand
	devices int
	layer   bool // with whiteouts, opaque and implicit directories, absent link targets
	noLinks bool // no symlinks
	files   []*index.Node
}

func newGen(seed uint64) *gen { return &gen{Rand: rand.New(rand.NewPCG(seed, 7)), devices: 1} }

func (g *gen) chance(n int) bool { return g.IntN(n) == 0 }

func (g *gen) tree(entries int) *index.Tree {
	t := &index.Tree{Root: g.node(sDir)}
	for i := range g.devices {
		t.Devices = append(t.Devices, index.Device{Tag: fmt.Sprintf("%064x", i+1), Size: int64(g.IntN(1<<20)) * 512})
	}
	dirs := []*index.Node{t.Root}
	for range entries {
		dir := dirs[g.IntN(len(dirs))]
		name := names[g.IntN(len(names))]
		if g.chance(3) {
			name = fmt.Sprintf("f%03d", g.IntN(200))
		}
		if dir.Child(name) != nil {
			continue
		}
		n := g.entry()
		dir.SetChild(name, n)
		if n.IsDir() {
			dirs = append(dirs, n)
		}
	}
	return t
}

func (g *gen) entry() *index.Node {
	if len(g.files) > 0 && g.chance(8) {
		return g.files[g.IntN(len(g.files))]
	}
	if g.layer && g.chance(6) {
		return &index.Node{Mode: sChar}
	}
	kinds := []uint32{sReg, sReg, sReg, sDir, sDir, sDir, sLink, sChar, sBlk, sFifo, sSock}
	kind := kinds[g.IntN(len(kinds))]
	if kind == sLink && g.noLinks {
		kind = sFifo
	}
	n := g.node(kind)
	if !n.IsDir() {
		g.files = append(g.files, n)
	}
	return n
}

func (g *gen) node(kind uint32) *index.Node {
	n := &index.Node{
		Mode: kind | g.Uint32N(0o10000), UID: g.Uint32(), GID: g.Uint32N(1000),
		Mtime: int64(g.Uint64() >> g.IntN(40)), MtimeNsec: g.Uint32N(1e9),
	}
	switch kind {
	case sReg:
		if g.layer && g.chance(8) {
			n.Flags, n.Target = index.HardLink, []byte(g.path())
		} else {
			g.data(n)
		}
	case sLink:
		n.Target = []byte(g.path())
		if g.chance(8) {
			n.Target = []byte(strings.Repeat("t", 1+g.IntN(4095)))
		}
	case sChar, sBlk:
		n.Rdev = index.Makedev(1+g.Uint32N(4000), g.Uint32N(1<<20))
	case sDir:
		if g.layer && g.chance(4) {
			n.Flags = index.Implicit
		}
		if g.layer && g.chance(8) {
			n.Xattrs = append(n.Xattrs, index.Xattr{Name: "trusted.overlay.opaque", Value: []byte("y")})
		}
	}
	g.xattrs(n)
	return n
}

func (g *gen) path() string {
	parts := make([]string, 1+g.IntN(4))
	for i := range parts {
		if parts[i] = names[g.IntN(8)]; g.chance(6) {
			parts[i] = ".."
		}
	}
	p := strings.Join(parts, "/")
	if g.chance(3) {
		p = "/" + p
	}
	return p
}

func (g *gen) xattrs(n *index.Node) {
	all := []string{"user.a", "user.b.c", "security.capability", "security.selinux", "trusted.t", "system.posix_acl_access", "system.posix_acl_default"}
	for _, name := range all {
		if !g.chance(12) {
			continue
		}
		size := g.IntN(30)
		if g.chance(10) {
			size = g.IntN(2000)
		}
		v := make([]byte, size)
		for i := range v {
			v[i] = byte(g.IntN(2))
		}
		n.Xattrs = append(n.Xattrs, index.Xattr{Name: name, Value: v})
	}
	if g.layer && g.chance(20) {
		n.Xattrs = append(n.Xattrs, index.Xattr{Name: "trusted.overlay.origin", Value: []byte("x")})
	}
}

// data gives n a size and extents, sometimes with holes.
func (g *gen) data(n *index.Node) {
	switch g.IntN(6) {
	case 0:
		return
	case 1:
		n.Size = g.Int64N(1 << 33)
	default:
		n.Size = 1 + g.Int64N(100000)
	}
	if n.Size == 0 {
		return
	}
	dev := func() uint16 { return uint16(1 + g.IntN(g.devices)) }
	off := func() int64 { return g.Int64N(1<<20) * 512 }
	if g.chance(2) {
		n.Extents = []index.Extent{{Len: n.Size, Off: off(), Device: dev()}}
		return
	}
	unit := int64(512) << g.IntN(4)
	for n.Size/unit > 1<<12 {
		unit <<= 1
	}
	for at := g.Int64N(3) * unit; at < n.Size && len(n.Extents) < 20; at += g.Int64N(3) * unit {
		e := index.Extent{FileOff: at, Len: min(n.Size-at, unit*(1+g.Int64N(5))), Off: off(), Device: dev()}
		n.Extents = append(n.Extents, e)
		at += (e.Len + 511) &^ 511
	}
}
