package fetch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second

	// maxStrikes is how often one call lets a host break the protocol
	// before its bytes come.
	maxStrikes = 5

	// maxRetryAfter bounds what a server may ask for when the caller has set
	// no deadline.
	maxRetryAfter = time.Minute
)

// errIdle is the cause of giving up an attempt that receives nothing.
var errIdle = errors.New("no data received in time")

// A call is one thing to get, over however many attempts and hosts. It is for
// one goroutine.
type call struct {
	client     *Client
	what       string // for errors: "read blob sha256:..."
	candidates []candidate
	round      int // rounds over all hosts since the last progress
	attempts   int
	struck     bool  // some candidate has strikes
	last       error // of the last failure
}

// candidate is one host's part in a call.
type candidate struct {
	host    *host
	origin  bool // the registry itself: what it says is the answer
	tried   bool // in this round
	dead    bool // permanently failed
	strikes int
	err     error // its last failure
}

// next picks the host for the next attempt, best first by less and then as
// configured. When all have been tried it waits, and begins again; when waiting
// is hopeless it returns why.
func (cl *call) next(ctx context.Context, less func(a, b *host) bool) (*host, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, cl.ended(err)
		}
		now := time.Now()
		var best *candidate
		for i := range cl.candidates {
			k := &cl.candidates[i]
			if k.dead || k.tried || k.host.until(now) > 0 {
				continue
			}
			if best == nil || less(k.host, best.host) {
				best = k
			}
		}
		if best != nil {
			best.tried = true
			if cl.attempts++; cl.attempts > 1 {
				cl.client.stats.retries.Add(1)
			}
			return best.host, nil
		}
		if err := cl.pause(ctx, now); err != nil {
			return nil, err
		}
	}
}

// pause waits before a new round.
func (cl *call) pause(ctx context.Context, now time.Time) error {
	backoff := min(minBackoff<<min(cl.round, 10), maxBackoff)
	backoff = min(backoff+rand.N(backoff/2), maxBackoff)
	alive, untried, wait := false, false, time.Duration(0)
	for _, k := range cl.candidates {
		if k.dead {
			continue
		}
		d := k.host.until(now)
		if k.tried {
			d = max(d, backoff)
		} else {
			untried = true
		}
		if !alive || d < wait {
			wait = d
		}
		alive = true
	}
	if !alive {
		return cl.permanent()
	}
	deadline, bounded := ctx.Deadline()
	switch {
	case bounded && now.Add(wait).After(deadline):
		return cl.unavailable(fmt.Sprintf("next attempt in %v would be after the deadline", wait.Round(time.Millisecond)))
	case !bounded && cl.round >= cl.client.o.Retries:
		return cl.unavailable(fmt.Sprintf("gave up after %d attempts", cl.attempts))
	case !bounded && wait > maxRetryAfter:
		return cl.unavailable(fmt.Sprintf("asked to wait for %v", wait.Round(time.Second)))
	}
	if err := sleep(ctx, wait); err != nil {
		return cl.ended(err)
	}
	if !untried {
		cl.round++
	}
	for i := range cl.candidates {
		cl.candidates[i].tried = false
	}
	return nil
}

// failed notes that the attempt at h ended with err.
func (cl *call) failed(h *host, err error) {
	cl.client.stats.errors.Add(1)
	h.stats.errors.Add(1)
	cl.last = err
	for i := range cl.candidates {
		k := &cl.candidates[i]
		if k.host != h {
			continue
		}
		k.err = err
		var e *Error
		if !errors.As(err, &e) {
			return
		}
		h.postpone(e.retryAfter)
		// A host that says no for good answers as it should.
		if (e.Status == 0 || e.Status >= 500) && e.fate != permanent {
			h.setBack()
		}
		switch e.fate {
		case permanent:
			k.dead = true
		case suspicious:
			cl.struck = true
			k.strikes++
			k.dead = k.strikes >= maxStrikes
		}
	}
}

// progress notes that bytes have come: the next failure starts anew.
func (cl *call) progress() {
	cl.round = 0
	if cl.struck {
		cl.struck = false
		for i := range cl.candidates {
			cl.candidates[i].strikes = 0
		}
	}
}

// ended is the error of a call whose context has ended. The deadline is a kind
// of unavailability; a cancellation is not.
func (cl *call) ended(err error) error {
	switch {
	case errors.Is(err, context.DeadlineExceeded) && cl.last != nil:
		return fmt.Errorf("%s: %w: %w, last: %w", cl.what, ErrUnavailable, err, cl.last)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w: %w", cl.what, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", cl.what, err)
}

// unavailable is the error of a call that could go on but must not.
func (cl *call) unavailable(why string) error {
	if cl.last == nil {
		return fmt.Errorf("%s: %w: %s", cl.what, ErrUnavailable, why)
	}
	return fmt.Errorf("%s: %w: %s, last: %w", cl.what, ErrUnavailable, why, cl.last)
}

// permanent is the error of a call whose hosts have all said no. What the origin
// says is the answer, or the last host where the origin may not be asked; what
// mirrors say is detail.
func (cl *call) permanent() error {
	if len(cl.candidates) == 0 {
		return fmt.Errorf("%s: %w: no host is configured for it", cl.what, ErrUnavailable)
	}
	last := len(cl.candidates) - 1
	for i, k := range cl.candidates {
		if k.origin {
			last = i
		}
	}
	main := cl.candidates[last].err
	var others []string
	for i, k := range cl.candidates {
		if i != last {
			others = append(others, k.err.Error())
		}
	}
	if len(others) == 0 {
		return fmt.Errorf("%s: %w", cl.what, main)
	}
	return fmt.Errorf("%s: %w (before: %s)", cl.what, main, strings.Join(others, "; "))
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(t.Sub(now), 0)
	}
	return 0
}
