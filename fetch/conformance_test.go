package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/fetch"
)

// testBlob is what every Blob must do. make returns a blob of the bytes p.
func testBlob(t *testing.T, make func(t *testing.T, p []byte) fetch.Blob) {
	truth := randomBytes(300_000)
	size := int64(len(truth))
	ctx := context.Background()

	t.Run("name", func(t *testing.T) {
		b := make(t, truth)
		if b.Digest() != digest.FromBytes(truth) || b.Size() != size {
			t.Fatalf("is %s, %d bytes", b.Digest(), b.Size())
		}
	})
	t.Run("ranges", func(t *testing.T) {
		b := make(t, truth)
		cases := [][2]int64{{0, size}, {0, 1}, {size - 1, 1}, {1, size - 1}, {0, 0}, {size, 0}, {7, 0}}
		for range 40 {
			off := randomInt(size)
			cases = append(cases, [2]int64{off, randomInt(size - off + 1)})
		}
		for _, c := range cases {
			wantRange(t, b, truth, c[0], c[1])
		}
	})
	t.Run("small reads", func(t *testing.T) {
		b := make(t, truth)
		s, err := b.ReadRange(ctx, 1000, 5000)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		if err := iotest.TestReader(struct{ io.Reader }{s}, truth[1000:6000]); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Read(nil); n != 0 || err != io.EOF && err != nil {
			t.Fatalf("Read(nil) after the end: %d, %v", n, err)
		}
	})
	t.Run("outside", func(t *testing.T) {
		b := make(t, truth)
		const most = 1<<63 - 1
		for _, c := range [][2]int64{{-1, 1}, {0, -1}, {0, size + 1}, {size, 1}, {size + 1, 0}, {most, most}, {1, most}, {-5, -5}} {
			if s, err := b.ReadRange(ctx, c[0], c[1]); !errors.Is(err, fetch.ErrRange) || s != nil {
				t.Errorf("%v: %v, %v", c, s, err)
			}
		}
	})
	t.Run("empty", func(t *testing.T) {
		b := make(t, nil)
		wantRange(t, b, nil, 0, 0)
		if p, err := fetch.ReadAll(ctx, b, 10); err != nil || len(p) != 0 {
			t.Fatalf("ReadAll: %q, %v", p, err)
		}
	})
	t.Run("read all", func(t *testing.T) {
		b := make(t, truth)
		p, err := fetch.ReadAll(ctx, b, size)
		if err != nil || !bytes.Equal(p, truth) {
			t.Fatalf("%d bytes, %v", len(p), err)
		}
		if _, err := fetch.ReadAll(ctx, b, size-1); !errors.Is(err, fetch.ErrTooBig) {
			t.Fatalf("with a limit below its size: %v", err)
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		b := make(t, truth)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for range 10 {
					off := randomInt(size)
					wantRange(t, b, truth, off, randomInt(size-off+1))
				}
			})
		}
		wg.Wait()
	})
	t.Run("cancel", func(t *testing.T) {
		b := make(t, truth)
		ctx, cancel := context.WithCancel(ctx)
		s, err := b.ReadRange(ctx, 0, size)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		if _, err := io.ReadFull(s, bytes.Clone(truth[:10])); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.Copy(io.Discard, s); !errors.Is(err, context.Canceled) {
			t.Errorf("Read after cancel: %v", err)
		}
		if _, err := b.ReadRange(ctx, 0, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("ReadRange after cancel: %v", err)
		}
	})
	t.Run("close", func(t *testing.T) {
		b := make(t, truth)
		s, err := b.ReadRange(ctx, 5, 100)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s.Reject(errors.New("bad"))
		}
		if n, err := s.Read(bytes.Clone(truth[:10])); n != 0 || err == nil || err == io.EOF {
			t.Fatalf("Read after Close: %d, %v", n, err)
		}
		wantRange(t, b, truth, 5, 100)
	})
}

// wantRange reads a range and compares it.
func wantRange(t *testing.T, b fetch.Blob, truth []byte, off, n int64) {
	t.Helper()
	p, err := readRange(context.Background(), b, off, n)
	if err != nil {
		t.Errorf("%d bytes at %d: %v", n, off, err)
	} else if !bytes.Equal(p, truth[off:off+n]) {
		t.Errorf("%d bytes at %d: got %d bytes, not those", n, off, len(p))
	}
}

func readRange(ctx context.Context, b fetch.Blob, off, n int64) ([]byte, error) {
	s, err := b.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	p, err := io.ReadAll(s)
	if cerr := s.Close(); err == nil {
		err = cerr
	}
	return p, err
}

func TestFileBlob(t *testing.T) {
	testBlob(t, func(t *testing.T, p []byte) fetch.Blob {
		path := filepath.Join(t.TempDir(), "blob")
		writeFile(t, path, p)
		return fetch.OpenFile(path, 0, int64(len(p)), digest.FromBytes(p))
	})
}

func TestFileBlobInside(t *testing.T) {
	testBlob(t, func(t *testing.T, p []byte) fetch.Blob {
		path := filepath.Join(t.TempDir(), "archive")
		writeFile(t, path, append(append(randomBytes(512), p...), randomBytes(700)...))
		return fetch.OpenFile(path, 512, int64(len(p)), digest.FromBytes(p))
	})
}

func TestFallbackBlob(t *testing.T) {
	for _, have := range []int64{0, 100, 150_000, 1 << 30} {
		testBlob(t, func(t *testing.T, p []byte) fetch.Blob {
			dir := t.TempDir()
			path, size, dgst := filepath.Join(dir, "blob"), int64(len(p)), digest.FromBytes(p)
			writeFile(t, filepath.Join(dir, "remote"), p)
			writeFile(t, path, p[:min(size, have)])
			return fetch.Fallback(fetch.OpenFile(path, 0, size, dgst), fetch.OpenFile(filepath.Join(dir, "remote"), 0, size, dgst))
		})
	}
}

func TestRegistryBlob(t *testing.T) {
	testBlob(t, func(t *testing.T, p []byte) fetch.Blob {
		f := newFake(t, httptest.NewServer)
		f.put(p)
		return f.blob(t, newClient(t, fetch.Options{}), p)
	})
}

func TestRegistryBlobIgnoringRanges(t *testing.T) {
	testBlob(t, func(t *testing.T, p []byte) fetch.Blob {
		f := newFake(t, httptest.NewServer)
		f.put(p)
		f.fault = func(_ int, _ http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			return false
		}
		return f.blob(t, newClient(t, fetch.Options{}), p)
	})
}

func TestFileErrors(t *testing.T) {
	dir, dgst := t.TempDir(), digest.FromString("x")
	path := filepath.Join(dir, "short")
	writeFile(t, path, []byte("12345"))
	for _, c := range []struct {
		name string
		blob fetch.Blob
		want error
	}{
		{"missing", fetch.OpenFile(filepath.Join(dir, "none"), 0, 10, dgst), fetch.ErrNotFound},
		{"truncated", fetch.OpenFile(path, 0, 10, dgst), fetch.ErrShort},
		{"beyond its end", fetch.OpenFile(path, 100, 10, dgst), fetch.ErrShort},
	} {
		if _, err := readRange(context.Background(), c.blob, 0, 10); !errors.Is(err, c.want) || errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	l := fetch.OpenFile(path, 2, 3, dgst)
	if p, off := l.File(); p != path || off != 2 {
		t.Errorf("File: %s, %d", p, off)
	}
	if _, err := fetch.ReadAll(context.Background(), l, 10); !errors.Is(err, fetch.ErrDigest) {
		t.Errorf("ReadAll of other bytes: %v", err)
	}
}
