package layer

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"sort"
	"sync"

	"github.com/laminafs/lamina/layer/checkpoint"
	"github.com/opencontainers/go-digest"
)

// Kind is how the bytes of a chunk are had.
type Kind uint8

const (
	// Data is decoded from the blob.
	Data Kind = iota
	// Zeros is nothing but zeros, and in the blob only as such.
	Zeros
	// Copied is made from other chunks' data; see Table.Copies.
	Copied
)

// MaxChunk is the largest Len of a chunk, in bytes. Decode needs that much
// memory, and so does whoever keeps a chunk.
const MaxChunk = 64 << 20

// Chunk is the unit in which data is fetched, verified, kept and evicted.
type Chunk struct {
	Off, Len         int64 // in data offset space
	BlobOff, BlobLen int64 // the blob range that yields it; 0 for Zeros and Copied
	Digest           [sha256.Size]byte
	Kind             Kind
	// Continues says that the chunk goes on with the file of the chunk before.
	// Only tables of contents tell; elsewhere it is false.
	Continues bool
	// Group is the same for files of one folder that are of one kind, which are
	// likely to be read together. Only tables of contents tell.
	Group Group

	inner int64 // bytes between where decoding starts and the chunk
	point int   // where decoding starts: an index of points; none if negative
}

// A Group names the files of one folder that are of one kind; 0 is no group.
// Two groups may have the same name by chance: it serves for guesses.
type Group uint32

// The file: see the package comment.
const (
	tableMagic   = "LAMINACT"
	tableVersion = 1
	flagOfBlob   = 1
	headerSize   = 256
	recordSize   = 72
	pointSize    = 32
	copySize     = 24
	maxDigestLen = 140

	noPoint = math.MaxUint32
)

// Table says for every part of a layer's data where in the blob it is, how to
// decode it, and what it must be. It is immutable and safe for concurrent use.
// Nothing but Copies, Decode and Compose allocates.
//
// Bytes of the data that no chunk covers, up to DataSize, are zeros.
type Table struct {
	b      []byte // the file: mapped or in memory
	mapped bool
	name   string // for errors

	format   Format
	ofBlob   bool // digests are of blob ranges: see Comparable
	count    int
	points   int
	copies   int
	dataSize int64
	blobSize int64
	blob     digest.Digest

	records, pointsAt, copiesAt, windowsAt int // offsets in b

	decoders sync.Pool // of *decoder
}

// Len returns the number of chunks.
func (t *Table) Len() int { return t.count }

// DataSize returns the size of the layer's data, a multiple of 512 bytes.
func (t *Table) DataSize() int64 { return t.dataSize }

// Format returns how the blob holds the layer.
func (t *Table) Format() Format { return t.format }

// BlobDigest returns the digest of the blob that the table describes.
func (t *Table) BlobDigest() digest.Digest { return t.blob }

// BlobSize returns the size of that blob in bytes.
func (t *Table) BlobSize() int64 { return t.blobSize }

func (t *Table) record(i int) []byte {
	return t.b[t.records+i*recordSize:][:recordSize]
}

// Chunk returns chunk i, 0 <= i < Len. Chunks are in order of Off and do not
// overlap.
func (t *Table) Chunk(i int) Chunk {
	r := t.record(i)
	c := Chunk{
		Off:     int64(binary.LittleEndian.Uint64(r)),
		BlobOff: int64(binary.LittleEndian.Uint64(r[8:])),
		BlobLen: int64(binary.LittleEndian.Uint64(r[16:])),
		inner:   int64(binary.LittleEndian.Uint64(r[24:])),
		point:   -1,
		Digest:  [sha256.Size]byte(r[40:72]),
	}
	n := binary.LittleEndian.Uint32(r[32:])
	c.Len, c.Kind, c.Continues = int64(n&lenMask), Kind(n>>kindShift), n&continues != 0
	switch p := binary.LittleEndian.Uint32(r[36:]); {
	case p == noPoint:
	case t.format == EStargz || t.format == ZstdChunked:
		c.Group = Group(p)
	default:
		c.point = int(p)
	}
	return c
}

const (
	kindShift = 30
	continues = 1 << 29
	lenMask   = continues - 1
)

func (t *Table) off(i int) int64 { return int64(binary.LittleEndian.Uint64(t.record(i))) }

// maxStep is the most of a blob that is worth reading for one chunk.
const maxStep = 16 << 20

// Seekable reports whether every chunk can be had by reading a small part of the
// blob, of at most 16 MiB. A zstd blob that is one frame has no place to start
// decoding at but its beginning.
func (t *Table) Seekable() bool {
	for i := range t.count {
		if t.Chunk(i).BlobLen > maxStep {
			return false
		}
	}
	return true
}

// Find returns the chunk that contains data offset off. When none does, ok is
// false and i is the first chunk after off, or Len.
func (t *Table) Find(off int64) (i int, ok bool) {
	i = sort.Search(t.count, func(k int) bool { return t.off(k) > off })
	if i > 0 {
		if c := t.Chunk(i - 1); off-c.Off < c.Len {
			return i - 1, true
		}
	}
	return i, false
}

// Span returns the one blob range from which Decode makes the chunks [i, j).
// Its length is 0 when they need no bytes of the blob.
func (t *Table) Span(i, j int) (blobOff, blobLen int64) {
	start, end := int64(math.MaxInt64), int64(0)
	for k := i; k < j; k++ {
		if c := t.Chunk(k); c.Kind == Data {
			start = min(start, c.BlobOff)
			end = max(end, c.BlobOff+c.BlobLen)
		}
	}
	if start >= end {
		return 0, 0
	}
	return start, end - start
}

// Comparable reports whether the table has the digests of its chunks' data. The
// table that Assembly makes has those of their blob ranges instead: Decode compares
// the bytes of the blob before it decodes them, and data that was decoded earlier
// cannot be told from other data of the same length.
func (t *Table) Comparable() bool { return !t.ofBlob }

// Verify checks that p is chunk i. A wrong length or content is ErrDigest. Of a
// table that is not Comparable only the length is checked.
func (t *Table) Verify(i int, p []byte) error {
	c := t.Chunk(i)
	if int64(len(p)) != c.Len {
		return fmt.Errorf("chunk %d of blob %s: %w: %d bytes, not %d", i, t.blob, ErrDigest, len(p), c.Len)
	}
	if c.Kind == Zeros {
		if !allZero(p) {
			return fmt.Errorf("chunk %d of blob %s: %w: not all zeros", i, t.blob, ErrDigest)
		}
		return nil
	}
	if t.ofBlob {
		return nil
	}
	if got := sha256.Sum256(p); got != c.Digest {
		return fmt.Errorf("chunk %d of blob %s at %d: %w: expected sha256:%x, got sha256:%x",
			i, t.blob, c.BlobOff, ErrDigest, c.Digest, got)
	}
	return nil
}

func allZero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}

// Copies returns what a chunk of kind Copied is made of, in order of Dst, all
// within the chunk. What no Copy covers is zeros. It is nil for other chunks.
func (t *Table) Copies(i int) []Copy {
	c := t.Chunk(i)
	if c.Kind != Copied {
		return nil
	}
	at := func(k int) Copy {
		r := t.b[t.copiesAt+k*copySize:]
		return Copy{
			Dst: int64(binary.LittleEndian.Uint64(r)),
			Src: int64(binary.LittleEndian.Uint64(r[8:])),
			Len: int64(binary.LittleEndian.Uint64(r[16:])),
		}
	}
	var out []Copy
	k := sort.Search(t.copies, func(k int) bool { x := at(k); return x.Dst+x.Len > c.Off })
	for ; k < t.copies; k++ {
		x := at(k)
		if x.Dst >= c.Off+c.Len {
			break
		}
		if d := c.Off - x.Dst; d > 0 {
			x = Copy{x.Dst + d, x.Src + d, x.Len - d}
		}
		x.Len = min(x.Len, c.Off+c.Len-x.Dst)
		out = append(out, x)
	}
	return out
}

// Compose fills p, of the chunk's length, with chunk i of kind Copied. read must
// fill its argument with verified data from the given data offset. The result
// is verified: ErrDigest.
func (t *Table) Compose(i int, p []byte, read func(p []byte, off int64) error) error {
	c := t.Chunk(i)
	if c.Kind != Copied || int64(len(p)) != c.Len {
		return fmt.Errorf("chunk %d of blob %s: %w: not to be composed in %d bytes", i, t.blob, ErrTable, len(p))
	}
	clear(p)
	for _, x := range t.Copies(i) {
		if x.Dst < c.Off || x.Len < 0 || x.Len > c.Off+c.Len-x.Dst {
			return fmt.Errorf("chunk %d of blob %s: %w: copy of %d bytes to %d", i, t.blob, ErrTable, x.Len, x.Dst)
		}
		if err := read(p[x.Dst-c.Off:][:x.Len], x.Src); err != nil {
			return err
		}
	}
	return t.Verify(i, p)
}

// tableBuilder collects a table in the layout of the file.
type tableBuilder struct {
	format   Format
	ofBlob   bool
	blob     digest.Digest
	blobSize int64
	dataSize int64
	records  []byte
	points   []byte
	windows  []byte
	copies   []byte
	packer   windowPacker
}

func newTable(f Format, blob digest.Digest, blobSize int64) *tableBuilder {
	return &tableBuilder{format: f, blob: blob, blobSize: blobSize}
}

func (b *tableBuilder) count() int { return len(b.records) / recordSize }

// add appends a chunk, which must start behind the last one.
func (b *tableBuilder) add(c Chunk) {
	r := binary.LittleEndian.AppendUint64(b.records, uint64(c.Off))
	r = binary.LittleEndian.AppendUint64(r, uint64(c.BlobOff))
	r = binary.LittleEndian.AppendUint64(r, uint64(c.BlobLen))
	r = binary.LittleEndian.AppendUint64(r, uint64(c.inner))
	length := uint32(c.Len) | uint32(c.Kind)<<kindShift
	if c.Continues {
		length |= continues
	}
	r = binary.LittleEndian.AppendUint32(r, length)
	p := uint32(noPoint)
	if c.point >= 0 {
		p = uint32(c.point)
	} else if c.Group != 0 {
		p = uint32(c.Group)
	}
	r = binary.LittleEndian.AppendUint32(r, p)
	b.records = append(r, c.Digest[:]...)
}

// setEnd makes the blob range of chunk i end at blob offset end.
func (b *tableBuilder) setEnd(i int, end int64) {
	r := b.records[i*recordSize:]
	off := int64(binary.LittleEndian.Uint64(r[8:]))
	binary.LittleEndian.PutUint64(r[16:], uint64(max(end-off, 0)))
}

// addPoint appends a place to start decoding from and returns its index.
func (b *tableBuilder) addPoint(c checkpoint.Checkpoint) int {
	packed := b.packer.pack(c.Window)
	p := binary.LittleEndian.AppendUint64(nil, uint64(c.In)<<3|uint64(c.Bits))
	p = binary.LittleEndian.AppendUint64(p, uint64(c.Out))
	p = binary.LittleEndian.AppendUint64(p, uint64(len(b.windows)))
	p = binary.LittleEndian.AppendUint32(p, uint32(len(packed)))
	p = binary.LittleEndian.AppendUint32(p, uint32(len(c.Window)))
	b.points = append(b.points, p...)
	b.windows = append(b.windows, packed...)
	return len(b.points)/pointSize - 1
}

func (b *tableBuilder) addCopy(c Copy) {
	b.copies = binary.LittleEndian.AppendUint64(b.copies, uint64(c.Dst))
	b.copies = binary.LittleEndian.AppendUint64(b.copies, uint64(c.Src))
	b.copies = binary.LittleEndian.AppendUint64(b.copies, uint64(c.Len))
}

// table returns what was collected. The builder must not be used any more.
func (b *tableBuilder) table() *Table {
	size := headerSize + len(b.records) + len(b.points) + len(b.copies) + len(b.windows)
	p := make([]byte, headerSize, size)
	copy(p, tableMagic)
	p[8] = tableVersion
	p[12] = byte(b.format)
	if b.ofBlob {
		p[13] = flagOfBlob
	}
	le := binary.LittleEndian
	le.PutUint64(p[16:], uint64(b.count()))
	le.PutUint64(p[24:], uint64(len(b.points)/pointSize))
	le.PutUint64(p[32:], uint64(len(b.copies)/copySize))
	le.PutUint64(p[40:], uint64(len(b.windows)))
	le.PutUint64(p[48:], uint64(b.dataSize))
	le.PutUint64(p[56:], uint64(b.blobSize))
	p[64] = byte(copy(p[65:65+maxDigestLen], b.blob))
	for _, s := range [][]byte{b.records, b.points, b.copies, b.windows} {
		p = append(p, s...)
	}
	sum := sha256.Sum256(p[headerSize:])
	copy(p[216:248], sum[:])
	le.PutUint32(p[252:], crc32.Checksum(p[:252], crc32.MakeTable(crc32.Castagnoli)))
	t := &Table{b: p, name: "in memory"}
	if err := t.parse(); err != nil {
		panic("layer: a table that was just made does not parse: " + err.Error())
	}
	return t
}

// kind returns the kind of chunk i.
func (b *tableBuilder) kind(i int) Kind {
	return Kind(binary.LittleEndian.Uint32(b.records[i*recordSize+32:]) >> kindShift)
}
