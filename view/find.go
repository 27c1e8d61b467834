package view

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// ErrNoLayer is the error of Find when a Query asks for a layer that the image does
// not have.
var ErrNoLayer = errors.New("no such layer")

// Query says what Find gives: what meets all of it. The zero Query is met by
// everything.
type Query struct {
	// Name is a pattern for the last part of the path as find -name takes it, but
	// without classes such as [:alpha:]: "*", "?", "[a-z]", "[!a-z]", and "\\" before
	// what is meant literally.
	Name string
	// Type is the letter of find -type: f, d, l, c, b, p or s.
	Type byte
	// MinSize and MaxSize bound the size of regular files, in bytes; other files
	// do not meet them. nil is no bound.
	MinSize, MaxSize *int64
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
		Content int `json:"contentLayer"`
	}{f.json(), f.Layer, f.Content})
}

// Find iterates over what is at root and below it and meets q, a directory before
// what is in it and names in byte order. A symbolic link at the end of root is not
// followed. An error is the last thing it gives: path.ErrBadPattern or ErrNoLayer for
// what is wrong with q.
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
	if err := q.Check(); err != nil {
		return err
	}
	for _, n := range q.Layers {
		if n < 0 || n >= len(m.Layers) {
			return fmt.Errorf("%w: %d of %d, counted from 0", ErrNoLayer, n, len(m.Layers))
		}
	}
	pattern := matchPattern(q.Name)
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
		if q.meets(&f, pattern) && !yield(f) {
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

// Check reports what is wrong with q whatever the image: a Name that is no pattern
// is path.ErrBadPattern.
func (q *Query) Check() error {
	if _, err := path.Match(matchPattern(q.Name), ""); err != nil {
		return fmt.Errorf("pattern %q: %w", q.Name, err)
	}
	return nil
}

// matchPattern writes a pattern of find -name as path.Match reads it: what is in
// brackets is negated by "^", and "]" and "-" are not themselves there, wherever
// they stand.
func matchPattern(name string) string {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		b.WriteByte(name[i])
		switch name[i] {
		case '\\':
			if i++; i < len(name) {
				b.WriteByte(name[i])
			}
		case '[':
			i = matchClass(&b, name, i+1) - 1
		}
	}
	return b.String()
}

// matchClass writes what is in the brackets that were opened before name[i], and
// returns where what it left begins.
func matchClass(b *strings.Builder, name string, i int) int {
	if i < len(name) && (name[i] == '!' || name[i] == '^') {
		b.WriteByte('^')
		i++
	}
	for first := i; i < len(name); i++ {
		switch c := name[i]; {
		case c == ']' && i > first:
			return i
		case c == ']' || c == '-' && (i == first || strings.HasPrefix(name[i+1:], "]")):
			b.WriteByte('\\')
		case c == '\\' && i+1 < len(name):
			b.WriteByte(c)
			i++
		}
		b.WriteByte(name[i])
	}
	return i
}

// meets reports whether f meets q, whose name is written as path.Match reads it.
func (q *Query) meets(f *Found, pattern string) bool {
	kind := f.Mode & syscall.S_IFMT
	if q.Type != 0 && types[q.Type] != kind {
		return false
	}
	if (q.MinSize != nil || q.MaxSize != nil) && kind != syscall.S_IFREG ||
		q.MinSize != nil && f.Size < *q.MinSize || q.MaxSize != nil && f.Size > *q.MaxSize {
		return false
	}
	if q.Layers != nil && !slices.Contains(q.Layers, f.Layer) && !slices.Contains(q.Layers, f.Content) {
		return false
	}
	if q.Name != "" {
		// The pattern was checked; no other error is there.
		ok, _ := path.Match(pattern, f.Name)
		if !ok && f.Path == "/" {
			// No wildcard of path.Match stands for a slash, as it does for find.
			ok, _ = path.Match(pattern, "\x00")
		}
		return ok
	}
	return true
}
