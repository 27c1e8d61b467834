package index

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// shareAbove is the size from which a value is kept out of the inodes even if
// only one has it, so that large values do not spread the inodes out.
const shareAbove = 256

// packedXattr is an xattr as it is written.
type packedXattr struct {
	index  uint8
	suffix string
	value  string
	id     uint32 // place among the shared ones, in 4-byte units
	count  uint32 // inodes that have it
	shared bool
}

func (x *packedXattr) size() int64 {
	return roundUp(int64(xattrEntry+len(x.suffix)+len(x.value)), 4)
}

// xattrSet is what one inode has.
type xattrSet struct {
	shared, inline []*packedXattr
	size           int64 // bytes they take behind the inode
}

// xattrPlan holds the xattrs of all inodes, equal ones once.
type xattrPlan struct {
	xattrs     []xattrSet
	shared     []*packedXattr // in the order of their ids
	sharedSize int64
}

// share collects the xattrs of all nodes and decides which are kept in the
// shared area: those that several inodes have, and large ones.
func (p *plan) share() {
	type key struct{ name, value string }
	known := map[key]*packedXattr{}
	for i := range p.nodes {
		n := p.nodes[i].node
		if len(n.Xattrs) == 0 {
			continue
		}
		var set xattrSet
		for _, x := range p.distinct(uint32(i), n.Xattrs) {
			index, suffix, _ := splitXattr(x.Name)
			k := key{x.Name, string(x.Value)}
			e := known[k]
			if e == nil {
				e = &packedXattr{index: index, suffix: suffix, value: k.value}
				known[k] = e
			}
			e.count++
			set.inline = append(set.inline, e)
		}
		if set.inline != nil {
			p.nodes[i].xattrs = int32(len(p.xattrs))
			p.xattrs = append(p.xattrs, set)
		}
	}
	for i := range p.xattrs {
		p.divide(&p.xattrs[i])
	}
}

// divide moves what is worth sharing out of set.inline.
func (p *plan) divide(set *xattrSet) {
	inline := set.inline[:0]
	for _, e := range set.inline {
		if len(set.shared) == maxSharedXattrs || e.count == 1 && len(e.value) <= shareAbove {
			inline = append(inline, e)
			continue
		}
		if !e.shared {
			e.shared = true
			e.id = uint32(p.sharedSize / 4)
			p.sharedSize += e.size()
			p.shared = append(p.shared, e)
		}
		set.shared = append(set.shared, e)
	}
	set.inline = inline
}

// distinct returns xattrs sorted by name, the last of equal names, without
// those the format has no room for in principle: the kernel could not show them.
func (p *plan) distinct(i uint32, xattrs []Xattr) []Xattr {
	list := make([]Xattr, 0, len(xattrs))
	path := "" // slow to find: once, and only to be told
	for _, x := range xattrs {
		_, suffix, ok := splitXattr(x.Name)
		if whole := len(suffix) == 0; !ok || whole && x.Name[len(x.Name)-1] == '.' || strings.IndexByte(x.Name, 0) >= 0 {
			if p.tree.warns() {
				if path == "" {
					path = p.path(i)
				}
				p.tree.warn("%s: xattr %.80q left out: the kernel has no such name", path, x.Name)
			}
			continue
		}
		list = append(list, x)
	}
	slices.SortStableFunc(list, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	out := list[:0]
	for k, x := range list {
		if k+1 < len(list) && list[k+1].Name == x.Name {
			continue
		}
		out = append(out, x)
	}
	return out
}

// measure sets set.size and returns it.
func (p *plan) measure(set *xattrSet) (int64, error) {
	set.size = xattrHeader + 4*int64(len(set.shared))
	for _, e := range set.inline {
		set.size += e.size()
	}
	for _, e := range slices.Concat(set.shared, set.inline) {
		if len(e.value) > maxXattrValue {
			return 0, fmt.Errorf("xattr of %d bytes: %w", len(e.value), ErrTooBig)
		}
	}
	switch {
	case (set.size-xattrHeader)/4+1 > maxXattrCount:
		return 0, fmt.Errorf("xattrs of %d bytes: %w", set.size, ErrTooBig)
	case p.sharedSize/4 > 1<<32-1:
		return 0, fmt.Errorf("shared xattrs of %d bytes: %w", p.sharedSize, ErrTooBig)
	}
	return set.size, nil
}
