package overlay

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// Data is the contents of one layer, addressed by data offset.
type Data interface {
	// ReadAt fills p with the layer's bytes at off, or fails. It is safe for
	// concurrent use and gives up when ctx ends.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Tree is an image's merged file tree. It is immutable.
type Tree struct {
	*index.Index // attributes, lookup, listing, links and xattrs by nid

	layers []Data
}

// New returns the tree of chain, a merged index, whose device i+1 is layers[i].
// The caller keeps both open for as long as the tree is used, and closes them.
func New(chain *index.Index, layers []Data) *Tree {
	return &Tree{Index: chain, layers: layers}
}

// Read fills p with the bytes of regular file nid at off and returns how many
// there are: fewer than len(p) only at the end of the file. On error the bytes in
// p mean nothing. Errors are the index's and those of Data.ReadAt.
func (t *Tree) Read(ctx context.Context, nid index.NID, p []byte, off int64) (int, error) {
	var a index.Attr
	if err := t.Attr(nid, &a); err != nil {
		return 0, err
	}
	if off < 0 || off >= a.Size || len(p) == 0 {
		return 0, nil
	}
	p = p[:min(int64(len(p)), a.Size-off)]
	filled := int64(0) // bytes of p that are done
	var failed error
	err := t.Extents(nid, off, int64(len(p)), func(e index.Extent) bool {
		at := e.FileOff - off
		end := at + e.Len
		if at < filled || e.Len < 0 || end > int64(len(p)) || e.Device == 0 || int(e.Device) > len(t.layers) {
			failed = fmt.Errorf("read node %d: extent at %d of device %d: %w", nid, e.FileOff, e.Device, index.ErrCorrupt)
			return false
		}
		clear(p[filled:at])
		failed = t.layers[e.Device-1].ReadAt(ctx, p[at:end], e.Off)
		filled = end
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return 0, err
	}
	clear(p[filled:])
	return len(p), nil
}

// Seek is lseek(2) of regular file nid with SEEK_DATA or SEEK_HOLE. ENXIO: off is
// not within the file, or, of SEEK_DATA, no data is at or after it.
func (t *Tree) Seek(nid index.NID, off int64, whence int) (int64, error) {
	var a index.Attr
	if err := t.Attr(nid, &a); err != nil {
		return 0, err
	}
	if off < 0 || off >= a.Size {
		return 0, unix.ENXIO
	}
	data, hole := int64(-1), off // where data begins, and where what starts at off ends
	err := t.Extents(nid, off, a.Size-off, func(e index.Extent) bool {
		if data < 0 {
			data = e.FileOff
		}
		if e.FileOff != hole {
			return false
		}
		hole += e.Len
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case whence == unix.SEEK_HOLE:
		return hole, nil
	case whence != unix.SEEK_DATA:
		return 0, unix.EINVAL
	case data < 0:
		return 0, unix.ENXIO
	}
	return data, nil
}
