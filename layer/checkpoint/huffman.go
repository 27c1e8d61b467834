package checkpoint

import "math/bits"

// A table entry is one uint32. The six low bits are always the number of bits
// the entry consumes, so that a shift by the whole entry, and a subtraction of
// the whole entry from the bit count, do the right thing in their low six bits.
//
//	literals   bits 16-23, 24-31  one or two bytes
//	           bits 12-13         how many
//	           bits 8-11          length of the first one's code
//	length     bits 23-31         base
//	           bits 12-16         mask of the extra bits
//	           bits 8-11          length of the code, without extra bits
//	distance   bits 16-30         base
//	           bits 8-11          length of the code, without extra bits
//	subtable   bits 16-31         where it starts
//	           bits 8-11          width of its index
const (
	flagLiteral = 1 << 6 // one or two literals
	flagRare    = 1 << 7 // a subtable, the end of the block, or no symbol
	rareTable   = 1 << 13
	rareEnd     = 1 << 14
	rareBad     = 1 << 15

	litBits   = 11
	distBits  = 9
	codeBits  = 7
	litMask   = 1<<litBits - 1
	distMask  = 1<<distBits - 1
	litSize   = 1 << 12 // 2342 are the most that 288 symbols can need
	distSize  = 1 << 10 // 594 are the most that 32 symbols can need
	maxLits   = 288
	maxDists  = 32
	maxLength = 15
)

// tables decodes one block's symbols.
type tables struct {
	lit  [litSize]uint32
	dist [distSize]uint32
}

// prototypes are the entries of symbols before the length of their code is
// known; entry adds that.
type prototypes struct {
	lit  [maxLits]uint32
	dist [maxDists]uint32
	code [19]uint32
}

func (p *prototypes) fill() {
	for i := range 256 {
		p.lit[i] = uint32(i)<<16 | 1<<12 | flagLiteral
	}
	p.lit[256] = flagRare | rareEnd
	base := uint32(3)
	for i := range 28 {
		extra := uint32(0)
		if i >= 8 {
			extra = uint32(i)/4 - 1
		}
		p.lit[257+i] = base<<23 | (1<<extra-1)<<12 | extra
		base += 1 << extra
	}
	p.lit[285] = 258 << 23
	p.lit[286], p.lit[287] = flagRare|rareBad, flagRare|rareBad
	base = 1
	for i := range 30 {
		extra := uint32(0)
		if i >= 4 {
			extra = uint32(i)/2 - 1
		}
		p.dist[i] = base<<16 | extra
		base += 1 << extra
	}
	p.dist[30], p.dist[31] = flagRare|rareBad, flagRare|rareBad
	for i := range p.code {
		p.code[i] = uint32(i) << 16
	}
}

// entry completes a prototype with the bits its code takes in its table.
func entry(proto uint32, n int) uint32 { return proto + uint32(n)*0x101 }

// build fills table, whose first 1<<primary entries are indexed by the next
// bits of the stream, from the code lengths of the symbols. It accepts what
// compress/flate accepts: a complete code, no code at all, or a single code of
// one bit; a code that is not there is an entry with rareBad.
func build(table []uint32, primary int, lens []uint8, protos []uint32) bool {
	var count, next [maxLength + 1]int
	for _, n := range lens {
		count[n]++
	}
	count[0] = 0
	left, used := 1, 0
	for n := 1; n <= maxLength; n++ {
		left = left<<1 - count[n]
		if left < 0 {
			return false
		}
		next[n] = used
		used += count[n]
	}
	if left > 0 {
		if used > 1 || used == 1 && count[1] != 1 {
			return false
		}
		return buildDegenerate(table[:1<<primary], lens, protos)
	}
	var sorted [maxLits]uint16
	for sym, n := range lens {
		if n != 0 {
			sorted[next[n]] = uint16(sym)
			next[n]++
		}
	}
	// Codes in their order of length: the table for n bits is made by
	// doubling the one for n-1 bits.
	i, code := 0, 0
	for n := 1; n <= primary; n++ {
		half := 1 << (n - 1)
		copy(table[half:2*half], table[:half])
		code <<= 1
		for range count[n] {
			table[reverse(code, n)] = entry(protos[sorted[i]], n)
			i++
			code++
		}
	}
	if i < used {
		buildLong(table, primary, count[:], sorted[i:used], code, protos)
	}
	return true
}

// reverse turns a code around: streams hold codes from their first bit on.
func reverse(code, n int) int {
	return int(bits.Reverse16(uint16(code)) >> (16 - n))
}

// buildDegenerate fills the table of a code with one symbol or none.
func buildDegenerate(table []uint32, lens []uint8, protos []uint32) bool {
	for i := range table {
		table[i] = flagRare | rareBad
	}
	for sym, n := range lens {
		if n == 0 {
			continue
		}
		for i := 0; i < len(table); i += 2 {
			table[i] = entry(protos[sym], 1)
		}
	}
	return true
}

// buildLong adds the codes longer than primary bits, each in a subtable of its
// prefix. The code is complete, so every subtable is filled wholly.
func buildLong(table []uint32, primary int, count []int, sorted []uint16, code int, protos []uint32) {
	end := 1 << primary // of the tables so far
	prefix, start, width := -1, 0, 0
	n := primary
	remaining := 0
	for _, sym := range sorted {
		for remaining == 0 {
			n++
			code <<= 1
			remaining = count[n]
		}
		rev := reverse(code, n)
		if p := rev & (1<<primary - 1); p != prefix {
			// The widest code with this prefix decides the width: codes
			// are sorted, so take lengths until the prefix is used up.
			prefix, start = p, end
			width = n - primary
			space := remaining
			for space < 1<<width {
				width++
				space = space<<1 + count[primary+width]
			}
			end = start + 1<<width
			table[p] = uint32(start)<<16 | uint32(width)<<8 | rareTable | flagRare | uint32(primary)
		}
		e := entry(protos[sym], n-primary)
		for j := rev >> primary; j < 1<<width; j += 1 << (n - primary) {
			table[start+j] = e
		}
		code++
		remaining--
	}
}

// pair joins two literals into one entry wherever both codes fit the index.
// From the top down: the entry for the bits that follow is a smaller index, and
// so still a single one.
func (t *tables) pair() {
	for i := litMask; i >= 0; i-- {
		e := t.lit[i]
		if e&flagLiteral == 0 {
			continue
		}
		second := t.lit[uint(i)>>(e&15)]
		if n := e&15 + second&15; second&flagLiteral != 0 && n <= litBits {
			t.lit[i] = second&0xff0000<<8 | e&0xff0000 | 2<<12 | e&0xf00 | flagLiteral | n
		}
	}
}
