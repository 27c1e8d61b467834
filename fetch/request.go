package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxRedirects = 10

	// drainLimit is how much of an unwanted body is read to keep its
	// connection for the next request.
	drainLimit = 16 << 10
)

// request is a GET of an object of a repository.
type request struct {
	repo   string
	url    *url.URL
	header http.Header
}

// get sends r to h: it authorises, renews a token that is not accepted, and
// follows redirects. It returns whatever response is left, and the address that
// gave it. ctx governs the body too; touch is called at every sign of life.
func (c *Client) get(ctx context.Context, h *host, r request, touch func()) (*http.Response, *url.URL, error) {
	u, renewed := r.url, false
	for hop := 0; hop <= maxRedirects; {
		touch()
		own := h.owns(u)
		resp, generation, err := c.send(ctx, h, r, u, own)
		if err != nil {
			return nil, u, err
		}
		switch resp.StatusCode {
		case http.StatusBadRequest, http.StatusForbidden:
			if !own || !h.session(c, r.repo).withdraw(ctx, resp) {
				return resp, u, nil
			}
			drain(resp)
		case http.StatusUnauthorized:
			if !own || renewed {
				return resp, u, nil
			}
			renewed = true
			drain(resp)
			touch()
			if err := h.session(c, r.repo).renew(ctx, generation, resp); err != nil {
				return nil, u, err
			}
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
			to, err := resp.Location()
			if err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Host == "" {
				return nil, u, protocolError(resp, ErrUnavailable, "redirect to nowhere")
			}
			drain(resp)
			to.User, to.Fragment = nil, ""
			u = to
			hop++
		default:
			return resp, u, nil
		}
	}
	return nil, u, &Error{URL: redact(u), Err: fmt.Errorf("%w: more than %d redirects", ErrUnavailable, maxRedirects), fate: suspicious}
}

// send makes one HTTP request. own says that u is at h itself; only then it
// carries credentials and the headers configured for h.
func (c *Client) send(ctx context.Context, h *host, r request, u *url.URL, own bool) (*http.Response, int, error) {
	var written, first atomic.Int64 // ns since start, set by the transport's goroutines, maybe late
	start := time.Now()
	trace := &httptrace.ClientTrace{
		WroteRequest:         func(httptrace.WroteRequestInfo) { written.Store(int64(time.Since(start))) },
		GotFirstResponseByte: func() { first.Store(int64(time.Since(start))) },
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, 0, &Error{URL: redact(u), Err: fmt.Errorf("%w: %w", ErrUnavailable, stripURL(err)), fate: permanent}
	}
	generation := 0
	if own {
		for k, vs := range h.header {
			req.Header[k] = vs
		}
	}
	for k, vs := range r.header {
		req.Header[k] = vs
	}
	if own {
		if generation, err = h.session(c, r.repo).authorize(ctx, req); err != nil {
			return nil, 0, err
		}
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", c.o.UserAgent)
	}
	c.stats.requests.Add(1)
	h.stats.requests.Add(1)
	resp, err := h.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // errIdle or what the caller's context ended with
		}
		return nil, 0, networkError(u, err)
	}
	if sent, got := written.Load(), first.Load(); sent > 0 && got > sent {
		c.link.roundTrip(time.Duration(got - sent))
	}
	return resp, generation, nil
}

// drain empties and closes the body of a response that only says where to go.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, drainLimit) // only to keep the connection
	_ = resp.Body.Close()
}

// contentRange is what a header of that name says: bytes [first, last] of a
// total, which is -1 if not known.
type contentRange struct{ first, last, total int64 }

// parseContentRange reads "bytes 0-9/100" and "bytes 0-9/*".
func parseContentRange(s string) (contentRange, error) {
	bad := errors.New("malformed Content-Range " + strconv.Quote(s))
	unit, rest, ok := strings.Cut(strings.TrimSpace(s), " ")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return contentRange{}, bad
	}
	span, total, ok := strings.Cut(rest, "/")
	first, last, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return contentRange{}, bad
	}
	var r contentRange
	var err error
	if r.first, err = parseOffset(first); err != nil {
		return contentRange{}, bad
	}
	if r.last, err = parseOffset(last); err != nil || r.last < r.first {
		return contentRange{}, bad
	}
	if r.total = -1; strings.TrimSpace(total) != "*" {
		if r.total, err = parseOffset(total); err != nil || r.last >= r.total {
			return contentRange{}, bad
		}
	}
	return r, nil
}

// parseOffset reads a non-negative decimal without a sign.
func parseOffset(s string) (int64, error) {
	n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 63)
	return int64(n), err
}
