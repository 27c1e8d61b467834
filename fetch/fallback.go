package fetch

import (
	"context"
	"errors"
	"sync/atomic"
)

// fallback is a blob in a file that another process may remove, and where to get
// it then.
type fallback struct {
	Local
	remote Blob
	wrong  atomic.Bool // the file's bytes were rejected
}

// Fallback returns the blob of file, whose bytes come from remote when the file
// is gone, cut off, unreadable or has wrong bytes. Both must be the same blob. The
// result implements Local.
func Fallback(file Local, remote Blob) Blob { return &fallback{Local: file, remote: remote} }

func (b *fallback) ReadRange(ctx context.Context, off, n int64) (Stream, error) {
	if b.wrong.Load() {
		return b.remote.ReadRange(ctx, off, n)
	}
	s, err := b.Local.ReadRange(ctx, off, n)
	switch {
	case err == nil:
		return &fallbackStream{Stream: s, blob: b, ctx: ctx, off: off, left: n}, nil
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrDenied):
		return b.remote.ReadRange(ctx, off, n)
	}
	return nil, err
}

// fallbackStream goes on from the remote blob where the file ends too early.
type fallbackStream struct {
	Stream
	blob      *fallback
	ctx       context.Context // of ReadRange: it governs the stream's life
	off, left int64
	remote    bool
}

func (s *fallbackStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	s.off += int64(n)
	s.left -= int64(n)
	if err == nil || s.remote || !errors.Is(err, ErrShort) {
		return n, err
	}
	again, rerr := s.blob.remote.ReadRange(s.ctx, s.off, s.left)
	if rerr != nil {
		return n, rerr
	}
	_ = s.Close() // a file that was read
	s.Stream, s.remote = again, true
	return n, nil
}

func (s *fallbackStream) Reject(cause error) {
	if !s.remote {
		s.blob.wrong.Store(true)
	}
	s.Stream.Reject(cause)
}
