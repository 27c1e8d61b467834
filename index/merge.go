package index

import (
	"fmt"
	"slices"
	"strings"
)

const overlayPrefix = "trusted.overlay."

// Merge returns the tree that layers make together, the lowest first. Device i+1
// of the result is the device of layers[i]; a layer has one at most. The layers
// must stay open during the call only.
//
// Layers are applied one after the other. A whiteout removes what lower layers
// have under its name, an opaque directory what they have in it. A directory on
// a directory merges the entries and gives it the attributes and xattrs of the
// upper one, unless that is Implicit; any other entry replaces what is there. An
// Implicit directory on a symlink is where the symlink leads, as for the
// reference unpacker, which writes through it. A HardLink node becomes another
// name of the file its path has in the layers below or, failing that, in the
// merged tree; symlinks to directories on the way are followed inside the tree.
// If there is no such file, the name is left out with a warning. The result has
// no whiteouts, Flags or trusted.overlay xattrs.
//
// The cost is that of decoding every layer once, plus the directories that
// several layers have.
func Merge(layers []*Index) (*Tree, error) {
	if len(layers) > 1<<16-1 {
		return nil, fmt.Errorf("merge %d layers: %w", len(layers), ErrTooBig)
	}
	m := merger{tree: &Tree{Devices: make([]Device, len(layers))}}
	for i, x := range layers {
		switch devices := x.Devices(); len(devices) {
		case 0:
		case 1:
			m.tree.Devices[i] = devices[0]
		default:
			return nil, fmt.Errorf("merge layer %d: has %d devices: %w", i, len(devices), ErrCorrupt)
		}
		if err := m.add(x, uint16(i+1)); err != nil {
			return nil, fmt.Errorf("merge layer %d: %w", i, err)
		}
	}
	if m.tree.Root == nil {
		m.tree.Root = &Node{Mode: modeDir | 0o755}
	}
	return m.tree, nil
}

// layerMarks is what a layer says about the layers below it. It is taken out of
// the layer's tree while that is decoded, so that subtrees nothing lies under
// can be taken over as they are.
type layerMarks struct {
	device    uint16
	whiteouts map[*Node][]string // names, by directory
	opaque    map[*Node]bool
	implicit  []layerEntry           // a directory before those in it
	links     []layerEntry           // HardLink nodes
	hollow    map[*Node][]layerEntry // by directory: implicit ones without entries of their own
}

// layerEntry is the entry name of dir.
type layerEntry struct {
	dir  *Node
	name string
	node *Node
}

// keep notes what the entry name of dir is, and reports whether it has a place
// in the layer's tree.
func (l *layerMarks) keep(dir *Node, name string, n *Node) bool {
	switch {
	case n.whiteout():
		l.whiteouts[dir] = append(l.whiteouts[dir], name)
		return false
	case n.Flags == 0:
	case n.IsDir():
		l.implicit = append(l.implicit, layerEntry{dir, name, n})
	case n.Flags&HardLink != 0 && n.Mode&modeType == modeReg:
		l.links = append(l.links, layerEntry{dir, name, n})
	default:
		n.Flags = 0
	}
	return true
}

func (l *layerMarks) overlayXattr(n *Node, x Xattr) {
	if x.Name == overlayPrefix+"opaque" && string(x.Value) == "y" && n.IsDir() {
		l.opaque[n] = true
	}
}

// hollowOut takes the directories out of the layer's tree that are only there
// because something below them is hidden: where nothing lies below, they must
// not appear.
func (l *layerMarks) hollowOut() {
	l.hollow = map[*Node][]layerEntry{}
	for _, e := range slices.Backward(l.implicit) {
		if e.dir != nil && e.node.Flags&Implicit != 0 && e.node.Len() == 0 {
			e.dir.RemoveChild(e.name)
			l.hollow[e.dir] = append(l.hollow[e.dir], e)
		}
	}
}

// merger applies layers to a tree.
type merger struct {
	tree     *Tree
	layer    *layerMarks     // the one being applied
	home     map[*Node]*Node // its directories that have links -> where they went
	late     []overSymlink
	followed int // bytes of symlinks followed so far
	made     int // directories made where symlinks led nowhere
}

// trail is a directory of the merged tree with the way to it.
type trail struct {
	dir *Node
	up  *trail // nil above the root
}

// pair is a directory of the layer and the one it is to be applied to.
type pair struct {
	to    *trail
	upper *Node
}

// overSymlink is an implicit directory where the tree below has a symlink.
type overSymlink struct {
	to      *trail // the directory that has both
	name    string
	symlink *Node
	upper   *Node
	hollow  bool
}

// add applies x, whose data is device.
func (m *merger) add(x *Index, device uint16) error {
	d := newDecoder(x)
	d.layer = &layerMarks{device: device, whiteouts: map[*Node][]string{}, opaque: map[*Node]bool{}}
	root, err := d.decode()
	if err != nil {
		return err
	}
	d.layer.hollowOut()
	if root.Flags != 0 {
		d.layer.implicit = append(d.layer.implicit, layerEntry{node: root})
	}
	m.layer = d.layer
	m.home = make(map[*Node]*Node, len(m.layer.links))
	pending := m.linkBelow()
	if m.tree.Root == nil {
		m.tree.Root = root
	} else {
		m.applyAll(root)
	}
	m.linkWithin(pending)
	for _, e := range m.layer.implicit {
		e.node.Flags = 0
	}
	return nil
}

// applyAll applies the layer with the given root.
func (m *merger) applyAll(root *Node) {
	todo := []pair{{&trail{dir: m.tree.Root}, root}}
	for len(todo) > 0 || len(m.late) > 0 {
		if n := len(todo); n > 0 {
			p := todo[n-1]
			todo = m.apply(todo[:n-1], p)
			continue
		}
		// What the layer names is in place: now symlinks lead where they should.
		s := m.late[0]
		m.late = m.late[1:]
		if to := m.beyond(&s); to != nil {
			todo = append(todo, pair{to, s.upper})
		}
	}
}

// apply applies the one directory p, and appends to todo the subdirectories that
// both have.
func (m *merger) apply(todo []pair, p pair) []pair {
	dir, upper := p.to.dir, p.upper
	if _, ok := m.home[upper]; ok {
		m.home[upper] = dir
	}
	if upper.Flags&Implicit == 0 {
		dir.Mode, dir.UID, dir.GID = upper.Mode, upper.UID, upper.GID
		dir.Mtime, dir.MtimeNsec = upper.Mtime, upper.MtimeNsec
		dir.Xattrs = upper.Xattrs
	}
	var lower []entry
	if !m.layer.opaque[upper] {
		lower = hide(dir.entries(), m.layer.whiteouts[upper])
	}
	merged := lower
	done := -1 // how many entries of lower are in merged; -1: it is still lower itself
	for _, e := range upper.entries() {
		from := max(done, 0)
		at, found := slices.BinarySearchFunc(lower[from:], e.name, compareEntry)
		at += from
		if found {
			var through bool
			if todo, through = m.both(todo, p.to, e, lower[at].node, false); through {
				continue
			}
		}
		if done < 0 {
			merged = make([]entry, 0, len(lower)+upper.Len())
		}
		merged = append(append(merged, lower[from:at]...), e)
		done = at
		if found {
			done++
		}
	}
	if done >= 0 {
		merged = append(merged, lower[done:]...)
	}
	if dir.dir == nil {
		dir.dir = &children{}
	}
	dir.dir.list = merged
	for _, e := range m.layer.hollow[upper] {
		if below := dir.Child(e.name); below != nil {
			todo, _ = m.both(todo, p.to, entry{e.name, e.node}, below, true)
		}
	}
	return todo
}

// both handles an entry that the layer and the tree below have. It reports
// whether the one below stays, and the layer's is applied to it.
func (m *merger) both(todo []pair, to *trail, e entry, below *Node, hollow bool) ([]pair, bool) {
	switch {
	case !e.node.IsDir():
		return todo, false
	case below.IsDir():
		return append(todo, pair{&trail{below, to}, e.node}), true
	case below.Mode&modeType == modeLink && e.node.Flags&Implicit != 0:
		m.late = append(m.late, overSymlink{to, e.name, below, e.node, hollow})
		return todo, true
	}
	return todo, false
}

func compareEntry(e entry, name string) int { return strings.Compare(e.name, name) }

// hide returns list without the entries called names. Both are sorted.
func hide(list []entry, names []string) []entry {
	if len(names) == 0 {
		return list
	}
	out := make([]entry, 0, len(list))
	for _, name := range names {
		at, found := slices.BinarySearchFunc(list, name, compareEntry)
		out = append(out, list[:at]...)
		if found {
			at++
		}
		list = list[at:]
	}
	return append(out, list...)
}
