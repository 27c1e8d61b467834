package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/atomicfile"
	"github.com/laminafs/lamina/layer/checkpoint"
)

// maxTable bounds the file that OpenTable maps.
const maxTable = 1 << 36

// OpenTable maps the table in the file path. Its cost does not depend on the
// size: of the contents only the header is checked; see Check. Errors wrap
// ErrTable when the file is no table, and those of the file system.
func OpenTable(path string) (*Table, error) {
	t, err := openTable(path)
	if err != nil {
		return nil, fmt.Errorf("open chunk table %s: %w", path, err)
	}
	return t, nil
}

func openTable(path string) (*Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() < headerSize || fi.Size() > maxTable {
		return nil, fmt.Errorf("%w: %d bytes", ErrTable, fi.Size())
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	t := &Table{b: b, mapped: true, name: path}
	if err := t.parse(); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// TableBlob returns the digest of the blob that the table in the file path describes,
// as BlobDigest of the opened one. It looks at the header alone. Errors are those of
// OpenTable.
func TableBlob(path string) (digest.Digest, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read chunk table: %w", err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, headerSize)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read chunk table: %w", err)
	}
	d, err := parseHeader(b[:n])
	if err != nil {
		return "", fmt.Errorf("read chunk table %s: %w", path, err)
	}
	return d, nil
}

// NewTable returns the table in b, which it keeps and does not change. Errors
// wrap ErrTable.
func NewTable(b []byte) (*Table, error) {
	t := &Table{b: b, name: "in memory"}
	if err := t.parse(); err != nil {
		return nil, fmt.Errorf("read chunk table: %w", err)
	}
	return t, nil
}

// parseHeader checks that b begins with the header of a table, and returns the
// blob's digest.
func parseHeader(b []byte) (digest.Digest, error) {
	if len(b) < headerSize || !bytes.Equal(b[:8], []byte(tableMagic)) {
		return "", fmt.Errorf("%w: no magic", ErrTable)
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != tableVersion {
		return "", fmt.Errorf("%w: version %d", ErrTable, v)
	}
	if le.Uint32(b[252:]) != crc32.Checksum(b[:252], crc32.MakeTable(crc32.Castagnoli)) {
		return "", fmt.Errorf("%w: checksum of the header", ErrTable)
	}
	n := int(b[64])
	if n > maxDigestLen {
		return "", fmt.Errorf("%w: digest of %d bytes", ErrTable, n)
	}
	return digest.Digest(b[65 : 65+n]), nil
}

// parse checks the header and finds the sections.
func (t *Table) parse() (err error) {
	b := t.b
	if t.blob, err = parseHeader(b); err != nil {
		return err
	}
	le := binary.LittleEndian
	t.format, t.ofBlob = Format(b[12]), b[13] == flagOfBlob
	t.dataSize = int64(le.Uint64(b[48:]))
	t.blobSize = int64(le.Uint64(b[56:]))
	at := headerSize
	for _, s := range []struct {
		count     uint64
		size      int
		to, start *int
	}{
		{le.Uint64(b[16:]), recordSize, &t.count, &t.records},
		{le.Uint64(b[24:]), pointSize, &t.points, &t.pointsAt},
		{le.Uint64(b[32:]), copySize, &t.copies, &t.copiesAt},
		{le.Uint64(b[40:]), 1, nil, &t.windowsAt},
	} {
		if s.count > uint64((len(b)-at)/s.size) {
			return fmt.Errorf("%w: %d bytes are too few", ErrTable, len(b))
		}
		*s.start = at
		if s.to != nil {
			*s.to = int(s.count)
		}
		at += int(s.count) * s.size
	}
	if at != len(b) || t.dataSize < 0 || t.blobSize < 0 || t.format > ZstdChunked ||
		b[13] > flagOfBlob || t.ofBlob && t.format != Gzip {
		return fmt.Errorf("%w: fields of the header", ErrTable)
	}
	return nil
}

// Check reads the whole table and compares it with its own digest, then checks
// that chunks are in order and lie within data and blob. Errors wrap ErrTable.
func (t *Table) Check() error {
	if sum := sha256.Sum256(t.b[headerSize:]); !bytes.Equal(sum[:], t.b[216:248]) {
		return fmt.Errorf("check chunk table %s: %w: wrong digest", t.name, ErrTable)
	}
	end, blob := int64(0), int64(0)
	for i := range t.count {
		c := t.Chunk(i)
		ok := c.Off >= end && c.Len > 0 && c.Len <= MaxChunk && c.Off <= t.dataSize && c.Len <= t.dataSize-c.Off &&
			c.Kind <= Copied && c.point < t.points && c.inner >= 0 &&
			c.BlobOff >= 0 && c.BlobLen >= 0 && c.BlobOff <= t.blobSize && c.BlobLen <= t.blobSize-c.BlobOff
		if t.ofBlob {
			ok = ok && c.Kind == Data && c.point >= 0 && c.inner == 0 && c.BlobLen > 0 && c.BlobLen <= maxStep && c.BlobOff >= blob
			blob = c.BlobOff
		}
		if !ok {
			return fmt.Errorf("check chunk table %s: %w: chunk %d", t.name, ErrTable, i)
		}
		end = c.Off + c.Len
	}
	return nil
}

// Write writes the table to path, replacing what is there: the file appears
// under its name whole and on disk, or not at all.
func (t *Table) Write(path string) error {
	if err := atomicfile.WriteBytes(path, filepath.Join(filepath.Dir(path), ".chunks-"), t.b); err != nil {
		return fmt.Errorf("write chunk table %s: %w", path, err)
	}
	return nil
}

// Close unmaps the table. It must not be used afterwards.
func (t *Table) Close() error {
	if !t.mapped {
		return nil
	}
	b := t.b
	t.b, t.mapped, t.count = nil, false, 0
	return unix.Munmap(b)
}

// Release gives the table's resident pages back to the system. They come back
// from the file when needed; it is safe at any time.
func (t *Table) Release() {
	if t.mapped {
		_ = unix.Madvise(t.b, unix.MADV_DONTNEED) // advice only
	}
}

// point returns resume point i with its window, which is as unpack of u returns it.
func (t *Table) point(i int, u *windowUnpacker) (checkpoint.Checkpoint, error) {
	if i < 0 || i >= t.points {
		return checkpoint.Checkpoint{}, fmt.Errorf("%w: no resume point %d", ErrTable, i)
	}
	r := t.b[t.pointsAt+i*pointSize:]
	le := binary.LittleEndian
	in := le.Uint64(r)
	p := checkpoint.Checkpoint{In: int64(in >> 3), Bits: uint8(in & 7), Out: int64(le.Uint64(r[8:]))}
	off, packed, n := le.Uint64(r[16:]), uint64(le.Uint32(r[24:])), le.Uint32(r[28:])
	windows := t.b[t.windowsAt:]
	if off > uint64(len(windows)) || packed > uint64(len(windows))-off || n > checkpoint.WindowSize {
		return checkpoint.Checkpoint{}, fmt.Errorf("%w: window of resume point %d", ErrTable, i)
	}
	var err error
	p.Window, err = u.unpack(windows[off:off+packed], int(n))
	return p, err
}
