package view

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// Hiding is how a layer hides what layers below it have at a path.
type Hiding string

// The ways of hiding.
const (
	Replaced Hiding = "replaced" // by an entry of its own, there or at a directory above
	Whiteout Hiding = "whiteout" // it deletes the path or a directory above
	Opaque   Hiding = "opaque"   // it deletes all that lay in a directory above
)

// Hidden is an entry of a lower layer that is not seen, and what hides it.
type Hidden struct {
	Layer LayerRef `json:"layer"`
	Type  string   `json:"type"` // such as "file", as in an Entry's JSON
	Size  int64    `json:"size"` // bytes of a regular file, 0 of others
	How   Hiding   `json:"how"`
	By    LayerRef `json:"by"`
}

// Provenance is where a path of an image comes from.
type Provenance struct {
	Path string `json:"path"` // from the root, links on the way followed
	// Entry is what is there, nil if the path is deleted.
	Entry *Entry `json:"entry"`
	// Layer is the one that put the entry there or, of a directory, gave it its
	// attributes; if the path is deleted, the one that deleted it last.
	Layer LayerRef `json:"layer"`
	// How it was deleted; empty if it was not.
	How Hiding `json:"how,omitempty"`
	// Content is the layer that has the file itself, if Layer has made a further
	// name for it, a hard link; nil otherwise.
	Content *LayerRef `json:"content,omitempty"`
	// Layers are all layers that have the directory, the bottom one first; of
	// anything else it is empty.
	Layers []LayerRef `json:"layers,omitempty"`
	// Hidden is what layers have there that is not seen, the bottom one first.
	Hidden []Hidden `json:"hidden,omitempty"`
}

// Which says where what is at path comes from, and what it hides there. A
// symbolic link at the end is not followed. Of a path that layers have and others
// deleted it says who deleted it. Of one that no layer has the error wraps
// ENOENT.
func (m *Image) Which(path string) (*Provenance, error) {
	w, err := m.which(path)
	if err != nil {
		return nil, fmt.Errorf("which %s: %w", path, err)
	}
	return w, nil
}

func (m *Image) which(path string) (*Provenance, error) {
	s, err := m.locate(path, false)
	there := err == nil
	if err != nil && (s.path == "" || !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOTDIR)) {
		return nil, err
	}
	o, err := newOrigins(m)
	if err != nil {
		return nil, err
	}
	p, err := o.at(s.path, o.end())
	if err != nil {
		return nil, err
	}
	w := &Provenance{Path: s.path}
	for i := range p.srcs {
		s := &p.srcs[i]
		if !s.hidden || s.bare {
			continue
		}
		h := Hidden{Layer: m.Ref(s.turn.layer), Type: typeName(s.attr.Mode), How: s.how, By: m.Ref(s.by.layer)}
		if s.kind() == syscall.S_IFREG && !s.isHardLink() {
			h.Size = s.attr.Size
		}
		w.Hidden = append(w.Hidden, h)
	}
	if !there {
		return w, m.deleted(w, p)
	}
	e, err := m.entryAt(s)
	if err != nil {
		return nil, err
	}
	w.Entry = &e
	return w, m.provide(o, w, p)
}

// deleted fills w for a path that the tree does not have.
func (m *Image) deleted(w *Provenance, p *place) error {
	var last *source
	for i := range p.srcs {
		if s := &p.srcs[i]; s.hidden && (last == nil || !s.by.before(last.by)) {
			last = s
		}
	}
	switch top := p.top(); {
	case top != nil && top.isHardLink():
		return fmt.Errorf("layer %d has a hard link there, to a file that does not exist: %w", top.turn.layer, syscall.ENOENT)
	case top != nil:
		return fmt.Errorf("layer %d has it, and the tree does not: %w", top.turn.layer, index.ErrCorrupt)
	case last == nil:
		return fmt.Errorf("no layer of the image has it: %w", syscall.ENOENT)
	}
	w.Layer, w.How = m.Ref(last.by.layer), last.how
	return nil
}

// provide fills w for a path that the tree has.
func (m *Image) provide(o *origins, w *Provenance, p *place) error {
	from, err := o.from(p)
	if err != nil {
		return err
	}
	if from.entry < 0 {
		return fmt.Errorf("the tree has it, and no layer: %w", index.ErrCorrupt)
	}
	w.Layer = m.Ref(from.entry)
	if from.content != from.entry {
		ref := m.Ref(from.content)
		w.Content = &ref
	}
	for _, k := range from.all {
		w.Layers = append(w.Layers, m.Ref(k))
	}
	return nil
}

// from is which layers an entry of the tree is from.
type from struct {
	entry   int   // the one that has the entry; -1: none
	content int   // the one that has the file, if entry is a hard link to it
	all     []int // of a directory, all that have it
}

// from returns which layers what is seen at p is from.
func (o *origins) from(p *place) (from, error) {
	top := p.top()
	if top == nil {
		return from{entry: -1, content: -1}, nil
	}
	f := from{entry: top.turn.layer, content: top.turn.layer}
	switch {
	case top.isHardLink():
		file, err := o.resolve(*top)
		if err != nil {
			return f, err
		}
		if file == nil {
			return from{entry: -1, content: -1}, nil
		}
		f.content = file.turn.layer
	case top.isDir():
		f.entry = -1
		for i := range p.srcs {
			s := &p.srcs[i]
			if s.hidden {
				continue
			}
			// A directory that a layer does not name keeps the attributes it had.
			if f.entry < 0 || s.flags&index.Implicit == 0 {
				f.entry = s.turn.layer
			}
			if !slices.Contains(f.all, s.turn.layer) {
				f.all = append(f.all, s.turn.layer)
			}
		}
		f.content = f.entry
	}
	return f, nil
}
