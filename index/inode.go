package index

import "fmt"

// Attr is what stat shows of an inode. Mode is st_mode with the type; Rdev is in
// the encoding of Makedev; Size is bytes; Mtime is seconds since 1970. Ino counts
// the inodes from 1 in the order of the image; the kernel shows the NID instead.
type Attr struct {
	Mode, UID, GID, Rdev, Nlink, Ino uint32
	Size, Mtime                      int64
	MtimeNsec                        uint32
}

// inode returns the fixed part of an inode. What it returns has inodeSize bytes,
// the extended form and a known layout.
func (x *Index) inode(nid NID) ([]byte, error) {
	if uint64(nid) > uint64(len(x.b))>>nidBits {
		return nil, badInode(nid, "outside the image")
	}
	pos := int(nid) << nidBits
	if len(x.b)-pos < inodeSize {
		return nil, badInode(nid, "outside the image")
	}
	in := x.b[pos : pos+inodeSize : pos+inodeSize]
	switch le.Uint16(in) {
	case 1 | layoutPlain<<1, 1 | layoutInline<<1, 1 | layoutChunked<<1:
		return in, nil
	}
	return nil, badInode(nid, "unknown format")
}

func badInode(nid NID, what string) error {
	return fmt.Errorf("inode %d: %s: %w", nid, what, ErrCorrupt)
}

func inodeLayout(in []byte) uint16 { return le.Uint16(in) >> 1 }
func inodeMode(in []byte) uint32   { return uint32(le.Uint16(in[4:])) }
func inodeSizeOf(in []byte) uint64 { return le.Uint64(in[8:]) }
func inodeUnion(in []byte) uint32  { return le.Uint32(in[16:]) }
func inodeFlags(in []byte) Flags   { return Flags(in[flagsByte]) }
func inodeIsDir(in []byte) bool    { return inodeMode(in)&modeType == modeDir }
func inodeIsDevice(in []byte) bool {
	t := inodeMode(in) & modeType
	return t == modeChar || t == modeBlock
}

func inodeIsLinkTo(in []byte) bool { return inodeMode(in)&modeType == modeLink || inodeIsHardLink(in) }

func inodeIsHardLink(in []byte) bool {
	return inodeMode(in)&modeType == modeReg && inodeFlags(in)&HardLink != 0
}

// inodeTail returns the position of what follows an inode and its xattrs. It may
// lie outside the image.
func inodeTail(nid NID, in []byte) int64 {
	tail := int64(nid)<<nidBits + inodeSize
	if n := int64(le.Uint16(in[2:])); n > 0 {
		tail += xattrHeader + 4*(n-1)
	}
	return tail
}

// Attr fills a with the attributes of nid.
func (x *Index) Attr(nid NID, a *Attr) error {
	in, err := x.inode(nid)
	if err != nil {
		return err
	}
	size := inodeSizeOf(in)
	if size > 1<<63-1 {
		return badInode(nid, "negative size")
	}
	a.Mode = inodeMode(in)
	a.Size = int64(size)
	a.Rdev = 0
	if inodeIsDevice(in) {
		a.Rdev = inodeUnion(in)
	}
	a.Ino = le.Uint32(in[20:])
	a.UID = le.Uint32(in[24:])
	a.GID = le.Uint32(in[28:])
	a.Mtime = int64(le.Uint64(in[32:]))
	a.MtimeNsec = le.Uint32(in[40:])
	a.Nlink = le.Uint32(in[44:])
	return nil
}

// Flags returns the flags of nid: zero for every inode of a merged index.
func (x *Index) Flags(nid NID) (Flags, error) {
	in, err := x.inode(nid)
	if err != nil {
		return 0, err
	}
	return inodeFlags(in), nil
}

// flat returns the data of an inode that keeps it in the image.
func (x *Index) flat(nid NID, in []byte) ([]byte, error) {
	size := inodeSizeOf(in)
	if size == 0 {
		return nil, nil
	}
	var start int64
	switch inodeLayout(in) {
	case layoutPlain:
		start = int64(inodeUnion(in)) << blockBits
	case layoutInline:
		start = inodeTail(nid, in)
		if size > blockSize {
			return nil, badInode(nid, "inline data of more than a block")
		}
	default:
		return nil, badInode(nid, "data in chunks")
	}
	if start > int64(len(x.b)) || size > uint64(int64(len(x.b))-start) {
		return nil, badInode(nid, "data outside the image")
	}
	end := start + int64(size)
	return x.b[start:end:end], nil
}

// Readlink returns the target of a symlink, or the path of a HardLink node. Of
// other inodes it is an error that wraps ErrCorrupt: the type is to be known
// before.
func (x *Index) Readlink(nid NID) ([]byte, error) {
	in, err := x.inode(nid)
	if err != nil {
		return nil, err
	}
	if !inodeIsLinkTo(in) {
		return nil, badInode(nid, "not a link")
	}
	return x.flat(nid, in)
}
