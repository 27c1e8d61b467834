package fs

import (
	"context"
	"errors"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// rootID is FUSE's fixed node id of the root.
const rootID = fuse.FUSE_ROOT_ID

const (
	// forever is the validity of entries and attributes: nobody else writes.
	forever = 1 << 32 // seconds; the kernel caps what would overflow

	defaultReadDeadline = 60 * time.Second
	nameMax             = 255
	blockSize           = 4096 // st_blksize and statfs; the kernel's page cache unit
)

// TreeOptions configures NewTree and NewData.
type TreeOptions struct {
	// ReadDeadline ends a read that got no data, with EIO; 0 means 60 s.
	ReadDeadline time.Duration
	// Stats gets bytes and slow reads; nil: not counted.
	Stats *Stats
}

// reader is how both filesystems run a READ: with a context, a deadline and
// statistics.
type reader struct {
	deadline time.Duration
	stats    *Stats
	gone     chan struct{} // closed by OnUnmount
	once     sync.Once
}

func (r *reader) init(o TreeOptions) {
	r.deadline, r.stats, r.gone = o.ReadDeadline, o.Stats, make(chan struct{})
	if r.deadline <= 0 {
		r.deadline = defaultReadDeadline
	}
}

// OnUnmount makes the reads in flight give up, and all later ones fail.
func (r *reader) OnUnmount() { r.once.Do(func() { close(r.gone) }) }

// run calls read, which fills buf in part or whole, and makes the answer of it.
func (r *reader) run(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte,
	read func(ctx context.Context, p []byte) (int, error),
) (fuse.ReadResult, fuse.Status) {
	began := time.Now()
	ctx := &readContext{
		deadline: began.Add(r.deadline), interrupt: cancel, gone: r.gone, caller: in.Pid,
	}
	n, err := read(ctx, buf)
	ended := ctx.Err()
	ctx.release()
	slow := SlowRead{
		Node: in.NodeId, Offset: int64(in.Offset), Bytes: len(buf),
		Took: time.Since(began), When: began, Failed: err != nil,
	}
	if err != nil {
		r.stats.read(slow, 0)
		switch {
		case ended != nil:
			// Whatever the read died of, this is why.
			return nil, readErrno(ended)
		case errors.Is(err, context.Canceled):
			// Another reader's cancellation, such as of a shared download, is
			// no interrupt to this one.
			return nil, fuse.EIO
		}
		return nil, readErrno(err)
	}
	r.stats.read(slow, n)
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// tree serves an overlay.Tree.
type tree struct {
	readOnly
	reader

	t    *overlay.Tree
	root index.NID
	stat fuse.StatfsOut
}

// NewTree returns t as a FUSE filesystem to be served once. All methods are safe
// for concurrent use.
func NewTree(t *overlay.Tree, o TreeOptions) fuse.RawFileSystem {
	f := &tree{readOnly: newReadOnly(), t: t, root: t.Root()}
	f.init(o)
	size := t.Len()
	for _, d := range t.Devices() {
		size += d.Size
	}
	f.stat = fuse.StatfsOut{
		Blocks: uint64((size + blockSize - 1) / blockSize), Files: t.Inodes(),
		Bsize: blockSize, Frsize: blockSize, NameLen: nameMax,
	}
	return f
}

// nid maps a FUSE node id to the index's.
func (f *tree) nid(id uint64) index.NID {
	if id == rootID {
		return f.root
	}
	return index.NID(id)
}

// id is the inverse of nid.
func (f *tree) id(nid index.NID) uint64 {
	if nid == f.root {
		return rootID
	}
	return uint64(nid)
}

// fill puts the attributes of nid into out.
func (f *tree) fill(nid index.NID, out *fuse.Attr) error {
	var a index.Attr
	if err := f.t.Attr(nid, &a); err != nil {
		return err
	}
	mtime := uint64(a.Mtime)
	*out = fuse.Attr{
		Ino: uint64(nid), Size: uint64(a.Size), Blocks: uint64(a.Size+511) / 512,
		Atime: mtime, Mtime: mtime, Ctime: mtime,
		Atimensec: a.MtimeNsec, Mtimensec: a.MtimeNsec, Ctimensec: a.MtimeNsec,
		Mode: a.Mode, Nlink: a.Nlink, Owner: fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev: a.Rdev, Blksize: blockSize,
	}
	return nil
}

// entry fills out for a name that leads to nid.
func (f *tree) entry(nid index.NID, out *fuse.EntryOut) error {
	if err := f.fill(nid, &out.Attr); err != nil {
		return err
	}
	out.NodeId = f.id(nid)
	out.EntryValid, out.AttrValid = forever, forever
	return nil
}

// Lookup answers a missing name with node 0, which the kernel remembers. "." and
// ".." come from NFS handles of nodes the kernel has forgotten.
func (f *tree) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if len(name) > nameMax {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	nid, err := f.nid(h.NodeId), error(nil)
	if name != "." {
		nid, err = f.t.Lookup(nid, name)
	}
	if err == nil {
		err = f.entry(nid, out)
	}
	if errors.Is(err, index.ErrNotExist) {
		out.NodeId, out.EntryValid = 0, forever
		return fuse.OK
	}
	return errno(err)
}

// Forget does nothing: nodes are numbers.
func (f *tree) Forget(uint64, uint64) {}

func (f *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	return errno(f.fill(f.nid(in.NodeId), &out.Attr))
}

func (f *tree) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	target, err := f.t.Readlink(f.nid(h.NodeId))
	return target, errno(err)
}

// Open is refused: the kernel then opens files by itself, without asking again,
// and keeps their pages.
func (f *tree) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir is refused for the same reason.
func (f *tree) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (f *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return errno(f.t.ReadDir(f.nid(in.NodeId), in.Offset, func(d *index.Dirent) bool {
		return out.AddDirEntry(f.direntry(d))
	}))
}

func (f *tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	var failed error
	err := f.t.ReadDir(f.nid(in.NodeId), in.Offset, func(d *index.Dirent) bool {
		e := out.AddDirLookupEntry(f.direntry(d))
		if e == nil {
			return false
		}
		if string(d.Name) != "." && string(d.Name) != ".." {
			failed = f.entry(d.NID, e)
		}
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return errno(err)
}

// direntry is d without a copy of its name: the list copies it before the
// mapping can go away.
func (f *tree) direntry(d *index.Dirent) fuse.DirEntry {
	return fuse.DirEntry{
		Mode: uint32(d.Type) << 12,
		Name: unsafe.String(unsafe.SliceData(d.Name), len(d.Name)),
		Ino:  uint64(d.NID),
		Off:  d.Next,
	}
}

func (f *tree) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = f.stat
	return fuse.OK
}

func (f *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	return f.run(cancel, in, buf, func(ctx context.Context, p []byte) (int, error) {
		return f.t.Read(ctx, f.nid(in.NodeId), p, int64(in.Offset))
	})
}

// Lseek answers SEEK_DATA and SEEK_HOLE; the kernel does the other kinds.
func (f *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	off, err := f.t.Seek(f.nid(in.NodeId), int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return errno(err)
}
