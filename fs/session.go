package fs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// ErrAborted is returned by Serve when the connection was aborted by hand
// (fusectl) or by the kernel, as opposed to unmounted.
var ErrAborted = errors.New("connection aborted")

// ErrNoResend is returned by Serve when a session cannot be taken over because
// the kernel (older than 6.9) cannot send unanswered requests again.
var ErrNoResend = errors.New("kernel cannot resend requests (Linux 6.9 or later is needed)")

// SessionOptions configures Serve. The zero value serves a fresh session that
// cannot be taken over.
type SessionOptions struct {
	// InitFile is where the kernel's INIT request is kept, by atomic rename,
	// before it is answered. Empty: not kept.
	InitFile string
	// Takeover says that an earlier server of this session has died: INIT is
	// replayed from InitFile (when it got that far) and unanswered requests
	// are sent again by the kernel.
	Takeover bool
	// Writable says that raw takes changes: the kernel keeps what is written until
	// it has much of it, and passes on what it was asked to check.
	Writable bool
	// MaxBackground bounds the read-ahead requests in flight; 0 means 64.
	MaxBackground int
	// Stats counts requests; nil: not counted.
	Stats *Stats
	// Trim, when set, is called after some hundreds of requests, about once a
	// second while requests come in, and once after they stop: the place to give
	// mapped index pages back. It is called by one goroutine at a time.
	Trim func()
	// Log gets what cannot be answered to the kernel; nil: slog.Default().
	Log *slog.Logger
}

const (
	defaultBackground = 64
	trimEvery         = time.Second
	// A walk of a large tree touches tens of megabytes of index in a second; this
	// many listings touch some eight.
	trimRequests = 128

	// maxRequest bounds reads and directory listings: 256 pages, FUSE's limit
	// that every kernel accepts.
	maxRequest = 1 << 20
	// Every worker holds a buffer for a request: the largest WRITE and the space
	// before it. Of a read-only tree requests are small; 4096 is FUSE's least.
	readOnlyWrite = 4096
	writableWrite = 256 << 10
	requestHead   = 12 << 10
)

// session is one server's part in the life of a FUSE connection.
type session struct {
	fd    int // our own duplicate; open until the last worker has ended
	ps    *fuse.ProtocolServer
	raw   fuse.RawFileSystem
	o     SessionOptions
	log   *slog.Logger
	spare int32 // workers beyond this many waiting ones go away

	waiting  atomic.Int32 // goroutines in read(2), or on their way to it
	active   atomic.Int32 // goroutines with a request in hand
	handled  atomic.Uint64
	stopping atomic.Bool // set: answer nothing more but INIT
	inited   bool        // INIT answered or replayed; before workers start
	workers  sync.WaitGroup
	quick    quick
	retired  sync.Pool // of *worker
	replies  replyPools

	endOnce sync.Once
	ended   chan struct{}
	busy    chan struct{} // told every trimRequests requests; holds one
	err     error         // why the session ended; written once before ended is closed
}

// Serve answers the kernel's requests on dev, the descriptor Mount returned,
// with raw. It returns nil when the filesystem has been unmounted, ErrAborted
// when the connection was cut, and ctx.Err() when ctx was cancelled: requests
// then in flight stay unanswered, so that the next server is sent them.
//
// raw.OnUnmount is called once as soon as the session ends, while handlers may
// still run, so that they can give up; Serve returns after the last of them.
// raw cannot be used again. dev is not closed.
//
// After a cancellation, up to GOMAXPROCS goroutines may stay in read(2), which
// nothing but a request ends. Each gives the one it gets back to the kernel and
// ends; until then the session counts as open. A process that exits need not care.
func Serve(ctx context.Context, dev *os.File, raw fuse.RawFileSystem, o SessionOptions) error {
	s := newSession(raw, o)
	err := s.open(dev)
	if err == nil {
		err = s.serve(ctx)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("serve %s: %w", dev.Name(), err)
	}
	return err
}

// open duplicates dev, so that its owner may close it at any time and no number
// is read from after it has come to mean another file.
func (s *session) open(dev *os.File) error {
	conn, err := dev.SyscallConn()
	if err != nil {
		return err
	}
	var duplicate error
	if err := conn.Control(func(fd uintptr) {
		s.fd, duplicate = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return err
	}
	return duplicate
}

// flusher is a filesystem that asks the kernel for what it keeps.
type flusher interface {
	setFlush(flush func(node uint64) error)
}

func newSession(raw fuse.RawFileSystem, o SessionOptions) *session {
	if o.MaxBackground <= 0 {
		o.MaxBackground = defaultBackground
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &session{
		raw:   raw,
		o:     o,
		log:   o.Log,
		spare: int32(max(2, runtime.GOMAXPROCS(0))),
		quick: quick{never: runtime.GOMAXPROCS(0) < 2},
		ended: make(chan struct{}),
		busy:  make(chan struct{}, 1),
	}
	if f, ok := raw.(flusher); ok {
		f.setFlush(s.flush)
	}
	s.ps = fuse.NewProtocolServer(raw, &fuse.MountOptions{
		MaxWrite:                 maxRequest,
		MaxReadAhead:             maxRequest,
		MaxBackground:            o.MaxBackground,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		EnableAcl:                true,
		IDMappedMount:            true,
		ExtraCapabilities:        capabilities(o),
		Logger:                   log.New(logWriter{o.Log}, "", 0),
		PanicHandler:             s.panicked,
	})
	return s
}

func capabilities(o SessionOptions) uint64 {
	c := uint64(fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_EXPORT_SUPPORT |
		fuse.CAP_ASYNC_DIO | fuse.CAP_ABORT_ERROR | fuse.CAP_HAS_RESEND)
	if o.Writable {
		c |= fuse.CAP_WRITEBACK_CACHE | fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT
	}
	return c
}

// maxWrite is the most that one WRITE carries.
func (s *session) maxWrite() int {
	if s.o.Writable {
		return writableWrite
	}
	return readOnlyWrite
}

func (s *session) serve(ctx context.Context) error {
	if err := unix.SetNonblock(s.fd, false); err != nil {
		return errors.Join(fmt.Errorf("make descriptor blocking: %w", err), unix.Close(s.fd))
	}
	if err := s.start(); err != nil {
		s.end(err)
		return errors.Join(s.result(), unix.Close(s.fd))
	}
	for range s.spare {
		s.addWorker()
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.workers.Wait()
		_ = unix.Close(s.fd) // a device: nothing is written back at close
	}()
	var aux sync.WaitGroup
	aux.Go(func() { s.stopWhenDone(ctx) })
	aux.Go(s.trimWhileBusy)
	aux.Wait()
	if !s.stopping.Load() {
		<-closed
	}
	return s.result()
}

// start brings the protocol to the point where workers may run side by side.
func (s *session) start() error {
	if s.o.Takeover {
		if err := s.takeOver(); err != nil {
			return err
		}
	}
	w := newWorker(s)
	defer s.retired.Put(w)
	for !s.inited {
		n, err := s.receive(w.in)
		if err != nil {
			return err
		}
		if op := binary.NativeEndian.Uint32(w.in[offOpcode:]); op != opInit {
			return fmt.Errorf("session begins with %s: its INIT request is lost", opName(int(op%opcodes)))
		}
		w.answer(w.in[:n])
	}
	return nil
}

// end records why the session is over and tells the filesystem; the first call
// counts. A nil err means unmounted.
func (s *session) end(err error) {
	s.endOnce.Do(func() {
		s.err = err
		s.raw.OnUnmount()
		close(s.ended)
	})
}

func (s *session) result() error {
	if errors.Is(s.err, io.EOF) {
		return nil
	}
	return s.err
}

// receive blocks for the next request. io.EOF means unmounted.
func (s *session) receive(in []byte) (int, error) {
	for aborted := false; ; {
		n, err := unix.Read(s.fd, in)
		switch {
		case err == nil && n == 0:
			return 0, io.EOF
		case err == nil && n >= inHeaderSize:
			return n, nil
		case err == nil:
			return 0, fmt.Errorf("request of %d bytes: shorter than its header", n)
		case err == unix.EINTR || err == unix.ENOENT:
			// ENOENT: the request was interrupted before it could be read.
		case err == unix.EAGAIN:
			// Another holder of the descriptor made it non-blocking.
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, -1); err != nil && err != unix.EINTR {
				return 0, fmt.Errorf("poll: %w", err)
			}
		case err == unix.ENODEV:
			return 0, io.EOF
		case err == unix.ECONNABORTED && !aborted:
			// Said also when the request just taken was overtaken by an
			// unmount. The next read knows which it was.
			aborted = true
		case err == unix.ECONNABORTED:
			return 0, ErrAborted
		default:
			return 0, fmt.Errorf("read request: %w", err)
		}
	}
}

// send writes one reply. What the kernel no longer waits for is not an error.
func (s *session) send(out []byte) {
	for {
		_, err := unix.Write(s.fd, out)
		switch err {
		case nil, unix.ENOENT, unix.ENODEV, unix.ECONNABORTED, unix.EPIPE:
			return
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		s.log.Error("reply refused by the kernel", "bytes", len(out), "err", err)
		return
	}
}

// stopWhenDone ends the session when ctx is cancelled before it ends by itself.
func (s *session) stopWhenDone(ctx context.Context) {
	select {
	case <-s.ended:
		return
	case <-ctx.Done():
	}
	s.stopping.Store(true)
	s.end(ctx.Err())
	// Whoever becomes active from now on sees stopping, and handles nothing.
	for s.active.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
}

func (s *session) trimWhileBusy() {
	if s.o.Trim == nil {
		return
	}
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var trimmed uint64
	for {
		select {
		case <-s.ended:
			return
		case <-tick.C:
		case <-s.busy:
		}
		if n := s.handled.Load(); n != trimmed {
			trimmed = n
			s.o.Trim()
		}
	}
}

func (s *session) panicked(v any) fuse.Status {
	stack := make([]byte, 16<<10)
	s.log.Error("handler panicked", "panic", v, "stack", string(stack[:runtime.Stack(stack, false)]))
	return fuse.EIO
}

// logWriter passes go-fuse's messages on. They are about protocol oddities, such
// as opcodes that newer kernels try once, so they rank as debugging.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("fuse", "msg", string(p))
	return len(p), nil
}
