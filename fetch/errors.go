package fetch

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// Errors on which callers decide. They are found with errors.Is.
var (
	// ErrNotFound: no host has the object. Trying again is useless.
	ErrNotFound = errors.New("not found")
	// ErrDenied: the credentials in hand, or none, do not suffice.
	ErrDenied = errors.New("access denied")
	// ErrUnavailable: no host could serve the object in the time or number
	// of attempts allowed. Trying again later may help.
	ErrUnavailable = errors.New("unavailable")
	// ErrShort: the source ends before the range does.
	ErrShort = errors.New("short blob")
	// ErrRange: the range asked for does not lie within the blob.
	ErrRange = errors.New("range outside blob")
	// ErrDigest: content does not have the digest it was asked for by.
	ErrDigest = errors.New("wrong digest")
	// ErrTooBig: content is longer than the caller or the protocol allows.
	ErrTooBig = errors.New("too big")
)

// maxErrorBody bounds what is read of an error's body, maxMessage what is kept.
const (
	maxErrorBody = 8 << 10
	maxMessage   = 256
)

// Error is one failed attempt to get something from a host. It is found with
// errors.As in what the methods of Client, Blob and Stream return.
type Error struct {
	Method  string // of the request; empty means GET
	URL     string // without user, query and fragment, which may be secret
	Status  int    // of the HTTP response; 0 when there was none
	Message string // from the body of an error response, bounded and printable
	// Codes are the registry's own, such as DIGEST_INVALID (OCI distribution
	// specification, "Error Codes").
	Codes []string
	Err   error // the cause, or the sentinel that the status stands for

	fate       fate
	retryAfter time.Duration // as the server asked; 0 if it did not
}

// fate is what an error means for further attempts at the same host.
type fate uint8

const (
	transient  fate = iota // may go away
	suspicious             // the host breaks the protocol or serves something else: a few more attempts
	permanent              // asking again is useless
)

// Error returns one line.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(cmp.Or(strings.ToLower(e.Method), "get"))
	b.WriteByte(' ')
	b.WriteString(e.URL)
	if e.Status != 0 {
		fmt.Fprintf(&b, ": %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", e.Message)
	}
	if e.Err != nil && (e.Status == 0 || e.Status < 300) {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// redact returns u without what may be secret.
func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// responseError makes the error of a response that is not what was asked for,
// and closes its body.
func responseError(resp *http.Response, redirected bool) *Error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // a part is good enough
	_ = resp.Body.Close()
	e := &Error{URL: redact(resp.Request.URL), Status: resp.StatusCode, Message: message(body), Codes: codes(body)}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		e.Err, e.fate = ErrNotFound, permanent
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		e.Err, e.fate = ErrDenied, permanent
	case code == http.StatusRequestedRangeNotSatisfiable:
		e.Err, e.fate = ErrShort, suspicious
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code == http.StatusTooEarly ||
		code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported:
		e.Err, e.retryAfter = ErrUnavailable, retryAfter(resp.Header, time.Now())
	case code < 400: // a success or redirect that makes no sense here
		e.Err, e.fate = ErrUnavailable, suspicious
	default:
		e.Err, e.fate = ErrUnavailable, permanent
	}
	if redirected && e.fate == permanent {
		// The registry vouches for the object and has just signed the URL.
		e.fate = suspicious
	}
	return e
}

// Passes reports whether the same request may succeed later, and after how long the
// server asks to wait for that.
func (e *Error) Passes() (after time.Duration, ok bool) { return e.retryAfter, e.fate == transient }

// codes returns the error codes in the body of an error response.
func codes(body []byte) []string {
	var reply struct{ Errors []struct{ Code string } }
	if json.Unmarshal(body, &reply) != nil {
		return nil
	}
	var all []string
	for _, e := range reply.Errors {
		all = append(all, e.Code)
	}
	return all
}

// message extracts a readable line from the body of an error response.
func message(body []byte) string {
	var reply struct {
		Errors []struct{ Code, Message string }
	}
	text := ""
	if json.Unmarshal(body, &reply) == nil {
		for _, e := range reply.Errors {
			if text != "" {
				text += "; "
			}
			text += strings.TrimSpace(e.Code + " " + e.Message)
		}
	} else if !strings.HasPrefix(strings.TrimSpace(string(body)), "<") {
		text = string(body)
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool {
		return !unicode.IsPrint(r) || r == unicode.ReplacementChar || r == ' '
	}), " ")
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "..."
	}
	return text
}

// networkError makes the error of a request that got no response. The cause
// loses net/http's wrapper, which prints the whole URL.
func networkError(u *url.URL, err error) *Error {
	e := &Error{URL: redact(u), Err: fmt.Errorf("%w: %w", ErrUnavailable, stripURL(err))}
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	if errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &cert) {
		e.fate = suspicious // waiting long does not create names or trust
	}
	return e
}

// stripURL returns the cause inside err's *url.Error, if it has one.
func stripURL(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// protocolError makes the error of a response that breaks the protocol, and
// closes its body.
func protocolError(resp *http.Response, cause error, format string, args ...any) *Error {
	_ = resp.Body.Close()
	return &Error{
		URL: redact(resp.Request.URL), Status: resp.StatusCode, fate: suspicious,
		Err: fmt.Errorf("%w: %s", cause, fmt.Sprintf(format, args...)),
	}
}
