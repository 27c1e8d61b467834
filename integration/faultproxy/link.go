package faultproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Link is what a connection through the proxy is like. The zero Link is as fast
// as loopback.
type Link struct {
	// RTT is the round-trip time. Half of it is added to each direction, a
	// whole one to a connection's first byte.
	RTT time.Duration
	// BytesPerSecond caps what all connections together send to clients;
	// 0 means no cap. Requests are not capped.
	BytesPerSecond int64
}

const (
	segment = 16 << 10              // bytes scheduled at once
	backlog = 64                    // segments a sender may have under way: 1 MiB, above bandwidth x delay
	catchUp = 20 * time.Millisecond // how much of a late timer is made good
	idle    = 3 * time.Millisecond  // a sender that pauses for less is still busy
)

// schedule hands out the shared bandwidth: each send is given the time at which
// its last byte has left the server.
type schedule struct {
	mu   sync.Mutex // guards the rest
	link Link
	free time.Time // when the link has sent all that was promised
}

func (s *schedule) setLink(l Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.link = l
}

func (s *schedule) rtt() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.link.RTT
}

// depart reserves the link for n bytes that follow others which left at last,
// and returns when they have left. That may be in the past: a busy sender whose
// timer was late goes on where it was, or timers would cost bandwidth.
func (s *schedule) depart(n int, last time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link.BytesPerSecond == 0 {
		return time.Now()
	}
	if earliest := time.Now().Add(-catchUp); last.Before(earliest) {
		last = earliest
	}
	if s.free.Before(last) {
		s.free = last
	}
	s.free = s.free.Add(time.Duration(int64(n) * int64(time.Second) / s.link.BytesPerSecond))
	return s.free
}

// parcel is bytes that arrive at the other end at a time. A parcel with an
// error is the end of the stream.
type parcel struct {
	data []byte
	at   time.Time
	err  error
}

// conn is one end of a connection over the link: what is written arrives later,
// and what arrives is read later. Written bytes are queued; Close sends what is
// queued before it closes, reset throws it away.
type conn struct {
	net.Conn
	sched *schedule
	in    chan parcel
	out   chan parcel
	rest  []byte    // read but not yet asked for; only Read touches it
	inErr error     // sticky; only Read touches it
	left  time.Time // when the bytes written last left; only Write touches it
	wrote time.Time // when Write last returned; only Write touches it

	once    sync.Once
	closing chan struct{} // closed by Close: nothing more is written
	dropped chan struct{} // closed by reset: nothing more is sent
	dropOne sync.Once
	flushed chan struct{} // closed when the last queued byte was sent

	mu       sync.Mutex // guards the rest
	deadline time.Time  // of Read
	wake     chan struct{}
}

var errReset = errors.New("faultproxy: connection reset by the proxy")

func newConn(c net.Conn, s *schedule) *conn {
	l := &conn{
		Conn: c, sched: s,
		in: make(chan parcel, backlog), out: make(chan parcel, backlog),
		closing: make(chan struct{}), dropped: make(chan struct{}), flushed: make(chan struct{}),
		wake: make(chan struct{}),
	}
	go l.receive()
	go l.send()
	return l
}

// receive stamps what comes in with the time at which the server may see it.
func (c *conn) receive() {
	// The client believes it is connected; over a real link its first byte
	// would have waited for SYN and SYN-ACK.
	setup := c.sched.rtt()
	for {
		b := make([]byte, segment)
		n, err := c.Conn.Read(b)
		p := parcel{data: b[:n], at: time.Now().Add(setup + c.sched.rtt()/2), err: err}
		setup = 0
		select {
		case c.in <- p:
		case <-c.closing:
			return
		}
		if err != nil {
			return
		}
	}
}

// send is the far half of the delay line: bytes leave it when they arrive.
func (c *conn) send() {
	defer close(c.flushed)
	for {
		var p parcel
		select {
		case p = <-c.out:
		case <-c.dropped:
			return
		case <-c.closing:
			// Write is over; send what is queued, then stop.
			select {
			case p = <-c.out:
			default:
				return
			}
		}
		if !c.pause(time.Until(p.at)) {
			return
		}
		if _, err := c.Conn.Write(p.data); err != nil {
			return
		}
	}
}

// pause waits for d, or until the connection is reset; then it returns false.
func (c *conn) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.dropped:
		return false
	}
}

func (c *conn) Write(b []byte) (int, error) {
	done := 0
	if now := time.Now(); now.Sub(c.wrote) > idle {
		c.left = now
	}
	defer func() { c.wrote = time.Now() }()
	for done < len(b) {
		n := min(segment, len(b)-done)
		c.left = c.sched.depart(n, c.left)
		if !c.pause(time.Until(c.left)) {
			return done, errReset
		}
		at := c.left
		if now := time.Now(); at.Before(now) {
			at = now
		}
		p := parcel{data: append([]byte(nil), b[done:done+n]...), at: at.Add(c.sched.rtt() / 2)}
		select {
		case c.out <- p:
		case <-c.dropped:
			return done, errReset
		case <-c.closing:
			return done, net.ErrClosed
		case <-c.flushed:
			return done, io.ErrClosedPipe // the client went away
		}
		done += n
	}
	return done, nil
}

func (c *conn) Read(b []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.inErr != nil {
			return 0, c.inErr
		}
		p, err := c.next()
		if err != nil {
			return 0, err
		}
		c.rest, c.inErr = p.data, p.err
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// next waits for the next parcel to come and to be due. net/http interrupts a
// Read by moving its deadline, so a wait must notice that.
func (c *conn) next() (parcel, error) {
	for {
		c.mu.Lock()
		deadline, wake := c.deadline, c.wake
		c.mu.Unlock()
		var expired <-chan time.Time
		if !deadline.IsZero() {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			expired = t.C
		}
		select {
		case p := <-c.in:
			c.pause(time.Until(p.at))
			return p, nil
		case <-expired:
			return parcel{}, timeoutError{}
		case <-wake:
		case <-c.closing:
			return parcel{}, net.ErrClosed
		}
	}
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	close(c.wake)
	c.wake = make(chan struct{})
	return nil
}

// SetWriteDeadline has no effect. Writes are sent later than they are made, and
// crypto/tls ends a connection with a deadline in the past.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// Close sends what was written, then closes the connection in order.
func (c *conn) Close() error {
	c.once.Do(func() {
		close(c.closing)
		go func() {
			<-c.flushed
			_ = c.Conn.Close()
		}()
	})
	return nil
}

// reset breaks the connection at once: the client sees RST, not an end.
func (c *conn) reset() {
	c.dropOne.Do(func() {
		if t, ok := c.Conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		close(c.dropped)
		_ = c.Conn.Close()
	})
}

type timeoutError struct{}

func (timeoutError) Error() string   { return "faultproxy: i/o timeout" }
func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }

// listener wraps what it accepts in the link's conn and reports each.
type listener struct {
	net.Listener
	sched  *schedule
	opened func(at time.Time)
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.opened(time.Now())
	return newConn(c, l.sched), nil
}
