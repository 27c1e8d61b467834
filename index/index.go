package index

import (
	"bytes"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Index is an image, read in place. All its methods but Close may be called
// concurrently and at any time before Close.
//
// Byte slices that methods return or pass on alias the image: they must not be
// changed, and not be used after Close.
type Index struct {
	b       []byte
	mapped  bool
	root    NID
	inodes  uint64
	xattrs  int64 // position of the shared xattrs
	devices []Device
	dirents sync.Pool // of *Dirent: what is passed to a callback escapes
}

// Open maps the image at path. The file must not be changed while it is open;
// replacing it by rename is fine. Errors wrap ErrCorrupt or the operating
// system's.
func Open(path string) (*Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	size := info.Size()
	if size < superOffset+blockSize || int64(int(size)) != size {
		return nil, fmt.Errorf("open index %s: %d bytes: %w", path, size, ErrCorrupt)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("open index %s: mmap: %w", path, err)
	}
	x, err := New(b)
	if err != nil {
		_ = unix.Munmap(b)
		return nil, fmt.Errorf("open index %s: %w", path, err)
	}
	x.mapped = true
	return x, nil
}

// New returns an index that reads b, which must not be changed any more. Only
// the superblock, the device table and the root inode are checked here.
func New(b []byte) (*Index, error) {
	if len(b) < superOffset+blockSize {
		return nil, fmt.Errorf("image of %d bytes: %w", len(b), ErrCorrupt)
	}
	block := b[superOffset : superOffset+blockSize]
	switch {
	case le.Uint32(block) != superMagic:
		return nil, fmt.Errorf("no EROFS superblock at %d: %w", superOffset, ErrCorrupt)
	case block[sbBlockBits] != blockBits || block[sbDirBits] != 0 || le.Uint32(block[sbMetaBlock:]) != 0 ||
		le.Uint32(block[sbIncompat:])&^(incompatChunked|incompatDevices) != 0:
		return nil, fmt.Errorf("superblock: not the layout of an index: %w", ErrCorrupt)
	case int64(le.Uint32(block[sbBlocks:]))<<blockBits > int64(len(b)):
		return nil, fmt.Errorf("image of %d bytes, should have %d blocks: %w", len(b), le.Uint32(block[sbBlocks:]), ErrCorrupt)
	}
	if le.Uint32(block[sbCompat:])&compatChecksum != 0 {
		c := bytes.Clone(block)
		clear(c[sbChecksum : sbChecksum+4])
		if superChecksum(c) != le.Uint32(block[sbChecksum:]) {
			return nil, fmt.Errorf("superblock: wrong checksum: %w", ErrCorrupt)
		}
	}
	x := &Index{
		b:      b,
		root:   NID(le.Uint16(block[sbRootNID:])),
		inodes: le.Uint64(block[sbInodes:]),
		xattrs: int64(le.Uint32(block[sbXattrs:])) << blockBits,
	}
	x.dirents.New = func() any { return new(Dirent) }
	if err := x.readDevices(block); err != nil {
		return nil, err
	}
	if _, err := x.dirData(x.root); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	return x, nil
}

func (x *Index) readDevices(sb []byte) error {
	n := int(le.Uint16(sb[sbDevices:]))
	start := int(le.Uint16(sb[sbDevTable:])) * devSlotSize
	if start+n*devSlotSize > len(x.b) {
		return fmt.Errorf("device table at %d: %w", start, ErrCorrupt)
	}
	x.devices = make([]Device, n)
	for i := range x.devices {
		slot := x.b[start+i*devSlotSize:]
		tag, _, _ := bytes.Cut(slot[:devTagSize], []byte{0})
		x.devices[i] = Device{Tag: string(tag), Size: int64(le.Uint32(slot[devTagSize:])) << blockBits}
	}
	return nil
}

// Close unmaps the image. Nothing of x, and nothing that aliases it, may be in
// use then or later.
func (x *Index) Close() error {
	b := x.b
	x.b = nil
	if !x.mapped || b == nil {
		return nil
	}
	x.mapped = false
	if err := unix.Munmap(b); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	return nil
}

// Release gives the resident pages of the image back to the kernel. They come
// back, from the page cache, as they are touched again.
func (x *Index) Release() {
	if x.mapped {
		// It cannot fail on a mapping of ours, and costs memory only if it does.
		_ = unix.Madvise(x.b, unix.MADV_DONTNEED)
	}
}

// Root returns the NID of the root directory.
func (x *Index) Root() NID { return x.root }

// Inodes returns how many inodes the image says it has.
func (x *Index) Inodes() uint64 { return x.inodes }

// Devices returns the device slots, sizes rounded up to 512 bytes. The caller
// must not change them.
func (x *Index) Devices() []Device { return x.devices }

// Len returns the size of the image in bytes.
func (x *Index) Len() int64 { return int64(len(x.b)) }
