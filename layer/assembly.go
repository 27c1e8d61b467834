package layer

import (
	"fmt"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer/checkpoint"
	"github.com/laminafs/lamina/layer/tarscan"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Assembly makes tree and table of a gzip layer from what an index of another make
// says of it: the headers of its tar, and places where decoding can start with the
// digests of the blob's bytes between them. It believes nothing: what does not fit
// the blob, or is no layer, is ErrFormat. The table is not Comparable.
//
// The tree is made by the rules for a tar, so the headers must come in the order
// of the tar. An Assembly is for one goroutine, and of no use after an error.
type Assembly struct {
	scan  tarScan
	table *tableBuilder
	size  int64 // of the tar
	blob  int64 // size of the blob
	open  bool  // last has begun
	last  Chunk // the span whose end is not known yet
}

// NewAssembly returns an empty Assembly of the layer whose blob desc describes and
// whose tar has size bytes. Zeros that fill up the tar behind its end marker need
// not be counted.
func NewAssembly(desc ocispec.Descriptor, size int64) (*Assembly, error) {
	if f := formatOf(desc); f != Gzip {
		return nil, fmt.Errorf("assemble layer %s: %w: it is %v, not gzip", desc.Digest, ErrFormat, f)
	}
	if size <= 0 || size > maxData || desc.Size <= 0 {
		return nil, fmt.Errorf("assemble layer %s: %w: tar of %d bytes in %d", desc.Digest, ErrFormat, size, desc.Size)
	}
	a := &Assembly{
		scan: tarScan{tree: newBuilder()}, table: newTable(Gzip, desc.Digest, desc.Size), size: size, blob: desc.Size,
	}
	a.table.ofBlob = true
	return a, nil
}

// Entry takes the next entry of the tar. Sparse ones are ErrFormat.
func (a *Assembly) Entry(h *tarscan.Header) error {
	switch {
	case h.Sparse:
		return fmt.Errorf("entry %s: %w: sparse", short(h.Name), ErrFormat)
	case h.Type == tarscan.TypeReg && (h.Size < 0 || h.Data < 0 || h.Data%blockSize != 0 || h.Data > a.size || h.Size > a.size-h.Data):
		return fmt.Errorf("entry %s: %w: %d bytes at %d of %d", short(h.Name), ErrFormat, h.Size, h.Data, a.size)
	}
	return a.scan.entry(h)
}

// Span takes the next place where decoding can start, the first of which has Out 0.
// It keeps nothing of c. sha256 is the digest of the blob's bytes that decode to the
// data up to the next place: those from c.In on, and with them, if the next place is
// within a byte, that byte too; all the rest of the blob if there is no next place.
func (a *Assembly) Span(c checkpoint.Checkpoint, sha256 [32]byte) error {
	if c.In < 0 || c.In >= a.blob || c.Bits > 7 || len(c.Window) > checkpoint.WindowSize || int64(len(c.Window)) > c.Out {
		return fmt.Errorf("%w: no such place: byte %d of %d, bit %d, window of %d bytes before %d",
			ErrFormat, c.In, a.blob, c.Bits, len(c.Window), c.Out)
	}
	end := c.In
	if c.Bits > 0 {
		end++
	}
	if a.open {
		if c.In < a.last.BlobOff {
			return fmt.Errorf("%w: span at %d of the blob, after one at %d", ErrFormat, c.In, a.last.BlobOff)
		}
		if err := a.close(c.Out, end); err != nil {
			return err
		}
	} else if c.Out != 0 {
		return fmt.Errorf("%w: first span starts at %d", ErrFormat, c.Out)
	}
	a.last, a.open = Chunk{Off: c.Out, BlobOff: c.In, Digest: sha256, point: a.table.addPoint(c)}, true
	return nil
}

// close ends the last span at data offset out and blob offset in.
func (a *Assembly) close(out, in int64) error {
	c := a.last
	c.Len, c.BlobLen = out-c.Off, in-c.BlobOff
	if c.Len <= 0 || c.Len > MaxChunk || c.BlobLen <= 0 || c.BlobLen > maxStep || out > a.size {
		return fmt.Errorf("%w: span of %d bytes at %d that takes %d at %d of the blob", ErrFormat, c.Len, c.Off, c.BlobLen, c.BlobOff)
	}
	a.table.add(c)
	return nil
}

// Finish returns tree and table, which are in memory. The device's tag is the hex
// of the blob's digest, as nothing is known of the diff ID.
func (a *Assembly) Finish() (*Scanned, error) {
	if !a.open {
		return nil, fmt.Errorf("%w: no spans", ErrFormat)
	}
	if err := a.close(a.size, a.blob); err != nil {
		return nil, err
	}
	root, err := a.scan.tree.finish()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	a.table.dataSize = alignUp(a.size)
	return &Scanned{
		Tree:  &index.Tree{Root: root, Devices: []index.Device{{Tag: tag(a.table.blob.Encoded()), Size: a.table.dataSize}}},
		Table: a.table.table(),
	}, nil
}
