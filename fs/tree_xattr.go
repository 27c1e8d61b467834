package fs

import (
	"bytes"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// GetXAttr gives the size alone when dest is empty.
func (f *tree) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	value, err := f.t.Xattr(f.nid(h.NodeId), name)
	if err != nil {
		return 0, errno(err)
	}
	if len(dest) > 0 && len(value) > len(dest) {
		return 0, fuse.ERANGE
	}
	copy(dest, value)
	return uint32(len(value)), fuse.OK
}

// ListXAttr gives the size alone when dest is empty. Names are those of the
// index; the kernel asks for system.posix_acl_access and _default by name.
func (f *tree) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	l := xattrNames{dest: dest, caller: h.Pid}
	err := f.t.Xattrs(f.nid(h.NodeId), func(name string, _ []byte) bool {
		l.add(unsafe.Slice(unsafe.StringData(name), len(name))) // which copies it
		return true
	})
	return l.answer(err)
}

// trusted begins the names of xattrs that exist for privileged callers alone. The
// kernel keeps their values from others, and of FUSE files not their names.
var trusted = []byte("trusted.")

// xattrNames is an answer to LISTXATTR.
type xattrNames struct {
	dest   []byte
	size   int
	caller uint32
	asked  bool // whether the caller is privileged
	admin  bool
}

func (l *xattrNames) add(name []byte) {
	if bytes.HasPrefix(name, trusted) {
		if !l.asked {
			l.asked, l.admin = true, credentialsOf(l.caller).has(unix.CAP_SYS_ADMIN)
		}
		if !l.admin {
			return
		}
	}
	if l.size+len(name) < len(l.dest) {
		copy(l.dest[l.size:], name)
		l.dest[l.size+len(name)] = 0
	}
	l.size += len(name) + 1
}

func (l *xattrNames) answer(err error) (uint32, fuse.Status) {
	if err != nil {
		return 0, errno(err)
	}
	if len(l.dest) > 0 && l.size > len(l.dest) {
		return 0, fuse.ERANGE
	}
	return uint32(l.size), fuse.OK
}
