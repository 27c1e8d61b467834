package cache

import (
	"slices"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// headLen is how many bytes of a file Options.Began is shown.
const headLen = 64

// What a Wish for the ends of a large part gets of its beginning and of its end,
// as shares of what the link carries in a round trip.
const (
	beginShare = 2
	endShare   = 8
)

// A Wish is a part of a layer's data that is about to be read.
type Wish struct {
	Off, Len int64
	// Ends asks of a large part for its beginning and its end only, each at
	// least a chunk: there programs are entered and linked. What is between
	// them follows when it is read.
	Ends bool
	// Sure says that it will be read for certain. Other wishes are granted as
	// far as the speculation of the store goes.
	Sure bool
	// Alone says that nobody is to look ahead from it: Options.Began is not told of
	// it before it is read, or wished for in another way.
	Alone bool
}

// Begun is a file of which the first bytes are read for the first time, or were
// wished for and have come.
type Begun struct {
	Off, Len int64  // its data, as far as the chunks tell
	Head     []byte // its first bytes, at most 64; not to be kept
	Sure     bool   // it is read, or will be for certain
}

// Want begins to fetch what is wished for, neighbours in one request. It waits for
// nothing to come, but may read beginnings of files that are here and tell
// Options.Began of them. It is a hint: nothing may come of it.
func (l *Layer) Want(wishes ...Wish) {
	l.readers.Add(1) // the mappings must outlive this
	defer l.readers.Add(-1)
	if l.closed.Load() || l.inPlace || l.bm.whole() {
		return
	}
	if s := l.starts.Load(); s != nil {
		for _, w := range wishes {
			s.wish(l, w)
		}
	}
	for k, sure := range l.grantAll(wishes) { // they came along with others
		c := l.table.Chunk(k)
		l.began(k, &c, nil, sure)
	}
}

// grantAll begins to fetch what of the wishes is worth it, and returns the chunks that
// are here and begin a wish, which may not have been told of, and whether they will be
// read for certain.
func (l *Layer) grantAll(wishes []Wish) (here map[int]bool) {
	trip := l.ahead.roundTrip()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return nil
	}
	g := granting{
		surrounding: surrounding{l: l, room: l.store.budget.room(), gap: trip / gapShare},
		sure:        make(map[int]bool),
		alone:       make(map[int]bool),
		here:        make(map[int]bool),
		looks:       maxLooks,
	}
	for _, w := range wishes {
		if w.Len > 0 && w.Off >= 0 && w.Len <= l.size-w.Off {
			g.grant(w, trip)
		}
	}
	slices.Sort(g.chosen)
	n := 0 // of the chosen ones, which are in the spans, all in order
	for _, s := range g.joined() {
		prio := fetch.Prefetch
		for ; n < len(g.chosen) && g.chosen[n] < s[1]; n++ {
			if g.sure[g.chosen[n]] {
				prio = fetch.Reader
			}
		}
		r := l.newRun(s[0], s[1], prio)
		for k := range r.flights {
			f := &r.flights[k]
			f.sure, f.wished = g.sure[f.chunk]
			f.wished = f.wished && !g.alone[f.chunk]
		}
		l.bet(r, nil)
		l.launch(r)
	}
	return g.here
}

// granting collects the chunks of wishes.
type granting struct {
	surrounding
	sure  map[int]bool // the chosen ones: whether they are read for certain
	alone map[int]bool // those of them that nobody is to look ahead from
	here  map[int]bool // those that begin a wish and have come: whether they are read for certain
	looks int          // how many chunks may still be looked at
}

// grant chooses the chunks of w that are worth fetching.
func (g *granting) grant(w Wish, trip int64) {
	l := g.l
	i, j := l.span(w.Off, w.Off+w.Len)
	first, last := j, j
	if w.Ends && l.blobAt(j)-l.blobAt(i) > trip/2 {
		first, last = min(i+1, j), max(i, j-1)
		for first < min(j, i+g.looks) && l.blobAt(first+1)-l.blobAt(i) <= trip/beginShare {
			first++
		}
		for last > max(first, j-g.looks) && l.blobAt(j)-l.blobAt(last-1) <= trip/endShare {
			last--
		}
	}
	for k := i; k < j && g.looks > 0; k++ {
		if first <= k && k < last {
			k = last - 1
			continue
		}
		g.looks--
		sure, chosen := g.sure[k]
		switch {
		case chosen:
			g.sure[k] = sure || w.Sure
			g.alone[k] = g.alone[k] && w.Alone
		case l.flights[k] != nil: // as if it had been wished for first
			f := l.flights[k]
			f.wished, f.sure = f.wished || !w.Alone, f.sure || w.Sure
		case w.Sure && l.open(k, nil):
			g.chosen = append(g.chosen, k)
			g.sure[k], g.alone[k] = true, w.Alone
		case !w.Sure && g.take(k):
			g.sure[k], g.alone[k] = false, w.Alone
		case k == i && !w.Alone && !l.isAbsent(k):
			g.here[k] = g.here[k] || w.Sure
		}
	}
}

// tells reports whether Options.Began and Options.Came are told of chunks now.
func (l *Layer) tells() bool {
	// Elsewhere any chunk would look like the beginning of a file.
	f := l.table.Format()
	return (f == layer.EStargz || f == layer.ZstdChunked || l.starts.Load() != nil) && !l.ahead.orderly()
}

// began tells Options.Began that chunk k, of which p is the content or nil, is
// read for the first time, if it begins a file. It does so once, though what
// was wished for is read later. It does not for who reads one file after the
// other in the order of the blob: he needs nobody to look ahead, and is no
// program that is started.
func (l *Layer) began(k int, c *layer.Chunk, p []byte, sure bool) {
	if l.store.opts.Began == nil || c.Continues || l.starts.Load() != nil || !l.tells() {
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
	end := c.Off + c.Len
	for n := k + 1; n < l.table.Len() && l.continues(n); n++ {
		next := l.table.Chunk(n)
		end = next.Off + next.Len
	}
	l.store.opts.Began(l, Begun{Off: c.Off, Len: end - c.Off, Head: p[:min(len(p), headLen)], Sure: sure})
}
