package view

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"path"
	"slices"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// Query says what Find gives: what meets all of it. The zero Query is met by
// everything.
type Query struct {
	// Name is a pattern of path.Match for the last part of the path.
	Name string
	// Type is the letter of find -type: f, d, l, c, b, p or s.
	Type byte
	// MinSize and MaxSize bound the size of regular files, in bytes; other files
	// do not meet them. A MaxSize of 0 is no bound.
	MinSize, MaxSize int64
	// Layers are the numbers of layers of which an entry may be; nil: of any.
	Layers []int
}

// Found is an entry and where it comes from.
type Found struct {
	Entry
	// Layer is the number of the layer that has the entry, from 0; of a directory
	// the one that gave it its attributes.
	Layer int
	// Content is the number of the layer that has the file: another one than
	// Layer if that made a hard link to a file of a layer below.
	Content int
}

// MarshalJSON is the entry's with its layers.
func (f Found) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		jsonEntry
		Layer   int `json:"layer"`
		Content int `json:"content_layer"`
	}{f.json(), f.Layer, f.Content})
}

// Find iterates over what is at root and below it and meets q, a directory before
// what is in it and names in byte order. A symbolic link at the end of root is not
// followed. An error is the last thing it gives; a bad pattern is path.ErrBadPattern.
func (m *Image) Find(ctx context.Context, root string, q Query) iter.Seq2[Found, error] {
	return func(yield func(Found, error) bool) {
		err := m.find(ctx, root, &q, func(f Found) bool { return yield(f, nil) })
		if err != nil {
			yield(Found{}, fmt.Errorf("find in %s: %w", root, err))
		}
	}
}

// foundAt is an entry with what the layers have at its place.
type foundAt struct {
	entry Entry
	place *place
}

func (m *Image) find(ctx context.Context, root string, q *Query, yield func(Found) bool) error {
	if _, err := path.Match(q.Name, ""); err != nil {
		return fmt.Errorf("pattern %s: %w", q.Name, err)
	}
	s, err := m.locate(root, false)
	if err != nil {
		return err
	}
	o, err := newOrigins(m)
	if err != nil {
		return err
	}
	e, err := m.entryAt(s)
	if err != nil {
		return err
	}
	p, err := o.at(s.path, o.end())
	if err != nil {
		return err
	}
	g := newGuard(m.Tree.Index)
	todo := []foundAt{{e, p}}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		from, err := o.from(at.place)
		if err != nil {
			return err
		}
		if from.entry < 0 && at.entry.Path != "/" {
			return fmt.Errorf("%s is of no layer: %w", at.entry.Path, index.ErrCorrupt)
		}
		f := Found{at.entry, max(from.entry, 0), max(from.content, 0)}
		if q.meets(&f) && !yield(f) {
			return nil
		}
		if !at.entry.IsDir() {
			continue
		}
		entries, err := m.readDir(at.entry.Path, at.entry.NID, g)
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(entries) {
			p, err := o.child(at.place, e.Name)
			if err != nil {
				return err
			}
			todo = append(todo, foundAt{e, p})
		}
	}
	return nil
}

// types are the letters of find -type.
var types = map[byte]uint32{
	'f': syscall.S_IFREG, 'd': syscall.S_IFDIR, 'l': syscall.S_IFLNK, 'c': syscall.S_IFCHR,
	'b': syscall.S_IFBLK, 'p': syscall.S_IFIFO, 's': syscall.S_IFSOCK,
}

// meets reports whether f meets q.
func (q *Query) meets(f *Found) bool {
	kind := f.Mode & syscall.S_IFMT
	if q.Type != 0 && types[q.Type] != kind {
		return false
	}
	if q.MinSize > 0 || q.MaxSize > 0 {
		if kind != syscall.S_IFREG || f.Size < q.MinSize || q.MaxSize > 0 && f.Size > q.MaxSize {
			return false
		}
	}
	if q.Layers != nil && !slices.Contains(q.Layers, f.Layer) && !slices.Contains(q.Layers, f.Content) {
		return false
	}
	if q.Name != "" {
		// The pattern was checked; no other error is there.
		ok, _ := path.Match(q.Name, f.Name)
		return ok
	}
	return true
}
