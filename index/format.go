package index

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// Errors on which callers decide. Other errors wrap one of them or one of the
// operating system's.
var (
	// ErrCorrupt means the image is not one that this package wrote, or is damaged.
	ErrCorrupt = errors.New("corrupt index")
	// ErrNotExist means the directory has no such entry.
	ErrNotExist = errors.New("no such entry")
	// ErrNotDir means the inode is not a directory.
	ErrNotDir = errors.New("not a directory")
	// ErrNoXattr means the inode has no xattr of that name.
	ErrNoXattr = errors.New("no such xattr")
	// ErrTooBig means that a tree has something the format has no room for.
	ErrTooBig = errors.New("too big for an index")
)

// File type bits of a mode, as in st_mode.
const (
	modeType   = 0o170000
	modeSocket = 0o140000
	modeLink   = 0o120000
	modeReg    = 0o100000
	modeBlock  = 0o060000
	modeDir    = 0o040000
	modeChar   = 0o020000
	modeFifo   = 0o010000
)

// The layout of the image; names after the kernel's fs/erofs/erofs_fs.h.
const (
	blockBits = 9
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xE0F5E1E2
	devOffset   = superOffset + superSize
	devSlotSize = 128
	devTagSize  = 64

	compatChecksum  = 1
	compatMtime     = 2
	incompatChunked = 4
	incompatDevices = 8

	inodeSize  = 64
	nidBits    = 5
	nidUnit    = 1 << nidBits
	flagsByte  = 48 // the first of the 16 reserved bytes that end an inode
	maxRootNID = 1<<16 - 1

	layoutPlain   = 0
	layoutInline  = 2
	layoutChunked = 4

	chunkIndexes  = 0x20
	chunkBitsMask = 0x1f
	chunkSize     = 8 // bytes of one chunk index
	nullBlock     = 1<<32 - 1

	direntSize = 12
	maxName    = 255
	maxTarget  = 4095
	maxPath    = 1 << 20 // of a HardLink's target

	xattrHeader     = 12
	xattrEntry      = 4
	maxXattrValue   = 1<<16 - 1
	maxSharedXattrs = 255
	maxXattrCount   = 1<<16 - 1 // of 4-byte units after the header
)

// Positions of superblock fields, from its start.
const (
	sbChecksum  = 4
	sbCompat    = 8
	sbBlockBits = 12
	sbRootNID   = 14
	sbInodes    = 16
	sbBlocks    = 36
	sbMetaBlock = 40
	sbXattrs    = 44
	sbIncompat  = 80
	sbDevices   = 86
	sbDevTable  = 88
	sbDirBits   = 90
)

// The types of directory entries on disk are the generic FT_* numbers; readers
// get DT_* numbers.
const (
	ftypeReg = 1 + iota
	ftypeDir
	ftypeChar
	ftypeBlock
	ftypeFifo
	ftypeSocket
	ftypeLink

	dtypes = "\x00\x08\x04\x02\x06\x01\x0c\x0a"
)

var le = binary.LittleEndian

// ftype returns the on-disk type of a directory entry, 0 if mode has no valid type.
func ftype(mode uint32) uint8 {
	switch mode & modeType {
	case modeReg:
		return ftypeReg
	case modeDir:
		return ftypeDir
	case modeChar:
		return ftypeChar
	case modeBlock:
		return ftypeBlock
	case modeFifo:
		return ftypeFifo
	case modeSocket:
		return ftypeSocket
	case modeLink:
		return ftypeLink
	}
	return 0
}

// superChecksum is the kernel's checksum of the superblock's block, whose
// checksum field must be zero: CRC-32C without the final inversion.
func superChecksum(block []byte) uint32 {
	return ^crc32.Checksum(block, crc32.MakeTable(crc32.Castagnoli))
}

// roundUp returns n rounded up to a multiple of unit, a power of two.
func roundUp[T int | int64](n, unit T) T {
	return (n + unit - 1) &^ (unit - 1)
}

// xattrPrefixes are the namespaces the format can hold. Those marked whole are
// complete names; the others need a suffix.
var xattrPrefixes = [...]struct {
	index  uint8
	whole  bool
	prefix string
}{
	{1, false, "user."},
	{2, true, "system.posix_acl_access"},
	{3, true, "system.posix_acl_default"},
	{4, false, "trusted."},
	{6, false, "security."},
}

// splitXattr returns the prefix index of name and the rest of it; ok is false
// for a name that the kernel could not show.
func splitXattr(name string) (index uint8, suffix string, ok bool) {
	if len(name) > maxName {
		return 0, "", false
	}
	for i := range xattrPrefixes {
		p := &xattrPrefixes[i]
		n := len(p.prefix)
		if len(name) < n || name[:n] != p.prefix || p.whole != (len(name) == n) {
			continue
		}
		return p.index, name[n:], true
	}
	return 0, "", false
}

// xattrPrefix is the inverse of splitXattr's index.
func xattrPrefix(index uint8) (prefix string, ok bool) {
	for i := range xattrPrefixes {
		if xattrPrefixes[i].index == index {
			return xattrPrefixes[i].prefix, true
		}
	}
	return "", false
}
