package encode

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"hash/crc32"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// gzipBlock is how much of a tar is compressed at once, in bytes. As each block
	// knows what is before it, smaller ones cost no more than 0.02% of size.
	gzipBlock = 512 << 10
	// zstdBlock is the same for zstd, and what must be decoded at most to reach
	// a byte. It costs 1.6% of size against one frame, 1 MiB would cost 2.5%.
	zstdBlock = zstdWindow
)

// gzipHeader has neither time nor operating system, which would differ between
// machines.
var gzipHeader = [10]byte{0x1f, 0x8b, 8, 9: 0xff}

// plain is a gzip or zstd stream of nothing but the tar.
type plain struct {
	out  *output
	p    *pipeline
	full int // bytes of a block
	gzip bool
	cur  *block
	hash hash.Hash
	crc  uint32
	size int64
}

func newGzip(out *output) *plain {
	p := newPipeline(out, func() codec { return &deflater{} })
	return &plain{out: out, p: p, full: gzipBlock, gzip: true, cur: p.block(), hash: sha256.New()}
}

func newZstd(out *output) *plain {
	p := newPipeline(out, newFrames)
	return &plain{out: out, p: p, full: zstdBlock, cur: p.block(), hash: sha256.New()}
}

func (s *plain) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		// A full block waits for the next byte: it may be the last.
		if len(s.cur.in) == s.full {
			if err := s.next(); err != nil {
				return total - len(p), err
			}
		}
		n := min(len(p), s.full-len(s.cur.in))
		s.cur.add(p[:n], s.full)
		p = p[n:]
	}
	return total, nil
}

// next goes to the next block.
func (s *plain) next() error {
	if err := s.begin(); err != nil {
		return err
	}
	b := s.cur
	if err := s.p.submit(b); err != nil {
		return err
	}
	s.count(b) // while it is compressed: both only read
	s.cur = s.p.block()
	if s.gzip {
		s.cur.dict = append(s.cur.dict, b.in[max(0, len(b.in)-dictLen):]...)
	}
	return nil
}

// begin writes what is before the first block.
func (s *plain) begin() error {
	if !s.gzip || s.size > 0 {
		return nil
	}
	_, err := s.out.Write(gzipHeader[:])
	return err
}

func (s *plain) count(b *block) {
	s.hash.Write(b.in)
	if s.gzip {
		s.crc = crc32.Update(s.crc, crc32.IEEETable, b.in)
	}
	s.size += int64(len(b.in))
}

func (s *plain) finish() (Result, error) {
	defer s.abort() // when a block before the last fails
	if err := s.begin(); err != nil {
		return Result{}, err
	}
	s.count(s.cur)
	if err := s.p.finish(s.cur); err != nil {
		return Result{}, err
	}
	r := Result{DiffID: digest.NewDigest(digest.SHA256, s.hash), Size: s.size}
	r.Desc.MediaType = ocispec.MediaTypeImageLayerZstd
	if s.gzip {
		r.Desc.MediaType = ocispec.MediaTypeImageLayerGzip
		trailer := binary.LittleEndian.AppendUint32(nil, s.crc)
		trailer = binary.LittleEndian.AppendUint32(trailer, uint32(s.size))
		if _, err := s.out.Write(trailer); err != nil {
			return Result{}, err
		}
	}
	return r, nil
}

func (s *plain) abort() { s.p.wait() }
