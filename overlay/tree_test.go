package overlay_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

type memory []byte

func (m memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || int64(len(p)) > int64(len(m))-off {
		return io.ErrUnexpectedEOF
	}
	copy(p, m[off:])
	return nil
}

func pattern(n int, seed byte) memory {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8) ^ seed
	}
	return b
}

// one returns a tree with one file and that file's node.
func one(t *testing.T, file *index.Node, layers ...overlay.Data) (*overlay.Tree, index.NID) {
	t.Helper()
	root := &index.Node{Mode: unix.S_IFDIR | 0o755}
	root.SetChild("f", file)
	tree := &index.Tree{Root: root}
	for range layers {
		tree.Devices = append(tree.Devices, index.Device{Size: 1 << 20})
	}
	b, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}
	o := overlay.New(x, layers)
	nid, err := o.Lookup(o.Root(), "f")
	if err != nil {
		t.Fatal(err)
	}
	return o, nid
}

func TestRead(t *testing.T) {
	low, high := pattern(64<<10, 1), pattern(64<<10, 2)
	file := &index.Node{
		Mode: unix.S_IFREG, Size: 30000,
		Extents: []index.Extent{
			{FileOff: 4096, Len: 4096, Off: 512, Device: 2},
			{FileOff: 8192, Len: 4096, Off: 8192, Device: 1},
			{FileOff: 28672, Len: 1328, Off: 1024, Device: 2},
		},
	}
	content := make([]byte, 30000)
	copy(content[4096:], high[512:][:4096])
	copy(content[8192:], low[8192:][:4096])
	copy(content[28672:], high[1024:][:1328])
	tree, nid := one(t, file, low, high)
	for _, c := range []struct{ off, n int }{
		{0, 30000},
		{0, 100000},
		{0, 1},
		{4095, 2},
		{8000, 400},
		{12287, 2},
		{20000, 5000},
		{28671, 2},
		{29999, 1},
		{29999, 10},
		{30000, 1},
		{1 << 30, 1},
		{-1, 4},
		{5000, 0},
	} {
		p := bytes.Repeat([]byte{0xee}, c.n)
		n, err := tree.Read(t.Context(), nid, p, int64(c.off))
		var want []byte
		if c.off >= 0 && c.off < len(content) {
			want = content[c.off:min(c.off+c.n, len(content))]
		}
		if err != nil || !bytes.Equal(p[:n], want) {
			t.Errorf("read %d at %d: %d bytes, %v; want %d bytes", c.n, c.off, n, err, len(want))
		}
		if tail := p[n:]; !bytes.Equal(tail, bytes.Repeat([]byte{0xee}, len(tail))) {
			t.Errorf("read %d at %d wrote past the %d bytes it returned", c.n, c.off, n)
		}
	}
}

func TestReadErrors(t *testing.T) {
	file := &index.Node{Mode: unix.S_IFREG, Size: 2000, Extents: []index.Extent{{Len: 2000, Off: 512, Device: 1}}}
	tree, nid := one(t, file, pattern(1000, 0))
	if _, err := tree.Read(t.Context(), nid, make([]byte, 2000), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("data that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tree.Read(ctx, nid, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := tree.Read(t.Context(), tree.Root(), make([]byte, 10), 0); err == nil {
		t.Error("a directory was read")
	}
	if _, err := tree.Read(t.Context(), 1<<40, make([]byte, 10), 0); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("a node that is none: %v", err)
	}
	// A tree that was given fewer layers than its index names.
	full, fnid := one(t, file, pattern(4096, 0))
	short := overlay.New(full.Index, nil)
	if _, err := short.Read(t.Context(), fnid, make([]byte, 10), 0); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("missing layer: %v", err)
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	file := &index.Node{Mode: unix.S_IFREG, Size: 2000, Extents: []index.Extent{{Len: 2000, Off: 512, Device: 1}}}
	tree, nid := one(t, file, pattern(4096, 0))
	p := make([]byte, 2000)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := tree.Read(context.Background(), nid, p, 0); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%.1f allocations", n)
	}
}
