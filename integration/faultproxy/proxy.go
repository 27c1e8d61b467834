package faultproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const connect = "CONNECT"

// Config is what a Proxy is started with.
type Config struct {
	// Upstream is the registry's base URL.
	Upstream *url.URL
	// Transport reaches it; nil means one without compression or proxies.
	Transport http.RoundTripper
	// Certificate is presented to clients; nil makes the front plain HTTP.
	Certificate *tls.Certificate
	// HTTP2 offers HTTP/2 to clients that speak TLS.
	HTTP2 bool
	// Addr is where to listen; "" means any free port of 127.0.0.1.
	Addr string
	// Seed starts the random choices.
	Seed uint64
	// Link and Faults can be changed later.
	Link   Link
	Faults Faults
}

// Proxy is a running proxy. Its methods may be called concurrently.
type Proxy struct {
	url       *url.URL
	upstream  *url.URL
	transport http.RoundTripper
	server    *http.Server
	sched     *schedule
	done      chan struct{}

	mu     sync.Mutex // guards the rest
	rng    *rand.Rand
	faults Faults
	seen   []*Exchange
}

type connKey struct{}

// Start listens and serves until Close.
func Start(cfg Config) (*Proxy, error) {
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", cfg.Addr, err)
	}
	p := &Proxy{
		url:       &url.URL{Scheme: "http", Host: ln.Addr().String()},
		upstream:  cfg.Upstream,
		transport: cfg.Transport,
		sched:     &schedule{link: cfg.Link},
		rng:       rand.New(rand.NewPCG(cfg.Seed, cfg.Seed)),
		faults:    cfg.Faults,
		done:      make(chan struct{}),
	}
	if p.transport == nil {
		p.transport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	}
	var front net.Listener = &listener{ln, p.sched, p.connected}
	p.server = &http.Server{
		Handler: p,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if t, ok := c.(*tls.Conn); ok {
				c = t.NetConn()
			}
			return context.WithValue(ctx, connKey{}, c)
		},
		// What clients break off is theirs to report.
		ErrorLog: log.New(io.Discard, "", 0),
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	if cfg.Certificate != nil {
		p.url.Scheme = "https"
		next := []string{"http/1.1"}
		if cfg.HTTP2 {
			protocols.SetHTTP2(true)
			next = []string{"h2", "http/1.1"}
		}
		front = tls.NewListener(front, &tls.Config{Certificates: []tls.Certificate{*cfg.Certificate}, NextProtos: next})
	}
	p.server.Protocols = protocols
	go func() {
		defer close(p.done)
		_ = p.server.Serve(front) // always an error: ErrServerClosed
	}()
	return p, nil
}

// URL returns the proxy's base URL.
func (p *Proxy) URL() *url.URL { u := *p.url; return &u }

// Host returns the proxy's host:port, as it stands in an image reference.
func (p *Proxy) Host() string { return p.url.Host }

// Close stops listening and breaks what is under way.
func (p *Proxy) Close() error {
	err := p.server.Close()
	<-p.done
	return err
}

// SetLink changes the link for bytes sent from now on.
func (p *Proxy) SetLink(l Link) { p.sched.setLink(l) }

// SetFaults changes the faults for responses begun from now on.
func (p *Proxy) SetFaults(f Faults) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = f
}

// Exchanges returns what was begun since the start or the last Reset, in order
// of beginning. One that has not been answered yet has no End; one whose body is
// under way counts the bytes so far.
func (p *Proxy) Exchanges() []Exchange {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]Exchange, len(p.seen))
	for i, e := range p.seen {
		all[i] = *e
	}
	return all
}

// Reset forgets all exchanges.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = nil
}

// record takes an exchange down; change changes it later.
func (p *Proxy) record(e Exchange) *Exchange {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = append(p.seen, &e)
	return &e
}

func (p *Proxy) change(e *Exchange, f func(*Exchange)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(e)
}

func (p *Proxy) connected(at time.Time) {
	p.record(Exchange{Method: connect, Start: at, End: at.Add(p.sched.rtt()), Fault: noFault})
}

// plan makes all random choices for one response.
type plan struct {
	kind   Kind
	faults Faults
	at     float64 // where in the body, as a share of it
	flip   byte    // what the corrupted byte is xored with; not 0
}

func (p *Proxy) plan(r *http.Request) plan {
	p.mu.Lock()
	defer p.mu.Unlock()
	return plan{
		kind: p.faults.choose(r, p.rng), faults: p.faults,
		at: p.rng.Float64(), flip: byte(1 + p.rng.IntN(255)),
	}
}

// ServeHTTP passes a request on and its answer back, spoilt as planned.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	half := p.sched.rtt() / 2
	pl := p.plan(r)
	e := p.record(Exchange{
		Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range"),
		Start: time.Now().Add(-half), Fault: pl.kind,
	})
	answered := func(status int, offset int64) {
		p.change(e, func(e *Exchange) { e.Status, e.Offset, e.End = status, offset, time.Now().Add(half) })
	}
	if status := pl.faults.refuse(w, pl.kind); status != 0 {
		answered(status, 0)
		return
	}
	resp, err := p.forward(r, pl)
	if err != nil {
		answered(http.StatusBadGateway, 0)
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if pl.kind == Delay {
		late := pl.faults.Delay
		if late == 0 {
			late = time.Second
		}
		select {
		case <-time.After(late):
		case <-r.Context().Done():
			return
		}
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	length := resp.ContentLength
	if pl.kind == Short && resp.StatusCode == http.StatusPartialContent {
		length = pl.shorten(w.Header(), length)
	}
	w.WriteHeader(resp.StatusCode)
	answered(resp.StatusCode, contentOffset(resp.Header))
	if r.Method == http.MethodHead {
		return
	}
	b := body{pl: pl, length: length, conn: r.Context().Value(connKey{})}
	cut := b.copy(w, resp.Body, func(n int) { p.change(e, func(e *Exchange) { e.Bytes += int64(n) }) })
	p.change(e, func(e *Exchange) { e.Cut = cut })
	b.finish(w)
}

// forward asks upstream what the client asked, but for the planned fault.
func (p *Proxy) forward(r *http.Request, pl plan) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = p.upstream.Scheme, p.upstream.Host
	out.RequestURI = ""
	out.Header.Del("Connection")
	if p.url.Scheme == "https" {
		out.Header.Set("X-Forwarded-Proto", "https")
	}
	if pl.kind == IgnoreRange {
		out.Header.Del("Range")
	}
	resp, err := p.transport.RoundTrip(out)
	if err != nil && !errors.Is(err, context.Canceled) {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	return resp, err
}

// shorten rewrites a 206's headers to a shorter range, of at least one byte.
func (pl plan) shorten(h http.Header, length int64) int64 {
	short := max(1, int64(pl.at*float64(length)))
	from := contentOffset(h)
	total := "*"
	if _, t, ok := strings.Cut(h.Get("Content-Range"), "/"); ok {
		total = t
	}
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", from, from+short-1, total))
	h.Set("Content-Length", strconv.FormatInt(short, 10))
	return short
}

func contentOffset(h http.Header) int64 {
	from, _, ok := strings.Cut(strings.TrimPrefix(h.Get("Content-Range"), "bytes "), "-")
	if !ok {
		return 0
	}
	n, err := strconv.ParseInt(from, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// body sends one response's body, as far as the plan lets it.
type body struct {
	pl     plan
	length int64 // what the headers promise; -1 unknown
	conn   any   // the client's connection, to be reset by Drop
	sent   int64
}

// copy returns whether the client went away.
func (b *body) copy(w io.Writer, r io.Reader, sent func(n int)) (cut bool) {
	limit := int64(1) << 62
	if b.length >= 0 {
		limit = b.length
	}
	mark := int64(-1) // the byte that is cut at or spoilt
	if b.length > 0 {
		mark = int64(b.pl.at * float64(b.length))
	}
	if b.pl.kind == Drop || b.pl.kind == Truncate {
		limit = max(mark, 0)
	}
	buf := make([]byte, 32<<10)
	for b.sent < limit {
		n, err := r.Read(buf[:min(int64(len(buf)), limit-b.sent)])
		if i := mark - b.sent; b.pl.kind == Corrupt && i >= 0 && i < int64(n) {
			buf[i] ^= b.pl.flip
		}
		m, werr := w.Write(buf[:n])
		b.sent += int64(m)
		sent(m)
		if err != nil || werr != nil {
			// A client that goes away ends its request, and with it the one
			// upstream.
			return werr != nil || errors.Is(err, context.Canceled)
		}
	}
	return false
}

// finish ends a cut response: the client must not take it for whole.
func (b *body) finish(w http.ResponseWriter) {
	switch b.pl.kind {
	case Drop:
		_ = http.NewResponseController(w).Flush()
		if c, ok := b.conn.(*conn); ok {
			c.reset()
		}
		panic(http.ErrAbortHandler)
	case Truncate:
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}
