package encode

import "runtime"

// maxWorkers bounds how many blocks are compressed side by side. With more, hashing
// the tar, which one goroutine does, would be what takes longest.
const maxWorkers = 8

// block is a piece of the tar on its way through a pipeline.
type block struct {
	in   []byte
	cuts []int  // offsets in in where a frame starts: the first is 0
	dict []byte // what comes before in; gzip alone uses it
	last bool   // nothing comes behind

	out    []byte
	starts []int // offsets in out where a frame starts
	err    error
	codec  codec         // its own: it is costly to make
	done   chan struct{} // closed when out or err is there
}

// firstLen is what the first bytes of a tar get, in bytes: most commits are small.
const firstLen = 64 << 10

// add appends p to b.in, which is likely to become full bytes long.
func (b *block) add(p []byte, full int) {
	if need := len(b.in) + len(p); need > cap(b.in) {
		n := firstLen
		if need > n {
			n = max(full, need+need/4)
		}
		b.in = append(make([]byte, 0, n), b.in...)
	}
	b.in = append(b.in, p...)
}

// pipeline compresses blocks side by side and writes them in their order. The
// goroutine that fills the blocks writes too: when it has nothing to fill it
// would only wait, and its error needs no way back.
type pipeline struct {
	out      *output
	newCodec func() codec
	limit    int
	pending  []*block // in order; each has a goroutine
	spare    []*block
	// frames are the offsets in the blob of all frames of the blocks written.
	frames []int64
}

func newPipeline(out *output, newCodec func() codec) *pipeline {
	// One block more than workers, for the time that the oldest is written.
	return &pipeline{out: out, newCodec: newCodec, limit: min(runtime.GOMAXPROCS(0), maxWorkers) + 1}
}

// block returns an empty block, with a frame that starts.
func (p *pipeline) block() *block {
	if n := len(p.spare); n > 0 {
		b := p.spare[n-1]
		p.spare = p.spare[:n-1]
		b.in, b.cuts, b.dict = b.in[:0], append(b.cuts[:0], 0), b.dict[:0]
		return b
	}
	return &block{codec: p.newCodec(), cuts: []int{0}}
}

// submit starts to compress b. It waits while there is too much to do.
func (p *pipeline) submit(b *block) error {
	for len(p.pending) >= p.limit {
		if err := p.drain(); err != nil {
			return err
		}
	}
	b.done = make(chan struct{})
	p.pending = append(p.pending, b)
	go func() {
		defer close(b.done)
		b.compress()
	}()
	return nil
}

// finish compresses and writes b, the last block. A tar of one block thus needs
// no goroutine.
func (p *pipeline) finish(b *block) error {
	b.last = true
	b.compress()
	for len(p.pending) > 0 {
		if err := p.drain(); err != nil {
			return err
		}
	}
	return p.write(b)
}

// drain waits for the oldest block and writes it.
func (p *pipeline) drain() error {
	b := p.pending[0]
	<-b.done
	p.pending = p.pending[1:]
	if err := p.write(b); err != nil {
		return err
	}
	p.spare = append(p.spare, b)
	return nil
}

func (p *pipeline) write(b *block) error {
	if b.err != nil {
		return b.err
	}
	for _, s := range b.starts {
		p.frames = append(p.frames, p.out.size+int64(s))
	}
	_, err := p.out.Write(b.out)
	return err
}

// wait waits for all goroutines and forgets what they made.
func (p *pipeline) wait() {
	for _, b := range p.pending {
		<-b.done
	}
	p.pending = nil
}

func (b *block) compress() {
	b.out, b.starts = b.out[:0], b.starts[:0]
	b.err = b.codec.compress(b)
}
