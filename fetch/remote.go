package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

// remoteBlob is a blob in a repository of a registry.
type remoteBlob struct {
	client       *Client
	domain, repo string
	dgst         digest.Digest
	size         int64

	mu    sync.Mutex // guards hosts
	hosts map[*host]*blobHost
}

// blobHost is what is known of a blob at a host.
type blobHost struct {
	rejections int       // how often bytes from there failed verification
	refused    bool      // the host said that it has no such blob for us
	location   *url.URL  // where it redirects to; nil if unknown
	expires    time.Time // of location; zero if unknown
}

var _ Blob = (*remoteBlob)(nil)

func (b *remoteBlob) Digest() digest.Digest { return b.dgst }
func (b *remoteBlob) Size() int64           { return b.size }

func (b *remoteBlob) ReadRange(ctx context.Context, off, n int64) (Stream, error) {
	if err := checkRange(b.dgst, off, n, b.size); err != nil {
		return nil, err
	}
	if err := b.dgst.Validate(); err != nil { // it becomes part of a URL
		return nil, fmt.Errorf("read blob %q: %w: %w", b.dgst, ErrDigest, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", b.dgst, err)
	}
	if n == 0 {
		return emptyStream{}, nil
	}
	cs, err := b.client.hostsOf(b.domain, docker.HostCapabilityPull)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", b.dgst, err)
	}
	s, err := b.open(ctx, off, n, cs)
	if err != nil {
		return nil, err // not s: a nil pointer in an interface is not nil
	}
	return s, nil
}

// at returns the entry of h. b.mu is held.
func (b *remoteBlob) at(h *host) *blobHost {
	k := b.hosts[h]
	if k == nil {
		k = &blobHost{}
		b.hosts[h] = k
	}
	return k
}

// prefer tells whether to ask x before y: those that have the blob first, then
// those whose bytes were good, that can be reached, that know ranges.
func (b *remoteBlob) prefer(x, y *host) bool {
	b.mu.Lock()
	kx, ky := *b.at(x), *b.at(y)
	b.mu.Unlock()
	switch {
	case kx.refused != ky.refused:
		return ky.refused
	case kx.rejections != ky.rejections:
		return kx.rejections < ky.rejections
	}
	return preferHost(x, y)
}

// preferHost is prefer by what holds for all blobs.
func preferHost(x, y *host) bool {
	now := time.Now()
	if ax, ay := x.avoided(now), y.avoided(now); ax != ay {
		return ay
	}
	return !x.ignoresRanges.Load() && y.ignoresRanges.Load()
}

// reject notes that one of hosts, or each, served wrong bytes. Where they came
// from is forgotten: the next answer may name another store.
func (b *remoteBlob) reject(hosts []*host) {
	b.client.stats.rejected.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range hosts {
		h.stats.rejected.Add(1)
		k := b.at(h)
		k.rejections++
		k.location = nil
	}
}

// note keeps what the outcome of an attempt at h says of the blob there.
func (b *remoteBlob) note(h *host, err error) {
	var e *Error
	b.mu.Lock()
	defer b.mu.Unlock()
	b.at(h).refused = errors.As(err, &e) && e.fate == permanent
}

// where returns the address to ask at h, whether it is one that h has redirected
// to before, and whether h's bytes were rejected before.
func (b *remoteBlob) where(h *host, useCache bool) (u *url.URL, cached, doubted bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.at(h)
	if useCache && k.location != nil && (k.expires.IsZero() || time.Now().Before(k.expires)) {
		return k.location, true, k.rejections > 0
	}
	return h.url(b.domain, b.repo, "blobs", b.dgst.String()), false, k.rejections > 0
}

// remember keeps the address that h redirected to; nil forgets it.
func (b *remoteBlob) remember(h *host, u *url.URL) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.at(h)
	if k.location = u; u != nil {
		k.expires = expiry(u)
	}
}

// attempt is one response whose body is positioned at the wanted byte.
type attempt struct {
	host   *host
	client *Client
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *time.Timer // cancels the attempt
	url    *url.URL

	received int // bytes so far, as long as they are fewer than meterSkip
}

// begin asks h for [pos, end).
func (b *remoteBlob) begin(ctx context.Context, h *host, pos, end int64) (*attempt, error) {
	a := b.client.newAttempt(ctx, h)
	if err := b.request(a, pos, end); err != nil {
		a.end()
		return nil, err
	}
	a.idle.Stop() // while nobody reads
	h.reached()
	return a, nil
}

func (c *Client) newAttempt(ctx context.Context, h *host) *attempt {
	a := &attempt{host: h, client: c}
	a.ctx, a.cancel = context.WithCancelCause(ctx)
	cancel := a.cancel
	a.idle = time.AfterFunc(c.o.IdleTimeout, func() { cancel(errIdle) })
	return a
}

// alive postpones the idle timeout.
func (a *attempt) alive() { a.idle.Reset(a.client.o.IdleTimeout) }

// request gets a response for [pos, end), from the address known or from the
// registry's own.
func (b *remoteBlob) request(a *attempt, pos, end int64) error {
	for useCache := true; ; useCache = false {
		u, cached, doubted := b.where(a.host, useCache)
		r := request{repo: b.repo, url: u, header: http.Header{"Accept-Encoding": {"identity"}}}
		if whole := pos == 0 && end == b.size; !whole {
			r.header.Set("Range", "bytes="+strconv.FormatInt(pos, 10)+"-"+strconv.FormatInt(end-1, 10))
		}
		if doubted {
			r.header.Set("Cache-Control", "no-cache") // caches on the way may hold the bad copy
		}
		resp, final, err := b.client.get(a.ctx, a.host, r, a.alive)
		if err != nil {
			if cached {
				b.remember(a.host, nil) // the store may have moved
			}
			return err
		}
		a.body, a.url = resp.Body, final
		redirected := !a.host.owns(final)
		switch resp.StatusCode {
		case http.StatusOK, http.StatusPartialContent:
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
			if cached {
				// The signature has expired: ask the registry again.
				drain(resp)
				b.remember(a.host, nil)
				continue
			}
			return responseError(resp, redirected)
		default:
			b.remember(a.host, nil)
			return responseError(resp, redirected)
		}
		if err := b.position(a, resp, pos, end); err != nil {
			b.remember(a.host, nil)
			return err
		}
		if !cached && redirected {
			b.remember(a.host, final)
		}
		return nil
	}
}

// position verifies that resp has the bytes from pos on, and skips those before.
func (b *remoteBlob) position(a *attempt, resp *http.Response, pos, end int64) error {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return protocolError(resp, ErrUnavailable, "body is encoded as %.32q", enc)
	}
	if resp.StatusCode == http.StatusOK {
		if resp.ContentLength >= 0 && resp.ContentLength != b.size {
			return protocolError(resp, wrongSize(resp.ContentLength, b.size), "blob of %d bytes has %d there", b.size, resp.ContentLength)
		}
		if pos == 0 && end == b.size {
			return nil
		}
		a.host.ignoresRanges.Store(true)
		return a.skip(pos)
	}
	if pos == 0 && end == b.size {
		return protocolError(resp, ErrUnavailable, "part of the blob, not asked for")
	}
	r, err := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return protocolError(resp, ErrUnavailable, "%v", err)
	case r.total >= 0 && r.total != b.size:
		return protocolError(resp, wrongSize(r.total, b.size), "blob of %d bytes has %d there", b.size, r.total)
	case r.first != pos:
		return protocolError(resp, ErrUnavailable, "bytes from %d, wanted from %d", r.first, pos)
	case r.last >= b.size:
		return protocolError(resp, ErrUnavailable, "bytes to %d of %d", r.last, b.size)
	case resp.ContentLength >= 0 && resp.ContentLength != r.last-r.first+1:
		return protocolError(resp, ErrUnavailable, "%d bytes for %d-%d", resp.ContentLength, r.first, r.last)
	}
	// A range that ends early is allowed; the stream goes on with another.
	a.host.ignoresRanges.Store(false)
	return nil
}

// wrongSize is the sentinel for a source of another size than the blob's.
func wrongSize(got, want int64) error {
	if got < want {
		return ErrShort
	}
	return ErrUnavailable
}

// skip reads n bytes and drops them.
func (a *attempt) skip(n int64) error {
	buf := make([]byte, min(n, skipBuffer))
	for n > 0 {
		m, err := a.read(buf[:min(n, int64(len(buf)))])
		if n -= int64(m); n > 0 && err != nil {
			return err
		}
	}
	return nil
}

// read reads some of the body. Every end of the body is an error; the caller
// knows how much it wants.
func (a *attempt) read(p []byte) (int, error) {
	timed := a.received >= meterSkip
	if timed {
		a.client.link.begin()
	}
	a.alive()
	n, err := a.body.Read(p)
	a.idle.Stop()
	if timed {
		a.client.link.end(n)
	} else {
		a.received += n
	}
	a.client.countBytes(a.host, n)
	if err == nil {
		return n, nil
	}
	if cause := context.Cause(a.ctx); cause != nil {
		err = cause
	} else if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	// io.EOF must not be found in what the stream returns in the end.
	return n, &Error{URL: redact(a.url), Err: fmt.Errorf("%w: %w: %w", ErrUnavailable, errBroken, opaque{err})}
}

// end gives the connection back, or closes it if the body was not read to its end.
func (a *attempt) end() {
	a.idle.Stop()
	if a.body != nil {
		_ = a.body.Close()
	}
	a.cancel(nil)
}

// errBroken says that a body ended before it should.
var errBroken = errors.New("transfer broke off")

// opaque prints an error and hides it from errors.Is: callers that look for
// io.EOF mean the stream's.
type opaque struct{ err error }

func (o opaque) Error() string { return o.err.Error() }

// expiry guesses from the query of a signed address when it ends, with some
// time to spare; zero if it does not say. A wrong guess costs one request.
func expiry(u *url.URL) time.Time {
	const spare = 5 * time.Second
	q := u.Query()
	for _, vendor := range []string{"X-Amz-", "X-Goog-"} {
		signed, err := time.Parse("20060102T150405Z", q.Get(vendor+"Date"))
		seconds, err2 := strconv.ParseInt(q.Get(vendor+"Expires"), 10, 32)
		if err == nil && err2 == nil {
			return signed.Add(time.Duration(seconds)*time.Second - spare)
		}
	}
	if t, err := time.Parse(time.RFC3339, q.Get("se")); err == nil { // Azure
		return t.Add(-spare)
	}
	if s, err := strconv.ParseInt(q.Get("Expires"), 10, 64); err == nil && s > 0 { // CloudFront, older S3
		return time.Unix(s, 0).Add(-spare)
	}
	return time.Time{}
}
