package index

import (
	"bytes"
	"unsafe"
)

// Dirent is an entry of a directory. Type is a DT_* number, as in getdents. Next
// is the cookie of the entry after it.
type Dirent struct {
	Name []byte // aliases the image
	NID  NID
	Type uint8
	Next uint64
}

// dirData returns the blocks of a directory.
func (x *Index) dirData(dir NID) ([]byte, error) {
	in, err := x.inode(dir)
	if err != nil {
		return nil, err
	}
	if !inodeIsDir(in) {
		return nil, ErrNotDir
	}
	return x.flat(dir, in)
}

// dirBlock is one block of a directory: its entries, then their names.
type dirBlock []byte

// blockOf returns block i of data, empty past its end.
func blockOf(data []byte, i int) dirBlock {
	start := min(i*blockSize, len(data))
	return dirBlock(data[start:min(start+blockSize, len(data))])
}

func blockCount(data []byte) int { return (len(data) + blockSize - 1) / blockSize }

// count returns the number of entries, 0 if the block is malformed.
func (b dirBlock) count() int {
	if len(b) < direntSize {
		return 0
	}
	names := int(le.Uint16(b[8:]))
	if names%direntSize != 0 || names >= len(b) {
		return 0
	}
	return names / direntSize
}

// name returns the name of entry k of n, nil if it is malformed. The last name
// ends with the block, or with a zero byte before that.
func (b dirBlock) name(k, n int) []byte {
	start, end := int(le.Uint16(b[k*direntSize+8:])), len(b)
	if start < n*direntSize || start >= end {
		return nil
	}
	if k+1 < n {
		end = int(le.Uint16(b[(k+1)*direntSize+8:]))
		if start >= end || end > len(b) {
			return nil
		}
	} else if z := bytes.IndexByte(b[start:], 0); z >= 0 {
		end = start + z
	}
	if end == start || end-start > maxName {
		return nil
	}
	return b[start:end:end]
}

func (b dirBlock) nid(k int) NID { return NID(le.Uint64(b[k*direntSize:])) }

func (b dirBlock) dtype(k int) uint8 {
	if t := b[k*direntSize+10]; int(t) < len(dtypes) {
		return dtypes[t]
	}
	return 0
}

// Lookup returns the inode of the entry name of dir; "." and ".." are entries,
// and the root is its own parent. It returns ErrNotExist and ErrNotDir as they
// are, not wrapped.
func (x *Index) Lookup(dir NID, name string) (NID, error) {
	want := unsafe.Slice(unsafe.StringData(name), len(name)) // only compared
	data, err := x.dirData(dir)
	if err != nil {
		return 0, err
	}
	// The block that can have the name is the last whose first name is not above it.
	lo, hi := 0, blockCount(data)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		b := blockOf(data, mid)
		n := b.count()
		if n == 0 {
			return 0, badInode(dir, "malformed directory block")
		}
		if bytes.Compare(b.name(0, n), want) <= 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return 0, ErrNotExist
	}
	b := blockOf(data, lo-1)
	n := b.count()
	lo, hi = 0, n
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		entry := b.name(mid, n)
		if entry == nil {
			return 0, badInode(dir, "malformed directory entry")
		}
		switch c := bytes.Compare(entry, want); {
		case c == 0:
			return b.nid(mid), nil
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, ErrNotExist
}

// A cookie is the place of an entry: its block, and its number in the block in
// the low bits, for which a block's at most 39 entries leave room.
const cookieBits = 6

// ReadDir calls fn with the entries of dir in byte order of their names, "." and
// ".." among them (not necessarily first), starting with the one at cookie: 0 or
// the Next of an entry seen before. Cookies are valid as long as the image. fn
// returns false to stop; it must not keep the Dirent, which is used again.
func (x *Index) ReadDir(dir NID, cookie uint64, fn func(*Dirent) bool) error {
	data, err := x.dirData(dir)
	if err != nil {
		return err
	}
	blocks := blockCount(data)
	if cookie>>cookieBits >= uint64(blocks) {
		return nil
	}
	d := x.dirents.Get().(*Dirent)
	defer x.dirents.Put(d)
	k := int(cookie & (1<<cookieBits - 1))
	for i := int(cookie >> cookieBits); i < blocks; i++ {
		b := blockOf(data, i)
		n := b.count()
		if n == 0 {
			return badInode(dir, "malformed directory block")
		}
		for ; k < n; k++ {
			d.Name = b.name(k, n)
			if d.Name == nil {
				return badInode(dir, "malformed directory entry")
			}
			d.NID = b.nid(k)
			d.Type = b.dtype(k)
			d.Next = uint64(i)<<cookieBits | uint64(k+1)
			if k+1 == n {
				d.Next = uint64(i+1) << cookieBits
			}
			if !fn(d) {
				return nil
			}
		}
		k = 0
	}
	return nil
}
