package fs

import (
	"context"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/overlay/union"
)

// change runs do, which may have to fetch what it changes.
func (f *writable) change(cancel <-chan struct{}, caller uint32, do func(ctx context.Context) error) fuse.Status {
	ctx := &readContext{
		deadline: time.Now().Add(changeDeadline), interrupt: cancel, gone: f.gone, caller: caller,
	}
	err := do(ctx)
	ended := ctx.Err()
	ctx.release()
	if err != nil && ended != nil {
		err = ended
	}
	return errno(err)
}

func (f *writable) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := changeOf(in)
	var a union.Attr
	status := f.change(cancel, in.Pid, func(ctx context.Context) error {
		return f.u.Set(ctx, f.id(in.NodeId), &c, &a)
	})
	attrOut(&a, &out.Attr)
	out.AttrValid = forever
	return status
}

// changeOf reads a SETATTR. The time of the inode's change is the upper's own.
func changeOf(in *fuse.SetAttrIn) union.Change {
	var c union.Change
	has := func(bit uint32) bool { return in.Valid&bit != 0 }
	if has(fuse.FATTR_MODE) {
		c.Mode = &in.Mode
	}
	if has(fuse.FATTR_UID) {
		c.UID = &in.Uid
	}
	if has(fuse.FATTR_GID) {
		c.GID = &in.Gid
	}
	if has(fuse.FATTR_SIZE) {
		size := int64(in.Size)
		c.Size, c.DropSetID = &size, has(fuse.FATTR_KILL_SUIDGID)
	}
	if has(fuse.FATTR_ATIME) {
		c.Atime = timeOf(in.Atime, in.Atimensec, has(fuse.FATTR_ATIME_NOW))
	}
	if has(fuse.FATTR_MTIME) {
		c.Mtime = timeOf(in.Mtime, in.Mtimensec, has(fuse.FATTR_MTIME_NOW))
	}
	return c
}

func timeOf(sec uint64, nsec uint32, now bool) *unix.Timespec {
	if now {
		return &unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return &unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

func ownerOf(h *fuse.InHeader) union.Owner { return union.Owner{UID: h.Uid, GID: h.Gid} }

func (f *writable) create(h *fuse.InHeader, name string, file union.New, out *fuse.EntryOut) fuse.Status {
	file.Owner = ownerOf(h)
	var a union.Attr
	if err := f.u.Create(f.id(h.NodeId), name, file, &a); err != nil {
		return errno(err)
	}
	f.entryOut(&a, out)
	return fuse.OK
}

func (f *writable) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.create(&in.InHeader, name, union.New{Mode: in.Mode, Umask: in.Umask, Rdev: in.Rdev}, out)
}

func (f *writable) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return f.create(&in.InHeader, name, union.New{Mode: in.Mode&0o7777 | unix.S_IFDIR, Umask: in.Umask}, out)
}

func (f *writable) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return f.create(h, name, union.New{Mode: unix.S_IFLNK | 0o777, Target: target}, out)
}

// Tmpfile makes a file without a name. The kernel gets no handle it would need.
func (f *writable) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	var a union.Attr
	file := union.New{Mode: in.Mode&0o7777 | unix.S_IFREG, Umask: in.Umask, Owner: ownerOf(&in.InHeader)}
	if err := f.u.CreateUnnamed(f.id(in.NodeId), file, &a); err != nil {
		return errno(err)
	}
	f.entryOut(&a, &out.EntryOut)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (f *writable) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	var a union.Attr
	status := f.change(cancel, in.Pid, func(ctx context.Context) error {
		return f.u.Link(ctx, f.id(in.Oldnodeid), f.id(in.NodeId), name, &a)
	})
	if status.Ok() {
		f.entryOut(&a, out)
	}
	return status
}

func (f *writable) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.change(cancel, h.Pid, func(ctx context.Context) error {
		return f.u.Unlink(ctx, f.id(h.NodeId), name)
	})
}

func (f *writable) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return errno(f.u.Rmdir(f.id(h.NodeId), name))
}

func (f *writable) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	return f.change(cancel, in.Pid, func(ctx context.Context) error {
		src := union.Name{Dir: f.id(in.NodeId), Name: from}
		return f.u.Rename(ctx, src, union.Name{Dir: f.id(in.Newdir), Name: to}, in.Flags)
	})
}

func (f *writable) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (written uint32, status fuse.Status) {
	status = f.change(cancel, in.Pid, func(ctx context.Context) error {
		n, err := f.u.Write(ctx, f.id(in.NodeId), data, int64(in.Offset), union.WriteFlags{
			DropSetID: in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0,
			KeepTime:  in.WriteFlags&fuse.WRITE_CACHE != 0,
		})
		written = uint32(n)
		return err
	})
	return written, status
}

func (f *writable) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return f.change(cancel, in.Pid, func(ctx context.Context) error {
		return f.u.Allocate(ctx, f.id(in.NodeId), in.Mode, int64(in.Offset), int64(in.Length))
	})
}

func (f *writable) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (copied uint32, status fuse.Status) {
	status = f.change(cancel, in.Pid, func(ctx context.Context) error {
		size := int(min(in.Len, 1<<30))
		n, err := f.u.CopyRange(ctx, f.id(in.NodeId), int64(in.OffIn), f.id(in.NodeIdOut), int64(in.OffOut), size)
		copied = uint32(max(n, 0))
		return err
	})
	return copied, status
}

func (f *writable) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	const dataOnly = 1
	return errno(f.u.Sync(f.id(in.NodeId), in.FsyncFlags&dataOnly != 0))
}

func (f *writable) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return errno(f.u.Sync(f.id(in.NodeId), false))
}

func (f *writable) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	return f.change(cancel, in.Pid, func(ctx context.Context) error {
		drop := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
		return f.u.SetXattr(ctx, f.id(in.NodeId), name, value, int(in.Flags), drop)
	})
}

func (f *writable) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return f.change(cancel, h.Pid, func(ctx context.Context) error {
		return f.u.RemoveXattr(ctx, f.id(h.NodeId), name)
	})
}
