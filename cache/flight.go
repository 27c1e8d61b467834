package cache

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/laminafs/lamina/fetch"
)

// A flight is the fetch of one chunk. Within a process there is at most one
// per chunk; all fields but the first two are guarded by Layer.mu until over.
type flight struct {
	run   *run
	chunk int

	wanted bool          // a read waits for it
	wished bool          // it was wished for
	sure   bool          // and is as good as read
	keep   bool          // the read wants the bytes, not only their presence
	bet    int64         // compressed bytes of speculation taken for it
	done   chan struct{} // made by the first who waits, closed when over
	over   bool
	err    error
	data   []byte // the chunk, when it is kept, or could not be stored
}

// A run is the fetch of the neighbouring chunks [i, j), in one request if
// nothing gets in its way.
type run struct {
	i, j    int
	flights []flight // of chunks i, i+1, ...
	size    int64    // of the data, where that matters
	prio    fetch.Priority
	ctx     context.Context
	cancel  context.CancelCauseFunc
	fetched atomic.Int64 // compressed bytes that arrived
}

// runDeadline bounds a run that somebody waits for, or may. Its reader usually
// has a shorter one; this is so that nothing stays in flight for good.
const runDeadline = 2 * time.Minute

// request sees to it that the chunks of [i, j) that are missing are fetched,
// except those in kept, and that what is likely to be read next is too. It
// returns the flights to wait for. keep asks for the bytes.
func (l *Layer) request(i, j int, keep bool, kept map[int][]byte) ([]*flight, error) {
	size := l.readMarked(i, j)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return nil, ErrClosed
	}
	var flights []*flight
	var missing []int
	for k := i; k < j; k++ {
		c := l.table.Chunk(k)
		if kept[k] != nil || l.bm.has(k, &c.Digest) {
			continue
		}
		if f := l.flights[k]; f != nil {
			if !f.wanted { // nobody has counted it
				size += c.BlobLen
			}
			l.join(f)
			flights = append(flights, f)
			f.keep = f.keep || keep
			continue
		}
		size += c.BlobLen
		missing = append(missing, k)
	}
	if len(missing) == 0 && len(flights) == 0 {
		return nil, nil
	}
	spans := l.group(missing)
	advice := l.ahead.note(i, j, size, true, l.store.budget.room())
	var bets [][2]int
	if advice.picks {
		bets = l.surround(advice, i, j, &spans)
	} else {
		bets = l.plan(advice, i, &spans)
	}
	for n, s := range spans {
		r := l.newRun(s[0], s[1], fetch.Reader)
		for k := range r.flights {
			f := &r.flights[k]
			if _, asked := slices.BinarySearch(missing, f.chunk); asked {
				f.wanted, f.keep = true, keep
				flights = append(flights, f)
			}
		}
		if n == len(spans)-1 {
			l.bet(r, missing)
		}
		l.launch(r)
	}
	for _, s := range bets {
		r := l.newRun(s[0], s[1], fetch.Prefetch)
		l.bet(r, nil)
		l.launch(r)
	}
	return flights, nil
}

// join makes a read wait for a chunk that is already being fetched. mu must be
// held.
func (l *Layer) join(f *flight) {
	f.wanted = true
	if f.run.prio == fetch.Background {
		// It may be crawling, or queue behind everything else.
		f.run.cancel(errAgain)
	}
}

// charge counts size compressed bytes as read, of which bet were a bet.
func (l *Layer) charge(size, bet int64) {
	l.store.budget.use(size, bet)
	l.count.used.Add(size)
	l.count.speculatedUsed.Add(bet)
}

// group joins chunks, which ascend, to spans: those that one request gets. mu
// must be held.
func (l *Layer) group(chunks []int) (spans [][2]int) {
	gap := l.gap()
next:
	for _, k := range chunks {
		if n := len(spans); n > 0 {
			last := &spans[n-1]
			if l.near(last[1]-1, k, gap) && l.inRun(k) && l.inRun(last[0]) {
				for m := last[1]; m < k; m++ {
					if l.flights[m] != nil {
						spans = append(spans, [2]int{k, k + 1})
						continue next
					}
				}
				last[1] = k + 1
				continue
			}
		}
		spans = append(spans, [2]int{k, k + 1})
	}
	return spans
}

// plan chooses what to fetch on speculation, following a. What directly
// follows the last of spans is added to it, up to one piece; the rest is
// returned as spans of its own. near is the chunk that was asked for: when
// nothing that follows it is worth fetching, what is around it may be. mu must be
// held.
func (l *Layer) plan(a advice, near int, spans *[][2]int) (bets [][2]int) {
	if a.until == 0 {
		return nil
	}
	left := l.store.budget.room()
	k, none := a.ahead, true
	for ; k < min(l.table.Len(), a.ahead+maxLooks) && l.blobAt(k) < a.until; k++ {
		if l.ahead.crosses(a.within, k) {
			break
		}
		if !l.open(k, *spans) {
			continue
		}
		size := l.table.Chunk(k).BlobLen
		if size > left {
			if len(*spans) == 0 && l.blobAt(k)-l.blobAt(a.ahead) < a.piece {
				return nil // wait until it is worth a request
			}
			break
		}
		if l.blobAt(k)+size > a.until+a.slop {
			break
		}
		left -= size
		none = false
		n, m := len(*spans), len(bets)
		switch {
		case m > 0 && bets[m-1][1] == k && l.blobAt(k)-l.blobAt(bets[m-1][0]) < a.piece:
			bets[m-1][1]++
		case m == 0 && n > 0 && (*spans)[n-1][1] == k && l.inRun((*spans)[n-1][0]) &&
			l.blobAt(k)-l.blobAt((*spans)[n-1][0]) < a.piece:
			(*spans)[n-1][1]++
		default:
			bets = append(bets, [2]int{k, k + 1})
		}
	}
	l.ahead.asked(a, k)
	switch {
	case !none || len(*spans) == 0:
	case a.within == withinGroup && k < l.table.Len() && l.groupAt(k) != l.groupAt(near):
		return l.surround(a, near, near+1, spans) // other files lie between those of the group
	default:
		bets = l.before(near, a, *spans, left)
	}
	return bets
}

// before chooses chunks before near, of at most room bytes: a folder is often
// entered in its middle.
func (l *Layer) before(near int, a advice, spans [][2]int, room int64) [][2]int {
	room = min(room, a.until-l.blobAt(near))
	k := near
	for ; k > max(0, near-maxLooks) && l.open(k-1, spans) && !l.ahead.crosses(a.within, k); k-- {
		if room -= l.table.Chunk(k - 1).BlobLen; room < 0 {
			break
		}
	}
	if k == near {
		return nil
	}
	return [][2]int{{k, near}}
}

// open tells whether chunk k is worth fetching on speculation: it is absent,
// nobody fetches it, and it is not in spans.
func (l *Layer) open(k int, spans [][2]int) bool {
	return l.flights[k] == nil && l.inRun(k) && !l.inSpans(spans, k) && l.isAbsent(k)
}

// inSpans tells whether chunk k is in spans, which ascend.
func (l *Layer) inSpans(spans [][2]int, k int) bool {
	n, _ := slices.BinarySearchFunc(spans, k, func(s [2]int, k int) int {
		if s[1] <= k {
			return -1
		}
		return 1
	})
	return n < len(spans) && spans[n][0] <= k
}

// bet makes speculation of the flights of r that are not in asked, and not
// present. mu must be held.
func (l *Layer) bet(r *run, asked []int) {
	var sum int64
	for k := range r.flights {
		f := &r.flights[k]
		if _, ok := slices.BinarySearch(asked, f.chunk); !ok && !f.sure && l.isAbsent(f.chunk) {
			f.bet = l.table.Chunk(f.chunk).BlobLen
			sum += f.bet
		}
	}
	l.store.budget.take(sum)
	l.count.speculated.Add(sum)
}

// readMarked notes that chunks [i, j), which were fetched on speculation, are
// read now, and returns their compressed size.
func (l *Layer) readMarked(i, j int) (size int64) {
	for k := i; k < j; k++ {
		if l.unmark(k) {
			c := l.table.Chunk(k)
			l.charge(c.BlobLen, c.BlobLen)
			size += c.BlobLen
			l.began(k, &c, nil, true)
		}
	}
	if size > 0 {
		l.readOn(i, j, size)
	}
	return size
}

// readOn fetches what follows chunks [i, j), which a read found fetched ahead.
func (l *Layer) readOn(i, j int, size int64) {
	a := l.ahead.note(i, j, size, false, l.store.budget.room())
	if a.until == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return
	}
	var none [][2]int
	for _, s := range l.plan(a, j, &none) {
		r := l.newRun(s[0], s[1], fetch.Prefetch)
		l.bet(r, nil)
		l.launch(r)
	}
}

// newRun makes the run of chunks [i, j), none of which is in flight, with a
// flight for each. mu must be held.
func (l *Layer) newRun(i, j int, prio fetch.Priority) *run {
	r := &run{i: i, j: j, prio: prio, flights: make([]flight, j-i)}
	r.ctx, r.cancel = context.WithCancelCause(fetch.WithPriority(l.ctx, prio))
	for k := range r.flights {
		r.flights[k] = flight{run: r, chunk: i + k}
		l.flights[i+k] = &r.flights[k]
	}
	return r
}

// launch starts r. mu must be held, and the layer not closing.
func (l *Layer) launch(r *run) {
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		ctx := r.ctx
		if r.prio != fetch.Background {
			var stop context.CancelFunc
			ctx, stop = context.WithTimeout(ctx, runDeadline)
			defer stop()
		}
		err := l.claim(ctx, r, r.i, r.j)
		if err == nil {
			err = errAgain
		}
		if cause := context.Cause(r.ctx); cause != nil {
			err = cause
		}
		l.finishRest(r, r.i, r.j, err)
		r.cancel(nil)
		l.nudge()
	}()
}

// finish ends the flight of chunk k of r. mu must be held.
func (l *Layer) finish(r *run, k int, err error, data []byte) {
	f := &r.flights[k-r.i]
	if f.over {
		return
	}
	if f.bet > 0 { // not fetched after all, or not by us
		l.store.budget.giveBack(f.bet)
		l.count.speculated.Add(-f.bet)
		f.bet = 0
	}
	f.over, f.err, f.data = true, err, data
	delete(l.flights, k)
	if f.done != nil {
		close(f.done)
	}
}

// finishRest ends what is left of the flights of chunks [i, j) of r with err.
func (l *Layer) finishRest(r *run, i, j int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := i; k < j; k++ {
		l.finish(r, k, err, nil)
	}
}

// await waits until f is over, and returns its error, or until ctx ends.
func (l *Layer) await(ctx context.Context, f *flight) error {
	l.mu.Lock()
	if f.over {
		l.mu.Unlock()
		return f.err
	}
	if f.done == nil {
		f.done = make(chan struct{})
	}
	done := f.done
	l.mu.Unlock()
	select {
	case <-done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Marks of speculation.

func (l *Layer) isMarked(k int) bool { return l.marked[k/32].Load()&(1<<(k%32)) != 0 }
func (l *Layer) mark(k int)          { l.marked[k/32].Or(1 << (k % 32)) }

// unmark clears the mark of chunk k and reports whether it was set.
func (l *Layer) unmark(k int) bool {
	bit := uint32(1) << (k % 32)
	return l.isMarked(k) && l.marked[k/32].And(^bit)&bit != 0
}

// refundMarked gives back the budget of what will not be read any more.
func (l *Layer) refundMarked() {
	for w := range l.marked {
		if l.marked[w].Load() == 0 {
			continue
		}
		for k := 32 * w; k < 32*w+32; k++ {
			if k < l.table.Len() && l.unmark(k) {
				l.store.budget.giveBack(l.table.Chunk(k).BlobLen)
			}
		}
	}
}

// isAbsent tells whether chunk k is certainly not in the data file. One that
// is doubted is verified when it is asked for, not fetched on speculation.
func (l *Layer) isAbsent(k int) bool {
	c := l.table.Chunk(k)
	return l.bm.state(k, &c.Digest) == absent
}

// isGone reports whether err is no verdict on the bytes.
func isGone(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errAgain)
}
