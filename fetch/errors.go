package fetch

import "errors"

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
