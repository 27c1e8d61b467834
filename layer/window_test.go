package layer_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/checkpoint"
)

// windows returns those of a compressed tar, and the size of that.
func windows(t testing.TB) (list [][]byte, size int) {
	src := packGzip(6, 0)(t, randomTar(t, 1, 100, twoSpans))
	blob := src.Blob.(*memBlob).b
	z := checkpoint.NewReader(bytes.NewReader(blob), 512<<10, func(c checkpoint.Checkpoint) error {
		list = append(list, c.Window)
		return nil
	})
	if _, err := io.Copy(io.Discard, z); err != nil {
		t.Fatal(err)
	}
	return list, len(blob)
}

func noise(n int) []byte { return content(rand.New(rand.NewPCG(1, 1)), n) }

func TestWindows(t *testing.T) {
	var w layer.Windows
	list, size := windows(t)
	sum := 0
	for _, window := range list {
		sum += len(w.Pack(window))
	}
	if len(list) < 5 || sum*50 > size {
		t.Errorf("%d windows of %d bytes for a blob of %d", len(list), sum, size)
	}
	for _, window := range append(list, nil, []byte{1}, noise(100), noise(checkpoint.WindowSize), make([]byte, checkpoint.WindowSize)) {
		b := w.Pack(window)
		got, err := w.Unpack(b, len(window))
		if err != nil || !bytes.Equal(got, window) || len(b) > len(window) {
			t.Fatalf("%d bytes became %d, and then %d, %v", len(window), len(b), len(got), err)
		}
	}
	packed := w.Pack(make([]byte, 1000))
	for name, bad := range map[string]struct {
		p []byte
		n int
	}{
		"nothing":  {nil, 5},
		"no frame": {[]byte{1}, 5},
		"cut":      {packed[:len(packed)-1], 1000},
		"short":    {packed, 1001},
		"long":     {packed, 999},
		"one":      {packed, 1},
	} {
		if _, err := w.Unpack(bad.p, bad.n); !errors.Is(err, layer.ErrTable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWindowsReused: windows are unpacked for every miss, and a decoder of zstd
// takes much longer to make.
func TestWindowsReused(t *testing.T) {
	var w layer.Windows
	packed := w.Pack(make([]byte, checkpoint.WindowSize))
	if n := testing.AllocsPerRun(100, func() {
		if _, err := w.Unpack(packed, checkpoint.WindowSize); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzWindow unpacks foreign windows.
func FuzzWindow(f *testing.F) {
	var w layer.Windows
	list, _ := windows(f)
	f.Add(w.Pack(list[len(list)/2]), uint16(len(list[len(list)/2])))
	f.Add(w.Pack(make([]byte, 20_000)), uint16(20_000))
	f.Fuzz(func(t *testing.T, p []byte, size uint16) {
		n := int(size) % (checkpoint.WindowSize + 1)
		if got, err := w.Unpack(p, n); err == nil && len(got) != n {
			t.Fatalf("%d bytes, not %d", len(got), n)
		} else if err != nil && !errors.Is(err, layer.ErrTable) {
			t.Fatal(err)
		}
	})
}

func BenchmarkWindow(b *testing.B) {
	var w layer.Windows
	list, _ := windows(b)
	window := list[len(list)/2]
	packed := w.Pack(window)
	b.Run("pack", func(b *testing.B) {
		for b.Loop() {
			w.Pack(window)
		}
	})
	b.Run("unpack", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.Unpack(packed, len(window)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
