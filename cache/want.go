package cache

import (
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// headLen is how many bytes of a file Options.Began is shown.
const headLen = 64

// Want begins to fetch the file whose data is [off, off+n), which is about to be
// read: its first and its last chunk, where programs are entered and linked.
// What is between them follows when the file is read. It returns at once, and
// is a hint: nothing may come of it.
func (l *Layer) Want(off, n int64) {
	l.readers.Add(1) // the mappings must outlive this
	defer l.readers.Add(-1)
	if l.closed.Load() || l.inPlace || n <= 0 || off < 0 || n > l.size-off || l.bm.whole() {
		return
	}
	i, j := l.span(off, off+n)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return
	}
	for _, s := range [][2]int{{i, min(i+1, j)}, {max(i+1, j-1), j}} {
		if s[0] >= s[1] || !l.open(s[0], nil) {
			continue
		}
		r := l.newRun(s[0], s[1], fetch.Reader)
		r.sure = true
		l.bet(r, nil)
		l.launch(r)
	}
}

// began tells Options.Began that chunk k, of which p is the content or nil, is
// read for the first time, if it begins a file. It does so once, though what
// Want has fetched is read later.
func (l *Layer) began(k int, c *layer.Chunk, p []byte) {
	if l.store.opts.Began == nil || c.Continues {
		return
	}
	if p == nil {
		gen := l.bm.generation()
		p = make([]byte, min(c.Len, headLen))
		if _, err := l.data.ReadAt(p, c.Off); err != nil {
			return
		}
		if !l.bm.has(k, &c.Digest) || l.bm.generation() != gen {
			return // it was evicted, and comes again
		}
	}
	if bit := uint32(1) << (k % 32); l.told[k/32].Or(bit)&bit != 0 {
		return
	}
	l.store.opts.Began(l, c.Off, p[:min(len(p), headLen)])
}
