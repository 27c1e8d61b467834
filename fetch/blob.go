package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// A Blob is one immutable sequence of bytes, named by its digest, that can be
// read at any offset. Making one is cheap: nothing is opened, resolved or asked
// before the first read. All methods may be called concurrently.
type Blob interface {
	// Digest is the digest of the whole blob. It is a name and a promise of
	// the manifest; reading ranges does not verify it.
	Digest() digest.Digest

	// Size is the length of the blob in bytes.
	Size() int64

	// ReadRange returns a stream of exactly n bytes that starts at byte off.
	// The caller must Close it. ctx governs the whole life of the stream, not
	// only the call: cancelling it makes a blocked Read return at once, and
	// its deadline bounds all retries. The priority of ctx (see WithPriority)
	// decides who waits when requests are scarce.
	//
	// A range outside the blob gives ErrRange before anything is sent. n of 0
	// is a valid range and costs nothing. The other errors are ErrNotFound,
	// ErrDenied, ErrUnavailable, ErrShort, and those of ctx.
	ReadRange(ctx context.Context, off, n int64) (Stream, error)
}

// A Stream yields the bytes of one range, then io.EOF. It ends with io.EOF only
// after the last byte of the range; every other end is an error that is neither
// io.EOF nor io.ErrUnexpectedEOF. A Stream is for one goroutine, but Close and
// Reject may be called while a Read is blocked.
type Stream interface {
	io.ReadCloser

	// Reject says that bytes of this stream failed the caller's verification,
	// because of cause. Later reads of the same Blob prefer another host. It
	// may be called before or after Close, once or often.
	Reject(cause error)
}

// Local is what a Blob may be in addition: bytes of a file on this machine. The
// caller may then read the file itself, or map it.
type Local interface {
	Blob

	// File returns the file's path and the offset in it of the blob's first
	// byte.
	File() (path string, off int64)
}

// Priority is the class of a read. The zero value is Reader.
type Priority int

const (
	// Reader is for bytes that somebody waits for.
	Reader Priority = iota
	// Prefetch is for bytes that somebody will probably want soon.
	Prefetch
	// Background is for filling the cache. It is rate-limited and gives way.
	Background
)

type priorityKey struct{}

// WithPriority returns a context whose reads are of class p.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

// priorityOf returns the class that WithPriority gave ctx, Reader without one.
func priorityOf(ctx context.Context) Priority {
	p, _ := ctx.Value(priorityKey{}).(Priority)
	return min(max(p, Reader), Background)
}

// readAllAttempts is how many copies of a blob ReadAll looks at before it
// believes that the digest is wrong everywhere.
const readAllAttempts = 3

// ReadAll reads the whole of b, which must not be longer than limit bytes, and
// verifies its digest. A copy with the wrong digest is rejected and read again,
// from another host if there is one. Errors are those of ReadRange, ErrTooBig
// when b is longer than limit, and ErrDigest when no copy verifies.
func ReadAll(ctx context.Context, b Blob, limit int64) ([]byte, error) {
	if b.Size() > limit {
		return nil, fmt.Errorf("read blob %s: %w: %d bytes, at most %d wanted", b.Digest(), ErrTooBig, b.Size(), limit)
	}
	if err := b.Digest().Validate(); err != nil {
		return nil, fmt.Errorf("read blob %q: %w: %w", b.Digest(), ErrDigest, err)
	}
	var failed error
	for range readAllAttempts {
		p, err := readVerified(ctx, b)
		if err == nil || !errors.Is(err, ErrDigest) {
			return p, err
		}
		failed = err
	}
	return nil, failed
}

func readVerified(ctx context.Context, b Blob) ([]byte, error) {
	s, err := b.ReadRange(ctx, 0, b.Size())
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	p := make([]byte, b.Size())
	if _, err := io.ReadFull(s, p); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", b.Digest(), err)
	}
	if got := b.Digest().Algorithm().FromBytes(p); got != b.Digest() {
		err := fmt.Errorf("read blob %s: %w: content has %s", b.Digest(), ErrDigest, got)
		s.Reject(err)
		return nil, err
	}
	return p, nil
}

// checkRange tells whether n bytes from off lie within a blob of size bytes.
func checkRange(dgst digest.Digest, off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("read blob %s: %w: %d bytes at %d of %d", dgst, ErrRange, n, off, size)
	}
	return nil
}

// emptyStream is the stream of a range of no bytes.
type emptyStream struct{}

func (emptyStream) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyStream) Close() error             { return nil }
func (emptyStream) Reject(error)             {}
