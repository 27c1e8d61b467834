package layer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var errFrame = errors.New("malformed zstd stream")

// zstdFrames splits a zstd stream into its frames, and counts: klauspost's
// reader goes over frame borders silently, but a border is the only place where
// decoding can start.
type zstdFrames struct {
	br    *bufio.Reader
	in    int64 // offset in the blob of the next byte that Read delivers
	left  int64 // bytes left of the current piece
	sum   bool  // a checksum follows the last block
	last  bool  // the current piece is the last block
	ended bool
}

func newZstdFrames(r io.Reader) *zstdFrames {
	return &zstdFrames{br: bufio.NewReaderSize(r, 64<<10), ended: true}
}

// next goes to the next frame that has data. It returns io.EOF at the end of
// the stream. The frame before must have been read to its end.
func (f *zstdFrames) next() error {
	for {
		head, err := f.br.Peek(4)
		switch {
		case len(head) == 0 && err == io.EOF:
			return io.EOF
		case len(head) < 4:
			return cutShort(err)
		}
		magic := binary.LittleEndian.Uint32(head)
		if magic == 0xfd2fb528 {
			return f.begin()
		}
		if magic>>4 != 0x184d2a5 {
			return fmt.Errorf("%w: no frame at byte %d", errFrame, f.in)
		}
		head, err = f.br.Peek(8)
		if err != nil {
			return cutShort(err)
		}
		n := 8 + int64(binary.LittleEndian.Uint32(head[4:]))
		if err := skip(f.br, n); err != nil {
			return cutShort(err)
		}
		f.in += n
	}
}

// begin measures the frame's header.
func (f *zstdFrames) begin() error {
	head, err := f.br.Peek(5)
	if err != nil {
		return cutShort(err)
	}
	d := head[4]
	n := 5 + [4]int64{0, 1, 2, 4}[d&3] + [4]int64{0, 2, 4, 8}[d>>6]
	switch single := d&0x20 != 0; {
	case !single:
		n++ // window descriptor
	case d>>6 == 0:
		n++ // content size of one byte
	}
	f.left, f.sum, f.last, f.ended = n, d&4 != 0, false, false
	return nil
}

// Read delivers the bytes of the current frame, then io.EOF.
func (f *zstdFrames) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for f.left == 0 {
		if f.ended {
			return 0, io.EOF
		}
		if err := f.piece(); err != nil {
			return 0, err
		}
	}
	n, err := f.br.Read(p[:min(int64(len(p)), f.left)])
	f.left -= int64(n)
	f.in += int64(n)
	return n, cutShort(err)
}

// piece measures the next block, or the checksum.
func (f *zstdFrames) piece() error {
	if f.last {
		if f.ended = !f.sum; f.sum {
			f.sum, f.left = false, 4
		}
		return nil
	}
	head, err := f.br.Peek(3)
	if err != nil {
		return cutShort(err)
	}
	h := int64(head[0]) | int64(head[1])<<8 | int64(head[2])<<16
	size := h >> 3
	if h>>1&3 == 1 { // one byte, repeated
		size = 1
	}
	f.last, f.left = h&1 != 0, 3+size
	return nil
}

// cutShort says of an early end that it is one.
func cutShort(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
