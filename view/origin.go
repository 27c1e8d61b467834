package view

import (
	"errors"
	"slices"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// origins finds what the layers of an image have at a path: it goes down their
// trees side by side, by the rules of index.Merge, whose words it uses.
//
// One thing is not found by going down: an implicit directory over a symbolic
// link is where the link leads, so that a layer has entries at a path that its
// own tree does not have. Those places are found once, in settle, layer by layer,
// since where a link leads is known from the layers below.
//
// Not safe for concurrent use.
type origins struct {
	layers []*index.Index
	extras map[string][]source   // by path: what is there by way of a link, in turn
	hollow map[hollowKey]bool    // what isHollow knows
	links  map[hollowKey]*source // what resolve knows; nil: leads nowhere

	settling int // the layer that is applied where a path is walked
	followed int // bytes of links followed so far
	made     int // directories made where links led nowhere
}

type hollowKey struct {
	layer int
	nid   index.NID
}

// turn orders what is applied: layer by layer, and in each what it has at its own
// paths before what it has by way of links.
type turn struct{ layer, step int }

func (t turn) before(u turn) bool {
	return t.layer < u.layer || t.layer == u.layer && t.step < u.step
}

// source is what a layer has at a path.
type source struct {
	turn   turn
	nid    index.NID // in the layer's index
	attr   index.Attr
	flags  index.Flags
	opaque bool // it hides what lower layers have in it
	bare   bool // a directory made for a link: no entries
	force  bool // it replaces a link that leads nowhere

	hidden bool
	by     turn // what hides it
	how    Hiding
}

func (s *source) kind() uint32     { return s.attr.Mode & syscall.S_IFMT }
func (s *source) isDir() bool      { return s.kind() == syscall.S_IFDIR }
func (s *source) isHardLink() bool { return !s.isDir() && s.flags&index.HardLink != 0 }
func (s *source) isWhiteout() bool {
	return s.kind() == syscall.S_IFCHR && s.attr.Rdev == 0
}
func (s *source) key() hollowKey { return hollowKey{s.turn.layer, s.nid} }

// place is a path and what the layers have there, in turn.
type place struct {
	path  string // "" is the root
	up    *place // nil above the root
	limit turn   // only what comes before it is looked at
	floor turn   // what came before it is hidden
	srcs  []source
}

// top returns what is seen at p, nil if there is nothing.
func (p *place) top() *source {
	for i := range slices.Backward(p.srcs) {
		if !p.srcs[i].hidden {
			return &p.srcs[i]
		}
	}
	return nil
}

// hide hides what is there so far.
func (p *place) hide(by turn, how Hiding) {
	for i := range p.srcs {
		if s := &p.srcs[i]; !s.hidden {
			s.hidden, s.by, s.how = true, by, how
		}
	}
	if p.floor.before(by) {
		p.floor = by
	}
}

func newOrigins(m *Image) (*origins, error) {
	o := &origins{extras: map[string][]source{}, hollow: map[hollowKey]bool{}, links: map[hollowKey]*source{}}
	for _, l := range m.Layers {
		o.layers = append(o.layers, l.Index)
	}
	for k := 1; k < len(o.layers); k++ {
		if err := o.settle(k); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// end is after everything.
func (o *origins) end() turn { return turn{layer: len(o.layers)} }

// root returns the root as it is before limit.
func (o *origins) root(limit turn) (*place, error) {
	p := &place{limit: limit}
	for k, x := range o.layers {
		t := turn{layer: k}
		if !t.before(limit) {
			break
		}
		s, err := o.source(t, x.Root())
		if err != nil {
			return nil, err
		}
		p.srcs = append(p.srcs, s)
		for _, s := range o.extras[""] {
			if s.turn.layer == k && s.turn.before(limit) {
				p.srcs = append(p.srcs, s)
			}
		}
	}
	return p, nil
}

// source makes a source of a layer's node.
func (o *origins) source(t turn, nid index.NID) (s source, err error) {
	x := o.layers[t.layer]
	s.turn, s.nid = t, nid
	if err := x.Attr(nid, &s.attr); err != nil {
		return s, err
	}
	if s.flags, err = x.Flags(nid); err != nil {
		return s, err
	}
	if s.isDir() {
		value, err := x.Xattr(nid, "trusted.overlay.opaque")
		if err != nil && !errors.Is(err, index.ErrNoXattr) {
			return s, err
		}
		s.opaque = err == nil && string(value) == "y"
	}
	return s, nil
}

// child returns the place of name in the directory p.
func (o *origins) child(p *place, name string) (*place, error) {
	c := &place{path: p.path + "/" + name, up: p, limit: p.limit, floor: p.floor}
	extras := o.extras[c.path]
	for i := range p.srcs {
		parent := &p.srcs[i]
		for len(extras) > 0 && extras[0].turn.before(parent.turn) {
			if err := o.applyExtra(p, c, extras[0]); err != nil {
				return nil, err
			}
			extras = extras[1:]
		}
		if err := o.applyFrom(parent, c, name); err != nil {
			return nil, err
		}
	}
	for _, s := range extras {
		if err := o.applyExtra(p, c, s); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// applyExtra applies what a layer has at c by way of a link.
func (o *origins) applyExtra(p, c *place, s source) error {
	if !s.turn.before(c.limit) || s.turn.before(p.floor) {
		return nil
	}
	return o.apply(c, s)
}

// applyFrom applies what the directory parent has under name.
func (o *origins) applyFrom(parent *source, c *place, name string) error {
	if !parent.isDir() || parent.bare {
		return nil
	}
	if parent.opaque {
		c.hide(parent.turn, Opaque)
	}
	nid, err := o.layers[parent.turn.layer].Lookup(parent.nid, name)
	if errors.Is(err, index.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s, err := o.source(parent.turn, nid)
	if err != nil {
		return err
	}
	if !parent.hidden {
		return o.apply(c, s)
	}
	if !s.isWhiteout() {
		s.hidden, s.by, s.how = true, parent.by, parent.how
		c.srcs = append(c.srcs, s)
	}
	return nil
}

// apply applies the entry s of a layer to what is at c so far.
func (o *origins) apply(c *place, s source) error {
	if s.isWhiteout() {
		c.hide(s.turn, Whiteout)
		return nil
	}
	top, err := o.seen(c, s.turn.layer)
	if err != nil {
		return err
	}
	if !s.isDir() || s.force {
		c.hide(s.turn, Replaced)
		c.srcs = append(c.srcs, s)
		return nil
	}
	if top != nil && top.isDir() {
		c.srcs = append(c.srcs, s)
		return nil
	}
	if s.flags&index.Implicit != 0 && !s.bare {
		if top != nil && top.kind() == syscall.S_IFLNK {
			return nil // it is where the link leads
		}
		hollow, err := o.isHollow(s)
		if err != nil || hollow {
			return err
		}
	}
	c.hide(s.turn, Replaced)
	c.srcs = append(c.srcs, s)
	return nil
}

// isHollow reports whether the directory s is there only because something below
// it is hidden: it has nothing but whiteouts and directories that are hollow too.
func (o *origins) isHollow(s source) (bool, error) {
	if s.flags&index.Implicit == 0 {
		return false, nil
	}
	if known, ok := o.hollow[s.key()]; ok {
		return known, nil
	}
	// A directory that leads back to itself must not nest calls without end.
	o.hollow[s.key()] = true
	hollow := true
	err := o.entries(s, func(_ string, e source) (err error) {
		if hollow && !e.isWhiteout() {
			hollow = false
			if e.isDir() {
				hollow, err = o.isHollow(e)
			}
		}
		return err
	})
	o.hollow[s.key()] = hollow
	return hollow, err
}

// entries calls fn with what the directory s has, in byte order of the names.
func (o *origins) entries(s source, fn func(name string, e source) error) error {
	if s.bare {
		return nil
	}
	var failed error
	err := o.layers[s.turn.layer].ReadDir(s.nid, 0, func(d *index.Dirent) bool {
		if name := string(d.Name); name != "." && name != ".." {
			var e source
			if e, failed = o.source(s.turn, d.NID); failed == nil {
				failed = fn(name, e)
			}
		}
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return err
}
