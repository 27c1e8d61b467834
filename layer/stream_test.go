package layer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
)

func streamOf(src layer.Source, r io.Reader, w io.WriterAt) error {
	_, err := layer.Stream(context.Background(), src, r, w)
	return err
}

func TestStreamDigests(t *testing.T) {
	b := randomTar(t, 1, 20, oneSpan)
	for _, f := range formats {
		src := f.pack(t, b)
		blob := src.Blob.(*memBlob).b
		wrong := src
		wrong.DiffID = digest.FromString("other")
		err := streamOf(wrong, bytes.NewReader(blob), discard{})
		if !errors.Is(err, layer.ErrDigest) || !strings.Contains(err.Error(), wrong.DiffID.String()) || !strings.Contains(err.Error(), src.DiffID.String()) {
			t.Errorf("%s: wrong diff ID: %v", f.name, err)
		}
		wrong = src
		wrong.Desc.Digest = digest.FromString("other")
		err = streamOf(wrong, bytes.NewReader(blob), discard{})
		if !errors.Is(err, layer.ErrDigest) || !strings.Contains(err.Error(), src.Desc.Digest.String()) {
			t.Errorf("%s: wrong blob digest: %v", f.name, err)
		}
		for _, n := range []int{0, 1, len(blob) / 2, len(blob) - 1} {
			if err := streamOf(src, bytes.NewReader(blob[:n]), discard{}); !errors.Is(err, layer.ErrDigest) {
				t.Errorf("%s: cut at %d: %v", f.name, n, err)
			}
		}
		if err := streamOf(src, io.MultiReader(bytes.NewReader(blob), strings.NewReader("x")), discard{}); !errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: a byte too many: %v", f.name, err)
		}
	}
}

// TestStreamBadLayer: blobs that have the right digest and are no layer.
func TestStreamBadLayer(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	check(t, err)
	good := randomTar(t, 1, 5, oneSpan)
	tests := map[string][]byte{
		"text":               bytes.Repeat([]byte("not a tar\n"), 100),
		"gzip of text":       packGzip(6, 0)(t, bytes.Repeat([]byte("text"), 500)).Blob.(*memBlob).b,
		"cut gzip":           packGzip(6, 0)(t, good).Blob.(*memBlob).b[:50_000],
		"gzip and garbage":   append(packGzip(6, 0)(t, good).Blob.(*memBlob).b, "garbage"...),
		"cut zstd":           enc.EncodeAll(good, nil)[:50_000],
		"zstd and garbage":   append(enc.EncodeAll(good, nil), "garbage"...),
		"zstd bad block":     {0x28, 0xb5, 0x2f, 0xfd, 0, 0x58, 7, 0, 0, 1, 2, 3},
		"zstd huge window":   {0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 1, 0, 0},
		"zstd cut skippable": {0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff, 1},
		"bzip2":              []byte("BZh91AY&SY"),
		"xz":                 {0xfd, '7', 'z', 'X', 'Z', 0, 0},
		"cut tar":            good[:len(good)/2-100],
	}
	for name, b := range tests {
		src := source(b, b, mediaTar, nil)
		err := streamOf(src, bytes.NewReader(b), discard{})
		if !errors.Is(err, layer.ErrFormat) || errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than a line: %v", name, err)
		}
	}
	empty := source(nil, nil, mediaTar, nil)
	if err := streamOf(empty, bytes.NewReader(nil), discard{}); err != nil {
		t.Errorf("empty blob: %v", err)
	}
}

type fullDisk struct{ room int }

func (f *fullDisk) WriteAt(p []byte, _ int64) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, syscall.ENOSPC
	}
	return len(p), nil
}

// endless blocks until its context ends.
type endless struct{ ctx context.Context }

func (e endless) Read([]byte) (int, error) {
	<-e.ctx.Done()
	return 0, e.ctx.Err()
}

// TestStreamStops: errors from outside come back, and no goroutine stays.
func TestStreamStops(t *testing.T) {
	b := randomTar(t, 2, 20, 1_500_000)
	before := runtime.NumGoroutine()
	boom := errors.New("boom")
	for _, f := range formats {
		src := f.pack(t, b)
		blob := src.Blob.(*memBlob).b
		if err := streamOf(src, bytes.NewReader(blob), &fullDisk{room: 1200 << 10}); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: full disk: %v", f.name, err)
		}
		if err := streamOf(src, &failing{b: blob[:len(blob)/2], err: boom}, discard{}); !errors.Is(err, boom) || errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: source: %v", f.name, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		_, err := layer.Stream(ctx, src, io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), endless{ctx}), discard{})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: deadline: %v", f.name, err)
		}
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
}

// TestMediaTypeLies: docker saves compressed layers as plain ones.
func TestMediaTypeLies(t *testing.T) {
	b := randomTar(t, 3, 20, oneSpan)
	for _, f := range formats[:9] {
		src := f.pack(t, b)
		src.Desc.MediaType = mediaTar
		s, _ := open(t, src, false)
		if s.Table.Format() != f.want {
			t.Errorf("%s: recognised as %v", f.name, s.Table.Format())
		}
	}
}

// TestHugeBlocks: zeros compress to blocks far longer than a chunk may be, and
// one zstd frame is entered only at its start.
func TestHugeBlocks(t *testing.T) {
	b := append(tarOf(t, th{Name: "a"})[:1024], rawEntry('0', "zeros", make([]byte, 20<<20))...)
	b = append(b, make([]byte, 1024)...)
	for _, f := range formats[:9] {
		if strings.Contains(f.name, "best") {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			src := f.pack(t, b)
			s, _ := open(t, src, false)
			for i := range s.Table.Len() {
				if c := s.Table.Chunk(i); c.Len > 4<<20 {
					t.Errorf("chunk of %d bytes", c.Len)
				}
			}
			i, ok := s.Table.Find(15 << 20)
			if !ok {
				t.Fatal("no chunk")
			}
			off, n := s.Table.Span(i, i+1)
			r, err := src.Blob.ReadRange(context.Background(), off, n)
			check(t, err)
			check(t, s.Table.Decode(r, i, i+1, s.Table.Verify))
		})
	}
}
