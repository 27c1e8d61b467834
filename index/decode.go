package index

import (
	"bytes"
	"fmt"
	"strings"
	"unsafe"
)

// Tree decodes the whole image. What it returns does not refer to the image. An
// image that is not sound is ErrCorrupt: the time and memory it takes are bounded
// by the size of the image.
func (x *Index) Tree() (*Tree, error) {
	d := newDecoder(x)
	root, err := d.decode()
	if err != nil {
		return nil, fmt.Errorf("decode index: %w", err)
	}
	return &Tree{Root: root, Devices: append([]Device(nil), x.devices...)}, nil
}

// decoder makes Nodes of an image.
type decoder struct {
	x      *Index
	budget int64            // bytes of the image that may still be looked at
	files  map[NID]*Node    // with several names, by inode
	dirs   map[NID]struct{} // seen
	shared map[int64]Xattr  // by id
	todo   []decoderDir     // directories whose entries are not decoded yet
	layer  *layerMarks      // if decoding for a merge
	nodes  slab[Node]
	exts   slab[Extent]
	kids   slab[children]
	bytes  slab[byte]
}

type decoderDir struct {
	nid  NID
	node *Node
}

// slab hands out values from larger allocations: an image has very many small
// things that live and die together.
type slab[T any] struct{ free []T }

// take returns n zero values.
func (s *slab[T]) take(n int) []T {
	if n > len(s.free) {
		if n > 256 {
			return make([]T, n)
		}
		s.free = make([]T, 1024)
	}
	out := s.free[:n:n]
	s.free = s.free[n:]
	return out
}

// clone returns a copy of b.
func (d *decoder) clone(b []byte) []byte {
	out := d.bytes.take(len(b))
	copy(out, b)
	return out
}

func (d *decoder) string(b []byte) string {
	return unsafe.String(unsafe.SliceData(d.clone(b)), len(b))
}

func newDecoder(x *Index) *decoder {
	return &decoder{
		x:      x,
		budget: int64(len(x.b)),
		files:  map[NID]*Node{},
		dirs:   map[NID]struct{}{},
		shared: map[int64]Xattr{},
	}
}

// charge takes n bytes off the budget. Every byte of a sound image belongs to
// one thing that is decoded once; a foreign one might refer to the same bytes
// from everywhere.
func (d *decoder) charge(nid NID, n int) error {
	d.budget -= int64(n)
	if d.budget < 0 {
		return badInode(nid, "image refers to the same bytes again and again")
	}
	return nil
}

// decode returns the root.
func (d *decoder) decode() (*Node, error) {
	root, err := d.node(d.x.root)
	if err != nil {
		return nil, err
	}
	for len(d.todo) > 0 {
		dir := d.todo[len(d.todo)-1]
		d.todo = d.todo[:len(d.todo)-1]
		if err := d.entries(dir); err != nil {
			return nil, err
		}
	}
	return root, nil
}

// entries decodes the entries of a directory.
func (d *decoder) entries(dir decoderDir) error {
	data, err := d.x.dirData(dir.nid)
	if err != nil {
		return err
	}
	if err := d.charge(dir.nid, len(data)); err != nil {
		return err
	}
	total := 0
	for i := range blockCount(data) {
		total += blockOf(data, i).count()
	}
	if total > 2 {
		c := &d.kids.take(1)[0]
		c.list = make([]entry, 0, total-2)
		dir.node.dir = c
	}
	var last []byte
	for i := range blockCount(data) {
		b := blockOf(data, i)
		n := b.count()
		if n == 0 {
			return badInode(dir.nid, "malformed directory block")
		}
		for k := range n {
			name := b.name(k, n)
			if name == nil || bytes.Compare(last, name) >= 0 || bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0 {
				return badInode(dir.nid, "malformed directory entry")
			}
			last = name
			if string(name) == "." || string(name) == ".." {
				continue
			}
			if err := d.entry(dir.node, name, b.nid(k)); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry adds the entry name, the inode nid, to dir. Entries come in order.
func (d *decoder) entry(dir *Node, name []byte, nid NID) error {
	n, err := d.node(nid)
	if err != nil {
		return err
	}
	if dir.dir == nil {
		dir.dir = &children{}
	}
	s := d.string(name)
	if d.layer != nil && !d.layer.keep(dir, s, n) {
		return nil
	}
	dir.dir.list = append(dir.dir.list, entry{s, n})
	return nil
}

// node decodes an inode.
func (d *decoder) node(nid NID) (*Node, error) {
	in, err := d.x.inode(nid)
	if err != nil {
		return nil, err
	}
	isDir, several := inodeIsDir(in), le.Uint32(in[44:]) != 1
	if isDir {
		if _, ok := d.dirs[nid]; ok {
			return nil, badInode(nid, "directory in two places")
		}
		d.dirs[nid] = struct{}{}
	} else if n := d.files[nid]; several && n != nil {
		return n, nil
	}
	if err := d.charge(nid, inodeSize); err != nil {
		return nil, err
	}
	n := &d.nodes.take(1)[0]
	*n = Node{
		Mode:      inodeMode(in),
		UID:       le.Uint32(in[24:]),
		GID:       le.Uint32(in[28:]),
		Mtime:     int64(le.Uint64(in[32:])),
		MtimeNsec: le.Uint32(in[40:]),
		Flags:     inodeFlags(in),
	}
	switch {
	case ftype(n.Mode) == 0:
		return nil, badInode(nid, "unknown file type")
	case isDir:
		d.todo = append(d.todo, decoderDir{nid, n})
	case inodeIsDevice(in):
		n.Rdev = inodeUnion(in)
	case inodeIsLinkTo(in):
		err = d.target(nid, in, n)
	case n.Mode&modeType == modeReg:
		err = d.extents(nid, in, n)
	}
	if err == nil && le.Uint16(in[2:]) != 0 {
		err = d.xattrs(nid, in, n)
	}
	if !isDir && several {
		d.files[nid] = n
	}
	return n, err
}

func (d *decoder) target(nid NID, in []byte, n *Node) error {
	target, err := d.x.flat(nid, in)
	if err != nil {
		return err
	}
	if err := d.charge(nid, len(target)); err != nil {
		return err
	}
	n.Target = d.clone(target)
	return nil
}

func (d *decoder) extents(nid NID, in []byte, n *Node) error {
	c, err := d.x.chunks(nid, in)
	if err != nil {
		return err
	}
	if err := d.charge(nid, len(c.table)); err != nil {
		return err
	}
	n.Size = c.size
	var one [1]Extent // nearly every file has one extent
	list := one[:0]
	err = d.x.Extents(nid, 0, c.size, func(e Extent) bool {
		if d.layer != nil {
			e.Device = d.layer.device
		}
		list = append(list, e)
		return true
	})
	if err != nil {
		return err
	}
	n.Extents = d.exts.take(len(list))
	copy(n.Extents, list)
	return nil
}

func (d *decoder) xattrs(nid NID, in []byte, n *Node) error {
	a, err := d.x.xattrsOf(nid, in)
	if err != nil {
		return err
	}
	if err := d.charge(nid, xattrHeader+len(a.shared)+len(a.inline)); err != nil {
		return err
	}
	for {
		index, suffix, value, id, more, err := a.next(d.x, nid)
		if err != nil || !more {
			return err
		}
		prefix, ok := xattrPrefix(index)
		if !ok {
			continue
		}
		attr, ok := d.shared[id]
		if !ok {
			if attr, err = d.xattr(nid, prefix, suffix, value, id); err != nil {
				return err
			}
		}
		if d.layer != nil && strings.HasPrefix(attr.Name, overlayPrefix) {
			d.layer.overlayXattr(n, attr)
			continue
		}
		n.Xattrs = append(n.Xattrs, attr)
	}
}

// xattr makes an xattr that was not met before. A shared one is charged now: its
// bytes are no inode's, and its id may lead into the middle of others.
func (d *decoder) xattr(nid NID, prefix string, suffix, value []byte, id int64) (Xattr, error) {
	if id >= 0 {
		if err := d.charge(nid, len(suffix)+len(value)); err != nil {
			return Xattr{}, err
		}
	}
	attr := Xattr{Name: prefix + string(suffix), Value: d.clone(value)}
	if id >= 0 {
		d.shared[id] = attr
	}
	return attr, nil
}
