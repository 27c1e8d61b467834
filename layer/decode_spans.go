package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/laminafs/lamina/layer/checkpoint"
)

// spanSource reads chunks of a gzip blob whose digests are those of their blob
// ranges: each range is compared as a whole before a byte of it is decoded.
type spanSource struct {
	d    *decoder
	t    *Table
	held []byte // the range before, of d.raw
	pos  int64  // where it ends in the blob
	at   bool   // pos is known
}

func (s *spanSource) read(c *Chunk, p []byte) error {
	if err := s.fetch(c); err != nil {
		return err
	}
	if got := sha256.Sum256(s.held); got != c.Digest {
		return fmt.Errorf("%d bytes of the blob: expected sha256:%x, got sha256:%x", len(s.held), c.Digest, got)
	}
	from, err := s.t.point(c.point, &s.d.window)
	if err != nil {
		return err
	}
	if from.Out != c.Off || from.In != c.BlobOff {
		return fmt.Errorf("%w: resume point is of blob offset %d, data offset %d", ErrTable, from.In, from.Out)
	}
	in := bytes.NewReader(s.held)
	if s.d.stream == nil {
		s.d.stream, err = checkpoint.Resume(in, from)
	} else {
		err = s.d.stream.Resume(in, from)
	}
	if err == nil {
		_, err = io.ReadFull(s.d.stream, p)
	}
	if err != nil {
		return fmt.Errorf("%w: its blob range is right, and decodes to something else: %w", ErrTable, err)
	}
	return nil
}

// fetch makes the blob range of c the one that is held. Ranges that follow one
// another share a byte where a block of deflate ends within it.
func (s *spanSource) fetch(c *Chunk) error {
	if c.BlobLen <= 0 || c.BlobLen > maxStep {
		return fmt.Errorf("%w: blob range of %d bytes", ErrTable, c.BlobLen)
	}
	if !s.at {
		s.pos, s.at = c.BlobOff, true // the first chunk of a span is its start
	}
	shared := s.pos - c.BlobOff
	if shared < 0 {
		if err := skip(s.d.in, -shared); err != nil {
			return err
		}
		shared = 0
	}
	if shared > int64(len(s.held)) || shared > c.BlobLen {
		return fmt.Errorf("%w: chunks out of order", ErrTable)
	}
	tail := s.held[int64(len(s.held))-shared:]
	if int64(cap(s.d.raw)) < c.BlobLen {
		s.d.raw = make([]byte, max(c.BlobLen, 1<<20))
	}
	raw := s.d.raw[:c.BlobLen]
	copy(raw, tail)
	s.held = nil
	if _, err := io.ReadFull(s.d.in, raw[shared:]); err != nil {
		return err
	}
	s.held, s.pos = raw, c.BlobOff+c.BlobLen
	return nil
}
