package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
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
	size := 0
	err := f.t.Xattrs(f.nid(h.NodeId), func(name string, _ []byte) bool {
		if size+len(name) < len(dest) {
			copy(dest[size:], name)
			dest[size+len(name)] = 0
		}
		size += len(name) + 1
		return true
	})
	if err != nil {
		return 0, errno(err)
	}
	if len(dest) > 0 && size > len(dest) {
		return 0, fuse.ERANGE
	}
	return uint32(size), fuse.OK
}
