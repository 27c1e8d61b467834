package checkpoint

import "fmt"

// codeOrder is the order in which a block lists the lengths of its code for
// code lengths.
const codeOrder = "\x10\x11\x12\x00\x08\x07\x09\x06\x0a\x05\x0b\x04\x0c\x03\x0d\x02\x0e\x01\x0f"

// blockHeader reads the header of a deflate block, before which a checkpoint
// may be.
func (z *Reader) blockHeader() error {
	if z.due() {
		z.begin()
	}
	if err := z.need(3); err != nil {
		return err
	}
	z.final = z.take(1) == 1
	switch kind := z.take(2); kind {
	case 0:
		return z.storedHeader()
	case 1:
		z.fixedTables()
		z.block = &z.fixed
	case 2:
		if err := z.dynamicTables(); err != nil {
			return err
		}
		z.block = &z.dynamic
	default:
		return fmt.Errorf("%w: block type 3", ErrCorrupt)
	}
	z.state = stateSymbols
	return nil
}

// endBlock goes on behind a block.
func (z *Reader) endBlock() {
	z.state = stateBlock
	if z.final {
		z.align()
		z.state = stateTrailer
	}
}

func (z *Reader) storedHeader() error {
	z.take(z.bc & 7)
	if err := z.need(32); err != nil {
		return err
	}
	n := z.take(16)
	if z.take(16) != n^0xffff {
		return fmt.Errorf("%w: length of a stored block", ErrCorrupt)
	}
	z.align()
	z.stored = int(n)
	z.state = stateStored
	return nil
}

func (z *Reader) storedBytes() error {
	for z.stored > 0 {
		room := len(z.out) - outSlack - z.op
		if room <= 0 {
			return nil
		}
		if z.pos == z.end {
			if err := z.fill(); err != nil {
				return cut(err)
			}
		}
		n := copy(z.out[z.op:z.op+min(room, z.stored)], z.in[z.pos:z.end])
		z.op += n
		z.pos += n
		z.stored -= n
	}
	z.endBlock()
	return nil
}

// fixedTables makes the tables of blocks that bring none.
func (z *Reader) fixedTables() {
	if z.hasFixed {
		return
	}
	z.hasFixed = true
	for i := range maxLits {
		switch {
		case i < 144:
			z.lens[i] = 8
		case i < 256:
			z.lens[i] = 9
		case i < 280:
			z.lens[i] = 7
		default:
			z.lens[i] = 8
		}
	}
	for i := range maxDists {
		z.lens[maxLits+i] = 5
	}
	build(z.fixed.lit[:], litBits, z.lens[:maxLits], z.protos.lit[:])
	build(z.fixed.dist[:], distBits, z.lens[maxLits:], z.protos.dist[:])
	z.fixed.pair()
}

// dynamicTables reads a block's own codes.
func (z *Reader) dynamicTables() error {
	if err := z.need(14); err != nil {
		return err
	}
	lits, dists, codes := int(z.take(5))+257, int(z.take(5))+1, int(z.take(4))+4
	if lits > 286 || dists > 30 {
		return fmt.Errorf("%w: too many symbols", ErrCorrupt)
	}
	var codeLens [19]uint8
	for i := range codes {
		if err := z.need(3); err != nil {
			return err
		}
		codeLens[codeOrder[i]] = uint8(z.take(3))
	}
	// The code for code lengths borrows the table of the distances.
	if !build(z.dynamic.dist[:1<<codeBits], codeBits, codeLens[:], z.protos.code[:]) {
		return fmt.Errorf("%w: code for code lengths", ErrCorrupt)
	}
	if err := z.codeLengths(lits + dists); err != nil {
		return err
	}
	if !build(z.dynamic.lit[:], litBits, z.lens[:lits], z.protos.lit[:]) {
		return fmt.Errorf("%w: code for literals", ErrCorrupt)
	}
	if !build(z.dynamic.dist[:], distBits, z.lens[lits:lits+dists], z.protos.dist[:]) {
		return fmt.Errorf("%w: code for distances", ErrCorrupt)
	}
	z.dynamic.pair()
	return nil
}

// codeLengths reads n code lengths into lens.
func (z *Reader) codeLengths(n int) error {
	for i := 0; i < n; {
		e, err := z.symbol(z.dynamic.dist[:], 1<<codeBits-1)
		if err != nil {
			return err
		}
		sym := e >> 16
		if sym < 16 {
			z.lens[i] = uint8(sym)
			i++
			continue
		}
		width, repeat, value := uint64(2), 3, uint8(0)
		switch {
		case sym == 17:
			width = 3
		case sym == 18:
			width, repeat = 7, 11
		case i == 0:
			return fmt.Errorf("%w: repeated code length without a first", ErrCorrupt)
		default:
			value = z.lens[i-1]
		}
		if err := z.need(width); err != nil {
			return err
		}
		repeat += int(z.take(width))
		if i+repeat > n {
			return fmt.Errorf("%w: too many code lengths", ErrCorrupt)
		}
		for ; repeat > 0; repeat-- {
			z.lens[i] = value
			i++
		}
	}
	return nil
}
