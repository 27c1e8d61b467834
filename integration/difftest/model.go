package difftest

import (
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// class is what the model knows of a file's type.
type class byte

const (
	aFile class = iota
	aDir
	aLink
	aNode // a fifo, socket or device
	classes
)

func classOf(mode uint32) class {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return aDir
	case unix.S_IFLNK:
		return aLink
	case unix.S_IFREG:
		return aFile
	}
	return aNode
}

// node is a name that the model believes to exist.
type node struct {
	name   string
	class  class
	target string // of a link
	up     *node
	kids   []*node
	pos    int // in the model's list of its class
}

// model is what the generator believes about the tree. It may be wrong: that only
// makes more operations fail.
type model struct {
	root *node
	all  [classes][]*node
}

func newModel(tree map[string]*entry) *model {
	m := &model{root: &node{class: aDir}}
	m.list(m.root)
	for _, p := range slices.Sorted(maps.Keys(tree)) {
		if p != "." {
			m.add(p, classOf(tree[p].st.Mode), tree[p].target)
		}
	}
	return m
}

func (m *model) size() int {
	n := 0
	for _, l := range m.all {
		n += len(l)
	}
	return n
}

func (m *model) list(n *node) {
	n.pos = len(m.all[n.class])
	m.all[n.class] = append(m.all[n.class], n)
	for _, k := range n.kids {
		m.list(k)
	}
}

func (m *model) unlist(n *node) {
	l := m.all[n.class]
	last := l[len(l)-1]
	l[n.pos], last.pos = last, n.pos
	m.all[n.class] = l[:len(l)-1]
	for _, k := range n.kids {
		m.unlist(k)
	}
}

func (n *node) kid(name string) *node {
	for _, k := range n.kids {
		if k.name == name {
			return k
		}
	}
	return nil
}

// path is where the node is; "" if it has been removed.
func (n *node) path() string {
	var parts []string
	for ; n.up != nil; n = n.up {
		parts = append(parts, n.name)
	}
	if n.name != "" {
		return ""
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

func (n *node) depth() int {
	d := 0
	for ; n.up != nil; n = n.up {
		d++
	}
	return d
}

func (n *node) within(dir *node) bool {
	for ; n != nil; n = n.up {
		if n == dir {
			return true
		}
	}
	return false
}

// find resolves a path. It returns the node, nil if there is none, and the
// directory and the name that it has or would have there.
func (m *model) find(p string, follow bool) (n, dir *node, name string) {
	return m.resolve(m.root, p, follow, 8)
}

func (m *model) resolve(from *node, p string, follow bool, links int) (n, dir *node, name string) {
	if strings.HasPrefix(p, "/") {
		from = m.root
	}
	follow = follow || strings.HasSuffix(p, "/")
	parts := strings.FieldsFunc(p, func(c rune) bool { return c == '/' })
	n = from
	for i, part := range parts {
		last := i == len(parts)-1
		if n == nil || n.class != aDir {
			return nil, nil, ""
		}
		switch part {
		case ".":
			continue
		case "..":
			if n.up != nil {
				n = n.up
			}
			continue
		}
		dir, name = n, part
		n = dir.kid(part)
		if n != nil && n.class == aLink && (!last || follow) {
			if links == 0 {
				return nil, nil, ""
			}
			n, dir, name = m.resolve(dir, n.target, true, links-1)
			links--
		}
	}
	return n, dir, name
}

func (m *model) add(p string, c class, target string) *node {
	n, dir, name := m.find(p, c == aFile)
	if n != nil || dir == nil {
		return n
	}
	n = &node{name: name, class: c, target: target, up: dir}
	dir.kids = append(dir.kids, n)
	m.list(n)
	return n
}

func (m *model) detach(n *node) {
	n.up.kids = slices.Delete(n.up.kids, slices.Index(n.up.kids, n), slices.Index(n.up.kids, n)+1)
	n.up = nil
}

func (m *model) remove(n *node) {
	if n == nil || n.up == nil {
		return
	}
	m.unlist(n)
	m.detach(n)
}

func (m *model) rename(from, to string, exchange bool) {
	a, _, _ := m.find(from, false)
	b, dir, name := m.find(to, false)
	if a == nil || a == b || dir == nil || a.up == nil {
		return
	}
	// No file system does that, but the model would go round in circles.
	if dir.within(a) || b != nil && a.within(b) {
		return
	}
	if b != nil && exchange {
		a.name, b.name = b.name, a.name
		i, j := slices.Index(a.up.kids, a), slices.Index(b.up.kids, b)
		a.up.kids[i], b.up.kids[j] = b, a
		a.up, b.up = b.up, a.up
		return
	}
	m.remove(b)
	m.detach(a)
	a.name, a.up = name, dir
	dir.kids = append(dir.kids, a)
}
