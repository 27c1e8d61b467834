package index

import "strings"

// xattrArea is the part of an inode that names its xattrs.
type xattrArea struct {
	shared []byte // ids, 4 bytes each
	inline []byte // entries
}

// xattrsOf returns the xattrs of an inode, empty if it has none.
func (x *Index) xattrsOf(nid NID, in []byte) (a xattrArea, err error) {
	start := int64(nid)<<nidBits + inodeSize
	end := inodeTail(nid, in)
	if start == end {
		return a, nil
	}
	if end > int64(len(x.b)) {
		return a, badInode(nid, "xattrs outside the image")
	}
	area := x.b[start:end]
	ids := xattrHeader + 4*int(area[4])
	if ids > len(area) {
		return a, badInode(nid, "malformed xattrs")
	}
	return xattrArea{shared: area[xattrHeader:ids], inline: area[ids:]}, nil
}

// cutXattr takes the first entry off b.
func cutXattr(b []byte) (index uint8, suffix, value, rest []byte, ok bool) {
	if len(b) < xattrEntry {
		return 0, nil, nil, nil, false
	}
	nameEnd := xattrEntry + int(b[0])
	end := nameEnd + int(le.Uint16(b[2:]))
	if end > len(b) {
		return 0, nil, nil, nil, false
	}
	return b[1], b[xattrEntry:nameEnd], b[nameEnd:end:end], b[min(roundUp(end, 4), len(b)):], true
}

// next returns the next xattr of a, with its shared id or -1. more is false at
// the end, and after an error.
func (a *xattrArea) next(x *Index, nid NID) (index uint8, suffix, value []byte, id int64, more bool, err error) {
	var ok bool
	switch {
	case len(a.shared) > 0:
		id = int64(le.Uint32(a.shared))
		a.shared = a.shared[4:]
		if pos := x.xattrs + 4*id; pos < int64(len(x.b)) {
			index, suffix, value, _, ok = cutXattr(x.b[pos:])
		}
	case len(a.inline) > 0:
		id = -1
		index, suffix, value, a.inline, ok = cutXattr(a.inline)
	default:
		return 0, nil, nil, 0, false, nil
	}
	if !ok {
		return 0, nil, nil, 0, false, badInode(nid, "malformed xattrs")
	}
	return index, suffix, value, id, true, nil
}

// Xattr returns the value of the xattr name of nid, which aliases the image. If
// there is none, it returns ErrNoXattr as it is. It allocates nothing.
func (x *Index) Xattr(nid NID, name string) ([]byte, error) {
	in, err := x.inode(nid)
	if err != nil {
		return nil, err
	}
	want, rest, ok := splitXattr(name)
	if !ok {
		return nil, ErrNoXattr
	}
	a, err := x.xattrsOf(nid, in)
	if err != nil {
		return nil, err
	}
	for {
		index, suffix, value, _, more, err := a.next(x, nid)
		switch {
		case err != nil:
			return nil, err
		case !more:
			return nil, ErrNoXattr
		case index == want && string(suffix) == rest:
			return value, nil
		}
	}
}

// Xattrs calls fn with each xattr of nid; the order is stable. value aliases the
// image. fn returns false to stop.
func (x *Index) Xattrs(nid NID, fn func(name string, value []byte) bool) error {
	in, err := x.inode(nid)
	if err != nil {
		return err
	}
	a, err := x.xattrsOf(nid, in)
	if err != nil {
		return err
	}
	for {
		index, suffix, value, _, more, err := a.next(x, nid)
		if err != nil || !more {
			return err
		}
		prefix, ok := xattrPrefix(index)
		if !ok {
			continue // as the kernel does
		}
		var name strings.Builder
		name.Grow(len(prefix) + len(suffix))
		name.WriteString(prefix)
		name.Write(suffix)
		if !fn(name.String(), value) {
			return nil
		}
	}
}
