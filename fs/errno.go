package fs

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// errno is the one place where errors of the packages below become what a
// program sees. Whatever is not named here, be it a digest mismatch, a registry
// that is down or a full disk, is an I/O error to a reader; the log has the rest.
func errno(err error) fuse.Status {
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
