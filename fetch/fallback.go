package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
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
// is gone, cut off, has wrong bytes or cannot be read for whatever reason. Both
// must be the same blob. The result implements Local.
func Fallback(file Local, remote Blob) Blob { return &fallback{Local: file, remote: remote} }

func (b *fallback) ReadRange(ctx context.Context, off, n int64) (Stream, error) {
	if b.wrong.Load() {
		return b.remote.ReadRange(ctx, off, n)
	}
	s, err := b.Local.ReadRange(ctx, off, n)
	switch {
	case err == nil:
		return &fallbackStream{blob: b, ctx: ctx, off: off, left: n, current: s}, nil
	case ctx.Err() != nil, errors.Is(err, ErrRange):
		return nil, err
	}
	return b.instead(ctx, off, n, err)
}

// instead reads from the remote blob what the file, because of cause, does not
// give. Of two failures the remote one decides what may help.
func (b *fallback) instead(ctx context.Context, off, n int64, cause error) (Stream, error) {
	s, err := b.remote.ReadRange(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("%w (before, from its file: %v)", err, cause)
	}
	return s, nil
}

// fallbackStream goes on from the remote blob where the file fails.
type fallbackStream struct {
	blob *fallback
	ctx  context.Context // of ReadRange: it governs the stream's life

	// For Read alone.
	off, left int64
	remote    bool

	mu      sync.Mutex // guards the fields below; not held while reading
	current Stream
	used    bool               // some byte came from the file
	closed  bool               // by Close
	cancel  context.CancelFunc // of the remote stream's context; nil before there is one
}

var _ Stream = (*fallbackStream)(nil)

// Read implements Stream.
func (s *fallbackStream) Read(p []byte) (int, error) {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	n, err := current.Read(p)
	s.off += int64(n)
	s.left -= int64(n)
	if s.remote {
		return n, err
	}
	if n > 0 {
		s.mu.Lock()
		s.used = true
		s.mu.Unlock()
	}
	if err == nil || errors.Is(err, io.EOF) || s.ctx.Err() != nil {
		return n, err
	}
	return n, s.leave(err)
}

// leave goes on from the remote blob, because the file failed.
func (s *fallbackStream) leave(cause error) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return fmt.Errorf("read blob %s: %w", s.blob.Digest(), errClosed)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	s.cancel = cancel // Close must not wait for a registry
	s.mu.Unlock()
	again, err := s.blob.instead(ctx, s.off, s.left, cause)

	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		if err == nil {
			_ = again.Close() // nobody reads it
		}
		return fmt.Errorf("read blob %s: %w", s.blob.Digest(), errClosed)
	case err != nil:
		cancel()
		return err
	}
	_ = s.current.Close() // a file that was read
	s.current, s.remote = again, true
	return nil
}

// Close implements Stream.
func (s *fallbackStream) Close() error {
	s.mu.Lock()
	s.closed = true
	current, cancel := s.current, s.cancel // current is not replaced any more
	s.mu.Unlock()
	if cancel != nil {
		cancel()
	}
	return current.Close()
}

// Reject implements Stream. Which of two sources was wrong is not known: both are
// doubted.
func (s *fallbackStream) Reject(cause error) {
	s.mu.Lock()
	current, used := s.current, s.used
	s.mu.Unlock()
	if used {
		s.blob.wrong.Store(true)
	}
	current.Reject(cause)
}
