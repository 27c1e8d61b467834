//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// layerBytes is a layer in memory. While gate is set, reads wait for it to be
// closed, as they would for a network.
type layerBytes struct {
	b      []byte
	gate   atomic.Pointer[chan struct{}]
	reads  atomic.Int64 // that were let in
	gaveUp atomic.Int64 // that ended with their context
}

func (l *layerBytes) ReadAt(ctx context.Context, p []byte, off int64) error {
	l.reads.Add(1)
	if gate := l.gate.Load(); gate != nil {
		select {
		case <-*gate:
		case <-ctx.Done():
			l.gaveUp.Add(1)
			return fmt.Errorf("read layer: %w", ctx.Err())
		}
	}
	if off < 0 || off+int64(len(p)) > int64(len(l.b)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, l.b[off:])
	return nil
}

func (l *layerBytes) block(t testing.TB) (open func()) {
	gate := make(chan struct{})
	l.gate.Store(&gate)
	open = sync.OnceFunc(func() { l.gate.Store(nil); close(gate) })
	t.Cleanup(open)
	return open
}

// add appends data at the next block and returns its offset.
func (l *layerBytes) add(b []byte) int64 {
	for len(l.b)%512 != 0 {
		l.b = append(l.b, 0)
	}
	off := int64(len(l.b))
	l.b = append(l.b, b...)
	return off
}

// sample is a tree and its data, with the contents of files by node.
type sample struct {
	tree     *index.Tree
	layers   []*layerBytes
	contents map[*index.Node][]byte
	rng      *rand.Rand
	stamp    int64
}

func newSample(layers int) *sample {
	s := &sample{contents: map[*index.Node][]byte{}, rng: rand.New(rand.NewPCG(1, 2))}
	s.tree = &index.Tree{Root: s.node(unix.S_IFDIR | 0o755)}
	for i := range layers {
		s.layers = append(s.layers, &layerBytes{})
		s.tree.Devices = append(s.tree.Devices, index.Device{Tag: "layer" + strconv.Itoa(i)})
	}
	return s
}

func (s *sample) node(mode uint32) *index.Node {
	s.stamp++
	return &index.Node{Mode: mode, Mtime: 1600000000 + s.stamp, MtimeNsec: uint32(s.stamp % 1e9)}
}

// file makes a regular file of random bytes in one of the layers.
func (s *sample) file(size int, mode uint32) *index.Node {
	n := s.node(unix.S_IFREG | mode)
	b := make([]byte, size)
	for i := 0; i+8 <= size; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], s.rng.Uint64())
	}
	n.Size = int64(size)
	s.contents[n] = b
	if size > 0 {
		d := s.rng.IntN(len(s.layers))
		n.Extents = []index.Extent{{Len: int64(size), Off: s.layers[d].add(b), Device: uint16(d + 1)}}
	}
	return n
}

func (s *sample) dir(parent *index.Node, name string) *index.Node {
	d := s.node(unix.S_IFDIR | 0o755)
	parent.SetChild(name, d)
	return d
}

// oddities fills the root with one of everything.
func (s *sample) oddities() {
	root := s.tree.Root
	root.SetChild("empty", s.file(0, 0o644))
	root.SetChild("suid", s.file(100, 0o4755))
	root.SetChild("big", s.file(5<<20+123, 0o644))
	link := s.node(unix.S_IFLNK | 0o777)
	link.Target = []byte("../somewhere/else")
	root.SetChild("symlink", link)
	long := s.node(unix.S_IFLNK | 0o777)
	long.Target = bytes.Repeat([]byte("long/"), 800)
	root.SetChild("longlink", long)
	for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK} {
		root.SetChild(name, s.node(mode|0o600))
	}
	chr := s.node(unix.S_IFCHR | 0o666)
	chr.Rdev = index.Makedev(1, 3)
	root.SetChild("null", chr)
	blk := s.node(unix.S_IFBLK | 0o660)
	blk.Rdev = index.Makedev(259, 70000)
	root.SetChild("block", blk)
	odd := s.dir(root, "odd")
	odd.Mode = unix.S_IFDIR | 0o3777
	odd.UID, odd.GID = 70000, 4294967290
	odd.SetChild(strings.Repeat("n", 255), s.file(1, 0o600))
	odd.SetChild("not\xffutf8\x80", s.file(511, 0o640))
	odd.SetChild("with space\nnewline", s.file(513, 0o640))
	shared := s.file(4097, 0o644)
	odd.SetChild("name1", shared)
	root.SetChild("name2", shared)
	attrs := s.file(10, 0o750)
	attrs.Xattrs = []index.Xattr{
		{Name: "security.capability", Value: []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		{Name: "user.empty"},
		{Name: "user.long", Value: bytes.Repeat([]byte("v"), 3000)},
		{Name: "system.posix_acl_access", Value: sampleACL()},
	}
	root.SetChild("attrs", attrs)
	sparse := s.node(unix.S_IFREG | 0o644)
	sparse.Size = 1<<20 + 5
	content := make([]byte, sparse.Size)
	piece := bytes.Repeat([]byte("data"), 4096/4)
	for _, at := range []int64{8192, 512 << 10} {
		copy(content[at:], piece)
		sparse.Extents = append(sparse.Extents, index.Extent{FileOff: at, Len: 4096, Off: s.layers[0].add(piece), Device: 1})
	}
	s.contents[sparse] = content
	root.SetChild("sparse", sparse)
	many := s.dir(root, "many")
	for i := range 3000 {
		many.SetChild(fmt.Sprintf("entry-%05d", i), s.file(i%700, 0o644))
	}
	s.dir(root, "emptydir")
}

// sampleACL is user::rwx user:1000:r-- group::r-x mask::r-x other::---
func sampleACL() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, 0xffffffff}, {2, 4, 1000}, {4, 5, 0xffffffff}, {0x10, 5, 0xffffffff}, {0x20, 0, 0xffffffff}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// write stores index and layers in a directory and opens the index.
func (s *sample) write(t testing.TB) (dir string, x *index.Index) {
	t.Helper()
	dir = t.TempDir()
	for i, l := range s.layers {
		l.add(nil) // whole blocks, as a device has
		s.tree.Devices[i].Size = int64(len(l.b))
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), l.b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	meta := filepath.Join(dir, "merged.erofs")
	if err := s.tree.Write(meta); err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(meta)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return dir, x
}

func (s *sample) data() []overlay.Data {
	var d []overlay.Data
	for _, l := range s.layers {
		d = append(d, l)
	}
	return d
}

func (s *sample) served() []fs.LayerData {
	var d []fs.LayerData
	for _, l := range s.layers {
		d = append(d, fs.LayerData{Data: l, Size: int64(len(l.b))})
	}
	return d
}

// mounted is a mount for the length of a test.
type mounted struct {
	dir   string
	stats *fs.Stats
	done  chan error // Serve's result; nil when nothing is served
}

// unmount ends m and checks that its server ended well.
func (m *mounted) unmount(t testing.TB) {
	t.Helper()
	if err := fs.Unmount(context.Background(), m.dir, false); err != nil {
		t.Errorf("unmount: %v", err)
		_ = fs.Unmount(context.Background(), m.dir, true)
	}
	if m.done == nil {
		return
	}
	select {
	case err := <-m.done:
		if err != nil {
			t.Errorf("serve: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("server still runs after unmount")
	}
}

func mountFuse(t testing.TB, s *sample, x *index.Index, o fs.TreeOptions) *mounted {
	t.Helper()
	m := &mounted{dir: t.TempDir(), stats: &fs.Stats{}, done: make(chan error, 1)}
	dev, err := fs.Mount(m.dir, fs.MountOptions{Source: "sample:latest"})
	if err != nil {
		t.Fatal(err)
	}
	o.Stats = m.stats
	go func() {
		defer func() { _ = dev.Close() }()
		m.done <- fs.Serve(context.Background(), dev, fs.NewTree(overlay.New(x, s.data()), o),
			fs.SessionOptions{Stats: m.stats, Trim: x.Release})
	}()
	for name, n := range s.tree.Root.Children() {
		if n.Mode&unix.S_IFMT == unix.S_IFREG {
			noPoll(t, filepath.Join(m.dir, name))
			break
		}
	}
	t.Cleanup(func() { m.unmount(t) })
	return m
}

// noPoll has the kernel learn that the server does not do FUSE_POLL. Go polls every
// file it opens, in a system call that its scheduler does not see: with all of its
// threads there, or one there and the collector waiting for it, nobody is left to
// answer. Only a process that serves its own mount, as these tests do, can be hit.
func noPoll(t testing.TB, file string) {
	t.Helper()
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		t.Fatal(err)
	}
}

// mountErofs uses data files for the layers that complete names, and FUSE for
// the others.
func mountErofs(t testing.TB, s *sample, store string, complete func(layer int) bool) *mounted {
	t.Helper()
	m := &mounted{dir: t.TempDir(), stats: &fs.Stats{}}
	k := fs.KernelMount{Meta: filepath.Join(store, "merged.erofs")}
	for i := range s.layers {
		path := ""
		if complete(i) {
			path = filepath.Join(store, strconv.Itoa(i))
		}
		k.Devices = append(k.Devices, path)
	}
	k.Serve = func(dev *os.File) error {
		fd, err := unix.Dup(int(dev.Fd()))
		if err != nil {
			return err
		}
		mine := os.NewFile(uintptr(fd), "data")
		m.done = make(chan error, 1)
		go func() {
			defer func() { _ = mine.Close() }()
			m.done <- fs.Serve(context.Background(), mine, fs.NewData(s.served(), fs.TreeOptions{Stats: m.stats}),
				fs.SessionOptions{Stats: m.stats})
		}()
		return nil
	}
	if err := fs.MountKernel(m.dir, k); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.unmount(t) })
	return m
}

// engines mounts s in every way there is.
func engines(t *testing.T, s *sample, test func(t *testing.T, m *mounted)) {
	store, x := s.write(t)
	t.Run("fuse", func(t *testing.T) { test(t, mountFuse(t, s, x, fs.TreeOptions{})) })
	t.Run("kernel", func(t *testing.T) {
		test(t, mountErofs(t, s, store, func(int) bool { return true }))
	})
	t.Run("kernel with served data", func(t *testing.T) {
		test(t, mountErofs(t, s, store, func(int) bool { return false }))
	})
	t.Run("kernel with some served data", func(t *testing.T) {
		test(t, mountErofs(t, s, store, func(i int) bool { return i%2 == 0 }))
	})
}

func TestFSShowsTheIndex(t *testing.T) {
	s := newSample(3)
	s.oddities()
	engines(t, s, func(t *testing.T, m *mounted) {
		names := map[*index.Node]int{}
		countNames(s.tree.Root, names)
		compareTree(t, s, m.dir, s.tree.Root, names)
	})
}

func countNames(dir *index.Node, names map[*index.Node]int) {
	for _, n := range dir.Children() {
		if names[n]++; n.IsDir() {
			countNames(n, names)
		}
	}
}

func compareTree(t *testing.T, s *sample, path string, want *index.Node, names map[*index.Node]int) {
	t.Helper()
	compareAttr(t, path, want, names)
	compareXattrs(t, path, want)
	switch want.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		if got, err := os.Readlink(path); err != nil || got != string(want.Target) {
			t.Errorf("readlink %q: %q, %v", path, got, err)
		}
	case unix.S_IFREG:
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, s.contents[want]) {
			t.Errorf("read %q: %d bytes of %d, %v: differ", path, len(got), want.Size, err)
		}
	case unix.S_IFDIR:
		got, err := os.ReadDir(path)
		if err != nil {
			t.Errorf("list %q: %v", path, err)
		}
		if len(got) != want.Len() {
			t.Errorf("list %q: %d entries, want %d", path, len(got), want.Len())
		}
		for _, e := range got {
			child := want.Child(e.Name())
			if child == nil {
				t.Errorf("list %q: unexpected %q", path, e.Name())
				continue
			}
			compareTree(t, s, path+"/"+e.Name(), child, names)
		}
		if _, err := os.Lstat(path + "/not there"); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("lstat of a missing name in %q: %v", path, err)
		}
	}
}

func compareAttr(t *testing.T, path string, want *index.Node, names map[*index.Node]int) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Errorf("lstat %q: %v", path, err)
		return
	}
	type attr struct {
		mode, uid, gid  uint32
		rdev, nlink     uint64
		size, sec, nsec int64
	}
	got := attr{st.Mode, st.Uid, st.Gid, 0, uint64(st.Nlink), 0, st.Mtim.Sec, st.Mtim.Nsec}
	w := attr{want.Mode, want.UID, want.GID, 0, uint64(names[want]), 0, want.Mtime, int64(want.MtimeNsec)}
	switch want.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		got.size, w.size = st.Size, want.Size
	case unix.S_IFLNK:
		got.size, w.size = st.Size, int64(len(want.Target))
	case unix.S_IFCHR, unix.S_IFBLK:
		got.rdev = uint64(index.Makedev(unix.Major(st.Rdev), unix.Minor(st.Rdev)))
		w.rdev = uint64(want.Rdev)
	case unix.S_IFDIR:
		w.nlink = 2
		for _, n := range want.Children() {
			if n.IsDir() {
				w.nlink++
			}
		}
	}
	if got != w {
		t.Errorf("lstat %q:\n got %+v\nwant %+v", path, got, w)
	}
}

func compareXattrs(t *testing.T, path string, want *index.Node) {
	t.Helper()
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Errorf("llistxattr %q: %v", path, err)
		return
	}
	var got, names []string
	if n > 0 {
		got = strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	}
	for _, x := range want.Xattrs {
		names = append(names, x.Name)
		n, err := unix.Lgetxattr(path, x.Name, buf)
		if err != nil || !bytes.Equal(buf[:max(n, 0)], x.Value) {
			t.Errorf("lgetxattr %q %s: %q, %v", path, x.Name, buf[:max(n, 0)], err)
		}
		if n, err := unix.Lgetxattr(path, x.Name, nil); err != nil || n != len(x.Value) {
			t.Errorf("size of xattr %q %s: %d, %v", path, x.Name, n, err)
		}
		if len(x.Value) > 1 {
			if _, err := unix.Lgetxattr(path, x.Name, buf[:1]); err != unix.ERANGE {
				t.Errorf("lgetxattr %q %s into one byte: %v", path, x.Name, err)
			}
		}
	}
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("xattrs of %q: %q, want %q", path, got, names)
	}
	if _, err := unix.Lgetxattr(path, "user.missing", buf); err != unix.ENODATA && (want.Mode&unix.S_IFMT == unix.S_IFREG || err != unix.EPERM) {
		t.Errorf("missing xattr of %q: %v", path, err)
	}
}
