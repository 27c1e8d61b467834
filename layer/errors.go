package layer

import "errors"

// Errors on which callers decide. They are found with errors.Is.
var (
	// ErrDigest: content does not have the digest that was promised for it.
	// The bytes must not be used; another source may have the right ones.
	ErrDigest = errors.New("wrong digest")
	// ErrFormat: the content has the right digest, or none to compare, and is
	// no layer that can be read. No other source can help.
	ErrFormat = errors.New("bad layer")
	// ErrNoTOC: the layer cannot be mounted without streaming it once.
	ErrNoTOC = errors.New("no table of contents")
	// ErrTOC: the layer has a table of contents that is wrong, or that cannot
	// be trusted. Streaming the layer once tells whether it is good.
	ErrTOC = errors.New("bad table of contents")
	// ErrTable: a chunk table is not one, or is damaged.
	ErrTable = errors.New("bad chunk table")
)
