package fetch

import (
	"context"
	"sync"
	"time"
)

// yieldPause is how long a Background read waits before each piece while
// Readers are at work: long enough to leave them the link, short enough that
// servers do not drop the connection and that somebody who has come to wait for
// these very bytes is not starved.
const yieldPause = 20 * time.Millisecond

// A queue decides which requests may be under way. Lower classes take only the first
// half of the places, so a Reader waits for Readers only, if there are two or more.
type queue struct {
	limit int // places
	lower int // those of lower classes too
	fill  int // as many of these Background may have

	mu      sync.Mutex // guards the fields below
	active  [Background + 1]int
	waiting [Background + 1][]*waiter // first come, first served
}

type waiter struct{ admitted chan struct{} }

func newQueue(limit int) *queue {
	lower := (limit + 1) / 2
	return &queue{limit: limit, lower: lower, fill: (lower + 1) / 2}
}

// acquire waits until a request of class p may start. Every nil result is paid
// back with one release.
func (q *queue) acquire(ctx context.Context, p Priority) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	q.mu.Lock()
	if len(q.waiting[p]) == 0 && q.admits(p) {
		q.active[p]++
		q.mu.Unlock()
		return nil
	}
	w := &waiter{admitted: make(chan struct{})}
	q.waiting[p] = append(q.waiting[p], w)
	q.mu.Unlock()

	select {
	case <-w.admitted:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, other := range q.waiting[p] {
		if other == w {
			q.waiting[p] = append(q.waiting[p][:i], q.waiting[p][i+1:]...)
			q.dispatch() // those behind may have waited for their turn only
			return ctx.Err()
		}
	}
	// Admitted at the same moment: pass it on.
	q.active[p]--
	q.dispatch()
	return ctx.Err()
}

// try is acquire that does not wait, and tells whether the request may start.
func (q *queue) try(p Priority) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting[p]) > 0 || !q.admits(p) {
		return false
	}
	q.active[p]++
	return true
}

// release ends what acquire or try began.
func (q *queue) release(p Priority) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.active[p]--
	q.dispatch()
}

// admits tells whether class p has room now. q.mu is held.
func (q *queue) admits(p Priority) bool {
	all := 0
	for class, n := range q.active {
		all += n
		if Priority(class) < p && len(q.waiting[class]) > 0 {
			return false
		}
	}
	switch p {
	case Reader:
		return all < q.limit
	case Background:
		// Leave a share of the link to whoever comes.
		return all < q.lower && q.active[Background] < q.fill
	default:
		return all < q.lower
	}
}

// dispatch starts those who may start. q.mu is held.
func (q *queue) dispatch() {
	for p := Reader; p <= Background; p++ {
		for len(q.waiting[p]) > 0 && q.admits(p) {
			w := q.waiting[p][0]
			q.waiting[p] = q.waiting[p][1:]
			q.active[p]++
			close(w.admitted)
		}
	}
}

// yield makes a Background read pause while Readers are at work.
func (q *queue) yield(ctx context.Context, p Priority) {
	if p != Background {
		return
	}
	q.mu.Lock()
	busy := q.active[Reader] > 0 // one that only waits may wait for this place
	q.mu.Unlock()
	if busy {
		_ = sleep(ctx, yieldPause) // the caller looks at ctx next
	}
}

// load returns how many requests are under way and how many wait.
func (q *queue) load() (active, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for p := Reader; p <= Background; p++ {
		active += q.active[p]
		waiting += len(q.waiting[p])
	}
	return active, waiting
}

// sleep waits for d or until ctx ends, whose error it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
