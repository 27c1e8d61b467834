package overlay

import (
	"encoding/binary"

	"github.com/laminafs/lamina/index"
)

// The marks of an upper directory: xattrs whose names begin as the Upper says. See
// the kernel's Documentation/filesystems/overlayfs.rst.
const (
	// MarkOpaque is "y" on a directory with which nothing of the lower tree merges.
	MarkOpaque = "opaque"
	// MarkRedirect is where in the lower tree a directory, or the data of a file
	// with MarkMetacopy, comes from: a path from its root, or a name.
	MarkRedirect = "redirect"
	// MarkMetacopy is on a file whose data is still in the lower tree.
	MarkMetacopy = "metacopy"
	// MarkOrigin is the handle of the lower file that a file was copied up from.
	MarkOrigin = "origin"
	// MarkImpure is "y" on a directory that may have entries with MarkOrigin.
	MarkImpure = "impure"
)

// Xattr returns the name of the xattr that keeps mark.
func (u Upper) Xattr(mark string) string { return u.prefix() + mark }

// The handle in MarkOrigin, struct ovl_fb of the kernel's fs/overlayfs/overlayfs.h,
// with what EROFS makes of an inode number in it: FILEID_INO64_GEN of
// include/linux/exportfs.h, the upper half first. Index images have no UUID and no
// generations.
const (
	originMagic  = 0xfb
	originInode  = 0x81
	originHeader = 21
	originLen    = originHeader + 12
)

// Origin is the value of MarkOrigin for what was copied up from nid: the same as the
// kernel's overlayfs writes over the EROFS mount of the index.
func Origin(nid index.NID) []byte {
	b := make([]byte, originLen)
	b[1], b[2], b[4] = originMagic, originLen, originInode
	binary.NativeEndian.PutUint32(b[originHeader:], uint32(nid>>32))
	binary.NativeEndian.PutUint32(b[originHeader+4:], uint32(nid))
	return b
}

// ParseOrigin returns what Origin was given; false if b is the handle of another
// filesystem's file, or damaged.
func ParseOrigin(b []byte) (index.NID, bool) {
	if len(b) != originLen || b[0] != 0 || b[1] != originMagic || b[2] != originLen || b[4] != originInode {
		return 0, false
	}
	for _, c := range b[5:originHeader] {
		if c != 0 {
			return 0, false
		}
	}
	word := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(b[originHeader+4*i:])) }
	if word(2) != 0 {
		return 0, false
	}
	return index.NID(word(0)<<32 | word(1)), true
}
