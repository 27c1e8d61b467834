package layer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/laminafs/lamina/layer/checkpoint"
)

const (
	// plainChunk is the length of the chunks of plain tar and zstd layers.
	plainChunk = 1 << 20
	// gzipSpan is how far apart the checkpoints of a gzip layer are, at least.
	// A chunk reaches from one to the next. The closer they are the less is
	// fetched besides what is read; but every checkpoint costs about 2 KiB of the
	// table, and all that is derived from a layer shall stay below 2% of it.
	// From 2 MiB to this, the index of the python image goes from 0.6 to 1.4% of
	// it, and what `import numpy` fetches from 33 to 24 or 28%.
	gzipSpan = 512 << 10
	// gzipChunk cuts the chunks of a gzip layer whose blocks are huge.
	gzipChunk = 2 * gzipSpan
	// maxData is the most data of a layer: half of what EROFS can address.
	maxData = 1 << 40
)

// block is a piece of the tar on its way through Stream.
type block struct {
	buf  []byte
	off  int64
	ends []int // offsets in buf where a chunk ends
}

// sink cuts the tar into blocks, and notes chunks and resume points.
type sink struct {
	ctx   context.Context
	out   chan<- *block
	free  <-chan *block
	cur   *block
	pos   int64 // data offset of the next byte
	start int64 // of the current chunk
	limit int64 // of a chunk's length

	table    *tableBuilder
	chunks   []Chunk // without digests
	pointIn  int64   // where decoding of the current chunk starts
	pointOut int64
	point    int
	group    int          // first chunk that starts decoding there
	consumed func() int64 // bytes of the blob that made all before pos
}

// space returns where the next bytes go: at least one.
func (s *sink) space() ([]byte, error) {
	if s.cur != nil && len(s.cur.buf) == cap(s.cur.buf) {
		if err := s.send(); err != nil {
			return nil, err
		}
	}
	if s.cur == nil {
		select {
		case s.cur = <-s.free:
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
		if s.cur.buf == nil {
			s.cur.buf = make([]byte, 0, blockLen)
		}
		s.cur.buf, s.cur.ends, s.cur.off = s.cur.buf[:0], s.cur.ends[:0], s.pos
	}
	b := s.cur.buf
	n := min(int64(cap(b)-len(b)), s.limit-(s.pos-s.start))
	return b[len(b) : len(b)+int(n)], nil
}

// commit takes n bytes that were put into space.
func (s *sink) commit(n int) error {
	if n == 0 {
		return nil
	}
	s.cur.buf = s.cur.buf[:len(s.cur.buf)+n]
	s.pos += int64(n)
	if s.pos > maxData {
		return fmt.Errorf("%w: more than %d bytes of data", ErrFormat, int64(maxData))
	}
	if s.pos-s.start == s.limit {
		s.endChunk()
	}
	return nil // a full block is sent by space: its last byte may yet end a chunk
}

// Write is space and commit with a copy between them.
func (s *sink) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		b, err := s.space()
		if err != nil {
			return total - len(p), err
		}
		n := copy(b, p)
		p = p[n:]
		if err := s.commit(n); err != nil {
			return total - len(p), err
		}
	}
	return total, nil
}

// send gives the current block to the next stage.
func (s *sink) send() error {
	b := s.cur
	s.cur = nil
	select {
	case s.out <- b:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// endChunk ends the current chunk, if it has begun.
func (s *sink) endChunk() {
	if s.pos == s.start {
		return
	}
	c := Chunk{
		Off: s.start, Len: s.pos - s.start, BlobOff: s.pointIn,
		inner: s.start - s.pointOut, point: s.point,
	}
	c.BlobLen = s.consumed() - c.BlobOff
	s.chunks = append(s.chunks, c)
	s.cur.ends = append(s.cur.ends, len(s.cur.buf))
	s.start = s.pos
}

// restart notes that decoding can start at pos with blob offset in.
func (s *sink) restart(in int64, point int) {
	s.endChunk()
	s.group = len(s.chunks)
	s.pointIn, s.pointOut, s.point = in, s.pos, point
}

// checkpoint takes a resume point of gzip. Only now is known where in the blob
// the chunks before it end.
func (s *sink) checkpoint(c checkpoint.Checkpoint) error {
	if c.Out != s.pos {
		return fmt.Errorf("checkpoint at %d, expected %d", c.Out, s.pos)
	}
	group := s.group
	s.restart(c.In, s.table.addPoint(c))
	s.setEnds(group, c.In+1)
	return nil
}

// setEnds makes the blob ranges of the chunks from group on, up to the current
// resume point, end at blob offset end.
func (s *sink) setEnds(group int, end int64) {
	for i := group; i < s.group; i++ {
		s.chunks[i].BlobLen = end - s.chunks[i].BlobOff
	}
}

// finish ends the last chunk and sends what is left.
func (s *sink) finish() error {
	s.endChunk()
	if s.cur == nil {
		return nil
	}
	return s.send()
}

// inflate recognises the format of the blob in r and puts its tar into s.
// begun is called before the first byte.
func inflate(r io.Reader, s *sink, begun func(Format)) error {
	br := bufio.NewReaderSize(r, 4<<10)
	head, err := br.Peek(magicLen)
	if err != nil && err != io.EOF {
		return err
	}
	f, err := sniff(head)
	if err != nil {
		return err
	}
	begun(f)
	s.table.format = f
	s.limit, s.point = plainChunk, -1
	switch f {
	case Gzip:
		err = inflateGzip(br, s)
	case Zstd:
		err = inflateZstd(br, s)
	default:
		err = copyTar(br, s)
	}
	if err != nil {
		return err
	}
	return s.finish()
}

func copyTar(r io.Reader, s *sink) error {
	s.consumed = func() int64 { return s.pos }
	for {
		b, err := s.space()
		if err != nil {
			return err
		}
		n, err := r.Read(b)
		if s.pos == s.start {
			s.restart(s.pos, -1) // every chunk can be read by itself
		}
		if err := s.commit(n); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func inflateGzip(r io.Reader, s *sink) error {
	s.limit = gzipChunk
	z := checkpoint.NewReader(r, gzipSpan, s.checkpoint)
	s.consumed = z.InputOffset
	if _, err := z.WriteTo(s); err != nil {
		return err
	}
	group := s.group
	s.endChunk()
	s.group = len(s.chunks)
	s.setEnds(group, z.InputOffset())
	return nil
}

func inflateZstd(r io.Reader, s *sink) error {
	f := newZstdFrames(r)
	s.consumed = func() int64 { return f.in }
	z, err := newZstd(nil)
	if err != nil {
		return err
	}
	defer z.Close()
	for first := true; ; first = false {
		switch err := f.next(); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if first || s.pos-s.pointOut >= plainChunk {
			s.restart(f.in, -1)
		}
		if err := z.Reset(f); err != nil {
			return err
		}
		if err := copyFrame(z, s); err != nil {
			return err
		}
		if !f.ended {
			return errors.Join(errFrame, fmt.Errorf("frame does not end at byte %d", f.in))
		}
	}
}

func copyFrame(r io.Reader, s *sink) error {
	for {
		b, err := s.space()
		if err != nil {
			return err
		}
		n, err := r.Read(b)
		if err := s.commit(n); err != nil {
			return err
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
