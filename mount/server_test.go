package mount

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/lookahead"
	"github.com/laminafs/lamina/store"
)

// What hurries the start of a server must not hold for the rest of its life.
func TestHurryEnds(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(math.MaxInt64)
	defer func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) }()
	s := &server{
		log: slog.New(slog.DiscardHandler), state: &State{},
		tree: &tree{&store.Tree{}, lookahead.New()}, calm: hurry(),
	}
	if got := debug.SetMemoryLimit(-1); got != hurryLimit {
		t.Errorf("while it starts: limit of %d bytes", got)
	}
	s.work(t.Context())()
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("while it serves: limit of %d bytes", got)
	}
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("while it serves: GC at %d%%", got)
	}
}

// stuck is a filesystem whose GETATTR waits.
type stuck struct {
	fuse.RawFileSystem
	began, release chan struct{}
	ended          atomic.Bool
}

func (s *stuck) GetAttr(<-chan struct{}, *fuse.GetAttrIn, *fuse.AttrOut) fuse.Status {
	close(s.began)
	<-s.release
	s.ended.Store(true)
	return fuse.EIO
}

// request is a FUSE request without arguments that matter.
func request(op uint32, unique uint64, body []byte) []byte {
	m := make([]byte, 40, 40+len(body))
	binary.NativeEndian.PutUint32(m[0:], uint32(40+len(body)))
	binary.NativeEndian.PutUint32(m[4:], op)
	binary.NativeEndian.PutUint64(m[8:], unique)
	binary.NativeEndian.PutUint64(m[16:], 1)
	return append(m, body...)
}

// A server that gives up after it began to serve waits for its handlers: they
// read the tree that its caller closes.
func TestServeWaitsForHandlers(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	kernel, dev := os.NewFile(uintptr(pair[0]), "kernel"), os.NewFile(uintptr(pair[1]), "session")
	defer func() { _ = kernel.Close() }()
	hello := make([]byte, 64)
	binary.NativeEndian.PutUint32(hello[0:], 7)
	binary.NativeEndian.PutUint32(hello[4:], 45)
	const opGetattr, opInit = 3, 26
	for _, m := range [][]byte{request(opInit, 2, hello), request(opGetattr, 4, make([]byte, 16))} {
		if _, err := kernel.Write(m); err != nil {
			t.Fatal(err)
		}
	}

	// Saving the record waits for a reader of its temporary file, and then fails,
	// because a directory is in the place of the final one.
	root := t.TempDir()
	record := filepath.Join(root, "mounts", "m", "state.json")
	if err := os.MkdirAll(record, 0o700); err != nil {
		t.Fatal(err)
	}
	pipe := fmt.Sprintf("%s.%d", record, os.Getpid())
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	raw := &stuck{RawFileSystem: fuse.NewDefaultRawFileSystem(), began: make(chan struct{}), release: make(chan struct{})}
	s := &server{
		log: slog.New(slog.DiscardHandler), tree: &tree{&store.Tree{}, lookahead.New()},
		state:   &State{Name: "m", Options: Options{Root: root, Dir: filepath.Join(root, "none")}},
		session: &session{dev: dev, raw: raw, stats: new(fs.Stats), opts: fs.SessionOptions{InitFile: filepath.Join(root, "init")}},
	}
	done := make(chan error, 1)
	go func() {
		done <- s.serve(context.Background(), true, func(*State) { t.Error("it says that it is ready") })
	}()
	select {
	case <-raw.began:
	case <-time.After(10 * time.Second):
		t.Fatal("no handler runs")
	}
	reader, err := os.Open(pipe)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	select {
	case err := <-done:
		t.Errorf("serve returned while a handler runs: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(raw.release)
	select {
	case err = <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("serve does not return")
	}
	if err == nil || !raw.ended.Load() {
		t.Errorf("serve: %v, handler ended: %v", err, raw.ended.Load())
	}
}
