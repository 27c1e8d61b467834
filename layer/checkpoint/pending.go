package checkpoint

// pending is the checkpoint that was begun and not reported yet: what follows
// is watched until nothing can refer to the window any more.
type pending struct {
	active bool
	done   bool // nothing can refer to the window any more
	pos    int  // where it is in the output buffer
	c      Checkpoint
	first  int   // start of kept's data
	prior  int64 // the Reader's last, before this one
}

// due reports whether a checkpoint belongs before the block that comes next.
func (z *Reader) due() bool {
	if z.at == nil || z.pend.active {
		return false
	}
	if z.last < 0 {
		return true
	}
	span := z.span
	if z.member == z.op {
		span /= 2 // costs no window
	}
	return z.outBase+int64(z.op)-z.last >= span
}

// begin starts a checkpoint at the current position.
func (z *Reader) begin() {
	p := &z.pend
	if z.window == nil {
		z.window, z.kept = new([WindowSize]byte), new([WindowSize]byte)
	}
	bit := z.base*8 + int64(z.pos)*8 - int64(z.bc)
	p.c = Checkpoint{Out: z.outBase + int64(z.op), In: bit >> 3, Bits: uint8(bit & 7)}
	p.active, p.pos = true, z.op
	p.first = WindowSize
	p.prior, z.last = z.last, p.c.Out
	before := z.out[max(z.member, z.op-WindowSize):z.op]
	copy(z.window[WindowSize-len(before):], before)
	clear(z.kept[:])
	z.low = z.op
}

// outside looks at a match whose source starts below low: before a pending
// checkpoint, where it is noted, or before the data, where it is an error.
//
//go:noinline
func (z *Reader) outside(src, length int) bool {
	if src < z.member {
		return false
	}
	if p := &z.pend; p.active && src < p.pos {
		from := WindowSize - (p.pos - src)
		to := min(from+length, WindowSize)
		copy(z.kept[from:to], z.window[from:to])
		p.first = min(p.first, from)
	}
	return true
}

// resolve ends the watch over a pending checkpoint's window. One with no data
// behind it is dropped: it would be the start of nothing.
func (z *Reader) resolve() {
	p := &z.pend
	if !p.active {
		return
	}
	z.low = z.member
	if p.pos == z.op {
		p.active = false
		z.last = p.prior
		return
	}
	p.done = true
}

// settle decides after a round of decoding what may be delivered.
func (z *Reader) settle() {
	p := &z.pend
	z.ready = z.op
	if !p.active {
		return
	}
	if z.op >= p.pos+WindowSize {
		z.resolve()
	}
	if z.err != nil && !p.done {
		// Nothing to resume: the stream ends here, or is broken.
		p.active = false
		return
	}
	z.ready = p.pos
}

// report hands the checkpoint over.
func (z *Reader) report() error {
	p := &z.pend
	c := p.c
	if p.first < WindowSize {
		c.Window = append([]byte(nil), z.kept[p.first:]...)
	}
	p.active, p.done = false, false
	z.ready = z.op
	return z.at(c)
}
