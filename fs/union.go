package fs

import (
	"context"
	"errors"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay/union"
)

// changeDeadline is how long a change may take: that of a large file waits until
// all of it has been fetched, each part within the deadline of a read.
const changeDeadline = 24 * time.Hour

// writable serves a union.Union. Its node ids are the union's IDs (the root is
// FUSE's 1).
type writable struct {
	fuse.RawFileSystem // ENOSYS for all
	reader

	u    *union.Union
	root union.ID
	// flush has the kernel pass on what it keeps of a node's data.
	flush func(node uint64) error
}

// NewUnion returns u as a FUSE filesystem to be served once, by a session with
// SessionOptions.Writable. All methods are safe for concurrent use.
func NewUnion(u *union.Union, o TreeOptions) fuse.RawFileSystem {
	f := &writable{RawFileSystem: fuse.NewDefaultRawFileSystem(), u: u, root: u.Root()}
	f.init(o)
	return f
}

func (f *writable) String() string { return "lamina" }

func (f *writable) OnUnmount() { f.reader.OnUnmount() }

func (f *writable) setFlush(flush func(node uint64) error) { f.flush = flush }

// id maps a FUSE node id to the union's.
func (f *writable) id(node uint64) union.ID {
	if node == rootID {
		return f.root
	}
	return union.ID(node)
}

// node is the inverse of id.
func (f *writable) node(id union.ID) uint64 {
	if id == f.root {
		return rootID
	}
	return uint64(id)
}

func attrOut(a *union.Attr, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: uint64(a.ID), Size: uint64(a.Size), Blocks: uint64(a.Blocks),
		Atime: uint64(a.Atime.Sec), Mtime: uint64(a.Mtime.Sec), Ctime: uint64(a.Ctime.Sec),
		Atimensec: uint32(a.Atime.Nsec), Mtimensec: uint32(a.Mtime.Nsec), Ctimensec: uint32(a.Ctime.Nsec),
		Mode: a.Mode, Nlink: a.Nlink, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev: a.Rdev, Blksize: a.PreferredIO,
	}
}

func (f *writable) entryOut(a *union.Attr, out *fuse.EntryOut) {
	attrOut(a, &out.Attr)
	out.NodeId = f.node(a.ID)
	out.EntryValid, out.AttrValid = forever, forever
}

func (f *writable) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	var a union.Attr
	err := f.u.Lookup(f.id(h.NodeId), name, &a)
	if errors.Is(err, index.ErrNotExist) {
		out.NodeId, out.EntryValid = 0, forever
		return fuse.OK
	}
	if err != nil {
		return errno(err)
	}
	f.entryOut(&a, out)
	return fuse.OK
}

func (f *writable) Forget(node, count uint64) { f.u.Forget(f.id(node), count) }

func (f *writable) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	var a union.Attr
	if err := f.u.Attr(f.id(in.NodeId), &a); err != nil {
		return errno(err)
	}
	attrOut(&a, &out.Attr)
	out.AttrValid = forever
	return fuse.OK
}

func (f *writable) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	target, err := f.u.Readlink(f.id(h.NodeId))
	return target, errno(err)
}

// Open, OpenDir, Create and Flush are refused: the kernel then opens by itself, makes
// files with MKNOD, and keeps its caches. No request needs a handle.
func (f *writable) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (f *writable) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (f *writable) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.ENOSYS
}

func (f *writable) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

func (f *writable) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	return f.run(cancel, in, buf, func(ctx context.Context, p []byte) (int, error) {
		return f.u.Read(ctx, f.id(in.NodeId), p, int64(in.Offset))
	})
}

// Lseek looks at what is in the upper directory. The kernel does not say before what
// it still keeps, and what is not written yet would be a hole.
func (f *writable) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if f.flush != nil {
		if err := f.flush(in.NodeId); err != nil {
			return errno(err)
		}
	}
	off, err := f.u.Seek(f.id(in.NodeId), int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return errno(err)
}

func (f *writable) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return errno(f.u.ReadDir(f.id(in.NodeId), in.Offset, false, func(e *union.Entry, _ *union.Attr) bool {
		return out.AddDirEntry(dirEntry(e))
	}))
}

func (f *writable) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return errno(f.u.ReadDir(f.id(in.NodeId), in.Offset, true, func(e *union.Entry, a *union.Attr) bool {
		to := out.AddDirLookupEntry(dirEntry(e))
		if to == nil {
			return false
		}
		if name := string(e.Name); name != "." && name != ".." {
			f.entryOut(a, to)
		}
		return true
	}))
}

func dirEntry(e *union.Entry) fuse.DirEntry {
	return fuse.DirEntry{
		Mode: uint32(e.Type) << 12,
		Name: unsafe.String(unsafe.SliceData(e.Name), len(e.Name)),
		Ino:  uint64(e.ID),
		Off:  e.Next,
	}
}

func (f *writable) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := f.u.StatFS(&st); err != nil {
		return errno(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: nameMax,
	}
	return fuse.OK
}

func (f *writable) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n, err := f.u.Xattr(f.id(h.NodeId), name, dest)
	return uint32(max(n, 0)), errno(err)
}

// ListXAttr gives the size alone when dest is empty.
func (f *writable) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	l := xattrNames{dest: dest, caller: h.Pid}
	return l.answer(f.u.Xattrs(f.id(h.NodeId), func(name []byte) bool {
		l.add(name)
		return true
	}))
}
