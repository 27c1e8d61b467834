package fs

import (
	"context"
	"errors"
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
	// chown(2) of neither has the kernel change the time alone, and of what is no
	// regular file, whose times it does not keep, nothing.
	c.Chown = c.UID != nil || c.GID != nil || in.Valid == fuse.FATTR_CTIME
	c.Empty = in.Valid == 0
	if c.Chown || c.Empty {
		c.By = caller(&in.InHeader)
	}
	c.Owns = func(uid uint32) bool {
		caller := credentialsOf(in.Pid) // the kernel tells who it is of requests that make files
		return caller.uid == uid || caller.has(unix.CAP_FOWNER)
	}
	if has(fuse.FATTR_SIZE) {
		size := int64(in.Size)
		c.Size, c.By = &size, killer(&in.InHeader, has(fuse.FATTR_KILL_SUIDGID))
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

// resent is set in the number of a request that an earlier server of the session
// was sent (FUSE_UNIQUE_RESEND). It may have done what was asked, and died before it
// said so. The kernel, which holds its locks until there is an answer, has checked
// that a name to be made was not there, and one to be removed was: if it is the other
// way about, that was this request.
const resent = 1 << 63

func again(h *fuse.InHeader) bool { return h.Unique&resent != 0 }

// done makes a success of an error that says so, of a request sent again.
func done(h *fuse.InHeader, status, means fuse.Status) fuse.Status {
	if status == means && again(h) {
		return fuse.OK
	}
	return status
}

func ownerOf(h *fuse.InHeader) union.Owner { return union.Owner{UID: h.Uid, GID: h.Gid} }

func (f *writable) create(h *fuse.InHeader, name string, file union.New, out *fuse.EntryOut) fuse.Status {
	file.Owner = ownerOf(h)
	var a union.Attr
	err := f.u.Create(f.id(h.NodeId), name, file, &a)
	if errors.Is(err, unix.EEXIST) && again(h) {
		err = f.u.Lookup(f.id(h.NodeId), name, &a)
	}
	if err != nil {
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
		err := f.u.Link(ctx, f.id(in.Oldnodeid), f.id(in.NodeId), name, &a)
		if errors.Is(err, unix.EEXIST) && again(&in.InHeader) {
			err = f.u.Lookup(f.id(in.NodeId), name, &a)
		}
		return err
	})
	if status.Ok() {
		f.entryOut(&a, out)
	}
	return status
}

func (f *writable) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return done(h, f.change(cancel, h.Pid, func(ctx context.Context) error {
		return f.u.Unlink(ctx, f.id(h.NodeId), name)
	}), fuse.ENOENT)
}

func (f *writable) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return done(h, errno(f.u.Rmdir(f.id(h.NodeId), name)), fuse.ENOENT)
}

func (f *writable) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	return done(&in.InHeader, f.change(cancel, in.Pid, func(ctx context.Context) error {
		src := union.Name{Dir: f.id(in.NodeId), Name: from}
		dst := union.Name{Dir: f.id(in.Newdir), Name: to}
		if in.Flags&unix.RENAME_EXCHANGE != 0 {
			return f.u.Exchange(ctx, src, dst, in.Unique&^resent, again(&in.InHeader))
		}
		return f.u.Rename(ctx, src, dst, in.Flags)
	}), fuse.ENOENT)
}

func (f *writable) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (written uint32, status fuse.Status) {
	status = f.change(cancel, in.Pid, func(ctx context.Context) error {
		n, err := f.u.Write(ctx, f.id(in.NodeId), data, int64(in.Offset), union.WriteFlags{
			By:   killer(&in.InHeader, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0),
			Late: in.WriteFlags&fuse.WRITE_CACHE != 0,
		})
		written = uint32(n)
		return err
	})
	return written, status
}

// caller is who sent a request. Of most the kernel does not say more than its thread.
func caller(h *fuse.InHeader) union.Caller {
	return func(gid uint32) (privileged, member bool) {
		c := credentialsOf(h.Pid)
		return c.has(unix.CAP_FSETID), c.in(gid)
	}
}

// killer is caller of a request that the kernel says, or not, takes set-id bits.
func killer(h *fuse.InHeader, kills bool) union.Caller {
	if !kills {
		return nil
	}
	return func(gid uint32) (privileged, member bool) { return false, credentialsOf(h.Pid).in(gid) }
}

func (f *writable) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return f.change(cancel, in.Pid, func(ctx context.Context) error {
		return f.u.Allocate(ctx, f.id(in.NodeId), in.Mode, int64(in.Offset), int64(in.Length), caller(&in.InHeader))
	})
}

func (f *writable) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (copied uint32, status fuse.Status) {
	status = f.change(cancel, in.Pid, func(ctx context.Context) error {
		size := int(min(in.Len, 1<<30))
		from := union.Range{ID: f.id(in.NodeId), Off: int64(in.OffIn)}
		to := union.Range{ID: f.id(in.NodeIdOut), Off: int64(in.OffOut)}
		n, err := f.u.CopyRange(ctx, from, to, size, caller(&in.InHeader))
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
	flags := int(in.Flags)
	if again(&in.InHeader) {
		flags = 0 // the same value once more does no harm
	}
	return f.change(cancel, in.Pid, func(ctx context.Context) error {
		drop := in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
		return f.u.SetXattr(ctx, f.id(in.NodeId), name, value, flags, drop)
	})
}

func (f *writable) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return done(h, f.change(cancel, h.Pid, func(ctx context.Context) error {
		return f.u.RemoveXattr(ctx, f.id(h.NodeId), name)
	}), fuse.ENODATA)
}
