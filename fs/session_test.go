package fs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
)

// start serves the sample tree to a fake kernel that has done INIT.
func start(t *testing.T, o fs.SessionOptions) (*fakeKernel, *memory, <-chan error) {
	t.Helper()
	tree, layer := sampleTree(t)
	k, dev := newFakeKernel(t)
	done := serve(t.Context(), dev, fs.NewTree(tree, fs.TreeOptions{Stats: o.Stats}), o)
	k.init()
	return k, layer, done
}

// nodeOf looks a name up in the root.
func nodeOf(t *testing.T, k *fakeKernel, n string) uint64 {
	t.Helper()
	r := k.call(opLookup, 1, name(n))
	if r.errno != 0 || len(r.body) < 8 {
		t.Fatalf("lookup %s: errno %d", n, r.errno)
	}
	return native.Uint64(r.body)
}

func TestInitAnswer(t *testing.T) {
	tree, _ := sampleTree(t)
	k, dev := newFakeKernel(t)
	kept := filepath.Join(t.TempDir(), "init")
	done := serve(t.Context(), dev, fs.NewTree(tree, fs.TreeOptions{}), fs.SessionOptions{InitFile: kept})
	r := k.init()
	if r.errno != 0 || len(r.body) != 64 {
		t.Fatalf("INIT: errno %d, %d bytes", r.errno, len(r.body))
	}
	for _, f := range []struct {
		what      string
		got, want uint32
	}{
		{"major", native.Uint32(r.body), 7},
		{"read-ahead", native.Uint32(r.body[8:]), 1 << 20},
		{"max write", native.Uint32(r.body[20:]), 4096},
		{"max pages", uint32(native.Uint16(r.body[28:])), uint32((1 << 20) / os.Getpagesize())},
	} {
		if f.got != f.want {
			t.Errorf("%s: %d, want %d", f.what, f.got, f.want)
		}
	}
	flags := uint64(native.Uint32(r.body[12:])) | uint64(native.Uint32(r.body[32:]))<<32
	for what, bit := range map[string]uint64{
		"ASYNC_READ": fuse.CAP_ASYNC_READ, "PARALLEL_DIROPS": fuse.CAP_PARALLEL_DIROPS,
		"READDIRPLUS": fuse.CAP_READDIRPLUS, "CACHE_SYMLINKS": fuse.CAP_CACHE_SYMLINKS,
		"NO_OPEN": fuse.CAP_NO_OPEN_SUPPORT, "NO_OPENDIR": fuse.CAP_NO_OPENDIR_SUPPORT,
		"POSIX_ACL": fuse.CAP_POSIX_ACL, "MAX_PAGES": fuse.CAP_MAX_PAGES,
	} {
		if flags&bit == 0 {
			t.Errorf("INIT without %s", what)
		}
	}
	for what, bit := range map[string]uint64{
		"READDIRPLUS_AUTO": fuse.CAP_READDIRPLUS_AUTO, "WRITEBACK_CACHE": fuse.CAP_WRITEBACK_CACHE,
		"AUTO_INVAL_DATA": fuse.CAP_AUTO_INVAL_DATA, "REQUEST_TIMEOUT": fuse.CAP_REQUEST_TIMEOUT,
	} {
		if flags&bit != 0 {
			t.Errorf("INIT with %s", what)
		}
	}
	if b, err := os.ReadFile(kept); err != nil || !bytes.Equal(b[40:], initBody()) {
		t.Errorf("kept INIT: %d bytes, %v", len(b), err)
	}
	k.unmount()
	if err := result(t, done); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestRequestsOverTheWire(t *testing.T) {
	stats := &fs.Stats{}
	k, layer, _ := start(t, fs.SessionOptions{Stats: stats})
	file := nodeOf(t, k, "file")
	for _, c := range []struct {
		what     string
		op       uint32
		node     uint64
		body     []byte
		errno    int32
		contents []byte // when the reply is compared whole
	}{
		{"read a page", opRead, file, readBody(4096, 4096), 0, layer.b[512+4096:][:4096]},
		{"read a mebibyte", opRead, file, readBody(0, 1<<20), 0, layer.b[512:][:1<<20]},
		{"read past the end", opRead, file, readBody(3<<20, 4096), 0, layer.b[512+3<<20:][:7]},
		{"read a directory", opRead, 1, readBody(0, 4096), -int32(unix.EIO), nil},
		{"read too much", opRead, file, readBody(0, 1<<30), -int32(unix.EINVAL), nil},
		{"read without a body", opRead, file, nil, -int32(unix.EIO), nil},
		{"unknown operation", 99, file, nil, -int32(unix.ENOSYS), nil},
		{"operation out of range", 4000, file, nil, -int32(unix.ENOSYS), nil},
		{"open", 14, file, make([]byte, 8), -int32(unix.ENOSYS), nil},
		{"opendir", 27, 1, make([]byte, 8), -int32(unix.ENOSYS), nil},
		{"flush", 25, file, make([]byte, 24), -int32(unix.ENOSYS), nil},
		{"unlink", 10, 1, name("file"), -int32(unix.EROFS), nil},
		{"ioctl", 39, file, make([]byte, 32), -int32(unix.ENOSYS), nil},
	} {
		r := k.call(c.op, c.node, c.body)
		if r.errno != c.errno || c.contents != nil && !bytes.Equal(r.body, c.contents) {
			t.Errorf("%s: errno %d and %d bytes, want %d and %d", c.what, r.errno, len(r.body), c.errno, len(c.contents))
		}
	}
	got := stats.Snapshot()
	if got.Requests["read"] != 6 || got.Requests["init"] != 1 || got.ReadBytes != 4096+1<<20+7 {
		t.Errorf("stats: %+v", got)
	}
}

// A server whose handlers all wait for the network still hears the kernel.
func TestBlockedReadsDoNotBlockOthers(t *testing.T) {
	k, layer, done := start(t, fs.SessionOptions{})
	file := nodeOf(t, k, "file")
	release := layer.hold()
	defer release()
	const reads = 300
	var replies []<-chan reply
	for i := range reads {
		_, c := k.send(opRead, file, 0, readBody(4096*i, 4096))
		replies = append(replies, c)
	}
	layer.waitFor(t, reads)
	for range 50 {
		nodeOf(t, k, "dir")
	}
	release()
	for i, c := range replies {
		if r := k.wait(c); r.errno != 0 || !bytes.Equal(r.body, layer.b[512+4096*i:][:4096]) {
			t.Errorf("read %d: errno %d, %d bytes", i, r.errno, len(r.body))
		}
	}
	k.unmount()
	if err := result(t, done); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestUnmountEndsBlockedReads(t *testing.T) {
	k, layer, done := start(t, fs.SessionOptions{})
	file := nodeOf(t, k, "file")
	defer layer.hold()()
	for i := range 20 {
		k.send(opRead, file, 0, readBody(4096*i, 4096))
	}
	layer.waitFor(t, 20)
	k.unmount()
	if err := result(t, done); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if n := layer.in.Load(); n != 0 {
		t.Errorf("%d reads still wait", n)
	}
}

// An interrupt by a signal that kills ends the read; any other must not.
func TestInterrupt(t *testing.T) {
	k, layer, _ := start(t, fs.SessionOptions{})
	file := nodeOf(t, k, "file")
	release := layer.hold()
	defer release()

	alive := exec.Command("sleep", "60")
	if err := alive.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = alive.Wait() }()
	defer func() { _ = alive.Process.Kill() }()
	pid := uint32(alive.Process.Pid)

	unknown, unknownReply := k.send(opRead, file, 0, readBody(0, 4096))
	lives, livesReply := k.send(opRead, file, pid, readBody(4096, 4096))
	dies, diesReply := k.send(opRead, file, pid, readBody(8192, 4096))
	_, otherReply := k.send(opRead, file, 0, readBody(12288, 4096))
	layer.waitFor(t, 4)

	k.interrupt(unknown)
	if r := k.wait(unknownReply); r.errno != -int32(unix.EINTR) {
		t.Errorf("read of a caller that is gone: errno %d", r.errno)
	}
	k.interrupt(lives)
	k.interrupt(dies)
	select {
	case r := <-livesReply:
		t.Errorf("read of a living caller: errno %d", r.errno)
	case r := <-diesReply:
		t.Errorf("read of a living caller: errno %d", r.errno)
	case <-time.After(200 * time.Millisecond):
	}
	if err := alive.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []<-chan reply{livesReply, diesReply} {
		if r := k.wait(c); r.errno != -int32(unix.EINTR) {
			t.Errorf("read of a killed caller: errno %d", r.errno)
		}
	}
	release()
	if r := k.wait(otherReply); r.errno != 0 {
		t.Errorf("read that was not interrupted: errno %d", r.errno)
	}
}

func TestReadDeadline(t *testing.T) {
	tree, layer := sampleTree(t)
	k, dev := newFakeKernel(t)
	stats := &fs.Stats{}
	serve(t.Context(), dev, fs.NewTree(tree, fs.TreeOptions{ReadDeadline: 50 * time.Millisecond, Stats: stats}), fs.SessionOptions{})
	k.init()
	defer layer.hold()()
	if r := k.call(opRead, nodeOf(t, k, "file"), readBody(0, 4096)); r.errno != -int32(unix.EIO) {
		t.Errorf("read past its deadline: errno %d", r.errno)
	}
	slow := stats.Snapshot().Slowest
	if len(slow) != 1 || !slow[0].Failed || slow[0].Took < 50*time.Millisecond || slow[0].Bytes != 4096 {
		t.Errorf("slow reads: %+v", slow)
	}
}

// A server told to stop leaves what it has not answered to the next one.
func TestTakeover(t *testing.T) {
	tree, layer := sampleTree(t)
	k, dev := newFakeKernel(t)
	kept := filepath.Join(t.TempDir(), "init")
	o := fs.SessionOptions{InitFile: kept}
	ctx, stop := context.WithCancel(t.Context())
	first := serve(ctx, dev, fs.NewTree(tree, fs.TreeOptions{}), o)
	k.init()
	file := nodeOf(t, k, "file")
	for round := range 3 {
		release := layer.hold()
		_, a := k.send(opRead, file, 0, readBody(4096, 4096))
		_, b := k.send(opRead, file, 0, readBody(512*3, 1<<20))
		layer.waitFor(t, 2)
		stop()
		if err := result(t, first); !errors.Is(err, context.Canceled) {
			t.Fatalf("round %d: stopped server: %v", round, err)
		}
		_, queued := k.send(opLookup, 1, 0, name("dir"))
		select {
		case r := <-a:
			t.Fatalf("round %d: stopped server answered with errno %d", round, r.errno)
		default:
		}
		release()
		o.Takeover = true
		ctx, stop = context.WithCancel(t.Context())
		first = serve(ctx, dev, fs.NewTree(tree, fs.TreeOptions{}), o)
		if r := k.wait(a); r.errno != 0 || !bytes.Equal(r.body, layer.b[512+4096:][:4096]) || r.unique&resent == 0 {
			t.Errorf("round %d: resent read: errno %d, %d bytes", round, r.errno, len(r.body))
		}
		if r := k.wait(b); r.errno != 0 || !bytes.Equal(r.body, layer.b[2048:][:1<<20]) {
			t.Errorf("round %d: resent large read: errno %d, %d bytes", round, r.errno, len(r.body))
		}
		if r := k.wait(queued); r.errno != 0 {
			t.Errorf("round %d: request between servers: errno %d", round, r.errno)
		}
	}
	stop()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.resends < 3 {
		t.Errorf("resend was asked for %d times, want one for each server but the first", k.resends)
	}
}

// The first server died before it could keep or answer INIT.
func TestTakeoverBeforeInit(t *testing.T) {
	tree, _ := sampleTree(t)
	k, dev := newFakeKernel(t)
	_, c := k.send(opInit, 0, 0, initBody())
	if _, err := dev.Read(make([]byte, 8192)); err != nil { // the first server
		t.Fatal(err)
	}
	o := fs.SessionOptions{InitFile: filepath.Join(t.TempDir(), "init"), Takeover: true}
	serve(t.Context(), dev, fs.NewTree(tree, fs.TreeOptions{}), o)
	if r := k.wait(c); r.errno != 0 || len(r.body) != 64 {
		t.Errorf("INIT: errno %d, %d bytes", r.errno, len(r.body))
	}
	nodeOf(t, k, "file")
	if _, err := os.Stat(o.InitFile); err != nil {
		t.Error(err)
	}
}

func TestTakeoverOfGarbage(t *testing.T) {
	tree, _ := sampleTree(t)
	for what, b := range map[string][]byte{
		"empty": nil, "short": make([]byte, 39), "another request": message(opLookup, 2, 1, 0, name("x")),
		"cut INIT": message(opInit, 2, 0, 0, nil), "version 6": message(opInit, 2, 0, 0, make([]byte, 64)),
	} {
		kept := filepath.Join(t.TempDir(), "init")
		if err := os.WriteFile(kept, b, 0o600); err != nil {
			t.Fatal(err)
		}
		_, dev := newFakeKernel(t)
		done := serve(t.Context(), dev, fs.NewTree(tree, fs.TreeOptions{}), fs.SessionOptions{InitFile: kept, Takeover: true})
		if err := result(t, done); err == nil {
			t.Errorf("%s: Serve took over", what)
		}
	}
}

// INIT was answered, but what it said is lost.
func TestTakeoverWithoutInit(t *testing.T) {
	tree, _ := sampleTree(t)
	for what, kept := range map[string]string{"no file": filepath.Join(t.TempDir(), "init"), "no name": ""} {
		k, dev := newFakeKernel(t)
		k.send(opLookup, 1, 0, name("file"))
		done := serve(t.Context(), dev, fs.NewTree(tree, fs.TreeOptions{}), fs.SessionOptions{InitFile: kept, Takeover: true})
		if err := result(t, done); err == nil {
			t.Errorf("%s: Serve took over", what)
		}
	}
}

func TestTrimWhileBusy(t *testing.T) {
	var trims atomic.Int64
	k, _, _ := start(t, fs.SessionOptions{Trim: func() { trims.Add(1) }})
	nodeOf(t, k, "file")
	for end := time.Now().Add(10 * time.Second); trims.Load() == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if n := trims.Load(); n != 1 {
		t.Fatalf("%d trims after one burst of requests", n)
	}
}
