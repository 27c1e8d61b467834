package index

import (
	"cmp"
	"iter"
	"slices"
)

// NID names an inode of an index: its byte position divided by 32. No inode has
// NID 0 or 1. It is stable for the life of the image and the inode number that
// the kernel shows when it mounts it.
type NID uint64

// Extent says where a range of a file lies: Len bytes at FileOff are the bytes
// at Off in the data of device Device, counted from 1. FileOff and Off are
// multiples of 512. What of a file no extent covers is a hole.
//
// The format knows whole blocks only: in a Tree, an extent whose Len is not a
// multiple of 512 and that ends before the file does reaches to the end of its
// last block, and the device must hold zeros there.
type Extent struct {
	FileOff, Len, Off int64
	Device            uint16
}

// Xattr is an extended attribute with its full name. Nodes of a decoded or merged
// tree share equal values: they are to be replaced, not changed.
type Xattr struct {
	Name  string
	Value []byte
}

// Flags mark nodes of a single layer that need care when layers are merged.
type Flags uint8

const (
	// Implicit is a directory the layer does not name but has entries in. Its
	// attributes are guesses and never override those of a lower layer.
	Implicit Flags = 1 << iota
	// HardLink is a regular file that stands for a hard link to a path the
	// layer does not contain; the path is in Target.
	HardLink
)

// Node is one inode of a Tree. A file with several names is one Node under each
// of them; a directory has one name.
//
// Mode is st_mode, with the file type; Rdev is in the encoding of [Makedev].
// Size is the file's length in bytes and counts for regular files only. Target
// is what a symlink points to or, with the flag HardLink, the link's path.
// Xattrs need no order; the last of equal names counts. Extents are in file
// order and do not overlap.
//
// Memory: about 128 bytes and what the fields refer to, plus 24 and the name
// for the entry in its directory.
type Node struct {
	Mode, UID, GID, Rdev uint32
	Mtime                int64 // seconds since 1970
	MtimeNsec            uint32
	Flags                Flags
	Size                 int64
	Target               []byte
	Xattrs               []Xattr
	Extents              []Extent

	dir  *children
	slot uint32 // place in the last encoding's order, to know a node seen before
}

// Makedev returns the device number as Linux stores it in 32 bits (its
// new_encode_dev): 12 bits of major and 20 of minor; what is more is cut off.
func Makedev(major, minor uint32) uint32 {
	return minor&0xff | major&0xfff<<8 | minor&0xfff00<<12
}

// entry is a name in a directory. Its node is nil once removed.
type entry struct {
	name string
	node *Node
}

// children are the entries of a directory. Most directories are small, or are
// filled in sorted order: for them this is a sorted slice and nothing else. A
// large one filled in another order becomes a plain list with a map beside it
// until somebody wants it sorted; so both filling and listing stay linear.
type children struct {
	list  []entry
	dead  int            // removed entries still in list; none if places is nil
	place map[string]int // nil while list is sorted; otherwise name -> position in list
}

// insertLimit is the size up to which an entry is inserted into the sorted
// slice by moving the ones behind it.
const insertLimit = 256

// search returns the position of name in the sorted list.
func (c *children) search(name string) (int, bool) {
	if n := len(c.list); n > 0 && c.list[n-1].name < name {
		return n, false // appending in order needs no search
	}
	return slices.BinarySearchFunc(c.list, name, func(e entry, name string) int {
		return cmp.Compare(e.name, name)
	})
}

func (c *children) get(name string) *Node {
	if c.place != nil {
		if i, ok := c.place[name]; ok {
			return c.list[i].node
		}
		return nil
	}
	if i, ok := c.search(name); ok {
		return c.list[i].node
	}
	return nil
}

func (c *children) set(name string, n *Node) {
	if c.place == nil {
		i, ok := c.search(name)
		switch {
		case ok:
			c.list[i].node = n
			return
		case i == len(c.list) || len(c.list) < insertLimit:
			c.list = slices.Insert(c.list, i, entry{name, n})
			return
		}
		c.index()
	}
	if i, ok := c.place[name]; ok {
		c.list[i].node = n
		return
	}
	c.place[name] = len(c.list)
	c.list = append(c.list, entry{name, n})
}

func (c *children) remove(name string) {
	if c.place == nil {
		i, ok := c.search(name)
		if !ok {
			return
		}
		if len(c.list) < insertLimit {
			c.list = slices.Delete(c.list, i, i+1)
			return
		}
		c.index()
	}
	if i, ok := c.place[name]; ok {
		c.list[i].node = nil
		delete(c.place, name)
		c.dead++
	}
}

// index changes from the sorted form to the form with a map.
func (c *children) index() {
	c.place = make(map[string]int, len(c.list)+1)
	for i := range c.list {
		c.place[c.list[i].name] = i
	}
}

// sorted returns the entries in order, owned by c.
func (c *children) sorted() []entry {
	if c.place != nil {
		if c.dead > 0 {
			c.list = slices.DeleteFunc(c.list, func(e entry) bool { return e.node == nil })
			c.dead = 0
		}
		slices.SortFunc(c.list, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
		c.place = nil
	}
	return c.list
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Mode&modeType == modeDir }

// whiteout reports whether n hides an entry of lower layers.
func (n *Node) whiteout() bool { return n.Mode&modeType == modeChar && n.Rdev == 0 }

// Child returns the entry name of the directory n, nil if there is none.
func (n *Node) Child(name string) *Node {
	if n.dir == nil {
		return nil
	}
	return n.dir.get(name)
}

// SetChild makes child the entry name of the directory n, in place of one that
// may be there. Names are checked when the tree is encoded.
func (n *Node) SetChild(name string, child *Node) {
	if n.dir == nil {
		n.dir = &children{}
	}
	n.dir.set(name, child)
}

// RemoveChild removes the entry name of the directory n, if there is one.
func (n *Node) RemoveChild(name string) {
	if n.dir != nil {
		n.dir.remove(name)
	}
}

// Len returns how many entries the directory n has, "." and ".." not counted.
func (n *Node) Len() int {
	if n.dir == nil {
		return 0
	}
	return len(n.dir.list) - n.dir.dead
}

// Children iterates over the entries of the directory n in byte order of their
// names. The entry at hand may be removed or replaced while iterating; what else
// is changed is seen or not.
func (n *Node) Children() iter.Seq2[string, *Node] {
	return func(yield func(string, *Node) bool) {
		for _, e := range slices.Clone(n.entries()) {
			if !yield(e.name, e.node) {
				return
			}
		}
	}
}

// entries returns the sorted entries of n, owned by n.
func (n *Node) entries() []entry {
	if n.dir == nil {
		return nil
	}
	return n.dir.sorted()
}
