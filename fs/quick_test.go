package fs_test

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/laminafs/lamina/fs"
)

// quick reports whether a session of this process has one worker for all requests.
func quick() bool {
	buf := make([]byte, 1<<20)
	return bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("watchQuick("))
}

// waitQuick waits until quick says what it should.
func waitQuick(t *testing.T, want bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); quick() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("one worker for all: still %v", !want)
		}
	}
}

// startQuick starts a session and sends requests until one worker takes all.
func startQuick(t *testing.T) (k *fakeKernel, layer *memory, done <-chan error, file uint64) {
	t.Helper()
	if runtime.GOMAXPROCS(0) < 2 {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
	}
	k, layer, done = start(t, fs.SessionOptions{})
	for end := time.Now().Add(10 * time.Second); !quick(); {
		if time.Now().After(end) {
			t.Fatal("one request after the other, and several workers")
		}
		for range 40 {
			file = nodeOf(t, k, "file")
			// The worker says that it is done after the answer.
			time.Sleep(100 * time.Microsecond)
		}
	}
	return k, layer, done, file
}

// The one worker is stuck in a read: the kernel is heard all the same.
func TestQuickIsNotDeaf(t *testing.T) {
	for range 20 {
		k, layer, _, file := startQuick(t)
		release := layer.hold()
		const reads = 5
		var replies []<-chan reply
		for i := range reads {
			_, c := k.send(opRead, file, 0, readBody(4096*i, 4096))
			replies = append(replies, c)
		}
		layer.waitFor(t, reads)
		nodeOf(t, k, "dir")
		waitQuick(t, false)
		nodeOf(t, k, "dir")
		release()
		for i, c := range replies {
			if r := k.wait(c); r.errno != 0 || !bytes.Equal(r.body, layer.b[512+4096*i:][:4096]) {
				t.Errorf("read %d: errno %d, %d bytes", i, r.errno, len(r.body))
			}
		}
	}
}

// Nobody looks after a session that has nothing to do.
func TestQuickEnds(t *testing.T) {
	k, _, _, _ := startQuick(t)
	waitQuick(t, false)
	nodeOf(t, k, "dir")
}

func TestUnmountWhileQuick(t *testing.T) {
	k, _, done, _ := startQuick(t)
	k.unmount()
	if err := result(t, done); err != nil {
		t.Errorf("Serve: %v", err)
	}
	waitQuick(t, false)
}
