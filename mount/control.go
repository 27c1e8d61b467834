package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// controlName is the socket on which a server answers requests, one JSON value each.
const controlName = "control.sock"

const (
	dialTime   = 2 * time.Second
	answerTime = 5 * time.Second
	// freezeTime bounds how long a server waits for the changes under way, which may
	// have to fetch what they change, and makes a picture of the upper directory.
	freezeTime = 2 * time.Minute
)

// What a server can be asked for.
const (
	opStats  = "stats"  // Stats
	opFreeze = "freeze" // frozen, for as long as the connection is open
	opCheck  = "check"  // frozen once more: whether it is still what it was
)

type question struct {
	Op string `json:"op"`
}

// frozen is the picture of an upper directory.
type frozen struct {
	Dir   string `json:"dir,omitempty"`
	Data  string `json:"data,omitempty"`
	Error string `json:"error,omitempty"`
}

// controlPath reaches a socket in dir by a path that always fits a socket
// address, which has room for 107 bytes only.
func controlPath(dir string) (path string, done func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), controlName), func() { _ = d.Close() }, nil
}

// controlConn is a client's side.
type controlConn struct {
	net.Conn
	dec *json.Decoder
}

// dial connects to the server of the mount called name.
func dial(root, name string) (*controlConn, error) {
	path, done, err := controlPath(directory(root, name))
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := net.DialTimeout("unix", path, dialTime)
	if err != nil {
		return nil, err
	}
	return &controlConn{Conn: conn, dec: json.NewDecoder(conn)}, nil
}

func (c *controlConn) call(q question, answer any, within time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if err := json.NewEncoder(c).Encode(q); err != nil {
		return err
	}
	return c.dec.Decode(answer)
}

// Close waits until the server has done with what it kept for the client.
func (c *controlConn) Close() error {
	err := c.SetDeadline(time.Now().Add(answerTime))
	if u, ok := c.Conn.(*net.UnixConn); ok && err == nil {
		if err = u.CloseWrite(); err == nil {
			_, err = io.Copy(io.Discard, c.Conn)
		}
	}
	return errors.Join(err, c.Conn.Close())
}

// control answers requests until it is closed.
type control struct {
	s *server
	l net.Listener
	// answering has a count for the listener and each connection.
	answering sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

func (s *server) listen() (*control, error) {
	_ = os.Remove(filepath.Join(s.state.dir(), controlName)) // a dead server's
	path, done, err := controlPath(s.state.dir())
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for requests: %w", err)
	}
	// The name it was bound by is gone; the directory is removed as a whole.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	c := &control{s: s, l: l, conns: make(map[net.Conn]bool)}
	c.answering.Go(c.accept)
	return c, nil
}

func (c *control) accept() {
	for {
		conn, err := c.l.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		if c.closed {
			_ = conn.Close()
		} else {
			c.conns[conn] = true
			c.answering.Go(func() { c.answer(conn) })
		}
		c.mu.Unlock()
	}
}

// Close stops answering, and waits for answers under way.
func (c *control) Close() {
	_ = c.l.Close()
	c.mu.Lock()
	c.closed = true
	for conn := range c.conns {
		_ = conn.Close()
	}
	c.mu.Unlock()
	c.answering.Wait()
}

// answer answers one client.
func (c *control) answer(conn net.Conn) {
	defer func() {
		c.mu.Lock()
		delete(c.conns, conn)
		c.mu.Unlock()
		_ = conn.Close()
	}()
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	dec, enc := json.NewDecoder(conn), json.NewEncoder(conn)
	var q question
	if err := dec.Decode(&q); err != nil {
		return // it has gone, and wanted nothing
	}
	var err error
	switch q.Op {
	case opStats:
		err = enc.Encode(c.s.measure())
	case opFreeze:
		err = c.freeze(conn, dec, enc)
	default:
		err = fmt.Errorf("unknown request %q", q.Op)
	}
	if err != nil {
		c.s.log.Warn("answer a request", "request", q.Op, "error", err)
	}
}

// freeze keeps a picture of the upper directory until the client goes.
func (c *control) freeze(conn net.Conn, dec *json.Decoder, enc *json.Encoder) (err error) {
	_ = conn.SetDeadline(time.Time{})
	u := c.s.session.union
	if u == nil {
		return enc.Encode(frozen{}) // the kernel's overlayfs, which nobody can stop
	}
	p, err := u.Freeze()
	if err != nil {
		return enc.Encode(frozen{Error: err.Error()})
	}
	defer func() { err = errors.Join(err, p.Drop()) }()
	f := frozen{Dir: p.Upper().Dir, Data: p.Upper().Data}
	for err == nil {
		if lost := p.Err(); lost != nil {
			f.Error = lost.Error()
		}
		if err := enc.Encode(f); err != nil {
			return err
		}
		var q question
		err = dec.Decode(&q)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
