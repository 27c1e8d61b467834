//go:build integration

package integration_test

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/tree"
)

// deadline bounds one read in these tests; a whole walk may retry many times.
const deadline = 20 * time.Second

// TestFaults fails a tenth of all blob responses in every way there is, and
// reads everything: every byte is right, or its read got EIO.
func TestFaults(t *testing.T) {
	for i, f := range []images.Format{images.Gzip, images.EStargz, images.Podman} {
		for j, e := range engines() {
			t.Run(string(f)+"/"+e, func(t *testing.T) {
				t.Parallel()
				p := shared.proxy(t, faultproxy.Config{
					Seed:   uint64(1 + i*2 + j),
					Link:   faultproxy.Link{RTT: 2 * time.Millisecond},
					Faults: faultproxy.Faults{Rate: 0.1, Delay: 500 * time.Millisecond, RetryAfter: time.Second},
				})
				s := newStore(t, p.Host())
				dir := s.mount(t, p.Host()+"/lamina/debian:"+string(f), "--engine", e, "--deadline", deadline.String())
				// What failed may be read again later, when it can be served.
				failed := rightOrEIO(t, shared.truth(t, "debian"), dir)
				p.SetFaults(faultproxy.Faults{})
				if len(failed) > 0 {
					t.Logf("%d reads got EIO: %q", len(failed), failed[:min(len(failed), 5)])
				}
				if left := rightOrEIO(t, shared.truth(t, "debian"), dir); len(left) > 0 {
					t.Errorf("EIO although the registry is well again: %q", left)
				}
			})
		}
	}
}

// rightOrEIO reads every regular file below dir and returns those that gave EIO.
// A wrong byte, another error or a hang fails the test.
func rightOrEIO(t testing.TB, want tree.Tree, dir string) (failed []string) {
	t.Helper()
	for name, e := range want {
		if e.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		began := time.Now()
		got, err := tree.Sum(filepath.Join(dir, name))
		switch {
		case errors.Is(err, syscall.EIO):
			failed = append(failed, name)
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case got != e.Sum:
			t.Errorf("%s: wrong content", name)
		}
		if d := time.Since(began); d > 3*deadline {
			t.Errorf("%s: took %v", name, d)
		}
	}
	slices.Sort(failed)
	return failed
}

// TestTarThroughFaults is the same through tar, which many readers are.
func TestTarThroughFaults(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		p := shared.proxy(t, faultproxy.Config{
			Seed:   11,
			Faults: faultproxy.Faults{Rate: 0.1, Delay: 200 * time.Millisecond, RetryAfter: time.Second},
		})
		s := newStore(t, p.Host())
		dir := s.mount(t, p.Host()+"/lamina/nginx:estargz", "--engine", engine, "--deadline", deadline.String())
		out := t.TempDir()
		cmd := exec.Command("sh", "-c", `tar c -C "$1" --xattrs --xattrs-include='*' . | tar x -C "$2" --xattrs --xattrs-include='*' -p`, "tar", dir, out)
		if b, err := cmd.CombinedOutput(); err != nil {
			// tar pads what it could not read: that has to be said, and only then.
			if !strings.Contains(string(b), "Input/output error") {
				t.Fatalf("tar: %v\n%s", err, b)
			}
			return
		}
		sameTree(t, shared.truth(t, "nginx"), out, images.EStargz)
	})
}

// TestCorruptBlobs corrupts every answer: nothing is ever served, nor kept.
func TestCorruptBlobs(t *testing.T) {
	for _, f := range []images.Format{images.Gzip, images.EStargz, images.Podman} {
		for _, e := range engines() {
			t.Run(string(f)+"/"+e, func(t *testing.T) {
				t.Parallel()
				p := shared.proxy(t, faultproxy.Config{})
				s := newStore(t, p.Host())
				ref := p.Host() + "/lamina/debian:" + string(f)
				dir := t.TempDir()
				bad := faultproxy.Faults{Rate: 1, Kinds: []faultproxy.Kind{faultproxy.Corrupt}}
				options := []string{"--engine", e, "--deadline", "3s"}
				if f == images.Gzip {
					// It is streamed before it is mounted.
					p.SetFaults(bad)
					if err := s.Mount(dir, ref, options...); err == nil {
						s.umount(t, dir)
						t.Fatal("a corrupt layer was mounted")
					}
				} else {
					dir = s.mount(t, ref, options...)
					p.SetFaults(bad)
					if _, err := os.ReadFile(filepath.Join(dir, "bin/bash")); !errors.Is(err, syscall.EIO) {
						t.Errorf("reading corrupt data: %v, want EIO", err)
					}
				}
				p.SetFaults(faultproxy.Faults{})
				if !lamina.Mounted(dir) {
					dir = s.mount(t, ref, options...)
				}
				sameTree(t, shared.truth(t, "debian"), dir, f)
			})
		}
	}
}

// TestReadIsInterruptible: a reader that waits for a registry that says nothing
// can be killed at once, and gets EIO at the deadline if it is not.
func TestReadIsInterruptible(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		p := shared.proxy(t, faultproxy.Config{})
		s := newStore(t, p.Host())
		dir := s.mount(t, p.Host()+"/lamina/debian:estargz", "--engine", engine, "--deadline", "4s")
		p.SetFaults(faultproxy.Faults{Rate: 1, Kinds: []faultproxy.Kind{faultproxy.Delay}, Delay: time.Minute})
		cat := exec.Command("cat", filepath.Join(dir, "bin/bash"))
		if err := cat.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(500 * time.Millisecond)
		began := time.Now()
		if err := cat.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cat.Wait()
		if d := time.Since(began); d > time.Second {
			t.Errorf("a killed reader took %v to end", d)
		}
		began = time.Now()
		_, err := os.ReadFile(filepath.Join(dir, "usr/bin/perl"))
		if d := time.Since(began); !errors.Is(err, syscall.EIO) || d > 10*time.Second {
			t.Errorf("read of a silent registry: %v after %v, want EIO after 4s", err, d)
		}
	})
}

// kills is how often TestKill kills; LAMINA_TEST_KILLS says another number.
func kills(t *testing.T) int {
	n := 100
	if s := os.Getenv("LAMINA_TEST_KILLS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// TestKill kills every process of a mount at random moments of first mounts and
// reads. The next mount works, no byte is wrong, and in the end what was whole
// on disk was not fetched again.
func TestKill(t *testing.T) {
	n := kills(t)
	formats := []images.Format{images.EStargz, images.Gzip, images.Podman}
	for i, f := range formats {
		for j, e := range engines() {
			t.Run(string(f)+"/"+e, func(t *testing.T) {
				t.Parallel()
				share := max(1, n/(len(formats)*2))
				killed(t, f, e, share, rand.New(rand.NewPCG(uint64(i), uint64(j))))
			})
		}
	}
}

func killed(t *testing.T, f images.Format, engine string, times int, rng *rand.Rand) {
	p := shared.proxy(t, faultproxy.Config{Link: faultproxy.Link{RTT: time.Millisecond, BytesPerSecond: 200 << 20}})
	s := newStore(t, p.Host())
	ref := p.Host() + "/lamina/debian:" + string(f)
	want := shared.truth(t, "debian")
	dir := t.TempDir()
	for range times {
		cmd := s.MountCommand(dir, ref, "--engine", engine)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = cmd.Wait() // killed or not: both are right
			readSome(t, want, dir, stop)
		}()
		time.Sleep(time.Duration(rng.Int64N(int64(1500 * time.Millisecond))))
		s.kill(t)
		close(stop)
		<-done
		s.kill(t) // what was about to be started
		if lamina.Mounted(dir) && engine == "kernel" {
			// Nothing tells a superblock whose data server died from a good one
			// but its reads; the mount over it must do.
			_, _ = s.Run("umount", "--lazy", dir)
		}
	}
	if err := s.Mount(dir, ref, "--engine", engine); err != nil {
		t.Fatal(err)
	}
	sameTree(t, want, dir, f)
	if f != images.Gzip { // a stream that was cut has to be sent again
		notFetchedAgain(t, p, times)
	}
	s.umount(t, dir)
	p.Reset()
	dir = s.mount(t, ref, "--engine", engine)
	sameTree(t, want, dir, f)
	if sent := faultproxy.Sum(p.Exchanges(), "/blobs/"); sent.Bytes > 0 {
		t.Errorf("all was whole, yet %d bytes were fetched", sent.Bytes)
	}
}

// readSome reads files in a random order until stop: each gives the right bytes
// or an error.
func readSome(t *testing.T, want tree.Tree, dir string, stop chan struct{}) {
	for name, e := range want { // a random order
		select {
		case <-stop:
			return
		default:
		}
		if e.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		got, err := tree.Sum(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) { // not mounted any more
			return
		}
		if err == nil && got != e.Sum {
			t.Errorf("%s: wrong content", name)
		}
	}
}

// notFetchedAgain bounds what may have been sent twice: what was in flight when
// a process was killed, a few MiB each time.
func notFetchedAgain(t *testing.T, p *faultproxy.Proxy, times int) {
	t.Helper()
	var again int64
	for _, n := range faultproxy.SentTwice(chunks(p.Exchanges())) {
		again += n
	}
	if most := int64(times) * 8 << 20; again > most {
		t.Errorf("%d MB were sent again after %d kills, want at most %d", again>>20, times, most>>20)
	}
}
