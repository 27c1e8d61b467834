package cache

import (
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// headLen is how many bytes of a file Options.Began is shown.
const headLen = 64

// endShare is how much of the end of a file Want fetches, as a share of what the
// link carries in a round trip; of its beginning it is all of that.
const endShare = 8

// Want begins to fetch the file whose data is [off, off+n), which is about to be
// read: its beginning and its end, where programs are entered and linked, each
// at least a chunk; all of it if it is small. What is between them follows when
// the file is read. It returns at once, and is a hint: nothing may come of it.
func (l *Layer) Want(off, n int64) {
	l.readers.Add(1) // the mappings must outlive this
	defer l.readers.Add(-1)
	if l.closed.Load() || l.inPlace || n <= 0 || off < 0 || n > l.size-off || l.bm.whole() {
		return
	}
	i, j := l.span(off, off+n)
	trip := l.ahead.roundTrip()
	first, last := min(i+1, j), max(i, j-1)
	for first < j && l.blobAt(first+1)-l.blobAt(i) <= trip {
		first++
	}
	for last > first && l.blobAt(j)-l.blobAt(last-1) <= trip/endShare {
		last--
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return
	}
	l.want(i, first)
	l.want(max(first, last), j)
}

// want starts runs of those of chunks [i, j) that are worth fetching. mu must be
// held.
func (l *Layer) want(i, j int) {
	for k := i; k < j; {
		end := k
		for end < j && l.open(end, nil) {
			end++
		}
		if end > k {
			r := l.newRun(k, end, fetch.Reader)
			r.sure = true // no bet: the budget is for those
			l.launch(r)
		}
		k = end + 1
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
