package overlay

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// spot is a node of one of the trees of a Base; without a tree it is none.
type spot struct {
	tree *Tree
	nid  index.NID
}

// trees returns all trees, the bottom one first.
func (b *Base) trees() []*Tree {
	if b.Lower == nil {
		return b.Layers
	}
	return append([]*Tree{b.Lower}, b.Layers...)
}

// maxHardLinks bounds the hard links to other layers that are followed for one path.
const maxHardLinks = 16

// find returns what is at p, a path without "." and "..", in the trees as if they were
// merged: see index.Merge.
func (b *Base) find(p string) (spot, error) {
	trees := b.trees()
	for range maxHardLinks {
		at, err := findIn(trees, p)
		if err != nil || at.tree == nil {
			return at, err
		}
		flags, err := at.tree.Flags(at.nid)
		if err != nil || flags&index.HardLink == 0 {
			return at, err
		}
		target, err := at.tree.Readlink(at.nid)
		if err != nil {
			return spot{}, err
		}
		p = strings.TrimPrefix(string(target), "/")
	}
	return spot{}, fmt.Errorf("%w: %s: more than %d hard links from layer to layer", index.ErrCorrupt, p, maxHardLinks)
}

// findIn is find without the links from one layer to another.
func findIn(trees []*Tree, p string) (spot, error) {
	dirs := make([]index.NID, len(trees)) // of each tree that has a part in it
	for i, t := range trees {
		dirs[i] = t.Root()
	}
	names := strings.Split(p, "/")
	if p == "." {
		names = nil
	}
	for n, name := range names {
		next, file, err := descend(trees, dirs, name)
		if err != nil {
			return spot{}, err
		}
		if file.tree != nil {
			if n < len(names)-1 {
				return spot{}, nil // a file has nothing in it
			}
			return file, nil
		}
		dirs = next
	}
	return named(trees, dirs)
}

// descend looks for name in the directory that dirs make together: what is found is a
// file of one tree, or directories, or nothing.
func descend(trees []*Tree, dirs []index.NID, name string) (below []index.NID, file spot, err error) {
	below = make([]index.NID, len(trees))
	found := false
	for i := len(trees) - 1; i >= 0; i-- {
		t, dir := trees[i], dirs[i]
		if dir == 0 {
			continue
		}
		nid, err := t.Lookup(dir, name)
		switch {
		case errors.Is(err, index.ErrNotExist):
		case err != nil:
			return nil, spot{}, err
		default:
			var a index.Attr
			if err := t.Attr(nid, &a); err != nil {
				return nil, spot{}, err
			}
			if a.Mode&unix.S_IFMT != unix.S_IFDIR {
				if whiteout := a.Mode&unix.S_IFMT == unix.S_IFCHR && a.Rdev == 0; !found && !whiteout {
					file = spot{t, nid}
				}
				return below, file, nil
			}
			below[i], found = nid, true
		}
		opaque, err := isOpaque(t, dir)
		if err != nil || opaque {
			return below, spot{}, err
		}
	}
	return below, spot{}, nil
}

// isOpaque tells whether dir hides what lower layers have in it.
func isOpaque(t *Tree, dir index.NID) (bool, error) {
	value, err := t.Xattr(dir, "trusted.overlay.opaque")
	if errors.Is(err, index.ErrNoXattr) {
		return false, nil
	}
	return string(value) == "y", err
}

// named returns the directory whose attributes count: the topmost one that its layer
// names, or the lowest.
func named(trees []*Tree, dirs []index.NID) (at spot, err error) {
	for i := len(trees) - 1; i >= 0; i-- {
		if dirs[i] == 0 {
			continue
		}
		at = spot{trees[i], dirs[i]}
		flags, err := trees[i].Flags(dirs[i])
		if err != nil || flags&index.Implicit == 0 {
			return at, err
		}
	}
	return at, nil
}
