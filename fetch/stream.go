package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// fillBurst is the most that a rate-limited stream hands out at once.
	fillBurst = 64 << 10

	// skipBuffer is the piece in which unwanted bytes are read.
	skipBuffer = 64 << 10
)

// errClosed is what a Read gets when the stream is closed meanwhile.
var errClosed = errors.New("stream is closed")

// remoteStream reads [pos, end) of a blob, over as many attempts as it takes.
type remoteStream struct {
	blob     *remoteBlob
	caller   context.Context // of ReadRange
	ctx      context.Context // ends with caller, or with Close
	cancel   context.CancelFunc
	priority Priority
	call     *call
	slot     slot
	slow     *time.Timer // lends the slot while the consumer does not read

	mu       sync.Mutex // held by Read, and by Close once Read has returned
	pos, end int64
	attempt  *attempt // nil between attempts and after the end
	err      error    // sticky

	servedMu sync.Mutex // guards the fields below; nothing is locked under it
	served   []*host    // who gave bytes
	rejected bool
}

var _ Stream = (*remoteStream)(nil)

// open makes the stream and connects it, so that what is certain to fail fails
// here.
func (b *remoteBlob) open(ctx context.Context, off, n int64, cs []candidate) (*remoteStream, error) {
	inner, cancel := context.WithCancel(ctx)
	s := &remoteStream{
		blob: b, caller: ctx, ctx: inner, cancel: cancel, priority: priorityOf(ctx), pos: off, end: off + n,
		call: &call{client: b.client, what: "read blob " + b.dgst.String(), candidates: cs},
	}
	s.slot = slot{queue: b.client.queue, class: s.priority}
	s.slow = time.AfterFunc(defaultSlowReader, s.slot.leave)
	s.slow.Stop()
	if err := s.connect(); err != nil {
		cancel()
		return nil, err
	}
	s.slow.Reset(defaultSlowReader)
	return s, nil
}

// connect makes attempts until one is about to deliver the byte at pos.
func (s *remoteStream) connect() error {
	for {
		h, err := s.call.next(s.ctx, s.blob.prefer)
		if err != nil {
			return err
		}
		if err := s.slot.take(s.ctx); err != nil {
			return s.call.ended(err)
		}
		a, err := s.blob.begin(s.ctx, h, s.pos, s.end)
		if s.ctx.Err() == nil {
			s.blob.note(h, err)
		}
		if err == nil {
			s.attempt = a
			s.servedMu.Lock()
			s.served = append(s.served, h)
			s.servedMu.Unlock()
			return nil
		}
		s.slot.leave()
		if s.ctx.Err() != nil {
			return s.call.ended(s.ctx.Err())
		}
		s.call.failed(h, err)
	}
}

// Read implements Stream.
func (s *remoteStream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
	case s.pos == s.end:
		s.err = io.EOF
	case s.caller.Err() != nil: // also when bytes lie ready
		s.err = s.call.ended(s.caller.Err())
		s.finish()
	}
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	s.slow.Stop()
	n, err := s.read(p)
	switch {
	case err != nil:
		if s.ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = s.canceled()
		}
		s.err = err
		s.finish()
	case s.pos == s.end:
		s.finish() // gives the slot back before anybody asks for io.EOF
	default:
		s.slow.Reset(defaultSlowReader)
	}
	return n, err
}

// read delivers at least one byte, or the error that ends the stream.
func (s *remoteStream) read(p []byte) (int, error) {
	p = p[:min(int64(len(p)), s.end-s.pos)]
	limiter := s.blob.client.limiter
	if s.priority != Background {
		limiter = nil
	}
	if limiter != nil {
		p = p[:min(len(p), fillBurst)]
	}
	s.blob.client.queue.yield(s.ctx, s.priority)
	for {
		if s.attempt == nil {
			if err := s.connect(); err != nil {
				return 0, err
			}
		}
		if err := s.slot.take(s.ctx); err != nil {
			return 0, s.call.ended(err)
		}
		n, err := s.attempt.read(p)
		s.pos += int64(n)
		if err != nil && s.pos < s.end {
			h := s.attempt.host
			s.drop()
			if s.ctx.Err() == nil {
				s.call.failed(h, err)
			}
		}
		if n == 0 {
			continue // connect looks at the context and counts the rounds
		}
		s.call.progress()
		if limiter != nil {
			if err := limiter.WaitN(s.ctx, n); err != nil {
				return n, fmt.Errorf("%s: %w: %w", s.call.what, ErrUnavailable, err)
			}
		}
		return n, nil
	}
}

// drop ends the current attempt.
func (s *remoteStream) drop() {
	if s.attempt != nil {
		s.attempt.end()
		s.attempt = nil
	}
	s.slot.leave()
}

// finish gives everything back. s.mu is held.
func (s *remoteStream) finish() {
	s.slow.Stop()
	s.drop()
	s.cancel()
}

// canceled is the error of a read that Close or the caller's context ended.
func (s *remoteStream) canceled() error {
	if err := s.caller.Err(); err != nil {
		return s.call.ended(err)
	}
	return fmt.Errorf("%s: %w", s.call.what, errClosed)
}

// Close implements Stream.
func (s *remoteStream) Close() error {
	s.cancel() // makes a blocked Read return
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = fmt.Errorf("%s: %w", s.call.what, errClosed)
	}
	s.finish()
	return nil
}

// Reject implements Stream.
func (s *remoteStream) Reject(error) {
	s.servedMu.Lock()
	defer s.servedMu.Unlock()
	if s.rejected {
		return
	}
	s.rejected = true
	s.blob.reject(s.served)
}

// slot is one place in the queue, taken and left any number of times.
type slot struct {
	queue *queue
	class Priority

	mu   sync.Mutex // guards held; not held while waiting
	held bool
}

// take waits for the place unless it is held already.
func (t *slot) take(ctx context.Context) error {
	t.mu.Lock()
	held := t.held
	t.mu.Unlock()
	if held {
		return nil
	}
	if err := t.queue.acquire(ctx, t.class); err != nil {
		return err
	}
	t.mu.Lock()
	t.held = true
	t.mu.Unlock()
	return nil
}

// leave gives the place back if it is held.
func (t *slot) leave() {
	t.mu.Lock()
	held := t.held
	t.held = false
	t.mu.Unlock()
	if held {
		t.queue.release(t.class)
	}
}
