package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fetch"
)

func TestFallback(t *testing.T) {
	want := bytes.Repeat([]byte("lamina "), 1000)
	size, dgst := int64(len(want)), digest.FromBytes(want)
	dir := t.TempDir()
	file := func(name string, b []byte) fetch.Local {
		path := filepath.Join(dir, name)
		if b != nil {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return fetch.OpenFile(path, 0, size, dgst)
	}
	remote := file("remote", want)
	for name, have := range map[string][]byte{"whole": want, "short": want[:100], "empty": {}, "gone": nil} {
		b := fetch.Fallback(file(name, have), remote)
		if path, _ := b.(fetch.Local).File(); path != filepath.Join(dir, name) {
			t.Errorf("%s: it lies in %s", name, path)
		}
		for _, off := range []int64{0, 50, 100, size - 1} {
			s, err := b.ReadRange(t.Context(), off, size-off)
			if err != nil {
				t.Fatalf("%s from %d: %v", name, off, err)
			}
			got, err := io.ReadAll(s)
			_ = s.Close()
			if err != nil || !bytes.Equal(got, want[off:]) {
				t.Errorf("%s from %d: %d bytes, %v", name, off, len(got), err)
			}
		}
	}
	wrong := fetch.Fallback(file("wrong", bytes.ToUpper(want)), remote)
	read := func() string {
		s, err := wrong.ReadRange(t.Context(), 0, 6)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		got, err := io.ReadAll(s)
		if err != nil {
			t.Fatal(err)
		}
		s.Reject(errors.New("wrong digest"))
		return string(got)
	}
	if first, second := read(), read(); first != "LAMINA" || second != "lamina" {
		t.Errorf("first %q, after it was rejected %q", first, second)
	}
}

// faulty is a file whose streams fail after some bytes.
type faulty struct {
	fetch.Local
	open error // of ReadRange
	read error // of Read, after good bytes
	good int64
}

func (b faulty) ReadRange(ctx context.Context, off, n int64) (fetch.Stream, error) {
	if b.open != nil {
		return nil, b.open
	}
	s, err := b.Local.ReadRange(ctx, off, n)
	return faultyStream{s, io.MultiReader(io.LimitReader(s, b.good), iotest.ErrReader(b.read))}, err
}

type faultyStream struct {
	fetch.Stream
	r io.Reader
}

func (s faultyStream) Read(p []byte) (int, error) { return s.r.Read(p) }

// whole is a file with the bytes p.
func whole(t *testing.T, p []byte) fetch.Local {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blob")
	writeFile(t, path, p)
	return fetch.OpenFile(path, 0, int64(len(p)), digest.FromBytes(p))
}

// Whatever is wrong with the file, the bytes are elsewhere; but a range that is
// none and a reader that has gone are nobody's fault.
func TestFallbackAnyError(t *testing.T) {
	p := randomBytes(10_000)
	for name, file := range map[string]faulty{
		"open": {open: unix.EIO}, "many files": {open: unix.EMFILE}, "read": {read: unix.EIO}, "read later": {read: unix.EIO, good: 500},
	} {
		file.Local = whole(t, p)
		wantRange(t, fetch.Fallback(file, whole(t, p)), p, 100, 5000)
		b := fetch.Fallback(file, faulty{Local: whole(t, p), open: fetch.ErrUnavailable})
		if _, err := readRange(t.Context(), b, 100, 5000); !errors.Is(err, fetch.ErrUnavailable) || !strings.Contains(err.Error(), "error") && !strings.Contains(err.Error(), "files") {
			t.Errorf("%s, and the registry fails too: %v", name, err)
		}
	}
	var asked atomic.Bool
	b := fetch.Fallback(whole(t, p), watched{whole(t, p), &asked})
	if _, err := b.ReadRange(t.Context(), 0, 1<<20); !errors.Is(err, fetch.ErrRange) {
		t.Errorf("a range that is none: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.ReadRange(ctx, 0, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if asked.Load() {
		t.Error("the registry was asked")
	}
}

// watched tells whether it was read.
type watched struct {
	fetch.Local
	asked *atomic.Bool
}

func (b watched) ReadRange(ctx context.Context, off, n int64) (fetch.Stream, error) {
	b.asked.Store(true)
	return b.Local.ReadRange(ctx, off, n)
}

// A stream that began with wrong bytes of the file and ended with others: the
// next one must not begin with the file again.
func TestFallbackRejectsBoth(t *testing.T) {
	want := bytes.Repeat([]byte("lamina "), 100)
	size, dgst := int64(len(want)), digest.FromBytes(want)
	path := filepath.Join(t.TempDir(), "short")
	writeFile(t, path, bytes.ToUpper(want[:10]))
	b := fetch.Fallback(fetch.OpenFile(path, 0, size, dgst), whole(t, want))
	if got, err := fetch.ReadAll(t.Context(), b, size); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}

	// Who got nothing of the file says nothing of it.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b = fetch.Fallback(fetch.OpenFile(path, 0, size, dgst), whole(t, bytes.ToUpper(want)))
	s, err := b.ReadRange(t.Context(), 0, size)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(s)
	s.Reject(errors.New("wrong digest"))
	_ = s.Close()
	writeFile(t, path, want)
	if got, rerr := fetch.ReadAll(t.Context(), b, size); err != nil || rerr != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v, %v", len(got), err, rerr)
	}
}

// Close and Reject may come while Read goes over to the registry, and end that.
func TestFallbackCloseWhileSwapping(t *testing.T) {
	p := randomBytes(10_000)
	for range 50 {
		b := fetch.Fallback(faulty{Local: whole(t, p), read: unix.EIO, good: 10}, whole(t, p))
		s, err := b.ReadRange(t.Context(), 0, 10_000)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, s) })
		wg.Go(func() { s.Reject(errors.New("bad")) })
		wg.Go(func() { _ = s.Close() })
		wg.Wait()
		if n, err := s.Read(make([]byte, 10)); n != 0 || err == nil {
			t.Fatalf("Read after Close: %d bytes, %v", n, err)
		}
	}
	// A registry that does not answer does not keep it.
	remote := stuckBlob{whole(t, p), make(chan struct{})}
	s, err := fetch.Fallback(faulty{Local: whole(t, p), read: unix.EIO}, remote).ReadRange(t.Context(), 0, 10)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := s.Read(make([]byte, 10)); done <- err }()
	<-remote.asked
	_ = s.Close()
	select {
	case err := <-done:
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
			t.Errorf("closed: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Read goes on after Close")
	}
}

// stuckBlob is a remote blob whose host does not answer.
type stuckBlob struct {
	fetch.Blob
	asked chan struct{}
}

func (b stuckBlob) ReadRange(ctx context.Context, _, _ int64) (fetch.Stream, error) {
	close(b.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}
