package view_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
	"github.com/laminafs/lamina/view"
)

// layer is a layer that a test makes: its tree and its data.
type layer struct {
	root  *index.Node
	data  []byte
	reads atomic.Int64
}

func newLayer() *layer {
	return &layer{root: &index.Node{Mode: syscall.S_IFDIR | 0o755, Flags: index.Implicit, Mtime: 1e9}}
}

func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	l.reads.Add(1)
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > int64(len(l.data)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, l.data[off:])
	return nil
}

// put puts n at path. Directories on the way that are not there are implicit.
func (l *layer) put(path string, n *index.Node) *index.Node {
	dir := l.root
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for _, name := range parts[:len(parts)-1] {
		if dir.Child(name) == nil {
			dir.SetChild(name, &index.Node{Mode: syscall.S_IFDIR | 0o755, Flags: index.Implicit})
		}
		dir = dir.Child(name)
	}
	dir.SetChild(parts[len(parts)-1], n)
	return n
}

func (l *layer) file(path string, mode uint32, content string) *index.Node {
	n := &index.Node{Mode: syscall.S_IFREG | mode, Mtime: 1e9, Size: int64(len(content))}
	if content != "" {
		n.Extents = []index.Extent{{Len: n.Size, Off: l.add(content), Device: 1}}
	}
	return l.put(path, n)
}

// add adds data and returns where it lies.
func (l *layer) add(content string) int64 {
	off := int64(len(l.data))
	l.data = append(l.data, content...)
	l.data = append(l.data, make([]byte, -len(l.data)&511)...)
	return off
}

func (l *layer) dir(path string, mode uint32) *index.Node {
	return l.put(path, &index.Node{Mode: syscall.S_IFDIR | mode, Mtime: 1e9, MtimeNsec: 5})
}

func (l *layer) link(path, target string) *index.Node {
	return l.put(path, &index.Node{Mode: syscall.S_IFLNK | 0o777, Mtime: 1e9, Target: []byte(target)})
}

func (l *layer) hardLink(path, target string) *index.Node {
	return l.put(path, &index.Node{Mode: syscall.S_IFREG | 0o644, Flags: index.HardLink, Target: []byte(target)})
}

func (l *layer) whiteout(path string) { l.put(path, &index.Node{Mode: syscall.S_IFCHR}) }

func opaque(n *index.Node) {
	n.Xattrs = append(n.Xattrs, index.Xattr{Name: "trusted.overlay.opaque", Value: []byte("y")})
}

func encode(t testing.TB, tree *index.Tree) *index.Index {
	t.Helper()
	b, err := tree.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// stack makes an image of layers, the bottom one first.
func stack(t testing.TB, layers ...*layer) *view.Image {
	t.Helper()
	m := &view.Image{Name: "test"}
	var indexes []*index.Index
	var data []overlay.Data
	for i, l := range layers {
		x := encode(t, &index.Tree{Root: l.root, Devices: []index.Device{{Size: int64(len(l.data))}}})
		indexes = append(indexes, x)
		data = append(data, l)
		diffID := digest.FromString(fmt.Sprint("layer", i, string(l.data)))
		m.Layers = append(m.Layers, view.Layer{
			Desc:   ocispec.Descriptor{Digest: digest.FromString(fmt.Sprint("blob", i))},
			DiffID: diffID, Key: diffID.Encoded(), Index: x,
		})
		m.Config.History = append(m.Config.History,
			ocispec.History{CreatedBy: fmt.Sprint("ENV ", i), EmptyLayer: true},
			ocispec.History{CreatedBy: fmt.Sprint("RUN ", i)})
	}
	merged, err := index.Merge(indexes)
	if err != nil {
		t.Fatal(err)
	}
	m.Tree = overlay.New(encode(t, merged), data)
	return m
}
