package layer

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/laminafs/lamina/layer/checkpoint"
)

const (
	// maxWindow bounds what a zstd frame may make a decoder remember: zstd
	// --long=27, more than which zstd itself refuses by default.
	maxWindow = 128 << 20
	// keepBuffer is the largest chunk buffer that is kept for the next Decode.
	keepBuffer = 8 << 20
)

// decoder is what one Decode needs. Tables keep some for reuse.
type decoder struct {
	buf    []byte
	raw    []byte // of the blob, where that is compared
	in     *bufio.Reader
	src    *watched
	stream *checkpoint.Reader // gzip
	frames *zstd.Decoder
	window windowUnpacker
}

// watched passes reads on and remembers an error of the source, to tell it from
// one of the content.
type watched struct {
	r   io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// Decode makes the chunks [i, j) from r, which must yield the bytes of
// Span(i, j), and calls emit with each in order. Only verified chunks are
// emitted. p is valid until emit returns.
//
// A chunk that cannot be decoded, or is not what it must be, is ErrDigest; then
// no later chunk is emitted. Errors of r and of emit are returned as they are.
// Chunks of kind Copied cannot be decoded: ErrTable. The same when a table is not
// Comparable and the blob's bytes are right, but do not make the chunk: no other
// source can help. Memory is bounded by the longest chunk, by the zstd window, at
// most 128 MiB, and by 16 MiB of the blob. r need not be read to
// its end.
func (t *Table) Decode(r io.Reader, i, j int, emit func(i int, p []byte) error) error {
	if i < 0 || j > t.count || i > j {
		return fmt.Errorf("decode chunks %d to %d of %d: %w", i, j, t.count, ErrTable)
	}
	d, _ := t.decoders.Get().(*decoder)
	if d == nil {
		d = &decoder{src: &watched{}}
		d.in = bufio.NewReaderSize(d.src, 64<<10)
	}
	d.src.r, d.src.err = r, nil
	d.in.Reset(d.src)
	defer t.giveBack(d)
	switch {
	case t.ofBlob:
		return d.run(t, i, j, emit, &spanSource{d: d, t: t})
	case t.format == Tar:
		return d.run(t, i, j, emit, &plainSource{d})
	case t.format == Gzip, t.format == Zstd:
		return d.run(t, i, j, emit, &streamSource{d: d, t: t})
	default:
		return d.run(t, i, j, emit, &memberSource{d: d, t: t})
	}
}

// giveBack keeps d for the next Decode, without what it refers to.
func (t *Table) giveBack(d *decoder) {
	d.src.r = nil
	d.in.Reset(d.src)
	if cap(d.buf) > keepBuffer {
		d.buf = nil
	}
	if cap(d.raw) > keepBuffer {
		d.raw = nil
	}
	t.decoders.Put(d)
}

// chunkSource reads chunks, one after the other. It fills p with the chunk c.
type chunkSource interface {
	read(c *Chunk, p []byte) error
}

func (d *decoder) run(t *Table, i, j int, emit func(i int, p []byte) error, from chunkSource) error {
	for ; i < j; i++ {
		c := t.Chunk(i)
		if c.Len <= 0 || c.Len > MaxChunk || c.Kind == Copied {
			return fmt.Errorf("chunk %d of blob %s: %w: not to be decoded", i, t.blob, ErrTable)
		}
		if int64(cap(d.buf)) < c.Len {
			d.buf = make([]byte, max(c.Len, 1<<20))
		}
		p := d.buf[:c.Len]
		if c.Kind == Zeros {
			clear(p)
		} else {
			if err := from.read(&c, p); err != nil {
				switch {
				case d.src.err != nil:
					return d.src.err
				case errors.Is(err, ErrTable):
					return fmt.Errorf("chunk %d of blob %s: %w", i, t.blob, err)
				}
				return fmt.Errorf("chunk %d of blob %s at %d: %w: %w", i, t.blob, c.BlobOff, ErrDigest, err)
			}
			if err := t.Verify(i, p); err != nil {
				return err
			}
		}
		if err := emit(i, p); err != nil {
			return err
		}
	}
	return nil
}

// plainSource reads a plain tar: chunks follow one another.
type plainSource struct{ d *decoder }

func (s *plainSource) read(_ *Chunk, p []byte) error {
	_, err := io.ReadFull(s.d.src, p)
	return err
}

// streamSource reads a gzip or zstd stream, entered once and read on.
type streamSource struct {
	d  *decoder
	t  *Table
	r  io.Reader
	at int64 // data offset of the next byte of r
}

func (s *streamSource) read(c *Chunk, p []byte) error {
	if s.r == nil {
		if err := s.enter(c); err != nil {
			return err
		}
		s.at = c.Off - c.inner
	}
	if c.Off < s.at {
		return fmt.Errorf("%w: chunks out of order", ErrTable)
	}
	if err := discard(s.r, c.Off-s.at, p); err != nil {
		return err
	}
	s.at = c.Off + c.Len
	_, err := io.ReadFull(s.r, p)
	return err
}

// enter starts decoding where the blob range of c starts.
func (s *streamSource) enter(c *Chunk) error {
	if s.t.format == Zstd {
		z, err := s.d.zstd(s.d.in)
		s.r = z
		return err
	}
	p, err := s.t.point(c.point, &s.d.window)
	if err != nil {
		return err
	}
	if s.d.stream == nil {
		s.d.stream, err = checkpoint.Resume(s.d.src, p)
	} else {
		err = s.d.stream.Resume(s.d.src, p)
	}
	s.r = s.d.stream
	return err
}

// discard reads n bytes of r and forgets them; p is scratch space.
func discard(r io.Reader, n int64, p []byte) error {
	for n > 0 {
		k, err := io.ReadFull(r, p[:min(n, int64(len(p)))])
		n -= int64(k)
		if err != nil {
			return err
		}
	}
	return nil
}

// zstd returns the decoder's zstd reader, reading r.
func (d *decoder) zstd(r io.Reader) (*zstd.Decoder, error) {
	if d.frames != nil {
		return d.frames, d.frames.Reset(r)
	}
	z, err := newZstd(r)
	d.frames = z
	return z, err
}

// newZstd returns a reader of zstd frames that starts no goroutine, so that it
// may be forgotten, and reads no further than the block it delivers.
func newZstd(r io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow))
}

// memberSource reads chunks that start gzip members or zstd frames, or lie in
// one behind others.
type memberSource struct {
	d    *decoder
	t    *Table
	pos  int64 // in the blob
	at   bool  // pos is known
	blob int64 // where the open member starts
	out  int64 // bytes of it read
	sec  section
	r    io.Reader
}

// section is a part of the input.
type section struct {
	br   *bufio.Reader
	left int64
}

func (s *section) Read(p []byte) (int, error) {
	if s.left <= 0 {
		return 0, io.EOF
	}
	n, err := s.br.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	return n, err
}

func (s *memberSource) read(c *Chunk, p []byte) error {
	if s.r == nil || s.blob != c.BlobOff || c.inner < s.out {
		if err := s.open(c); err != nil {
			return err
		}
	}
	if err := discard(s.r, c.inner-s.out, p); err != nil {
		return err
	}
	s.out = c.inner + c.Len
	_, err := io.ReadFull(s.r, p)
	return err
}

// open goes to the member of c.
func (s *memberSource) open(c *Chunk) error {
	if !s.at {
		s.pos, s.at = c.BlobOff, true // the first chunk of a span is its start
	}
	now := s.pos - s.sec.left
	if c.BlobOff < now {
		return fmt.Errorf("%w: chunks out of order", ErrTable)
	}
	if err := skip(s.d.in, c.BlobOff-now); err != nil {
		return err
	}
	s.pos, s.blob, s.out = c.BlobOff+c.BlobLen, c.BlobOff, 0
	s.sec = section{br: s.d.in, left: c.BlobLen}
	if s.t.format == ZstdChunked {
		z, err := s.d.zstd(&s.sec)
		s.r = z
		return err
	}
	if s.d.stream == nil {
		s.d.stream = checkpoint.NewReader(&s.sec, 0, nil)
	} else {
		s.d.stream.Reset(&s.sec, 0, nil)
	}
	s.r = s.d.stream
	return nil
}

// skip passes over n bytes of br.
func skip(br *bufio.Reader, n int64) error {
	for n > 0 {
		k, err := br.Discard(int(min(n, 1<<20)))
		n -= int64(k)
		if err != nil {
			return err
		}
	}
	return nil
}
