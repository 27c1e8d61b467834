package fetch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
)

// maxAnswer bounds what is read of an answer whose body says nothing.
const maxAnswer = 64 << 10

// Do sends req through rt, which Client.Origin returned, and returns the answer if its
// status is one of ok. The body is read and closed. Errors are those of ctx, what
// reading the request's body returned, and *Error, which wraps ErrNotFound, ErrDenied or
// ErrUnavailable.
func Do(rt http.RoundTripper, req *http.Request, ok ...int) (*http.Response, error) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		var known *Error
		switch {
		case req.Context().Err() != nil:
			return nil, context.Cause(req.Context())
		case errors.As(err, &known):
			return nil, err
		}
		e := networkError(req.URL, err)
		e.Method = req.Method
		return nil, e
	}
	if !slices.Contains(ok, resp.StatusCode) {
		e := responseError(resp, false)
		e.Method = req.Method
		return nil, e
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer)) // so that the connection is kept
	return resp, nil
}
