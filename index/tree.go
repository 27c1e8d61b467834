package index

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/laminafs/lamina/atomicfile"
)

// Device is a slot for a file that holds data: one layer's.
type Device struct {
	Tag  string // at most 64 bytes, by convention the hex of the layer's diff ID
	Size int64  // bytes
}

// Tree is a file tree in memory, to be encoded. Extents name Devices by their
// position, counted from 1.
//
// Not safe for concurrent use: encoding sorts directories.
type Tree struct {
	Root    *Node
	Devices []Device

	// Warnings are what was left out because it could not be kept: hard links
	// to paths that do not exist (Merge), xattrs that the kernel could not show
	// (encoding). One line each, not many of them.
	Warnings []string
}

// maxWarnings bounds what hostile layers can make us remember and print.
const maxWarnings = 64

// warn adds a warning, once.
func (t *Tree) warn(format string, args ...any) {
	switch n := len(t.Warnings); {
	case n < maxWarnings:
		if s := fmt.Sprintf(format, args...); !slices.Contains(t.Warnings, s) {
			t.Warnings = append(t.Warnings, s)
		}
	case n == maxWarnings:
		t.Warnings = append(t.Warnings, "and more like these")
	}
}

// warns reports whether warn has room for one more.
func (t *Tree) warns() bool { return len(t.Warnings) <= maxWarnings }

// CheckExtents returns nil if every extent of t, which [Index.Tree] or Merge made,
// lies within its device, and ErrCorrupt otherwise.
func (t *Tree) CheckExtents() error {
	seen := make(map[*Node]struct{}) // files of many extents, which may have many names
	for todo := []*Node{t.Root}; len(todo) > 0; {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, e := range n.entries() {
			todo = append(todo, e.node)
		}
		if len(n.Extents) > 1 {
			if _, ok := seen[n]; ok {
				continue
			}
			seen[n] = struct{}{}
		}
		for _, e := range n.Extents {
			if e.Device < 1 || int(e.Device) > len(t.Devices) {
				return fmt.Errorf("%w: extent in device %d of %d", ErrCorrupt, e.Device, len(t.Devices))
			}
			if size := t.Devices[e.Device-1].Size; e.Off < 0 || e.Len <= 0 || e.Off > size || e.Len > size-e.Off {
				return fmt.Errorf("%w: extent of %d bytes at %d is not in device %d of %d bytes", ErrCorrupt, e.Len, e.Off, e.Device, size)
			}
		}
	}
	return nil
}

// WriteTo writes the image to w, front to back. An error that is not w's own
// means that the tree cannot be encoded, and comes before anything is written:
// one that wraps ErrTooBig if it exceeds a limit of the format, another one if
// it is malformed (a bad name, overlapping extents, a directory in two places).
func (t *Tree) WriteTo(w io.Writer) (int64, error) {
	p, err := newPlan(t)
	if err != nil {
		return 0, err
	}
	return p.write(w)
}

// Encode returns the image; see WriteTo for errors.
func (t *Tree) Encode() ([]byte, error) {
	p, err := newPlan(t)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(int(p.size))
	if _, err := p.write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Write writes the image to path, replacing what is there: the file appears
// under its name whole and on disk, or not at all, with what CheckSum compares it
// with. See WriteTo for errors of the tree.
func (t *Tree) Write(path string) error {
	p, err := newPlan(t)
	if err != nil {
		return err
	}
	err = atomicfile.Write(path, filepath.Join(filepath.Dir(path), ".index-"), func(f *os.File) error {
		w := newSummed(f)
		if _, err := p.write(w); err != nil {
			return err
		}
		return w.note()
	})
	if err != nil {
		return fmt.Errorf("write index %s: %w", path, err)
	}
	return nil
}
