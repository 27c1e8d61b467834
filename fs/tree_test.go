package fs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

func header(node uint64) *fuse.InHeader { return &fuse.InHeader{NodeId: node} }

// lookup returns the entry of a path below the root.
func lookup(t testing.TB, raw fuse.RawFileSystem, path ...string) fuse.EntryOut {
	t.Helper()
	e := fuse.EntryOut{NodeId: 1}
	for _, n := range path {
		dir := e.NodeId
		e = fuse.EntryOut{}
		if s := raw.Lookup(nil, header(dir), n, &e); !s.Ok() || e.NodeId == 0 {
			t.Fatalf("lookup %s: %v, node %d", n, s, e.NodeId)
		}
	}
	return e
}

func TestTreeAttributes(t *testing.T) {
	tree, _ := sampleTree(t)
	raw := fs.NewTree(tree, fs.TreeOptions{})
	file := lookup(t, raw, "file")
	minusOne := ^uint64(0)
	want := fuse.Attr{
		Ino: file.NodeId, Size: 3<<20 + 7, Blocks: 6145, Mode: unix.S_IFREG | 0o4750, Nlink: 2,
		Atime: minusOne, Mtime: minusOne, Ctime: minusOne,
		Atimensec: 999999999, Mtimensec: 999999999, Ctimensec: 999999999,
		Owner: fuse.Owner{Uid: 70000, Gid: 5}, Blksize: 4096,
	}
	if file.Attr != want {
		t.Errorf("file:\n got %+v\nwant %+v", file.Attr, want)
	}
	if file.EntryValid < 1<<31 || file.AttrValid < 1<<31 {
		t.Errorf("validity of %d and %d seconds", file.EntryValid, file.AttrValid)
	}
	var a fuse.AttrOut
	if s := raw.GetAttr(nil, &fuse.GetAttrIn{InHeader: *header(file.NodeId)}, &a); !s.Ok() || a.Attr != want {
		t.Errorf("getattr: %v, %+v", s, a.Attr)
	}
	if again := lookup(t, raw, "again"); again.NodeId != file.NodeId {
		t.Errorf("a hard link is node %d and node %d", file.NodeId, again.NodeId)
	}
	if dev := lookup(t, raw, "dev"); dev.Rdev != index.Makedev(259, 70000) {
		t.Errorf("rdev %#x", dev.Rdev)
	}
	if s := raw.GetAttr(nil, &fuse.GetAttrIn{InHeader: *header(1)}, &a); !s.Ok() || a.Nlink != 3 || a.Ino == 1 {
		t.Errorf("root: %v, %+v", s, a.Attr)
	}
	if s := raw.GetAttr(nil, &fuse.GetAttrIn{InHeader: *header(1 << 40)}, &a); s != fuse.EIO {
		t.Errorf("getattr of a node that is none: %v", s)
	}
}

func TestTreeLookup(t *testing.T) {
	tree, _ := sampleTree(t)
	raw := fs.NewTree(tree, fs.TreeOptions{})
	var e fuse.EntryOut
	if s := raw.Lookup(nil, header(1), "missing", &e); !s.Ok() || e.NodeId != 0 || e.EntryValid < 1<<31 {
		t.Errorf("missing name: %v, node %d, valid %d s", s, e.NodeId, e.EntryValid)
	}
	file, dir := lookup(t, raw, "file"), lookup(t, raw, "dir")
	if s := raw.Lookup(nil, header(file.NodeId), "x", &e); s != fuse.ENOTDIR {
		t.Errorf("lookup in a file: %v", s)
	}
	for _, c := range []struct {
		node uint64
		name string
		want uint64
	}{{dir.NodeId, ".", dir.NodeId}, {dir.NodeId, "..", 1}, {1, ".", 1}, {1, "..", 1}, {file.NodeId, ".", file.NodeId}} {
		e = fuse.EntryOut{}
		if s := raw.Lookup(nil, header(c.node), c.name, &e); !s.Ok() || e.NodeId != c.want {
			t.Errorf("lookup %q in %d: %v, node %d, want %d", c.name, c.node, s, e.NodeId, c.want)
		}
	}
}

func TestTreeListing(t *testing.T) {
	tree, _ := sampleTree(t)
	raw := fs.NewTree(tree, fs.TreeOptions{})
	dir := lookup(t, raw, "dir")
	for _, size := range []int{300, 1000, 4096, 1 << 17} {
		var names []string
		in := fuse.ReadIn{InHeader: *header(dir.NodeId)}
		for {
			list := fuse.NewDirEntryList(make([]byte, size), in.Offset)
			if s := raw.ReadDirPlus(nil, &in, list); !s.Ok() {
				t.Fatal(s)
			}
			entries, outs, err := fuse.ParseDirLookupEntries(list.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for i, e := range entries {
				names = append(names, e.Name)
				switch {
				case strings.HasPrefix(e.Name, "."):
					if outs[i].NodeId != 0 {
						t.Errorf("%s counts as a lookup of %d", e.Name, outs[i].NodeId)
					}
				case outs[i] != lookup(t, raw, "dir", e.Name) || e.Ino != outs[i].Ino || e.Mode != unix.S_IFREG:
					t.Errorf("entry %+v, %+v", e, outs[i])
				}
				in.Offset = e.Off
			}
		}
		var plain []string
		in.Offset = 0
		for {
			list := fuse.NewDirEntryList(make([]byte, size), in.Offset)
			if s := raw.ReadDir(nil, &in, list); !s.Ok() {
				t.Fatal(s)
			}
			entries, err := fuse.ParseDirEntries(list.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) == 0 {
				break
			}
			for _, e := range entries {
				plain, in.Offset = append(plain, e.Name), e.Off
			}
		}
		want := []string{".", ".."}
		for i := range 100 {
			want = append(want, fmt.Sprintf("entry%03d", i))
		}
		if !slices.Equal(names, want) || !slices.Equal(plain, want) {
			t.Errorf("buffer of %d: %d and %d names: %q", size, len(names), len(plain), names)
		}
	}
}

func TestTreeXattrs(t *testing.T) {
	tree, _ := sampleTree(t)
	raw := fs.NewTree(tree, fs.TreeOptions{})
	file, link := lookup(t, raw, "file").NodeId, lookup(t, raw, "link").NodeId
	for _, c := range []struct {
		node   uint64
		name   string
		dest   int
		want   string
		size   uint32
		status fuse.Status
	}{
		{file, "user.a", 0, "", 5, fuse.OK},
		{file, "user.a", 5, "value", 5, fuse.OK},
		{file, "user.a", 100, "value", 5, fuse.OK},
		{file, "user.a", 4, "", 0, fuse.ERANGE},
		{file, "user.empty", 0, "", 0, fuse.OK},
		{file, "user.empty", 9, "", 0, fuse.OK},
		{file, "system.posix_acl_access", 9, "acl", 3, fuse.OK},
		{file, "security.capability", 9, "caps", 4, fuse.OK},
		{file, "system.posix_acl_default", 9, "", 0, fuse.ENODATA},
		{file, "user.b", 9, "", 0, fuse.ENODATA},
		{link, "user.a", 0, "", 0, fuse.ENODATA},
	} {
		dest := make([]byte, c.dest)
		n, s := raw.GetXAttr(nil, header(c.node), c.name, dest)
		if s != c.status || n != c.size || s.Ok() && c.dest > 0 && string(dest[:n]) != c.want {
			t.Errorf("getxattr %s into %d bytes: %v, %d, %q", c.name, c.dest, s, n, dest)
		}
	}
	all := []string{"security.capability", "system.posix_acl_access", "user.a", "user.empty"}
	size := uint32(len(strings.Join(all, " ")) + 1)
	if n, s := raw.ListXAttr(nil, header(file), nil); !s.Ok() || n != size {
		t.Errorf("listxattr size: %v, %d, want %d", s, n, size)
	}
	if _, s := raw.ListXAttr(nil, header(file), make([]byte, size-1)); s != fuse.ERANGE {
		t.Errorf("listxattr into too little: %v", s)
	}
	for _, room := range []uint32{size, size + 7} {
		dest := make([]byte, room)
		n, s := raw.ListXAttr(nil, header(file), dest)
		got := strings.Split(strings.TrimSuffix(string(dest[:n]), "\x00"), "\x00")
		slices.Sort(got)
		if !s.Ok() || n != size || !slices.Equal(got, all) {
			t.Errorf("listxattr: %v, %d, %q", s, n, got)
		}
	}
	if n, s := raw.ListXAttr(nil, header(link), make([]byte, 10)); !s.Ok() || n != 0 {
		t.Errorf("listxattr of nothing: %v, %d", s, n)
	}
}

func TestTreeReadlink(t *testing.T) {
	tree, _ := sampleTree(t)
	raw := fs.NewTree(tree, fs.TreeOptions{})
	if b, s := raw.Readlink(nil, header(lookup(t, raw, "link").NodeId)); !s.Ok() || string(b) != "to/where" {
		t.Errorf("readlink: %v, %q", s, b)
	}
}

func TestTreeSeek(t *testing.T) {
	tree, _ := sampleTree(t)
	raw := fs.NewTree(tree, fs.TreeOptions{})
	// data in [4096, 8704) of 20000
	for _, c := range []struct {
		off    uint64
		whence uint32
		want   uint64
		status fuse.Status
	}{
		{0, unix.SEEK_DATA, 4096, fuse.OK},
		{4096, unix.SEEK_DATA, 4096, fuse.OK},
		{5000, unix.SEEK_DATA, 5000, fuse.OK},
		{8500, unix.SEEK_DATA, 8500, fuse.OK},
		{8704, unix.SEEK_DATA, 0, fuse.Status(unix.ENXIO)},
		{20000, unix.SEEK_DATA, 0, fuse.Status(unix.ENXIO)},
		{1 << 63, unix.SEEK_DATA, 0, fuse.Status(unix.ENXIO)},
		{0, unix.SEEK_HOLE, 0, fuse.OK},
		{4096, unix.SEEK_HOLE, 8704, fuse.OK},
		{5000, unix.SEEK_HOLE, 8704, fuse.OK},
		{9000, unix.SEEK_HOLE, 9000, fuse.OK},
		{20000, unix.SEEK_HOLE, 0, fuse.Status(unix.ENXIO)},
		{0, 9, 0, fuse.EINVAL},
	} {
		in := fuse.LseekIn{InHeader: *header(lookup(t, raw, "sparse").NodeId), Offset: c.off, Whence: c.whence}
		var out fuse.LseekOut
		if s := raw.Lseek(nil, &in, &out); s != c.status || out.Offset != c.want {
			t.Errorf("seek %d from %d: %v, %d, want %v, %d", c.whence, c.off, s, out.Offset, c.status, c.want)
		}
	}
	in := fuse.LseekIn{InHeader: *header(lookup(t, raw, "file").NodeId), Offset: 5, Whence: unix.SEEK_HOLE}
	var out fuse.LseekOut
	if s := raw.Lseek(nil, &in, &out); !s.Ok() || out.Offset != 3<<20+7 {
		t.Errorf("hole at the end of a file: %v, %d", s, out.Offset)
	}
}

func TestTreeStatfs(t *testing.T) {
	tree, _ := sampleTree(t)
	var out fuse.StatfsOut
	if s := fs.NewTree(tree, fs.TreeOptions{}).StatFs(nil, header(1), &out); !s.Ok() ||
		out.NameLen != 255 || out.Bsize != 4096 || out.Blocks < 1024 || out.Bfree != 0 || out.Files < 100 {
		t.Errorf("statfs: %v, %+v", s, out)
	}
}

// What a read dies of decides what the program sees.
func TestReadErrors(t *testing.T) {
	for what, c := range map[string]struct {
		err  error
		want fuse.Status
	}{
		"any":                           {errors.New("digest mismatch"), fuse.EIO},
		"disk full":                     {unix.ENOSPC, fuse.EIO},
		"corrupt index":                 {index.ErrCorrupt, fuse.EIO},
		"somebody else's cancellation":  {fmt.Errorf("shared download: %w", context.Canceled), fuse.EIO},
		"a timeout inside the transfer": {context.DeadlineExceeded, fuse.EIO},
	} {
		tree, layer := sampleTree(t)
		layer.fail = c.err
		raw := fs.NewTree(tree, fs.TreeOptions{})
		in := fuse.ReadIn{InHeader: *header(lookup(t, raw, "file").NodeId), Size: 4096}
		if _, s := raw.Read(nil, &in, make([]byte, 4096)); s != c.want {
			t.Errorf("%s: %v, want %v", what, s, c.want)
		}
	}
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	tree, _ := sampleTree(t)
	raw := fs.NewTree(tree, fs.TreeOptions{})
	file, dir, link := header(lookup(t, raw, "file").NodeId), header(lookup(t, raw, "dir").NodeId), header(lookup(t, raw, "link").NodeId)
	buf := make([]byte, 32<<10)
	var entry fuse.EntryOut
	var attr fuse.AttrOut
	list := fuse.NewDirEntryList(buf, 0)
	// Made here, as the session's come from its buffers.
	root, getattr := header(1), &fuse.GetAttrIn{InHeader: *file}
	readdir, read := &fuse.ReadIn{InHeader: *dir}, &fuse.ReadIn{InHeader: *file, Size: 4096}
	for what, c := range map[string]struct {
		most float64
		run  func()
	}{
		"lookup":   {0, func() { raw.Lookup(nil, root, "file", &entry) }},
		"no entry": {0, func() { raw.Lookup(nil, root, "missing", &entry) }},
		"getattr":  {0, func() { raw.GetAttr(nil, getattr, &attr) }},
		"readlink": {0, func() { raw.Readlink(nil, link) }},
		"getxattr": {0, func() { raw.GetXAttr(nil, file, "user.a", buf) }},
		"no xattr": {0, func() { raw.GetXAttr(nil, file, "user.b", buf) }},
		// The index puts each name together from its prefix and the rest.
		"listxattr":   {4, func() { raw.ListXAttr(nil, file, buf) }},
		"forget":      {0, func() { raw.Forget(file.NodeId, 1) }},
		"readdirplus": {0, func() { *list = *fuse.NewDirEntryList(buf, 0); raw.ReadDirPlus(nil, readdir, list) }},
		// The context, and the result go-fuse's interface asks for.
		"read": {2, func() { raw.Read(nil, read, buf[:4096]) }},
	} {
		if n := testing.AllocsPerRun(100, c.run); n > c.most {
			t.Errorf("%s allocates %.1f times, want %.0f", what, n, c.most)
		}
	}
}

func TestLayerData(t *testing.T) {
	_, layer := sampleTree(t)
	raw := fs.NewData([]fs.LayerData{{Data: layer, Size: 1000}, {Data: layer, Size: 1024}, {Data: layer}}, fs.TreeOptions{})
	for n, size := range map[string]uint64{"0": 1024, "1": 1024, "2": 0} {
		e := lookup(t, raw, n)
		if e.Size != size || e.Mode != unix.S_IFREG|0o400 {
			t.Errorf("file %s: %+v", n, e.Attr)
		}
		var out fuse.OpenOut
		if s := raw.Open(nil, &fuse.OpenIn{InHeader: *header(e.NodeId)}, &out); !s.Ok() || out.OpenFlags&fuse.FOPEN_DIRECT_IO == 0 {
			t.Errorf("open %s: %v, flags %#x", n, s, out.OpenFlags)
		}
	}
	for _, n := range []string{"3", "-1", "00", "+1", "", "x", "65536"} {
		var e fuse.EntryOut
		if s := raw.Lookup(nil, header(1), n, &e); !s.Ok() || e.NodeId != 0 {
			t.Errorf("lookup %q: %v, node %d", n, s, e.NodeId)
		}
	}
	padded := append(slices.Clone(layer.b[:1000]), make([]byte, 24)...)
	for _, c := range []struct{ off, size int }{{0, 1024}, {0, 4096}, {512, 512}, {999, 2}, {1000, 24}, {1010, 100}, {1024, 10}, {5000, 10}} {
		buf := bytes.Repeat([]byte{0xee}, c.size)
		in := fuse.ReadIn{InHeader: *header(lookup(t, raw, "0").NodeId), Offset: uint64(c.off), Size: uint32(c.size)}
		r, s := raw.Read(nil, &in, buf)
		if !s.Ok() {
			t.Fatal(s)
		}
		got, _ := r.Bytes(nil)
		want := padded[min(c.off, 1024):min(c.off+c.size, 1024)]
		if !bytes.Equal(got, want) {
			t.Errorf("read %d at %d: %d bytes, want %d", c.size, c.off, len(got), len(want))
		}
	}
	list := fuse.NewDirEntryList(make([]byte, 4096), 0)
	if s := raw.ReadDirPlus(nil, &fuse.ReadIn{InHeader: *header(1)}, list); !s.Ok() {
		t.Error(s)
	}
	entries, _, err := fuse.ParseDirLookupEntries(list.Bytes())
	if err != nil || len(entries) != 3 || entries[2].Name != "2" {
		t.Errorf("listing: %v, %v", entries, err)
	}
}

var _ overlay.Data = (*memory)(nil)
