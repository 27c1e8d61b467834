package checkpoint

import (
	"fmt"
	"io"
)

// Resume returns a Reader that delivers the uncompressed data from c.Out on,
// given the blob from byte c.In on in r. It goes on over the members that
// follow. r may end anywhere behind the data that is wanted: what can be decoded
// is delivered before io.ErrUnexpectedEOF.
//
// The first member's checksum cannot be checked from its middle, and a wrong
// Window makes wrong data: callers verify what they get.
func Resume(r io.Reader, c Checkpoint) (*Reader, error) {
	z := NewReader(r, 0, nil)
	if err := z.Resume(r, c); err != nil {
		return nil, err
	}
	return z, nil
}

// Resume makes z what Resume returns, keeping its buffers.
func (z *Reader) Resume(r io.Reader, c Checkpoint) error {
	if c.Bits > 7 || c.In < 0 || c.Out < 0 || len(c.Window) > WindowSize {
		return fmt.Errorf("resume at byte %d: %w: no such checkpoint", c.In, ErrCorrupt)
	}
	z.Reset(r, 0, nil)
	n := copy(z.out[:], c.Window)
	z.op, z.sent, z.ready, z.summed = n, n, n, n
	z.outBase, z.base = c.Out-int64(n), c.In
	z.skip = uint64(c.Bits)
	z.state, z.begun, z.unchecked = stateSkip, true, true
	return nil
}
