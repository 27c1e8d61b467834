package view

import (
	"fmt"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// LayerStat is what a layer has, and how much of it an image shows.
type LayerStat struct {
	LayerRef
	// Entries counts the names in the layer, whiteouts left out.
	Entries int `json:"entries"`
	// Files counts its regular files, those with several names once.
	Files int `json:"files"`
	// Whiteouts counts the names that it deletes.
	Whiteouts int `json:"whiteouts"`
	// Bytes are the data of its regular files; holes are none.
	Bytes int64 `json:"bytes"`
	// Wasted are those of Bytes that no file of the image has any more: layers
	// above delete or replace what had them.
	Wasted int64 `json:"wasted"`
}

// LayerStats returns the statistics of every layer, the bottom one first. It
// reads no data.
func (m *Image) LayerStats() ([]LayerStat, error) {
	used := make([]int64, len(m.Layers))
	err := visit(m.Tree.Index, func(nid index.NID, a *index.Attr, first bool) error {
		if !first || a.Mode&syscall.S_IFMT != syscall.S_IFREG {
			return nil
		}
		return m.Tree.Extents(nid, 0, a.Size, func(e index.Extent) bool {
			if i := int(e.Device) - 1; i >= 0 && i < len(used) {
				used[i] += e.Len
			}
			return true
		})
	})
	if err != nil {
		return nil, fmt.Errorf("count the data of %s: %w", m.Name, err)
	}
	stats := make([]LayerStat, len(m.Layers))
	for i := range stats {
		s := &stats[i]
		s.LayerRef = m.Ref(i)
		if err := s.count(m.Layers[i].Index); err != nil {
			return nil, fmt.Errorf("count the files of layer %d of %s: %w", i, m.Name, err)
		}
		s.Wasted = max(0, s.Bytes-used[i])
	}
	return stats, nil
}

// count counts what the layer x has.
func (s *LayerStat) count(x *index.Index) error {
	return visit(x, func(nid index.NID, a *index.Attr, first bool) error {
		if a.Mode&syscall.S_IFMT == syscall.S_IFCHR && a.Rdev == 0 {
			s.Whiteouts++
			return nil
		}
		s.Entries++
		if !first || a.Mode&syscall.S_IFMT != syscall.S_IFREG {
			return nil
		}
		if flags, err := x.Flags(nid); err != nil || flags&index.HardLink != 0 {
			return err
		}
		s.Files++
		return x.Extents(nid, 0, a.Size, func(e index.Extent) bool {
			s.Bytes += e.Len
			return true
		})
	})
}

// visit calls fn with every name of x, in no order; first tells whether it is the
// first one of its inode. The Attr is used again.
func visit(x *index.Index, fn func(nid index.NID, a *index.Attr, first bool) error) error {
	g := newGuard(x)
	linked := map[index.NID]bool{} // seen, if they have several names
	todo := []index.NID{x.Root()}
	var a index.Attr
	for len(todo) > 0 {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := g.enter(dir); err != nil {
			return err
		}
		var failed error
		err := x.ReadDir(dir, 0, func(d *index.Dirent) bool {
			if name := string(d.Name); name == "." || name == ".." {
				return true
			}
			if failed = x.Attr(d.NID, &a); failed != nil {
				return false
			}
			first := true
			switch {
			case a.Mode&syscall.S_IFMT == syscall.S_IFDIR:
				todo = append(todo, d.NID)
			case a.Nlink > 1:
				first = !linked[d.NID]
				linked[d.NID] = true
			}
			failed = fn(d.NID, &a, first)
			return failed == nil
		})
		if err == nil {
			err = failed
		}
		if err != nil {
			return err
		}
	}
	return nil
}
