package overlay

import (
	"context"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// Base is a tree that the union of an upper directory and its lower tree is
// compared with instead of the lower tree: an earlier state of the union, which was
// committed as layers. They are not merged, which would cost as much as the image is
// large.
type Base struct {
	// Lower is the merged tree beneath the layers; nil if they are over nothing.
	Lower *Tree
	// Layers are the layers, each as its own tree, the bottom one first.
	Layers []*Tree
}

// ChangesSince calls fn for every path at which the union of u over lower differs
// from base. It is Changes, but for the order: what is in base's layers only comes
// last. No directory is Opaque, and nothing is Covered.
//
// What u had when base was committed it has still, or the union has nothing there:
// overlayfs never takes an entry out of an upper directory that hides a lower one.
// So it is enough to look at what u has now, and at what base's layers have.
//
// A file with several names is told of always. A time of base in whole seconds is
// taken for equal to the one that was rounded to it: eStargz keeps no more, and all
// that was committed in it would be changed at once.
func ChangesSince(ctx context.Context, u Upper, lower *Tree, base Base, fn func(*Change) error) error {
	w := &sinceWalk{base: base, fn: fn, present: make(map[string]bool)}
	w.changeWalk = &changeWalk{ctx: ctx, upper: u, lower: lower, fn: w.change, inodes: make(map[inode]string), keepSame: true}
	err := w.run(false)
	if err == nil {
		err = w.vanished()
	}
	if err != nil {
		return within("changes of "+u.Dir, err)
	}
	return nil
}

type sinceWalk struct {
	*changeWalk
	base Base
	fn   func(*Change) error
	// present has the paths that were told of: whether the union has a directory
	// there.
	present map[string]bool
}

// old is a walk over the tree that an earlier state is in.
func (w *sinceWalk) old(at spot) *changeWalk {
	return &changeWalk{ctx: w.ctx, upper: w.upper, lower: at.tree, coarse: true}
}

// change turns a change of the lower tree into one of base.
func (w *sinceWalk) change(c *Change) error {
	isDir := c.Attr.Mode&unix.S_IFMT == unix.S_IFDIR
	w.present[c.Path] = isDir && c.Kind != Deleted
	was, err := w.base.find(c.Path)
	if err != nil {
		return err
	}
	c.Opaque, c.Covered, c.Unchanged = false, false, false
	switch {
	case c.Kind == Deleted && was.tree == nil:
		return nil
	case c.Kind == Deleted:
		if err := w.old(was).describe(c, was.nid); err != nil {
			return err
		}
	case was.tree == nil:
		c.Kind = Added
	default:
		c.Kind = Modified
		if isDir {
			c.Unchanged, err = w.old(was).sameAttributes(c, was.nid)
		} else if c.Attr.Nlink <= 1 {
			var same bool
			if same, err = w.old(was).same(c, was.nid, false); same {
				return nil
			}
		}
		if err != nil {
			return err
		}
	}
	return w.fn(c)
}

// vanished tells of what base's layers have and the union has not, in directories
// that it has.
func (w *sinceWalk) vanished() error {
	var gone []string
	for _, x := range w.base.Layers {
		if err := w.collect(x.Index, x.Root(), ".", &gone); err != nil {
			return fmt.Errorf("layer of the base: %w", err)
		}
	}
	slices.Sort(gone)
	for _, p := range slices.Compact(gone) {
		was, err := w.base.find(p)
		if err != nil {
			return err
		}
		if was.tree == nil {
			continue
		}
		c := &Change{Path: p, Kind: Deleted}
		if err := w.old(was).describe(c, was.nid); err != nil {
			return err
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := w.fn(c); err != nil {
			return &fnError{err}
		}
	}
	return nil
}

// collect adds what the layer x has in dir, at path at, and the union has not.
func (w *sinceWalk) collect(x *index.Index, dir index.NID, at string, gone *[]string) error {
	if !w.present[at] {
		return nil // it is gone as a whole, or something else
	}
	var below []index.Dirent
	var names []string
	err := x.ReadDir(dir, 0, func(d *index.Dirent) bool {
		if n := string(d.Name); n != "." && n != ".." {
			names, below = append(names, n), append(below, *d)
		}
		return true
	})
	if err != nil {
		return err
	}
	for i, d := range below {
		p := path.Join(at, names[i])
		if _, told := w.present[p]; !told {
			*gone = append(*gone, p)
		} else if d.Type == unix.DT_DIR {
			if err := w.collect(x, d.NID, p, gone); err != nil {
				return err
			}
		}
	}
	return nil
}
