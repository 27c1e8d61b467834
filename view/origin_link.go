package view

import (
	"slices"
	"strings"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// The bounds of index.Merge, without which the two would not agree.
const (
	maxFollowed = 64 << 20
	maxMade     = 1 << 16
	maxName     = 255
)

// pair is a directory of the layer that is settled and the place it comes to, as
// that is before it.
type pair struct {
	to  *place
	dir source
}

// overLink is an implicit directory where there is a symbolic link.
type overLink struct {
	in     *place // what has both, as it was then
	name   string
	link   source
	dir    source
	hollow bool
}

// settle finds the places that layer k has entries at by way of symbolic links.
// The order of work is that of index.Merge, which decides where entries meet.
func (o *origins) settle(k int) error {
	o.settling = k
	t := turn{layer: k}
	root, err := o.root(t)
	if err != nil {
		return err
	}
	dir, err := o.source(t, o.layers[k].Root())
	if err != nil {
		return err
	}
	todo := []pair{{root, dir}}
	var late []overLink
	g := newGuard(o.layers[k])
	for len(todo) > 0 || len(late) > 0 {
		if n := len(todo); n > 0 {
			p := todo[n-1]
			if err := g.enter(p.dir.nid); err != nil {
				return err
			}
			if todo, late, err = o.meet(todo[:n-1], late, p); err != nil {
				return err
			}
			continue
		}
		l := late[0]
		late = late[1:]
		t.step += 2 // one for what is made on the way, before what is there then
		p, err := o.beyond(l, t)
		if err != nil {
			return err
		}
		if p != nil {
			todo = append(todo, *p)
		}
	}
	return nil
}

// meet looks for directories in p that are in both, and for links under them.
func (o *origins) meet(todo []pair, late []overLink, p pair) ([]pair, []overLink, error) {
	if p.dir.opaque {
		return todo, late, nil
	}
	type named struct {
		name string
		source
	}
	var solid, hollow []named
	err := o.entries(p.dir, func(name string, e source) error {
		if !e.isDir() {
			return nil
		}
		is, err := o.isHollow(e)
		if is {
			hollow = append(hollow, named{name, e})
		} else {
			solid = append(solid, named{name, e})
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	slices.Reverse(hollow)
	for i, e := range append(solid, hollow...) {
		below, err := o.child(p.to, e.name)
		if err != nil {
			return nil, nil, err
		}
		top, err := o.seen(below, o.settling)
		switch {
		case err != nil:
			return nil, nil, err
		case top == nil:
		case top.isDir():
			todo = append(todo, pair{below, e.source})
		case top.kind() == syscall.S_IFLNK && e.flags&index.Implicit != 0:
			late = append(late, overLink{p.to, e.name, *top, e.source, i >= len(solid)})
		}
	}
	return todo, late, nil
}

// beyond finds where the link of l leads, which is where its directory is from t
// on, and returns it. If the link leads to no directory, l's own replaces it.
func (o *origins) beyond(l overLink, t turn) (*pair, error) {
	dir := l.dir
	dir.turn = t
	in, err := o.at(l.in.path, t)
	if err != nil {
		return nil, err
	}
	// Another link of the layer may have led to where the directory itself was
	// replaced. What it had leads on from there, as for index.Merge.
	lost := in.up != nil && (in.top() == nil || !in.top().isDir())
	if lost {
		in = l.in
	}
	now, err := o.child(in, l.name)
	if err != nil {
		return nil, err
	}
	top, err := o.seen(now, o.settling)
	if err != nil {
		return nil, err
	}
	var to *place
	switch {
	case top != nil && top.key() == l.link.key():
		like := &dir
		if l.hollow {
			like = nil
		}
		if to, err = o.walk(in, l.name, like, t); err != nil {
			return nil, err
		}
	case top != nil && top.isDir():
		to = now
	}
	if to == nil {
		if !l.hollow && !lost {
			dir.force = true
			o.extras[now.path] = append(o.extras[now.path], dir)
		}
		return nil, nil
	}
	o.extras[to.path] = append(o.extras[to.path], dir)
	return &pair{to, dir}, nil
}

// at returns the place of a path without links, as it is before limit.
func (o *origins) at(path string, limit turn) (*place, error) {
	p, err := o.root(limit)
	for name := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if err != nil || name == "" {
			break
		}
		p, err = o.child(p, name)
	}
	return p, err
}

// walk follows path from the directory at as the kernel does in a chroot. Where
// there is nothing a directory like the given one is made, unless that is nil. An
// absolute link starts at the root as it is before limit. It returns the directory
// reached, or nil.
func (o *origins) walk(at *place, path string, like *source, limit turn) (*place, error) {
	links := 0
	for rest := path; rest != ""; {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			if at.up != nil {
				at = at.up
			}
			continue
		}
		next, err := o.child(at, part)
		if err != nil {
			return nil, err
		}
		top, err := o.seen(next, o.settling)
		switch {
		case err != nil:
			return nil, err
		case top == nil && like != nil && o.made < maxMade && len(part) <= maxName:
			o.made++
			dir := *like
			dir.bare = true
			dir.turn.step--
			o.extras[next.path] = append(o.extras[next.path], dir)
			next.srcs = append(next.srcs, dir)
			at = next
		case top != nil && top.isDir():
			at = next
		case top != nil && top.kind() == syscall.S_IFLNK:
			target, err := o.layers[top.turn.layer].Readlink(top.nid)
			if err != nil {
				return nil, err
			}
			links++
			o.followed += len(target)
			if links > maxLinks || o.followed > maxFollowed || len(target) == 0 {
				return nil, nil
			}
			if target[0] == '/' {
				if at, err = o.root(limit); err != nil {
					return nil, err
				}
			}
			rest = string(target) + "/" + rest
		default:
			return nil, nil
		}
	}
	return at, nil
}

// seen returns what is seen at p while the given layer is applied, a hard link
// resolved; nil if there is nothing.
func (o *origins) seen(p *place, during int) (*source, error) {
	top := p.top()
	if top == nil || !top.isHardLink() {
		return top, nil
	}
	if top.turn.layer == during {
		// A link to what the layer itself has is made at its end.
		to, err := o.linkBelow(top)
		if err != nil || to != nil {
			return to, err
		}
		return top, nil
	}
	return o.resolve(*top)
}

// linkBelow returns the file of the layers below that the hard link s is a name of.
func (o *origins) linkBelow(s *source) (*source, error) {
	return o.file(s, turn{layer: s.turn.layer})
}

// resolve returns the file that the hard link s is a name of: one of the layers
// below or else of the tree with s's layer; nil if there is none.
func (o *origins) resolve(s source) (*source, error) {
	first := s.key()
	if known, ok := o.links[first]; ok {
		return known, nil
	}
	seen := map[hollowKey]bool{}
	at := &s
	for at != nil && at.isHardLink() {
		if seen[at.key()] {
			at = nil
			break
		}
		seen[at.key()] = true
		next, err := o.linkBelow(at)
		if err == nil && next == nil {
			next, err = o.file(at, turn{layer: at.turn.layer + 1})
		}
		if err != nil {
			return nil, err
		}
		at = next
	}
	o.links[first] = at
	return at, nil
}

// file returns what is at the target of the hard link s before limit; nil if that
// is nothing or a directory. It may be another hard link of s's own layer.
func (o *origins) file(s *source, limit turn) (*source, error) {
	target, err := o.layers[s.turn.layer].Readlink(s.nid)
	if err != nil {
		return nil, err
	}
	path := strings.TrimRight(string(target), "/")
	cut := strings.LastIndexByte(path, '/') + 1
	if name := path[cut:]; name == "" || name == "." || name == ".." {
		return nil, nil
	}
	root, err := o.root(limit)
	if err != nil {
		return nil, err
	}
	settling, followed := o.settling, o.followed
	defer func() { o.settling, o.followed = settling, followed }()
	o.settling = s.turn.layer
	at, err := o.walk(root, path[:cut], nil, limit)
	if err != nil || at == nil {
		return nil, err
	}
	p, err := o.child(at, path[cut:])
	if err != nil {
		return nil, err
	}
	top := p.top()
	if top == nil || top.isDir() {
		return nil, nil
	}
	if top.isHardLink() && top.turn.layer != s.turn.layer {
		return o.resolve(*top)
	}
	return top, nil
}
