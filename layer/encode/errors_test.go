package encode_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/encode"
)

// noLeak fails when there are more goroutines at the end of the test.
func noLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 200 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
	})
}

// fullDisk has room for so many bytes. It reports a write after the error.
type fullDisk struct {
	t     *testing.T
	room  int
	short bool // says nothing of the error
	done  bool
}

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.done {
		f.t.Error("written again after the error")
	}
	if len(p) <= f.room {
		f.room -= len(p)
		return len(p), nil
	}
	f.done = true
	if f.short {
		return f.room, nil
	}
	return f.room, syscall.ENOSPC
}

// TestWriteErrors: errors of the io.Writer come back, from Write or from Close,
// wherever they happen.
func TestWriteErrors(t *testing.T) {
	noLeak(t)
	b := everything(t, 2<<20).bytes() // two frames of zstd
	for _, f := range formats {
		blob, _ := encoded(t, f, b, 1<<20)
		for _, short := range []bool{false, true} {
			want := error(syscall.ENOSPC)
			if short {
				want = io.ErrShortWrite
			}
			for _, room := range []int{0, 5, 20, len(blob) / 3, len(blob) - 300, len(blob) - 45, len(blob) - 1} {
				w, err := encode.NewWriter(&fullDisk{t: t, room: room, short: short}, f)
				check(t, err)
				_, copyErr := io.Copy(w, bytes.NewReader(b))
				err = w.Close()
				if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "encode "+f.String()+" layer: write blob at ") {
					t.Errorf("%v with room for %d: %v", f, room, err)
				}
				if copyErr != nil && copyErr.Error() != err.Error() {
					t.Errorf("Write: %v, Close: %v", copyErr, err)
				}
				if _, err := w.Write([]byte("x")); !errors.Is(err, want) {
					t.Errorf("Write after Close: %v", err)
				}
				w.Abort()
				if r := w.Result(); r.Size != 0 || r.DiffID != "" || r.Desc.Digest != "" {
					t.Errorf("result of a failure: %+v", r)
				}
			}
		}
	}
}

// TestAbort: nothing stays, and nothing is written any more.
func TestAbort(t *testing.T) {
	noLeak(t)
	b := everything(t, 300<<10).bytes()
	for _, f := range formats {
		for _, n := range []int{0, 1, 1000, len(b) / 2, len(b)} {
			var out bytes.Buffer
			w, err := encode.NewWriter(&out, f)
			check(t, err)
			_, err = w.Write(b[:n])
			check(t, err)
			w.Abort()
			size := out.Len()
			if _, err := w.Write(b[n:]); err == nil {
				t.Error("Write after Abort")
			}
			if err := w.Close(); err == nil || out.Len() != size {
				t.Errorf("%v after %d: Close: %v, %d bytes, %d when aborted", f, n, err, out.Len(), size)
			}
			w.Abort()
		}
		var out bytes.Buffer
		w, err := encode.NewWriter(&out, f)
		check(t, err)
		_, err = w.Write(make([]byte, 1024))
		check(t, err)
		check(t, w.Close())
		size, r := out.Len(), w.Result()
		w.Abort()
		check(t, w.Close())
		if _, err := w.Write(b); err == nil || out.Len() != size {
			t.Errorf("%v: Write after Close: %v", f, err)
		}
		check(t, w.Close())
		if w.Result().Desc.Digest != r.Desc.Digest || r.Desc.Digest == "" {
			t.Errorf("%v: result %+v, then %+v", f, r, w.Result())
		}
	}
}

// TestBadTar: with a table of contents the tar must be one. Others take all.
func TestBadTar(t *testing.T) {
	noLeak(t)
	b := everything(t, 300<<10).bytes()
	end := len(b) - 1024 // without the end of the archive
	link := newTar(t)
	link.add(tar.Header{Name: "stargz.index.json"}, []byte("{}"))
	gz, _ := encoded(t, layer.Gzip, b, len(b))
	for name, in := range map[string][]byte{
		"nothing":           nil,
		"cut in the data":   b[:end-100<<10],
		"cut in a header":   b[:700],
		"cut at an entry":   b[:end],
		"half of the end":   b[:end+512],
		"one byte":          b[:1],
		"text":              bytes.Repeat([]byte("not a tar\n"), 1000),
		"compressed":        gz,
		"own table":         link.bytes(),
		"global header":     globalHeader(t),
		"sparse":            sparse(t),
		"garbage at end":    append(bytes.Clone(b), "garbage"...),
		"name as gzip head": append([]byte{0x1f, 0x8b, 8}, b[3:]...),
	} {
		for _, f := range formats {
			w, err := encode.NewWriter(io.Discard, f)
			check(t, err)
			_, writeErr := w.Write(in)
			err = w.Close()
			if writeErr != nil && err.Error() != writeErr.Error() {
				t.Errorf("%s: Write: %v, Close: %v", name, writeErr, err)
			}
			if !lazy(f) && err != nil || lazy(f) && !errors.Is(err, layer.ErrFormat) {
				t.Errorf("%v of %s: %v", f, name, err)
			}
		}
	}
}

func globalHeader(t *testing.T) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	check(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}))
	check(t, w.Close())
	return out.Bytes()
}

// sparse is a tar with a file of 1 MiB of which 512 bytes are there, in PAX's
// format 1.0. archive/tar refuses to write it under its true names.
func sparse(t *testing.T) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	data := make([]byte, 1024)
	copy(data, "1\n0\n512\n")
	check(t, w.WriteHeader(&tar.Header{Name: "f", Size: 1024, Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{
		"GNU.spXXXX.major": "1", "GNU.spXXXX.minor": "0", "GNU.spXXXX.realsize": "1048576", "GNU.spXXXX.name": "f",
	}}))
	_, err := w.Write(data)
	check(t, err)
	check(t, w.Close())
	return bytes.ReplaceAll(out.Bytes(), []byte("GNU.spXXXX."), []byte("GNU.sparse."))
}
