package fs

import (
	"context"
	"errors"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// plain are the errors of the upper directory's filesystem, and of the union, that
// are the caller's to know. Others, such as those of a connection, are not.
var plain = [...]unix.Errno{
	unix.EPERM, unix.ENOENT, unix.EACCES, unix.EBUSY, unix.EEXIST, unix.ENOTDIR, unix.EISDIR,
	unix.EINVAL, unix.ENFILE, unix.EMFILE, unix.EFBIG, unix.ENOSPC, unix.EROFS, unix.EMLINK,
	unix.ENAMETOOLONG, unix.ENOTEMPTY, unix.ELOOP, unix.ENODATA, unix.EOPNOTSUPP, unix.ESTALE,
	unix.EDQUOT, unix.ENXIO, unix.E2BIG, unix.ERANGE, unix.ENOMEM, unix.EOVERFLOW, unix.ETXTBSY,
}

// errno is the one place where errors of the packages below become what a
// program sees. Whatever is not named here, be it a digest mismatch or a registry
// that is down, is an I/O error; the log has the rest.
func errno(err error) fuse.Status {
	if e, ok := errors.AsType[unix.Errno](err); ok && slices.Contains(plain[:], e) {
		return fuse.Status(e)
	}
	return readErrno(err)
}

// readErrno is errno for who reads, to whom a full disk beneath the cache, or any
// other error of a system call of ours, is an I/O error.
func readErrno(err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, index.ErrNotExist):
		return fuse.ENOENT
	case errors.Is(err, index.ErrNotDir):
		return fuse.ENOTDIR
	case errors.Is(err, index.ErrNoXattr):
		return fuse.ENODATA
	case errors.Is(err, index.ErrTooBig):
		return fuse.Status(unix.EFBIG)
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	}
	return fuse.EIO
}
