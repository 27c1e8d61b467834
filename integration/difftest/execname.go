package difftest

import (
	"bytes"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// nameExecutor is the half of executor for what acts on names and attributes.
func nameExecutor(k Kind) func(*Root, Op, *Result) {
	switch k {
	case Rename:
		return doRename
	case Link:
		return doLink
	case Unlink:
		return doUnlink
	case Rmdir:
		return doRmdir
	case Mkdir:
		return doMkdir
	case Symlink:
		return doSymlink
	case Readlink:
		return doReadlink
	case Mknod:
		return doMknod
	case Chmod:
		return doChmod
	case Chown:
		return doChown
	case Utimes:
		return doUtimes
	case Setxattr:
		return doSetxattr
	case Getxattr:
		return doGetxattr
	case Lsxattr:
		return doLsxattr
	case Rmxattr:
		return doRmxattr
	case StatFile:
		return doStat
	case Access:
		return doAccess
	case Statfs:
		return doStatfs
	}
	return nil
}

func doRename(r *Root, op Op, res *Result) {
	res.fail(unix.Renameat2(r.dir, op.Path, r.dir, op.Path2, uint(op.Flags)))
}

func doLink(r *Root, op Op, res *Result) {
	if op.Slot != 0 {
		p := strconv.Itoa(r.fd(op.Slot))
		res.fail(unix.Linkat(r.proc, p, r.dir, op.Path2, unix.AT_SYMLINK_FOLLOW))
		return
	}
	res.fail(unix.Linkat(r.dir, op.Path, r.dir, op.Path2, int(op.Flags)))
}

func doUnlink(r *Root, op Op, res *Result) {
	res.fail(unix.Unlinkat(r.dir, op.Path, 0))
}

func doRmdir(r *Root, op Op, res *Result) {
	res.fail(unix.Unlinkat(r.dir, op.Path, unix.AT_REMOVEDIR))
}

func doMkdir(r *Root, op Op, res *Result) {
	res.fail(unix.Mkdirat(r.dir, op.Path, uint32(op.Mode)))
}

func doSymlink(r *Root, op Op, res *Result) {
	res.fail(unix.Symlinkat(op.Name, r.dir, op.Path))
}

func doReadlink(r *Root, op Op, res *Result) {
	b := make([]byte, 4096)
	n, err := unix.Readlinkat(r.at(op), op.Path, b)
	res.fail(err)
	res.Data = b[:max(0, n)]
}

func doMknod(r *Root, op Op, res *Result) {
	res.fail(unix.Mknodat(r.dir, op.Path, uint32(op.Mode), int(op.Off)))
}

func doChmod(r *Root, op Op, res *Result) {
	if op.Slot != 0 {
		res.fail(unix.Fchmod(r.fd(op.Slot), uint32(op.Mode)))
		return
	}
	res.fail(unix.Fchmodat(r.dir, op.Path, uint32(op.Mode), int(op.Flags)))
}

func doChown(r *Root, op Op, res *Result) {
	if op.Slot != 0 {
		res.fail(unix.Fchown(r.fd(op.Slot), int(op.UID), int(op.GID)))
		return
	}
	res.fail(unix.Fchownat(r.dir, op.Path, int(op.UID), int(op.GID), int(op.Flags)))
}

func timespec(ns int64) unix.Timespec {
	switch ns {
	case TimeNow:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	case TimeOmit:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.NsecToTimespec(ns)
}

func doUtimes(r *Root, op Op, res *Result) {
	ts := []unix.Timespec{timespec(op.Off), timespec(op.Off2)}
	dir, what, p, flags := r.dir, "set", op.Path, int(op.Flags)
	if op.Slot != 0 {
		dir, p, flags = r.fd(op.Slot), "", unix.AT_EMPTY_PATH
	}
	if err := unix.UtimesNanoAt(dir, p, ts, flags); err != nil {
		res.fail(err)
		return
	}
	r.stat(res, what, dir, p, flags)
	// What was left out, reading may have changed at any time.
	res.Stats[0].atimeSet = op.Off != TimeOmit
}

func nofollow(op Op) bool { return op.Flags&unix.AT_SYMLINK_NOFOLLOW != 0 }

func doSetxattr(r *Root, op Op, res *Result) {
	value, how := []byte(op.Value), int(op.Mode)
	switch {
	case op.Slot != 0:
		res.fail(unix.Fsetxattr(r.fd(op.Slot), op.Name, value, how))
	case nofollow(op):
		res.fail(unix.Lsetxattr(op.Path, op.Name, value, how))
	default:
		res.fail(unix.Setxattr(op.Path, op.Name, value, how))
	}
}

func doGetxattr(r *Root, op Op, res *Result) {
	b := make([]byte, op.Len)
	n, err := 0, error(nil)
	switch {
	case op.Slot != 0:
		n, err = unix.Fgetxattr(r.fd(op.Slot), op.Name, b)
	case nofollow(op):
		n, err = unix.Lgetxattr(op.Path, op.Name, b)
	default:
		n, err = unix.Getxattr(op.Path, op.Name, b)
	}
	res.fail(err)
	res.N, res.Data = int64(n), b[:min(max(0, n), len(b))]
}

func doLsxattr(r *Root, op Op, res *Result) {
	b := make([]byte, 64<<10)
	n, err := 0, error(nil)
	switch {
	case op.Slot != 0:
		n, err = unix.Flistxattr(r.fd(op.Slot), b)
	case nofollow(op):
		n, err = unix.Llistxattr(op.Path, b)
	default:
		n, err = unix.Listxattr(op.Path, b)
	}
	res.fail(err)
	names := bytes.Split(b[:max(0, n)], []byte{0})
	slices.SortFunc(names, bytes.Compare)
	res.Data = bytes.Join(names, []byte{0})
}

func doRmxattr(r *Root, op Op, res *Result) {
	switch {
	case op.Slot != 0:
		res.fail(unix.Fremovexattr(r.fd(op.Slot), op.Name))
	case nofollow(op):
		res.fail(unix.Lremovexattr(op.Path, op.Name))
	default:
		res.fail(unix.Removexattr(op.Path, op.Name))
	}
}

func doStat(r *Root, op Op, res *Result) {
	if op.Slot != 0 {
		r.stat(res, "fd", r.fd(op.Slot), "", unix.AT_EMPTY_PATH)
	} else {
		r.stat(res, "path", r.at(op), op.Path, int(op.Flags))
	}
	res.Errno = res.Stats[0].Errno
}

func doAccess(r *Root, op Op, res *Result) {
	res.fail(unix.Faccessat(r.at(op), op.Path, uint32(op.Mode), int(op.Flags)))
}

func doStatfs(r *Root, op Op, res *Result) {
	var st unix.Statfs_t
	if op.Slot != 0 {
		res.fail(unix.Fstatfs(r.fd(op.Slot), &st))
		return
	}
	res.fail(unix.Statfs(op.Path, &st))
}
