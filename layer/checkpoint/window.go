package checkpoint

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// WindowCodec turns windows into the compact form in which they are kept, and
// back: a zstd frame, which makes little of the zeros that stand for bytes
// nobody refers to. It is safe for concurrent use.
type WindowCodec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// NewWindowCodec returns a WindowCodec. It holds about a megabyte.
func NewWindowCodec() (*WindowCodec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
		zstd.WithWindowSize(WindowSize), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("make window codec: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(WindowSize))
	if err != nil {
		return nil, fmt.Errorf("make window codec: %w", err)
	}
	return &WindowCodec{enc: enc, dec: dec}, nil
}

// Encode appends the compact form of window to dst; that of an empty window is
// empty. It keeps neither.
func (c *WindowCodec) Encode(dst, window []byte) []byte {
	if len(window) == 0 {
		return dst
	}
	return c.enc.EncodeAll(window, dst)
}

// Decode returns the window whose compact form is b, at most WindowSize bytes.
// It returns an error wrapping ErrCorrupt for anything else.
func (c *WindowCodec) Decode(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, nil
	}
	w, err := c.dec.DecodeAll(b, nil)
	if err != nil {
		return nil, fmt.Errorf("decode window: %w: %w", ErrCorrupt, err)
	}
	if len(w) > WindowSize {
		return nil, fmt.Errorf("decode window: %w: %d bytes", ErrCorrupt, len(w))
	}
	return w, nil
}

// Close frees what c holds. c must not be used after it.
func (c *WindowCodec) Close() {
	_ = c.enc.Close() // nothing is being written
	c.dec.Close()
}
