package encode

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ErrFormat: no layer can be written in the format that is asked for.
var ErrFormat = errors.New("unknown layer format")

var (
	errClosed  = errors.New("writer is closed")
	errAborted = errors.New("writer was aborted")
)

// formats are those that NewWriter knows.
var formats = []layer.Format{layer.Gzip, layer.Zstd, layer.EStargz, layer.ZstdChunked}

// ParseFormat returns the format with this name: "gzip", "zstd", "estargz" or
// "zstd:chunked". It is the opposite of layer.Format.String. Other names are
// ErrFormat.
func ParseFormat(name string) (layer.Format, error) {
	names := make([]string, len(formats))
	for i, f := range formats {
		if names[i] = f.String(); names[i] == name {
			return f, nil
		}
	}
	return 0, fmt.Errorf("%w %q: expected one of %s", ErrFormat, name, strings.Join(names, ", "))
}

// Result is what an image has to say of a layer.
type Result struct {
	// Desc is for the manifest: media type, digest, size, and annotations by
	// which the layer can be mounted from its table of contents.
	Desc ocispec.Descriptor
	// DiffID is for the config: the digest of what the blob unpacks to.
	DiffID digest.Digest
	// Size is the number of bytes that the blob unpacks to.
	Size int64
}

// Writer turns one tar into the blob of a layer. It is not safe for concurrent
// use. Every Writer must be closed or aborted.
type Writer struct {
	format layer.Format
	out    *output
	body   body
	err    error // what Write and Close return from now on
	closed bool
	result Result
}

// body turns the tar into the blob, less what is the same for all formats. Nothing is
// called after finish, abort or an error of Write.
type body interface {
	io.Writer
	// finish ends the blob. Result lacks digest and size of the blob.
	finish() (Result, error)
	// abort waits for all goroutines to end.
	abort()
}

// NewWriter returns a Writer that writes a blob of format f to w. It starts with
// little, so that a small layer costs little. ErrFormat: f is not one that
// ParseFormat returns.
func NewWriter(w io.Writer, f layer.Format) (*Writer, error) {
	out := newOutput(w)
	e := &Writer{format: f, out: out}
	switch f {
	case layer.Gzip:
		e.body = newGzip(out)
	case layer.Zstd:
		e.body = newZstd(out)
	case layer.EStargz:
		e.body = newEStargz(out)
	case layer.ZstdChunked:
		e.body = newZstdChunked(out)
	default:
		return nil, fmt.Errorf("%w: %v", ErrFormat, f)
	}
	return e, nil
}

// Write takes the next bytes of the tar, and does not keep p. The error may be
// that of bytes written before: one of w, or layer.ErrFormat when the format has a
// table of contents and what was written is no tar. It is final.
func (e *Writer) Write(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	if e.closed {
		return 0, e.wrap(errClosed)
	}
	n, err := e.body.Write(p)
	if err != nil {
		e.body.abort()
		return n, e.fail(err)
	}
	return n, nil
}

// Close finishes the blob: the tar is complete, with its end-of-archive blocks. The
// blob is good only when Close returns nil. It does not close w. Closing again returns
// the same.
func (e *Writer) Close() error {
	if e.err != nil || e.closed {
		return e.err
	}
	e.closed = true
	r, err := e.body.finish()
	if err != nil {
		return e.fail(err)
	}
	r.Desc.Digest, r.Desc.Size = e.out.digest(), e.out.size
	e.result = r
	return nil
}

// Abort gives up: what was written to w is no blob. It returns when everything that
// the Writer had started has ended, which a blocked Write of w holds up. After Close
// it does nothing, so it can be deferred.
func (e *Writer) Abort() {
	if e.err != nil || e.closed {
		return
	}
	e.body.abort()
	_ = e.fail(errAborted)
}

// Result describes the blob. It is the zero value unless Close has returned nil.
func (e *Writer) Result() Result { return e.result }

// fail makes err final.
func (e *Writer) fail(err error) error {
	e.err = e.wrap(err)
	return e.err
}

func (e *Writer) wrap(err error) error { return fmt.Errorf("encode %s layer: %w", e.format, err) }
