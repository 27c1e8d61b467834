package checkpoint

import "encoding/binary"

// Room that one round of the fast loop may need: three loads of eight bytes, of
// which two advance by up to seven; six literals, the longest match, and what
// copying by sixteen bytes writes past its end.
const (
	inSlack  = 32
	outSlack = 320
)

// outcome says why a symbol loop stopped.
type outcome uint8

const (
	outOfRoom  outcome = iota // input or output used up, as far as the loop goes
	endOfBlock                // the block's last symbol was read
	badSymbol                 // the bits are not a symbol, or point before the data
)

// fast decodes symbols while at least inSlack bytes of input are buffered and
// the output is below limit, at which outSlack bytes must still follow. All
// state lives in locals: this loop bounds the speed of a first mount.
func (z *Reader) fast(t *tables, limit int) outcome {
	in, out, bb, bc := z.in, z.out, z.bb, z.bc
	pos, op, low, last := z.pos, z.op, z.low, z.end-inSlack
	if pos > last {
		return outOfRoom
	}
	pos, bb, bc = refill(in, pos, bb, bc)
	e := uint64(t.lit[bb&litMask])
	for pos <= last && op < limit {
		if e&flagLiteral != 0 {
			op, bb, bc = put(out, op, e, bb, bc)
			e = uint64(t.lit[bb&litMask])
			if e&flagLiteral != 0 {
				op, bb, bc = put(out, op, e, bb, bc)
				e = uint64(t.lit[bb&litMask])
				if e&flagLiteral != 0 {
					op, bb, bc = put(out, op, e, bb, bc)
					pos, bb, bc = refill(in, pos, bb, bc)
					e = uint64(t.lit[bb&litMask])
					continue
				}
			}
		}
		if e&flagRare != 0 {
			if e&rareTable != 0 {
				bb, bc = bb>>litBits, bc-litBits
				e = uint64(t.lit[(e>>16+bb&(1<<(e>>8&15)-1))&(litSize-1)])
			}
			if e&flagLiteral != 0 {
				op, bb, bc = put(out, op, e, bb, bc)
				pos, bb, bc = refill(in, pos, bb, bc)
				e = uint64(t.lit[bb&litMask])
				continue
			}
			if e&flagRare != 0 {
				if e&rareBad != 0 {
					return z.leave(badSymbol, pos, op, bb, bc)
				}
				return z.leave(endOfBlock, pos, op, bb>>(e&63), bc-e)
			}
		}
		length := int(e>>23) + int(bb>>(e>>8&15)&(e>>12&31))
		bb >>= e & 63
		bc -= e
		pos, bb, bc = refill(in, pos, bb, bc)
		e = uint64(t.dist[bb&distMask])
		if e&flagRare != 0 {
			if e&rareTable != 0 {
				bb, bc = bb>>distBits, bc-distBits
				e = uint64(t.dist[(e>>16+bb&(1<<(e>>8&15)-1))&(distSize-1)])
			}
			if e&flagRare != 0 {
				return z.leave(badSymbol, pos, op, bb, bc)
			}
		}
		src := op - int(e>>16) - int(bb&(1<<(e&63)-1)>>(e>>8&15))
		bb >>= e & 63
		bc -= e
		if src < low && !z.outside(src, length) {
			return z.leave(badSymbol, pos, op, bb, bc)
		}
		pos, bb, bc = refill(in, pos, bb, bc)
		e = uint64(t.lit[bb&litMask])
		end := op + length
		if src <= op-16 {
			for {
				*(*[16]byte)(out[op : op+16]) = *(*[16]byte)(out[src : src+16])
				op += 16
				if op >= end {
					break
				}
				src += 16
			}
		} else {
			near(out, op, op-src, end)
		}
		op = end
	}
	return z.leave(outOfRoom, pos, op, bb, bc)
}

// refill takes in as many whole bytes as the bit buffer has room for: all eight
// are ORed in, and the bits beyond the count are ORed in again, the same, later.
func refill(in *[inSize]byte, pos int, bb, bc uint64) (int, uint64, uint64) {
	return pos + int(^bc>>3)&7, bb | binary.LittleEndian.Uint64(in[pos:pos+8])<<(bc&63), bc | 56
}

// put writes the one or two literals of an entry.
func put(out *[outLen]byte, op int, e, bb, bc uint64) (int, uint64, uint64) {
	binary.LittleEndian.PutUint16(out[op:op+2], uint16(e>>16))
	return op + int(e>>12)&3, bb >> (e & 63), bc - e
}

// leave keeps the state of the fast loop. Inlined, it and the other rare ways
// out would cost the loop registers.
//
//go:noinline
func (z *Reader) leave(why outcome, pos, op int, bb, bc uint64) outcome {
	z.pos, z.op = pos, op
	z.bc = bc & 63
	z.bb = bb & (1<<z.bc - 1)
	return why
}

// near copies a match that overlaps itself within sixteen bytes, writing up to
// sixteen bytes past end.
//
//go:noinline
func near(out *[outLen]byte, op, dist, end int) {
	if dist == 1 {
		v := uint64(out[op-1]) * 0x0101010101010101
		for ; op < end; op += 8 {
			binary.LittleEndian.PutUint64(out[op:op+8], v)
		}
		return
	}
	// The first repeats byte by byte, until the data is periodic with a
	// multiple of dist that is at least eight.
	step := dist
	for step < 8 {
		step += dist
	}
	for n := 0; n < step; n++ {
		out[op+n] = out[op+n-dist]
	}
	for op += step; op < end; op += 8 {
		copy(out[op:op+8], out[op-step:op-step+8])
	}
}
