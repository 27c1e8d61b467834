package fs

import (
	"encoding/binary"
	"os"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Opcodes and offsets the loop itself needs; go-fuse keeps its own unexported.
const (
	inHeaderSize  = 40
	outHeaderSize = 16

	opForget      = 2
	opRead        = 15
	opGetxattr    = 22
	opListxattr   = 23
	opInit        = 26
	opReaddir     = 28
	opInterrupt   = 36
	opIoctl       = 39
	opBatchForget = 42
	opReaddirplus = 44

	offOpcode = 4
	offUnique = 8
	offBody   = inHeaderSize
)

// smallReply holds every reply but large reads, listings and xattrs.
const smallReply = 8 << 10

// replyHead is the room before a payload: header and the largest fixed part.
const replyHead = 512

// replySizes are the payload classes of pooled reply buffers.
var replySizes = [...]int{64 << 10, 256 << 10, maxRequest}

// replyPools hold reply buffers by class.
type replyPools [len(replySizes)]sync.Pool

type worker struct {
	s    *session
	in   []byte
	out  []byte
	iovs [2][1][]byte // kept here so that a request does not allocate them
}

// newWorker takes the buffers of a worker that has gone, if there are any: under
// many parallel readers workers come and go with every request.
func newWorker(s *session) *worker {
	if w, ok := s.retired.Get().(*worker); ok {
		return w
	}
	w := &worker{s: s, in: make([]byte, s.maxWrite()+requestHead), out: make([]byte, smallReply)}
	// A request that the kernel hands to a process which is being killed is
	// lost, with EIO, if its buffer has pages that were never touched: a dying
	// process gets no new ones. Otherwise the next server is sent it again.
	for i := 0; i < len(w.in); i += os.Getpagesize() {
		w.in[i] = 1
	}
	return w
}

// work is one goroutine of the pool. Whoever takes the last waiting place's
// request starts a successor before handling it, so the kernel is always heard.
func (s *session) work() {
	defer s.workers.Done()
	w := newWorker(s)
	defer s.retired.Put(w)
	for {
		alone := !s.quick.on.Load() || !s.quick.spin(s.fd)
		n, err := s.receive(w.in)
		left := s.waiting.Add(-1)
		if err != nil {
			s.end(err)
			return
		}
		s.active.Add(1)
		if s.stopping.Load() {
			s.handBack()
			s.active.Add(-1)
			return
		}
		if left == 0 && !s.quick.on.Load() {
			s.addWorker()
		}
		came := time.Now()
		w.answer(w.in[:n])
		alone = s.active.Add(-1) == 0 && alone
		if s.quick.note(came, time.Now(), alone) {
			s.workers.Add(1)
			go s.watchQuick()
		}
		if s.waiting.Add(1) > s.mayWait() || s.stopping.Load() {
			s.waiting.Add(-1)
			return
		}
	}
}

// mayWait is how many workers are kept waiting for requests.
func (s *session) mayWait() int32 {
	if s.quick.on.Load() {
		return 1
	}
	return s.spare
}

// answer handles one request and writes its reply, if it has one.
func (w *worker) answer(in []byte) {
	s := w.s
	op := binary.NativeEndian.Uint32(in[offOpcode:])
	if s.handled.Add(1)%trimRequests == 0 {
		select {
		case s.busy <- struct{}{}:
		default:
		}
	}
	s.o.Stats.count(op)
	if op == opInit {
		s.keepInit(in)
	}
	out := w.out
	if need := replyHead + payloadSize(op, in); need > len(out) {
		pooled := s.replies.get(need)
		if pooled == nil {
			s.send(errorReply(out, in, fuse.EINVAL))
			return
		}
		defer s.replies.put(pooled)
		out = *pooled
	}
	w.iovs[0][0], w.iovs[1][0] = in, out
	n, status := s.ps.HandleRequest(w.iovs[0][:], w.iovs[1][:])
	out = out[:n]
	if n == 0 {
		if status.Ok() || op == opForget || op == opBatchForget || op == opInterrupt {
			return
		}
		// The request could not be parsed: its sender waits all the same.
		out = errorReply(w.out, in, status)
	}
	if op == opInit {
		s.widenInit(out)
		s.inited = true
	} else if s.stopping.Load() {
		return // left for the next server
	}
	s.send(out)
}

// payloadSize is how many bytes of variable length the reply to in may need.
func payloadSize(op uint32, in []byte) int {
	at := 0
	switch op {
	case opRead, opReaddir, opReaddirplus:
		at = offBody + 16
	case opGetxattr, opListxattr:
		at = offBody
	case opIoctl:
		at = offBody + 28
	default:
		return 0
	}
	if len(in) < at+4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(in[at:]))
}

// errorReply makes the reply to in that carries only an error.
func errorReply(out, in []byte, status fuse.Status) []byte {
	binary.NativeEndian.PutUint32(out[0:], outHeaderSize)
	binary.NativeEndian.PutUint32(out[4:], uint32(-int32(status)))
	copy(out[8:16], in[offUnique:offUnique+8])
	return out[:outHeaderSize]
}

// get returns a buffer of at least n bytes, or nil when no reply is that big.
// The pointer goes back with put.
func (p *replyPools) get(n int) *[]byte {
	for i, size := range replySizes {
		if n > size+replyHead {
			continue
		}
		if b, ok := p[i].Get().(*[]byte); ok {
			return b
		}
		b := make([]byte, size+replyHead)
		return &b
	}
	return nil
}

func (p *replyPools) put(b *[]byte) {
	for i, size := range replySizes {
		if len(*b) == size+replyHead {
			p[i].Put(b)
			return
		}
	}
}
