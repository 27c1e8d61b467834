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
	outOfInput                // the input ends within a symbol
)

// fast decodes symbols while at least inSlack bytes of input are buffered and
// the output is below limit, at which outSlack bytes must still follow. All
// state lives in locals: this loop bounds the speed of a first mount.
func (z *Reader) fast(t *tables, limit int) outcome {
	in, out := z.in[:z.end], z.out
	pos, op, low, last := z.pos, z.op, z.low, z.end-inSlack
	bb, bc := z.bb, z.bc
	why := outOfRoom
loop:
	for pos <= last && op < limit {
		bb |= binary.LittleEndian.Uint64(in[pos:pos+8]) << (bc & 63)
		pos += int(^bc>>3) & 7
		bc |= 56
		e := t.lit[bb&litMask]
		if e&flagLiteral != 0 {
			binary.LittleEndian.PutUint16(out[op:op+2], uint16(e>>16))
			op += int(e>>12) & 3
			bb >>= e & 63
			bc -= uint64(e)
			e = t.lit[bb&litMask]
			if e&flagLiteral != 0 {
				binary.LittleEndian.PutUint16(out[op:op+2], uint16(e>>16))
				op += int(e>>12) & 3
				bb >>= e & 63
				bc -= uint64(e)
				e = t.lit[bb&litMask]
				if e&flagLiteral != 0 {
					binary.LittleEndian.PutUint16(out[op:op+2], uint16(e>>16))
					op += int(e>>12) & 3
					bb >>= e & 63
					bc -= uint64(e)
					continue
				}
			}
		}
		if e&flagRare != 0 {
			if e&rareTable != 0 {
				bb >>= litBits
				bc -= litBits
				e = t.lit[(uint64(e>>16)+bb&(1<<(e>>8&15)-1))&(litSize-1)]
			}
			if e&(flagLiteral|flagRare) != 0 {
				if e&flagRare != 0 {
					why = endOfBlock
					if e&rareBad != 0 {
						why = badSymbol
					}
				} else {
					out[op] = byte(e >> 16)
					op++
				}
				bb >>= e & 63
				bc -= uint64(e)
				if e&flagRare != 0 {
					break loop
				}
				continue
			}
		}
		length := int(e>>23) + int(uint32(bb>>(e>>8&15))&(e>>12&31))
		bb >>= e & 63
		bc -= uint64(e)
		bb |= binary.LittleEndian.Uint64(in[pos:pos+8]) << (bc & 63)
		pos += int(^bc>>3) & 7
		bc |= 56
		e = t.dist[bb&distMask]
		if e&flagRare != 0 {
			if e&rareBad != 0 {
				why = badSymbol
				break
			}
			bb >>= distBits
			bc -= distBits
			e = t.dist[(uint64(e>>16)+bb&(1<<(e>>8&15)-1))&(distSize-1)]
			if e&rareBad != 0 {
				why = badSymbol
				break
			}
		}
		dist := int(e>>16) + int(bb&(1<<(e&63)-1)>>(e>>8&15))
		bb >>= e & 63
		bc -= uint64(e)
		src := op - dist
		if src < low && !z.outside(src, length) {
			why = badSymbol
			break
		}
		end := op + length
		if dist >= 16 {
			for {
				copy(out[op:op+16], out[src:src+16])
				op += 16
				if op >= end {
					break
				}
				src += 16
			}
		} else {
			near(out, op, dist, end)
		}
		op = end
	}
	z.pos, z.op = pos, op
	z.bc = bc & 63
	z.bb = bb & (1<<z.bc - 1)
	return why
}

// near copies a match that overlaps itself within sixteen bytes, writing up to
// sixteen bytes past end.
func near(out []byte, op, dist, end int) {
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
