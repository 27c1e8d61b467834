package view

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// Kind is what happened to a path, as docker diff prints it.
type Kind byte

// The kinds of changes.
const (
	Added   Kind = 'A'
	Changed Kind = 'C'
	Deleted Kind = 'D'
)

// MarshalText gives the letter.
func (k Kind) MarshalText() ([]byte, error) { return []byte{byte(k)}, nil }

// Change is a path in which two images differ. Old is nil of what was added, New
// of what was deleted.
type Change struct {
	Kind Kind   `json:"kind"`
	Path string `json:"path"`
	Old  *Entry `json:"old,omitempty"`
	New  *Entry `json:"new,omitempty"`
}

// String is the change as docker diff prints it, the path by Escape.
func (c Change) String() string { return string(c.Kind) + " " + Escape(c.Path) }

// DiffOptions configures Diff.
type DiffOptions struct {
	// DirTimes makes a directory changed when its time alone is another.
	DirTimes bool
	// NoTimes makes the times of other files no change either.
	NoTimes bool
}

// Diff iterates over the paths in which b differs from a, in byte order of the
// names in each directory, a directory before what is in it. What is in an added
// directory is given too, what is in a deleted one is not.
//
// Compared are type, mode, owners, time, xattrs, device numbers, targets and
// contents. Contents are read, and so fetched, only if all else is equal and they
// are not known to be equal: data of layers of equal keys, at equal places, is
// equal. An error is the last thing it gives.
func Diff(ctx context.Context, a, b *Image, o DiffOptions) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		d := differ{ctx: ctx, a: a, b: b, o: o, yield: yield, same: map[[2]index.NID]bool{}}
		if err := d.run(); err != nil {
			yield(Change{}, fmt.Errorf("diff %s %s: %w", a.Name, b.Name, err))
		}
	}
}

// differ is a Diff under way.
type differ struct {
	ctx   context.Context
	a, b  *Image
	o     DiffOptions
	yield func(Change, error) bool
	same  map[[2]index.NID]bool // files with several names that were compared
	bufs  [2][]byte
}

// both is a path with what the images have there, either of which may be nil.
type both struct{ old, now *Entry }

func (d *differ) run() error {
	old, err := d.a.entry("/", "/", d.a.Tree.Root())
	if err != nil {
		return err
	}
	root, err := d.b.entry("/", "/", d.b.Tree.Root())
	if err != nil {
		return err
	}
	guards := [2]*guard{newGuard(d.a.Tree.Index), newGuard(d.b.Tree.Index)}
	todo := []both{{&old, &root}}
	for len(todo) > 0 {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		c, err := d.compare(at)
		if err != nil {
			return err
		}
		if c != nil && !d.yield(*c, nil) {
			return nil
		}
		if at.now == nil || !at.now.IsDir() {
			continue
		}
		var lower, upper []Entry
		if at.old != nil && at.old.IsDir() {
			if lower, err = d.a.readDir(at.old.Path, at.old.NID, guards[0]); err != nil {
				return err
			}
		}
		if upper, err = d.b.readDir(at.now.Path, at.now.NID, guards[1]); err != nil {
			return err
		}
		todo = append(todo, pairs(lower, upper)...)
	}
	return nil
}

// pairs brings the entries of two directories together, the last name first.
func pairs(lower, upper []Entry) []both {
	var out []both
	i, j := len(lower)-1, len(upper)-1
	for i >= 0 || j >= 0 {
		switch {
		case j < 0 || i >= 0 && lower[i].Name > upper[j].Name:
			out = append(out, both{old: &lower[i]})
			i--
		case i < 0 || upper[j].Name > lower[i].Name:
			out = append(out, both{now: &upper[j]})
			j--
		default:
			out = append(out, both{&lower[i], &upper[j]})
			i--
			j--
		}
	}
	return out
}

// compare returns the change of p, nil if there is none.
func (d *differ) compare(p both) (*Change, error) {
	switch {
	case p.old == nil:
		return &Change{Added, p.now.Path, nil, p.now}, nil
	case p.now == nil:
		return &Change{Deleted, p.old.Path, p.old, nil}, nil
	}
	equal, err := d.equal(p.old, p.now)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.now.Path, err)
	}
	if equal {
		return nil, nil
	}
	return &Change{Changed, p.now.Path, p.old, p.now}, nil
}

// equal compares what is cheap first.
func (d *differ) equal(old, now *Entry) (bool, error) {
	if old.Mode != now.Mode || old.UID != now.UID || old.GID != now.GID || old.Rdev != now.Rdev || old.Target != now.Target {
		return false, nil
	}
	times := !d.o.NoTimes
	if old.IsDir() {
		times = d.o.DirTimes
	}
	if times && !old.Mtime.Equal(now.Mtime) {
		return false, nil
	}
	regular := old.Mode&syscall.S_IFMT == syscall.S_IFREG
	if regular && old.Size != now.Size {
		return false, nil
	}
	lower, err := xattrs(d.a.Tree.Index, old.NID)
	if err != nil {
		return false, err
	}
	upper, err := xattrs(d.b.Tree.Index, now.NID)
	if err != nil {
		return false, err
	}
	if !maps.Equal(lower, upper) {
		return false, nil
	}
	if !regular || old.Size == 0 {
		return true, nil
	}
	return d.content(old, now)
}

// xattrs returns the xattrs of nid.
func xattrs(x *index.Index, nid index.NID) (map[string]string, error) {
	var all map[string]string
	err := x.Xattrs(nid, func(name string, value []byte) bool {
		if all == nil {
			all = map[string]string{}
		}
		all[name] = string(value)
		return true
	})
	return all, err
}

// content reports whether two regular files of one size have the same data.
func (d *differ) content(old, now *Entry) (bool, error) {
	key := [2]index.NID{old.NID, now.NID}
	if same, ok := d.same[key]; ok {
		return same, nil
	}
	same, err := d.samePlace(old, now)
	if err == nil && !same {
		same, err = d.sameBytes(old, now)
	}
	if err == nil && old.Nlink > 1 && now.Nlink > 1 {
		d.same[key] = same
	}
	return same, err
}

// samePlace reports whether the data is known to be the same from where it lies.
func (d *differ) samePlace(old, now *Entry) (bool, error) {
	var lower, upper []index.Extent
	collect := func(to *[]index.Extent) func(index.Extent) bool {
		return func(e index.Extent) bool {
			*to = append(*to, e)
			return true
		}
	}
	if err := d.a.Tree.Extents(old.NID, 0, old.Size, collect(&lower)); err != nil {
		return false, err
	}
	if err := d.b.Tree.Extents(now.NID, 0, now.Size, collect(&upper)); err != nil {
		return false, err
	}
	return slices.EqualFunc(lower, upper, func(e, f index.Extent) bool {
		return e.FileOff == f.FileOff && e.Len == f.Len && e.Off == f.Off && sameLayer(d.a, e.Device, d.b, f.Device)
	}), nil
}

// sameLayer reports whether device i of a and device j of b are the same data at
// the same places. Equal diff IDs do not say so: of a layer that is read by a table
// of contents nobody compared the data with the one that the config claims.
func sameLayer(a *Image, i uint16, b *Image, j uint16) bool {
	if i == 0 || j == 0 || int(i) > len(a.Layers) || int(j) > len(b.Layers) {
		return false
	}
	key := a.Layers[i-1].Key
	return key != "" && key == b.Layers[j-1].Key
}

// sameBytes reads both files as far as they are the same.
func (d *differ) sameBytes(old, now *Entry) (bool, error) {
	for i := range d.bufs {
		if d.bufs[i] == nil {
			d.bufs[i] = make([]byte, pieceSize)
		}
	}
	same := true
	err := d.a.pieces(d.ctx, old.NID, 0, old.Size, d.bufs[0], func(p []byte, off int64) error {
		q := d.bufs[1][:len(p)]
		n, err := d.b.Tree.Read(d.ctx, now.NID, q, off)
		if err != nil {
			return err
		}
		if same = n == len(p) && bytes.Equal(p, q); !same {
			return io.EOF // enough
		}
		return nil
	})
	if err == io.EOF && !same {
		err = nil
	}
	return same, err
}
