package layer

import (
	"cmp"
	"fmt"

	"github.com/klauspost/compress/zstd"
	"github.com/laminafs/lamina/layer/checkpoint"
)

// windowPacker compresses the windows of checkpoints to frames of zstd, which make
// little of the zeros that stand for bytes nobody refers to.
type windowPacker struct{ enc *zstd.Encoder }

// pack returns w compressed, or w itself when that is not longer.
func (p *windowPacker) pack(w []byte) []byte {
	if len(w) == 0 {
		return nil
	}
	if p.enc == nil {
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
			zstd.WithEncoderCRC(false), zstd.WithWindowSize(checkpoint.WindowSize))
		if err != nil {
			return w // the options are constant; without compression all is still right
		}
		p.enc = enc
	}
	if packed := p.enc.EncodeAll(w, nil); len(packed) < len(w) {
		return packed
	}
	return w
}

// windowUnpacker undoes what windowPacker does. It starts no goroutine, and may be
// forgotten.
type windowUnpacker struct {
	dec *zstd.Decoder
	buf []byte
}

// unpack returns the window of n bytes, at most checkpoint.WindowSize, that p was
// made of. It is valid until the next call, and may be p.
func (u *windowUnpacker) unpack(p []byte, n int) ([]byte, error) {
	if len(p) == n {
		return p, nil
	}
	if u.dec == nil {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, err
		}
		u.dec, u.buf = dec, make([]byte, checkpoint.WindowSize)
	}
	w, err := u.dec.DecodeAll(p, u.buf[:0:n])
	if err != nil || len(w) != n {
		return nil, fmt.Errorf("%w: window of %d bytes, not %d: %w", ErrTable, len(w), n, cmp.Or(err, ErrTable))
	}
	return w, nil
}
