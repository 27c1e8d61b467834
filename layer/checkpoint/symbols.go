package checkpoint

import (
	"fmt"
	"io"
)

// symbols decodes a compressed block, as far as the output has room.
func (z *Reader) symbols() error {
	limit := z.limit()
	for z.op < limit {
		for z.end-z.pos < inSlack && !z.eof {
			if err := z.fill(); err != nil && !z.eof {
				return err
			}
		}
		why := outOfRoom
		if z.end-z.pos >= inSlack {
			why = z.fast(z.block, limit)
		} else if err := z.slow(z.block, &why); err != nil {
			return err
		}
		switch why {
		case endOfBlock:
			z.endBlock()
			return nil
		case badSymbol:
			return fmt.Errorf("%w: no such symbol or distance", ErrCorrupt)
		}
	}
	return nil
}

// slow decodes one symbol, looking at every bit: the end of the input is near.
func (z *Reader) slow(t *tables, why *outcome) error {
	e, err := z.symbol(t.lit[:], litMask)
	switch {
	case err != nil:
		return err
	case e&rareEnd != 0 && e&flagRare != 0:
		*why = endOfBlock
		return nil
	case e&flagLiteral != 0:
		z.out[z.op] = byte(e >> 16)
		z.op++
		return nil
	}
	extra := uint64(e&63 - e>>8&15)
	if err := z.need(extra); err != nil {
		return err
	}
	length := int(e>>23) + int(z.take(extra))
	if e, err = z.symbol(t.dist[:], distMask); err != nil {
		return err
	}
	extra = uint64(e&63 - e>>8&15)
	if err := z.need(extra); err != nil {
		return err
	}
	dist := int(e>>16) + int(z.take(extra))
	src := z.op - dist
	if src < z.low && !z.outside(src, length) {
		*why = badSymbol
		return nil
	}
	for range length {
		z.out[z.op] = z.out[z.op-dist]
		z.op++
	}
	return nil
}

// symbol reads one code, without its extra bits, and returns its entry: of two
// literals it reads the first.
func (z *Reader) symbol(table []uint32, mask uint64) (uint32, error) {
	for z.bc < maxLength {
		if z.pos == z.end {
			if err := z.fill(); err == io.EOF {
				break // the code may be shorter
			} else if err != nil {
				return 0, err
			}
		}
		z.bb |= uint64(z.in[z.pos]) << z.bc
		z.pos++
		z.bc += 8
	}
	bb, n := z.bb, uint64(0)
	e := table[bb&mask]
	if e&flagRare != 0 && e&rareTable != 0 {
		n = uint64(e & 63)
		bb >>= n
		e = table[uint64(e>>16)+bb&(1<<(e>>8&15)-1)]
	}
	n += uint64(e >> 8 & 15)
	if n > z.bc || z.bc == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if e&flagRare != 0 && e&rareBad != 0 {
		return 0, fmt.Errorf("%w: no such symbol", ErrCorrupt)
	}
	z.take(n)
	return e, nil
}
