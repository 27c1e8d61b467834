package checkpoint

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// state is what the next bits of the input are.
type state uint8

const (
	stateHeader  state = iota // a member's header
	stateBlock                // a block's header
	stateStored               // bytes of a stored block
	stateSymbols              // symbols of a compressed block
	stateTrailer              // a member's sum and size
	statePadding              // zeros after the last member
	stateSkip                 // bits of what came before a checkpoint
)

// step decodes the next piece of the stream. It returns io.EOF at its end.
func (z *Reader) step() error {
	switch z.state {
	case stateHeader:
		return z.header()
	case stateBlock:
		return z.blockHeader()
	case stateStored:
		return z.storedBytes()
	case stateSymbols:
		return z.symbols()
	case stateTrailer:
		return z.trailer()
	case stateSkip:
		if err := z.need(z.skip); err != nil {
			return err
		}
		z.take(z.skip)
		z.state = stateBlock
		return nil
	default:
		return z.padding()
	}
}

const (
	flagHeaderSum = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
)

// header reads a member's header. Names, comments and extra fields are skipped,
// whatever their length; the sum is checked where there is one.
func (z *Reader) header() error {
	first := !z.begun
	b, err := z.next()
	switch {
	case err != nil && !first:
		return err // io.EOF: the last member was the last
	case err != nil:
		return cut(err)
	case b == 0 && !first:
		z.state = statePadding
		return nil
	}
	h := &z.head
	h[0] = b
	for i := 1; i < len(h); i++ {
		if i == 2 && (h[0] != 0x1f || h[1] != 0x8b) {
			if !first {
				return ErrTrailing
			}
			return fmt.Errorf("%w: no gzip header", ErrCorrupt)
		}
		if h[i], err = z.next(); err != nil {
			return cut(err)
		}
	}
	if h[2] != 8 {
		return fmt.Errorf("%w: compression method %d", ErrCorrupt, h[2])
	}
	z.sum = crc32.ChecksumIEEE(h[:])
	if err := z.headerFields(h[3]); err != nil {
		return cut(err)
	}
	z.sum, z.unchecked, z.begun = 0, false, true
	z.memberOut = z.outBase + int64(z.op)
	z.member, z.low, z.summed = z.op, z.op, z.op
	z.state = stateBlock
	return nil
}

// headerFields skips the fields that flags announce and checks the sum.
func (z *Reader) headerFields(flags byte) error {
	if flags&flagExtra != 0 {
		n := 0
		for i := range 2 {
			b, err := z.headerByte()
			if err != nil {
				return err
			}
			n |= int(b) << (8 * i)
		}
		for range n {
			if _, err := z.headerByte(); err != nil {
				return err
			}
		}
	}
	for _, flag := range []byte{flagName, flagComment} {
		for more := flags&flag != 0; more; {
			b, err := z.headerByte()
			if err != nil {
				return err
			}
			more = b != 0
		}
	}
	if flags&flagHeaderSum == 0 {
		return nil
	}
	want := uint16(z.sum)
	low, err := z.next()
	if err != nil {
		return err
	}
	high, err := z.next()
	if err != nil {
		return err
	}
	if uint16(low)|uint16(high)<<8 != want {
		return fmt.Errorf("%w: checksum of a header", ErrCorrupt)
	}
	return nil
}

// headerByte returns the next byte and adds it to the header's sum.
func (z *Reader) headerByte() (byte, error) {
	b, err := z.next()
	if err == nil {
		z.head[0] = b
		z.sum = crc32.Update(z.sum, crc32.IEEETable, z.head[:1])
	}
	return b, err
}

// trailer checks a member's sum and size.
func (z *Reader) trailer() error {
	z.updateSum()
	var t [8]byte
	for i := range t {
		b, err := z.next()
		if err != nil {
			return cut(err)
		}
		t[i] = b
	}
	size := uint32(z.outBase + int64(z.op) - z.memberOut)
	if !z.unchecked && (binary.LittleEndian.Uint32(t[:]) != z.sum || binary.LittleEndian.Uint32(t[4:]) != size) {
		return ErrChecksum
	}
	z.state = stateHeader
	z.resolve() // no later block can refer to this member's data
	return nil
}

// padding accepts zeros up to the end of the input.
func (z *Reader) padding() error {
	for {
		b, err := z.next()
		if err != nil {
			return err
		}
		if b != 0 {
			return ErrTrailing
		}
	}
}

var _ io.WriterTo = (*Reader)(nil)
