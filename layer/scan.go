package layer

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer/tarscan"
	"github.com/opencontainers/go-digest"
)

// Range is Len bytes of data from Off on, in data offset space.
type Range struct{ Off, Len int64 }

// Scanned is what is derived from a layer, once.
type Scanned struct {
	// Tree has one device: this layer. The caller owns it.
	Tree *index.Tree
	// Table is in memory; Write keeps it.
	Table *Table
	// Prefetch is the data that the maker of an eStargz expects to be read
	// first. Nil: nothing was said.
	Prefetch []Range
	// DiffID is the digest of the uncompressed tar as Stream found it. Empty
	// when not all was read.
	DiffID digest.Digest
}

// tarScan feeds tar headers to a builder.
type tarScan struct {
	*tarscan.Scanner
	tree *builder
	ext  extension
	// hide says which root entries are bookkeeping of the format.
	hide bool
}

func newTarScan(hide bool) *tarScan {
	t := &tarScan{tree: newBuilder(), hide: hide}
	t.Scanner = tarscan.New(t.entry)
	return t
}

// entry handles one tar entry.
func (t *tarScan) entry(h *tarscan.Header) error {
	switch h.Type {
	case 'V': // a volume label is no file
		return nil
	case 'D': // GNU's dump of a directory; its data lists names
		h.Type = tarscan.TypeDir
	}
	if t.hide && bookkeeping(h.Name) {
		return nil
	}
	e := entry{
		name: h.Name, link: h.Link, typ: h.Type, mode: h.Mode, uid: h.UID, gid: h.GID,
		mtime: h.Mtime, nsec: h.MtimeNsec, major: h.Major, minor: h.Minor,
	}
	for _, x := range h.Xattrs {
		e.xattrs = append(e.xattrs, index.Xattr{Name: x.Name, Value: []byte(x.Value)})
	}
	if h.Type == tarscan.TypeReg {
		e.size = h.Size
		if h.Size > 0 && !h.Sparse {
			e.extents = []index.Extent{{Len: h.Size, Off: h.Data, Device: 1}}
		}
	}
	n, err := t.tree.add(&e)
	if err == nil && n != nil && h.Sparse {
		if err = t.ext.mapSparse(n, h.Segments); err != nil {
			err = fmt.Errorf("entry %s: %w", short(h.Name), err)
		}
	}
	if err != nil {
		return fmt.Errorf("%w: tar offset %d: %w", ErrFormat, h.Pos, err)
	}
	return nil
}

// bookkeeping reports whether a root entry belongs to eStargz itself.
func bookkeeping(name string) bool {
	switch path, _ := clean(name); path {
	case estargz.TOCTarName, estargz.PrefetchLandmark, estargz.NoPrefetchLandmark:
		return true
	}
	return false
}

// finish ends the scan of a tar of size bytes and returns the tree and the size
// of the layer's data, extension included.
func (t *tarScan) finish(size int64, tag string) (*index.Tree, int64, error) {
	if err := t.Close(); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	root, err := t.tree.finish()
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	base := alignUp(size)
	t.ext.place(base)
	total := base + t.ext.size
	return &index.Tree{Root: root, Devices: []index.Device{{Tag: tag, Size: total}}}, total, nil
}

// headRead is how much ScanTar reads at once: enough for the headers of several
// small files, little enough to jump over large ones.
const headRead = 64 << 10

// ScanTar reads the headers of a plain tar in a local file and jumps over the
// data. The data is read in place: the table has no chunks, and its DataSize is
// that of the tar. Nothing is verified, which the key says (see Key).
//
// ErrNoTOC: src is not a plain tar in a local file, or one with sparse files
// that cannot be mapped in place. Stream it instead.
func ScanTar(ctx context.Context, src Source) (*Scanned, error) {
	s, err := scanTar(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("scan layer %s: %w", src.Desc.Digest, err)
	}
	return s, nil
}

func scanTar(ctx context.Context, src Source) (*Scanned, error) {
	local, ok := src.Blob.(fetch.Local)
	key, f, lazy := Key(src)
	if !ok || !lazy || f != Tar {
		return nil, fmt.Errorf("%w: no plain tar in a local file", ErrNoTOC)
	}
	size := src.Blob.Size()
	if size%blockSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes are no whole blocks", ErrNoTOC, size)
	}
	path, off := local.File()
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	t := newTarScan(false)
	buf := make([]byte, headRead)
	for !t.Done() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		t.Advance(min(t.Skip(), size-t.Pos()))
		if t.Pos() == size {
			break
		}
		n, err := file.ReadAt(buf[:min(headRead, size-t.Pos())], off+t.Pos())
		if n == 0 {
			return nil, fmt.Errorf("tar offset %d: %w", t.Pos(), err)
		}
		if _, err := t.Write(buf[:n]); err != nil {
			return nil, formatError(err)
		}
	}
	if t.ext.size > 0 {
		return nil, fmt.Errorf("%w: sparse files cannot be mapped in place", ErrNoTOC)
	}
	tree, total, err := t.finish(size, tag(key))
	if err != nil {
		return nil, err
	}
	tb := newTable(Tar, src.Desc.Digest, size)
	tb.dataSize = total
	return &Scanned{Tree: tree, Table: tb.table()}, nil
}

// formatError says of an error of the tar's contents that it is one.
func formatError(err error) error {
	if errors.Is(err, tarscan.ErrTar) {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return err
}
