package fs_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// FUSE as the kernel speaks it, for the other end of a session.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opRead        = 15
	opInit        = 26
	opInterrupt   = 36
	opReaddirplus = 44

	notifyResend = 7

	resent = 1 << 63
)

var native = binary.NativeEndian

// fakeKernel is the kernel's end of a session, over a socket that keeps message
// boundaries as /dev/fuse does. Requests may be sent from any goroutine.
type fakeKernel struct {
	t  testing.TB
	fd int

	mu       sync.Mutex
	unique   uint64
	sent     map[uint64][]byte     // unanswered, by unique
	waiters  map[uint64]chan reply // by unique without the resent bit
	resends  int
	stray    []reply
	finished chan struct{}
}

type reply struct {
	unique uint64
	errno  int32
	body   []byte
}

func newFakeKernel(t testing.TB) (*fakeKernel, *os.File) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range pair {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20); err != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
		}
	}
	k := &fakeKernel{
		t: t, fd: pair[0], unique: 2,
		sent: map[uint64][]byte{}, waiters: map[uint64]chan reply{}, finished: make(chan struct{}),
	}
	dev := os.NewFile(uintptr(pair[1]), "session")
	go k.receive()
	t.Cleanup(func() {
		k.unmount()
		<-k.finished
		_ = unix.Close(k.fd)
		_ = dev.Close()
	})
	return k, dev
}

// unmount ends the session as the last umount does.
func (k *fakeKernel) unmount() { _ = unix.Shutdown(k.fd, unix.SHUT_RDWR) }

func (k *fakeKernel) receive() {
	defer close(k.finished)
	buf := make([]byte, 2<<20)
	for {
		n, err := unix.Read(k.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		r := reply{unique: native.Uint64(buf[8:]), errno: int32(native.Uint32(buf[4:])), body: append([]byte(nil), buf[16:n]...)}
		if int(native.Uint32(buf)) != n {
			k.t.Errorf("reply says %d bytes and has %d", native.Uint32(buf), n)
		}
		k.dispatch(r)
	}
}

func (k *fakeKernel) dispatch(r reply) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case r.unique == 0 && r.errno == notifyResend:
		k.resends++
		again := map[uint64][]byte{}
		for u, m := range k.sent {
			native.PutUint64(m[8:], u|resent)
			again[u|resent] = m
			k.write(m)
		}
		k.sent = again
	case k.sent[r.unique] == nil:
		k.stray = append(k.stray, r)
	default:
		delete(k.sent, r.unique)
		k.waiters[r.unique&^resent] <- r
	}
}

func (k *fakeKernel) write(m []byte) {
	if _, err := unix.Write(k.fd, m); err != nil && err != unix.EPIPE {
		k.t.Errorf("send request: %v", err)
	}
}

// message makes a request.
func message(op uint32, unique, node uint64, pid uint32, body []byte) []byte {
	m := make([]byte, 40, 40+len(body))
	native.PutUint32(m[0:], uint32(40+len(body)))
	native.PutUint32(m[4:], op)
	native.PutUint64(m[8:], unique)
	native.PutUint64(m[16:], node)
	native.PutUint32(m[32:], pid)
	return append(m, body...)
}

// send sends a request and returns its unique and where its reply will come.
func (k *fakeKernel) send(op uint32, node uint64, pid uint32, body []byte) (uint64, <-chan reply) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.unique += 2
	m := message(op, k.unique, node, pid, body)
	c := make(chan reply, 1)
	k.sent[k.unique], k.waiters[k.unique] = m, c
	k.write(m)
	return k.unique, c
}

// call sends a request and waits for the reply.
func (k *fakeKernel) call(op uint32, node uint64, body []byte) reply {
	k.t.Helper()
	_, c := k.send(op, node, 0, body)
	return k.wait(c)
}

func (k *fakeKernel) wait(c <-chan reply) reply {
	k.t.Helper()
	select {
	case r := <-c:
		return r
	case <-time.After(10 * time.Second):
		k.t.Fatal("no reply within 10 s")
		return reply{}
	}
}

func (k *fakeKernel) interrupt(unique uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	body := make([]byte, 8)
	native.PutUint64(body, unique)
	k.write(message(opInterrupt, unique|1, 0, 0, body))
}

// init sends what Linux 6.18 sends first.
func (k *fakeKernel) init() reply {
	k.t.Helper()
	return k.call(opInit, 0, initBody())
}

func initBody() []byte {
	body := make([]byte, 64)
	native.PutUint32(body[0:], 7)
	native.PutUint32(body[4:], 45)
	native.PutUint32(body[8:], 128<<10)
	native.PutUint32(body[12:], 0xffffffff)
	native.PutUint32(body[16:], 0xffffffff)
	return body
}

func readBody(off, size int) []byte {
	body := make([]byte, 40)
	native.PutUint64(body[8:], uint64(off))
	native.PutUint32(body[16:], uint32(size))
	return body
}

func name(s string) []byte { return append([]byte(s), 0) }

// memory is a layer; reads wait while gate is set.
type memory struct {
	b    []byte
	gate atomic.Pointer[chan struct{}]
	in   atomic.Int64 // reads that wait
	fail error
}

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if gate := m.gate.Load(); gate != nil {
		m.in.Add(1)
		defer m.in.Add(-1)
		select {
		case <-*gate:
		case <-ctx.Done():
			return fmt.Errorf("memory: %w", ctx.Err())
		}
	}
	if m.fail != nil {
		return m.fail
	}
	if off < 0 || off+int64(len(p)) > int64(len(m.b)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, m.b[off:])
	return nil
}

// hold makes reads wait until the returned function is called.
func (m *memory) hold() (release func()) {
	gate := make(chan struct{})
	m.gate.Store(&gate)
	return sync.OnceFunc(func() { m.gate.Store(nil); close(gate) })
}

// waitFor waits until n reads wait. There may be more: a request that was read
// from the device just before it was resent is served twice, and answered once.
func (m *memory) waitFor(t testing.TB, n int64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); m.in.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d reads wait, want %d", m.in.Load(), n)
		}
	}
}

// sampleTree has one of what the tree's methods treat differently.
func sampleTree(t testing.TB) (*overlay.Tree, *memory) {
	t.Helper()
	layer := &memory{b: make([]byte, 4<<20)}
	for i := range layer.b {
		layer.b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	root := &index.Node{Mode: unix.S_IFDIR | 0o755, Mtime: 7, MtimeNsec: 8}
	file := &index.Node{
		Mode: unix.S_IFREG | 0o4750, UID: 70000, GID: 5, Mtime: -1, MtimeNsec: 999999999, Size: 3<<20 + 7,
		Extents: []index.Extent{{Len: 3<<20 + 7, Off: 512, Device: 1}},
		Xattrs: []index.Xattr{
			{Name: "user.a", Value: []byte("value")},
			{Name: "user.empty"},
			{Name: "system.posix_acl_access", Value: []byte("acl")},
			{Name: "security.capability", Value: []byte("caps")},
		},
	}
	root.SetChild("file", file)
	root.SetChild("again", file)
	root.SetChild("sparse", &index.Node{
		Mode: unix.S_IFREG | 0o644, Size: 20000,
		Extents: []index.Extent{{FileOff: 4096, Len: 4096, Off: 4096, Device: 1}, {FileOff: 8192, Len: 512, Off: 0, Device: 1}},
	})
	root.SetChild("link", &index.Node{Mode: unix.S_IFLNK | 0o777, Target: []byte("to/where")})
	root.SetChild("dev", &index.Node{Mode: unix.S_IFCHR | 0o600, Rdev: index.Makedev(259, 70000)})
	dir := &index.Node{Mode: unix.S_IFDIR | 0o1777}
	root.SetChild("dir", dir)
	for i := range 100 {
		dir.SetChild(fmt.Sprintf("entry%03d", i), &index.Node{Mode: unix.S_IFREG | 0o600})
	}
	x := encode(t, &index.Tree{Root: root, Devices: []index.Device{{Tag: "one", Size: int64(len(layer.b))}}})
	return overlay.New(x, []overlay.Data{layer}), layer
}

func encode(t testing.TB, tree *index.Tree) *index.Index {
	t.Helper()
	b, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// serve starts Serve and returns where its result comes.
func serve(ctx context.Context, dev *os.File, raw fuse.RawFileSystem, o fs.SessionOptions) <-chan error {
	done := make(chan error, 1)
	go func() { done <- fs.Serve(ctx, dev, raw, o) }()
	return done
}

func result(t testing.TB, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("Serve does not return")
		return nil
	}
}
