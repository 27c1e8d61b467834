package published

import (
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

const (
	// blockSize is the unit of data offsets, maxData what an index can address:
	// 2^32 blocks, the last of which stands for a hole.
	blockSize = 512
	maxData   = (1<<32 - 1) * blockSize

	// minCopy is the least that a copy takes in a chunk table.
	minCopy = 24
)

// readTable parses the chunk table in b, which must be that of the blob want.
func readTable(b []byte, want ocispec.Descriptor) (*layer.Table, error) {
	t, err := layer.NewTable(b)
	if err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	switch size := t.DataSize(); {
	case t.Format() != layer.Tar && t.Format() != layer.Gzip && t.Format() != layer.Zstd:
		return nil, fmt.Errorf("format %v has a table of contents", t.Format())
	case t.BlobDigest() != want.Digest || t.BlobSize() != want.Size:
		return nil, fmt.Errorf("it is of blob %.80q of %d bytes, wanted %s of %d", t.BlobDigest(), t.BlobSize(), want.Digest, want.Size)
	case size%blockSize != 0 || size > maxData:
		return nil, fmt.Errorf("data of %d bytes", size)
	}
	return t, checkCopies(t, len(b)/minCopy)
}

// checkCopies tells whether chunks that are made of other data are the last
// ones, and made of what is before them: then making one never leads back to
// itself. There are at most budget copies, and each is in one chunk or goes on
// in the next.
func checkCopies(t *layer.Table, budget int) error {
	n := t.Len()
	first := n
	for first > 0 && t.Chunk(first-1).Kind == layer.Copied {
		first--
	}
	for i := range first {
		if t.Chunk(i).Kind == layer.Copied {
			return fmt.Errorf("chunk %d is copied and not among the last", i)
		}
	}
	if first == n {
		return nil
	}
	end := t.Chunk(first).Off
	budget += n - first
	for i := first; i < n; i++ {
		c := t.Chunk(i)
		copies := t.Copies(i)
		if budget -= len(copies); budget < 0 {
			return errors.New("copies overlap")
		}
		for _, x := range copies {
			if x.Len <= 0 || x.Dst < c.Off || x.Len > c.Off+c.Len-x.Dst || x.Src < 0 || x.Src > end || x.Len > end-x.Src {
				return fmt.Errorf("chunk %d: copy of %d bytes from %d to %d", i, x.Len, x.Src, x.Dst)
			}
		}
	}
	return nil
}

// readTree decodes the index in b, whose extents must lie in the data of t.
func readTree(b []byte, t *layer.Table) (*index.Tree, error) {
	x, err := index.New(b)
	if err != nil {
		return nil, err
	}
	if d := x.Devices(); len(d) != 1 || d[0].Size != t.DataSize() {
		return nil, fmt.Errorf("not one device of %d bytes", t.DataSize())
	}
	tree, err := x.Tree()
	if err != nil {
		return nil, err
	}
	hash := t.BlobDigest().Encoded()
	tree.Devices[0].Tag = hash[:min(len(hash), 64)]
	return tree, tree.CheckExtents()
}
