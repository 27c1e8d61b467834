package fs

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// deathPoll is how often the caller of an interrupted read is looked at.
const deathPoll = 25 * time.Millisecond

// readContext is the context of one READ. It costs nothing until somebody waits
// for Done, which no read does that the cache can answer.
//
// It ends at the deadline, when the session is gone, when release is called, and
// after an INTERRUPT as soon as the caller is dying (see the package comment).
type readContext struct {
	deadline  time.Time
	interrupt <-chan struct{} // closed when the kernel sent INTERRUPT
	gone      <-chan struct{} // closed when the session ended
	caller    uint32          // thread id; 0: in no pid namespace of ours

	mu       sync.Mutex    // guards what follows
	done     chan struct{} // nil until Done is called
	released chan struct{} // ends the watcher; made with done
	err      error
}

var _ context.Context = (*readContext)(nil)

func (c *readContext) Deadline() (time.Time, bool) { return c.deadline, true }
func (c *readContext) Value(any) any               { return nil }

func (c *readContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
			return c.done
		}
		c.released = make(chan struct{})
		go c.watch(c.released)
	}
	return c.done
}

func (c *readContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// release ends the context: whoever still holds it sees it cancelled.
func (c *readContext) release() {
	if released := c.fail(context.Canceled); released != nil {
		close(released)
	}
}

// fail ends the context with err unless it has ended, and hands the watcher's
// channel to the first caller of release.
func (c *readContext) fail(err error) (released chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		if c.done != nil {
			close(c.done)
		}
		released = c.released
	}
	return released
}

// watch runs from the first Done until the context has ended; release ends it.
func (c *readContext) watch(released <-chan struct{}) {
	timer := time.NewTimer(time.Until(c.deadline))
	defer timer.Stop()
	interrupt := c.interrupt
	var poll <-chan time.Time
	for {
		select {
		case <-released:
			return
		case <-c.gone:
			c.fail(context.Canceled)
			return
		case <-timer.C:
			c.fail(context.DeadlineExceeded)
			return
		case <-interrupt:
			interrupt = nil
			if dying(c.caller) {
				c.fail(context.Canceled)
				return
			}
			tick := time.NewTicker(deathPoll)
			defer tick.Stop()
			poll = tick.C
		case <-poll:
			if dying(c.caller) {
				c.fail(context.Canceled)
				return
			}
		}
	}
}

// dying says whether thread tid is about to be killed or is gone. A thread that
// cannot be seen counts as dying: then its interrupt is taken at its word.
func dying(tid uint32) bool {
	dies := false
	err := threadStatus(tid, func(key, value string) bool {
		switch key {
		case "State":
			dies = strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X")
		case "SigPnd":
			pending, err := strconv.ParseUint(value, 16, 64)
			dies = err == nil && pending&(1<<(unix.SIGKILL-1)) != 0
			return false
		}
		return !dies
	})
	// Anything but "no such thread" is our own trouble, such as too many open files,
	// and no reason to fail a read.
	return dies || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrPermission)
}
