package index

import "strings"

// Bounds on what paths through symlinks may cost: symlinks on one path (as many
// as the kernel allows), and in one merge the bytes of symlinks followed and the
// directories made. Layers can have a million of each.
const (
	maxSymlinks = 40
	maxFollowed = 64 << 20
	maxMade     = 1 << 16
)

// walk follows path from the directory at, the way the kernel does in a chroot:
// ".." stops at the root, and absolute symlinks start there. Every component
// must be a directory or a symlink to one, or is made with the attributes of
// like, unless that is nil. It returns the directory reached, or nil.
func (m *merger) walk(at *trail, path string, like *Node) *trail {
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
		n := at.dir.Child(part)
		switch {
		case n == nil && like != nil && m.made < maxMade && checkName(part) == nil:
			m.made++
			n = &Node{Mode: like.Mode, UID: like.UID, GID: like.GID, Mtime: like.Mtime, MtimeNsec: like.MtimeNsec}
			at.dir.SetChild(part, n)
			at = &trail{n, at}
		case n == nil:
			return nil
		case n.IsDir():
			at = &trail{n, at}
		case n.Mode&modeType == modeLink:
			target := string(n.Target)
			links++
			m.followed += len(target)
			if links > maxSymlinks || m.followed > maxFollowed || target == "" {
				return nil
			}
			if target[0] == '/' {
				at = &trail{dir: m.tree.Root}
			}
			// The rest of the path is put behind the target, not walked by a
			// second call: a chain of symlinks must not nest calls.
			rest = target + "/" + rest
		default:
			return nil
		}
	}
	return at
}

// file returns the node at path, whose last component is not followed; nil if
// there is none or it is a directory.
func (m *merger) file(path string) *Node {
	path = strings.TrimRight(path, "/")
	cut := strings.LastIndexByte(path, '/') + 1
	at := m.walk(&trail{dir: m.tree.Root}, path[:cut], nil)
	if at == nil {
		return nil
	}
	n := at.dir.Child(path[cut:])
	if n == nil || n.IsDir() {
		return nil
	}
	return n
}

// linkBelow resolves the layer's hard links in the tree below it, and returns
// those it cannot.
func (m *merger) linkBelow() []layerEntry {
	var pending []layerEntry
	for _, l := range m.layer.links {
		if m.tree.Root != nil {
			if n := m.file(string(l.node.Target)); n != nil {
				l.dir.SetChild(l.name, n)
				continue
			}
		}
		m.home[l.dir] = l.dir
		pending = append(pending, l)
	}
	return pending
}

// linkWithin resolves links in the merged tree. A link may lead to another one:
// each is resolved once, those it needs before it; what leads nowhere, or in a
// circle, is left out.
func (m *merger) linkWithin(pending []layerEntry) {
	resolved := make(map[*Node]*Node, len(pending)) // nil: leads nowhere, or being resolved
	for _, l := range pending {
		m.follow(l.node, resolved)
	}
	for _, l := range pending {
		dir := m.home[l.dir]
		if dir.Child(l.name) != l.node {
			continue // another entry of the layer came there through a symlink
		}
		if n := resolved[l.node]; n != nil {
			dir.SetChild(l.name, n)
			continue
		}
		dir.RemoveChild(l.name)
		m.tree.warn("hard link %.80q left out: no file %.200q", l.name, l.node.Target)
	}
}

// follow notes in resolved what the HardLink node n, and those it leads to, are
// links to.
func (m *merger) follow(n *Node, resolved map[*Node]*Node) {
	var chain []*Node
	var end *Node
	for n.Flags&HardLink != 0 {
		known, ok := resolved[n]
		if ok {
			end = known
			break
		}
		resolved[n] = nil
		chain = append(chain, n)
		next := m.file(string(n.Target))
		if next == nil {
			break
		}
		if next.Flags&HardLink == 0 {
			end = next
			break
		}
		n = next
	}
	for _, c := range chain {
		resolved[c] = end
	}
}

// beyond returns the directory that the symlink under an implicit directory
// leads to. It is made if it is not there, unless the directory is hollow. If the
// symlink leads to something else, the directory replaces it and nil is returned.
func (m *merger) beyond(s *overSymlink) *trail {
	like := s.upper
	if s.hollow {
		like = nil
	}
	switch n := s.to.dir.Child(s.name); {
	case n == s.symlink:
		if at := m.walk(s.to, s.name, like); at != nil {
			return at
		}
	case n != nil && n.IsDir(): // something else of the layer came there first
		return &trail{n, s.to}
	}
	if !s.hollow {
		s.to.dir.SetChild(s.name, s.upper)
	}
	return nil
}
