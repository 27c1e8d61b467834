package checkpoint

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	inSize = 256 << 10
	// outSize is what one round decodes, beside the window before it: small
	// enough to stay in a core's own cache until it is summed and written.
	outSize = 256 << 10
	outLen  = WindowSize + outSize + outSlack
)

// Reader decompresses a gzip stream, checks it, and reports checkpoints. It is
// not safe for concurrent use.
type Reader struct {
	stream
	in  *[inSize]byte // arrays: their lengths cost the fast loop no registers
	out *[outLen]byte

	protos   prototypes
	dynamic  tables
	fixed    tables
	hasFixed bool
	lens     [maxLits + maxDists]uint8
	window   *[WindowSize]byte // the data before the pending checkpoint, ending with the array
	kept     *[WindowSize]byte // those bytes of window that were referred to, and zeros
}

// stream is what a Reader knows of its stream.
type stream struct {
	src  io.Reader
	at   func(Checkpoint) error
	span int64

	pos     int    // next byte of in
	end     int    // of what was read into in
	base    int64  // offset in the blob of in[0]
	bb      uint64 // bits taken from in and not used yet, the next one lowest
	bc      uint64 // how many
	eof     bool   // src has ended
	readErr error  // what src ended with

	op      int   // end of what was decoded
	low     int   // matches reaching below it need a look
	member  int   // where the member's data starts
	sent    int   // end of what was delivered
	ready   int   // end of what may be delivered
	outBase int64 // offset in the uncompressed data of out[0]

	state  state
	skip   uint64 // bits before the first block
	final  bool   // the block is its member's last
	stored int    // bytes left of a stored block
	block  *tables

	head      [10]byte // of a member; a field, as a variable would go to the heap
	sum       uint32
	summed    int   // end of what sum covers
	memberOut int64 // offset in the uncompressed data of the member
	begun     bool  // a member's header was read
	unchecked bool  // begun in the middle of a member: its sum is not known

	pend pending
	last int64 // Out of the last checkpoint; -1: none
	err  error // what ends the stream, once everything is delivered
}

// NewReader returns a Reader of the gzip stream r. It calls at for the start of
// the data, and then for the first block that starts span bytes of output or
// more after the last checkpoint (or half of it, where a member starts); spans
// under MinSpan count as MinSpan. at may be nil.
//
// at(c) is called when exactly the bytes before c.Out have been delivered. It
// owns c.Window. An error from it, which must not be io.EOF, ends the stream and is
// returned as it is.
func NewReader(r io.Reader, span int64, at func(Checkpoint) error) *Reader {
	z := &Reader{
		in:  new([inSize]byte),
		out: new([outLen]byte),
	}
	z.protos.fill()
	z.Reset(r, span, at)
	return z
}

// Reset makes z what NewReader returns, keeping its buffers.
func (z *Reader) Reset(r io.Reader, span int64, at func(Checkpoint) error) {
	z.stream = stream{src: r, at: at, span: max(span, MinSpan), last: -1}
}

// InputOffset returns how many bytes of the blob were used for what has been
// decoded so far, which may be more than what has been delivered. At the end of
// the stream it is the length of the blob.
func (z *Reader) InputOffset() int64 { return z.base + int64(z.pos) - int64(z.bc>>3) }

// Read delivers uncompressed data. After the last byte of a whole stream it
// returns io.EOF; io.ErrUnexpectedEOF when the stream was cut; else an error
// wrapping ErrCorrupt or the error of the underlying reader. All data decoded
// before the fault is delivered first.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := z.more(); err != nil {
		return 0, err
	}
	n := copy(p, z.out[z.sent:z.ready])
	z.sent += n
	return n, nil
}

// WriteTo delivers all the data to w, from the Reader's own buffer. Its errors
// are Read's and w's; the end of the stream is not one.
func (z *Reader) WriteTo(w io.Writer) (int64, error) {
	var total int64
	for {
		if err := z.more(); err != nil {
			if err == io.EOF {
				return total, nil
			}
			return total, err
		}
		n, err := w.Write(z.out[z.sent:z.ready])
		z.sent += n
		total += int64(n)
		if err != nil {
			return total, err
		}
		if z.sent != z.ready {
			return total, io.ErrShortWrite
		}
	}
}

// more makes something ready, or says why there is nothing any more.
func (z *Reader) more() error {
	for z.sent == z.ready {
		switch {
		case z.pend.done:
			if err := z.report(); err != nil {
				z.err = err
				z.op, z.ready = z.sent, z.sent
			}
		case z.err != nil:
			return z.err
		default:
			z.decode()
		}
	}
	return nil
}

// decode goes on until the output is full, a checkpoint can be reported, or the
// stream ends.
func (z *Reader) decode() {
	z.slide()
	for z.err == nil && !z.pend.done && z.op < z.limit() {
		if err := z.step(); err != nil {
			z.err = z.explain(err)
		}
	}
	z.updateSum()
	z.settle()
}

// limit is where decoding stops: at the end of the buffer, or where a pending
// checkpoint is out of reach of what follows.
func (z *Reader) limit() int {
	limit := len(z.out) - outSlack
	if z.pend.active {
		limit = min(limit, z.pend.pos+WindowSize)
	}
	return limit
}

// slide moves what is still needed to the front of the output buffer once that
// is full: the window, and what was not delivered.
func (z *Reader) slide() {
	if z.op < len(z.out)-outSlack {
		return
	}
	n := min(z.op-WindowSize, z.sent)
	copy(z.out[:], z.out[n:z.op])
	z.op -= n
	z.sent -= n
	z.ready -= n
	z.summed -= n
	z.pend.pos -= n
	z.member = max(z.member-n, 0)
	z.low = max(z.low-n, 0)
	z.outBase += int64(n)
}

func (z *Reader) updateSum() {
	if !z.unchecked {
		z.sum = crc32.Update(z.sum, crc32.IEEETable, z.out[z.summed:z.op])
	}
	z.summed = z.op
}

// explain adds the place to an error. A sentinel that callers compare, io.EOF
// and io.ErrUnexpectedEOF, stays as it is.
func (z *Reader) explain(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return err
	}
	return fmt.Errorf("inflate at byte %d: %w", z.InputOffset(), err)
}

// fill reads more input behind what is buffered, keeping eight bytes before pos
// for unread. It returns io.EOF at the end of the input.
func (z *Reader) fill() error {
	if z.readErr != nil {
		return z.readErr
	}
	if n := z.pos - 8; n > 0 {
		copy(z.in[:], z.in[n:z.end])
		z.pos, z.end = z.pos-n, z.end-n
		z.base += int64(n)
	}
	for range 100 {
		n, err := z.src.Read(z.in[z.end:])
		if n < 0 || n > len(z.in)-z.end {
			return errors.New("reader returned an impossible count")
		}
		z.end += n
		if err != nil {
			z.readErr = err
			z.eof = err == io.EOF
		}
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	z.readErr = io.ErrNoProgress
	return z.readErr
}

// need makes at least n bits available, n <= 32.
func (z *Reader) need(n uint64) error {
	for z.bc < n {
		if z.pos == z.end {
			if err := z.fill(); err != nil {
				return cut(err)
			}
		}
		z.bb |= uint64(z.in[z.pos]) << z.bc
		z.pos++
		z.bc += 8
	}
	return nil
}

// take returns n bits that need has made available.
func (z *Reader) take(n uint64) uint64 {
	v := z.bb & (1<<n - 1)
	z.bb >>= n
	z.bc -= n
	return v
}

// align drops the bits up to the next byte and gives back whole bytes.
func (z *Reader) align() {
	z.pos -= int(z.bc >> 3)
	z.bb, z.bc = 0, 0
}

// next returns the next byte; z must be aligned.
func (z *Reader) next() (byte, error) {
	if z.pos == z.end {
		if err := z.fill(); err != nil {
			return 0, err
		}
	}
	z.pos++
	return z.in[z.pos-1], nil
}

// cut turns the end of the input into the error of a cut stream.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
