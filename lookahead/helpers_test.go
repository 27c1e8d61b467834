package lookahead

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// fakeLayer is a layer in memory that records what is read and wished for.
type fakeLayer struct {
	data []byte
	key  string
	gate chan struct{} // if not nil, reads wait until it is closed
	deaf bool          // and do not give up either
	far  bool          // nothing is here that was not read
	then func()        // if not nil, is called at the end of every read

	mu    sync.Mutex
	tries int            // number of reads, also of those that failed
	read  int64          // where the last of what was read ends
	calls [][]cache.Wish // of Want
}

func (l *fakeLayer) ReadAt(ctx context.Context, p []byte, off int64) error {
	l.mu.Lock()
	l.tries++
	l.mu.Unlock()
	if l.gate != nil {
		done := ctx.Done()
		if l.deaf {
			done = nil
		}
		select {
		case <-l.gate:
		case <-done:
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || int64(len(p)) > int64(len(l.data))-off {
		return io.ErrUnexpectedEOF
	}
	copy(p, l.data[off:])
	l.mu.Lock()
	defer l.mu.Unlock()
	l.read = max(l.read, off+int64(len(p)))
	if l.then != nil {
		l.then()
	}
	return nil
}

// Peek has what is in memory, which is all, unless the layer is far away.
func (l *fakeLayer) Peek(p []byte, off int64) bool {
	if l.far || off < 0 || int64(len(p)) > int64(len(l.data))-off {
		return false
	}
	copy(p, l.data[off:])
	return true
}

func (l *fakeLayer) Key() string { return l.key }

func (l *fakeLayer) Want(wishes ...cache.Wish) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, wishes)
}

// reading is how many reads there were.
func (l *fakeLayer) reading() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tries
}

// wanted returns what was wished for, call by call.
func (l *fakeLayer) wanted() [][]cache.Wish {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.calls)
}

// put adds n to the tree at path, with folders on the way.
func put(root *index.Node, path string, n *index.Node) {
	names := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for _, name := range names[:len(names)-1] {
		dir := root.Child(name)
		if dir == nil {
			dir = &index.Node{Mode: unix.S_IFDIR | 0o755}
			root.SetChild(name, dir)
		}
		root = dir
	}
	root.SetChild(names[len(names)-1], n)
}

func emptyFile() *index.Node { return &index.Node{Mode: unix.S_IFREG | 0o644} }

func extentsOf(layer int, off, n int64) []index.Extent {
	return []index.Extent{{Len: n, Off: off, Device: uint16(layer + 1)}}
}

func symlink(target string) *index.Node {
	return &index.Node{Mode: unix.S_IFLNK | 0o777, Size: int64(len(target)), Target: []byte(target)}
}

// merged returns the index of the tree below root over some devices.
func merged(t testing.TB, root *index.Node, devices int) *index.Index {
	t.Helper()
	tree := &index.Tree{Root: root}
	for range devices {
		tree.Devices = append(tree.Devices, index.Device{Size: 1 << 30})
	}
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

// sceneOf returns the scene of a tree over layers.
func sceneOf(x *index.Index, layers ...*fakeLayer) *scene {
	s := new(scene)
	data := make([]overlay.Data, len(layers))
	for i, l := range layers {
		data[i], s.layers = l, append(s.layers, l)
	}
	s.tree = overlay.New(x, data)
	return s
}

// An image is a tree in the making, whose files have data in layers.
type image struct {
	root   *index.Node
	layers []*fakeLayer
	files  map[string]file
}

func newImage(layers int) *image {
	m := &image{root: &index.Node{Mode: unix.S_IFDIR | 0o755}, files: make(map[string]file)}
	for i := range layers {
		m.layers = append(m.layers, &fakeLayer{key: fmt.Sprintf("layer%d", i)})
	}
	return m
}

// add puts a file into a layer, behind those that are in it.
func (m *image) add(layer int, path string, content []byte) {
	l := m.layers[layer]
	l.data = append(l.data, make([]byte, -len(l.data)&511)...)
	f := file{layer: layer, off: int64(len(l.data)), len: int64(len(content)), sure: true}
	l.data = append(l.data, content...)
	m.files[path] = f
	put(m.root, path, &index.Node{
		Mode: unix.S_IFREG | 0o644, Size: f.len,
		Extents: extentsOf(layer, f.off, f.len),
	})
}

// module adds a module that was compiled from source by Python 3.minor, and goes
// by the name of its source.
func (m *image) module(layer, minor int, source string, list ...importing) {
	name := strings.TrimSuffix(path.Base(source), ".py")
	at := path.Join(path.Dir(source), fmt.Sprintf("__pycache__/%s.cpython-3%d.pyc", name, minor))
	m.add(layer, at, pyc(minor, source, list...))
	m.files[source] = m.files[at]
	delete(m.files, at)
}

func (m *image) scene(t testing.TB) *scene {
	t.Helper()
	return sceneOf(merged(t, m.root, len(m.layers)), m.layers...)
}

// paths names the files that are wished for, in order, and what is no file as
// layer:offset+length.
func (m *image) paths(wishes []wish) []string {
	names := make(map[index.Extent]string)
	for name, f := range m.files {
		names[index.Extent{Len: f.len, Off: f.off, Device: uint16(f.layer + 1)}] = name
	}
	var list []string
	for _, w := range wishes {
		for _, e := range w.extents {
			name, ok := names[e]
			if !ok {
				name = fmt.Sprintf("%d:%d+%d", e.Device-1, e.Off, e.Len)
			}
			list = append(list, name)
		}
	}
	return list
}

// begun is what the cache tells of the file at path when it is read.
func (m *image) begun(path string) (key string, b cache.Begun) {
	f, l := m.files[path], m.layers[m.files[path].layer]
	return l.key, cache.Begun{Off: f.off, Len: f.len, Head: l.data[f.off:][:min(f.len, 64)], Sure: f.sure}
}

// magics are the magic numbers of CPython 3.n, of those that pyc writes.
var magics = map[int]uint16{11: 3495, 12: 3531, 13: 3571, 14: 3627}

// pyc compiles a module of nothing but imports, as CPython 3.minor does.
func pyc(minor int, filename string, list ...importing) []byte {
	var ops, consts, names []byte
	op, n := operationsOf(minor), 0
	emit := func(o byte, arg int) {
		for shift := 24; shift > 0; shift -= 8 {
			if arg>>shift > 0 {
				ops = append(ops, op.extendedArg, byte(arg>>shift))
			}
		}
		ops = append(ops, o, byte(arg))
	}
	for i, m := range list {
		if op.loadSmallInt != 0 {
			emit(op.loadSmallInt, m.level)
		} else {
			consts = append(consts, marshalled(int32(m.level))...)
			emit(op.loadConst, n)
			n++
		}
		consts = append(consts, marshalled(m.from)...)
		emit(op.loadConst, n)
		n++
		names = append(names, marshalled(m.name)...)
		emit(op.importName, i)
	}
	return wrapped(minor, filename, string(ops), sequence(n, consts), sequence(len(list), names))
}

// wrapped returns a compiled module with the given instructions, constants and
// names.
func wrapped(minor int, filename, ops string, consts, names []byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, magics[minor])
	b = append(append(b, '\r', '\n'), make([]byte, headerLen-4)...)
	b = append(append(b, 'c'|0x80), make([]byte, 5*4)...)
	b = append(b, bytesOf('s', ops)...)
	b = append(append(b, consts...), names...)
	for _, v := range [][]byte{
		sequence(0, nil), bytesOf('s', ""), // variables and their kinds
		bytesOf('u', filename), bytesOf('a', "<mod>"), bytesOf('a', "<mod>"),
		{1, 0, 0, 0}, // the first line
		bytesOf('s', "lines"), bytesOf('s', "exceptions"),
	} {
		b = append(b, v...)
	}
	return b
}

func bytesOf(typ byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{typ}, uint32(len(s))), s...)
}

// sequence returns a tuple of n objects.
func sequence(n int, objects []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{'('}, uint32(n)), objects...)
}

// marshalled returns an object.
func marshalled(v any) []byte {
	switch v := v.(type) {
	case int32:
		return binary.LittleEndian.AppendUint32([]byte{'i'}, uint32(v))
	case string:
		return bytesOf('u', v)
	case []string:
		if len(v) == 0 {
			return []byte{'N'}
		}
		var b []byte
		for _, s := range v {
			b = append(b, marshalled(s)...)
		}
		return sequence(len(v), b)
	}
	panic(fmt.Sprintf("cannot marshal %T", v))
}
