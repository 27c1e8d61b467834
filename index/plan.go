package index

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// planned is a node with its place in the image.
type planned struct {
	node   *Node
	parent uint32 // position of the parent in the plan
	nlink  uint32
	pos    int64 // of the inode
	data   int64 // of the first block of a directory or long target, 0 if inline
	size   int64 // bytes of directory data; of other nodes, i_size
	xattrs int32 // position in plan.xattrs, -1 if none
	layout uint8
	bits   uint8 // chunk bits
}

// plan is the layout of an image: where everything goes, before a byte is written.
type plan struct {
	tree  *Tree
	nodes []planned // in the order of their inodes
	size  int64     // of the image
	xattrPlan
	xattrPos int64 // of the shared xattrs
	chunks   int64 // chunk indexes so far
}

// Bounds on chunk indexes: a sparse file of petabytes with a block of data at an
// odd place must not make an image of gigabytes.
const (
	maxFileChunks = 1 << 22
	maxChunks     = 1 << 24
)

// newPlan lays out t.
func newPlan(t *Tree) (*plan, error) {
	p := &plan{tree: t}
	if t.Root == nil || !t.Root.IsDir() {
		return nil, errors.New("encode index: the root is not a directory")
	}
	if len(t.Devices) > 1<<16-1 {
		return nil, fmt.Errorf("encode index: %d devices: %w", len(t.Devices), ErrTooBig)
	}
	for i, d := range t.Devices {
		if len(d.Tag) > devTagSize || d.Size < 0 || (d.Size+blockSize-1)>>blockBits > nullBlock {
			return nil, fmt.Errorf("encode index: device %d (tag %q, %d bytes): %w", i+1, d.Tag, d.Size, ErrTooBig)
		}
	}
	if err := p.order(); err != nil {
		return nil, err
	}
	p.share()
	if err := p.place(); err != nil {
		return nil, err
	}
	return p, nil
}

// fail makes an error about node i.
func (p *plan) fail(i uint32, err error) error {
	return fmt.Errorf("encode index: %s: %w", p.path(i), err)
}

// path returns a path of node i. It is slow: for errors only.
func (p *plan) path(i uint32) string {
	var names []string
	for i != 0 && len(names) < 64 {
		up := p.nodes[i].parent
		for _, e := range p.nodes[up].node.entries() {
			if e.node == p.nodes[i].node {
				names = append(names, e.name)
				break
			}
		}
		i = up
	}
	var b strings.Builder
	for _, name := range slices.Backward(names) {
		fmt.Fprintf(&b, "/%s", strings.Trim(strconv.Quote(name), `"`))
	}
	if b.Len() == 0 {
		return "/"
	}
	return b.String()
}

// seen returns the position of n in the plan. Slots are left over from earlier
// encodings and may mean anything; what counts is who is at that position.
func (p *plan) seen(n *Node) (uint32, bool) {
	s := n.slot
	return s, int64(s) < int64(len(p.nodes)) && p.nodes[s].node == n
}

func (p *plan) add(n *Node, parent uint32) (uint32, error) {
	if len(p.nodes) >= 1<<31-1 {
		return 0, fmt.Errorf("encode index: %d inodes: %w", len(p.nodes), ErrTooBig)
	}
	i := uint32(len(p.nodes))
	n.slot = i
	p.nodes = append(p.nodes, planned{node: n, parent: parent, nlink: 1, xattrs: -1})
	return i, nil
}

// order lists all nodes: the children of a directory side by side, then its
// subdirectories one after the other. It counts links and checks what it meets.
// There is no recursion, since layers can nest directories as deep as they like.
func (p *plan) order() error {
	if _, err := p.add(p.tree.Root, 0); err != nil {
		return err
	}
	for todo := []uint32{0}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		entries := p.nodes[dir].node.entries()
		subdirs := len(todo)
		nlink := uint32(2)
		for _, e := range entries {
			if e.node == nil {
				return p.fail(dir, fmt.Errorf("entry %q: no node", e.name))
			}
			if err := checkName(e.name); err != nil {
				return p.fail(dir, err)
			}
			if i, ok := p.seen(e.node); ok {
				if e.node.IsDir() {
					return p.fail(dir, fmt.Errorf("entry %q: directory is also %s", e.name, p.path(i)))
				}
				p.nodes[i].nlink++
				continue
			}
			i, err := p.add(e.node, dir)
			if err != nil {
				return err
			}
			if e.node.IsDir() {
				nlink++
				todo = append(todo, i)
			}
			if err := p.check(i); err != nil {
				return p.fail(i, err)
			}
		}
		p.nodes[dir].nlink = nlink
		slices.Reverse(todo[subdirs:]) // the last is taken first
	}
	return p.check(0)
}

func checkName(name string) error {
	switch {
	case len(name) > maxName:
		return fmt.Errorf("entry %.40q...: name of %d bytes: %w", name, len(name), ErrTooBig)
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("entry %q: invalid name", name)
	}
	return nil
}

// check checks node i by itself and settles its layout and the size of its data.
func (p *plan) check(i uint32) error {
	q := &p.nodes[i]
	n := q.node
	if n.dir != nil && !n.IsDir() && n.Len() > 0 {
		return errors.New("has entries but is not a directory")
	}
	switch {
	case ftype(n.Mode) == 0 || n.Mode > 0xffff:
		return fmt.Errorf("mode %#o: unknown file type", n.Mode)
	case n.IsDir():
		q.size = dirSize(n.entries())
	case n.Mode&modeType == modeLink:
		if len(n.Target) > maxTarget {
			return fmt.Errorf("symlink target of %d bytes: %w", len(n.Target), ErrTooBig)
		}
		return q.setTarget(n.Target)
	case n.Mode&modeType == modeReg && n.Flags&HardLink != 0:
		if len(n.Target) > maxPath {
			return fmt.Errorf("hard link path of %d bytes: %w", len(n.Target), ErrTooBig)
		}
		return q.setTarget(n.Target)
	case n.Mode&modeType == modeReg && n.Size != 0:
		return p.checkFile(q)
	}
	if len(n.Extents) > 0 {
		return errors.New("has extents but no data")
	}
	return nil
}

func (q *planned) setTarget(target []byte) error {
	if bytes.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("link target %.40q: has a zero byte", target)
	}
	q.size = int64(len(target))
	// An inline target must not cross a block. Up to this length there are two
	// places where it does not, so at least one where the inode does not either.
	if len(target) <= blockSize-2*nidUnit {
		q.layout = layoutInline
	}
	return nil
}

// checkFile checks the extents of a regular file that is not empty and finds
// the largest chunk for which every chunk is either one piece of a device or a
// hole.
func (p *plan) checkFile(q *planned) error {
	n := q.node
	if n.Size < 0 {
		return fmt.Errorf("size %d: negative", n.Size)
	}
	blocks := (n.Size-1)>>blockBits + 1
	b := min(bits.Len64(uint64(blocks-1)), chunkBitsMask)
	end, off, dev := int64(0), int64(-1), uint16(0) // where the extent before ends
	cut := func(block int64) {
		if block > 0 && block < blocks {
			b = min(b, bits.TrailingZeros64(uint64(block)))
		}
	}
	for k := range n.Extents {
		e := &n.Extents[k]
		if err := p.checkExtent(e, n.Size); err != nil {
			return err
		}
		start := e.FileOff >> blockBits
		if start < end {
			return fmt.Errorf("extent at %d overlaps the one before", e.FileOff)
		}
		if start != end || e.Off>>blockBits != off || e.Device != dev {
			cut(end)
			cut(start)
		}
		length := (e.Len-1)>>blockBits + 1
		end, off, dev = start+length, e.Off>>blockBits+length, e.Device
	}
	cut(end)
	count := (blocks-1)>>b + 1
	p.chunks += count
	if count > maxFileChunks || p.chunks > maxChunks {
		return fmt.Errorf("%d bytes in %d extents need %d chunks: %w", n.Size, len(n.Extents), count, ErrTooBig)
	}
	q.layout, q.bits, q.size = layoutChunked, uint8(b), n.Size
	return nil
}

func (p *plan) checkExtent(e *Extent, size int64) error {
	switch {
	case e.Device == 0 || int(e.Device) > len(p.tree.Devices):
		return fmt.Errorf("extent at %d: no device %d", e.FileOff, e.Device)
	case (e.FileOff|e.Off)&(blockSize-1) != 0 || e.FileOff < 0 || e.Off < 0:
		return fmt.Errorf("extent at %d, data offset %d: not whole blocks", e.FileOff, e.Off)
	case e.Len <= 0 || e.Len > size-e.FileOff:
		return fmt.Errorf("extent at %d of %d bytes: not within the file's %d", e.FileOff, e.Len, size)
	case e.Off>>blockBits > nullBlock-((e.Len-1)>>blockBits+1):
		return fmt.Errorf("extent at %d, data offset %d: %w", e.FileOff, e.Off, ErrTooBig)
	}
	return nil
}

// firstInode returns the position behind the device table. The superblock's
// checksum covers its whole block, so no inode may begin in it.
func (p *plan) firstInode() int64 {
	return max(superOffset+blockSize, int64(devOffset+devSlotSize*len(p.tree.Devices)))
}

// place gives every inode and every block its position.
func (p *plan) place() error {
	pos := p.firstInode()
	for i := range p.nodes {
		q := &p.nodes[i]
		var xattrs int64
		if q.xattrs >= 0 {
			var err error
			if xattrs, err = p.measure(&p.xattrs[q.xattrs]); err != nil {
				return p.fail(uint32(i), err)
			}
		}
		pos = q.placeInode(pos, xattrs)
	}
	if p.nodes[0].pos>>nidBits > maxRootNID {
		return fmt.Errorf("encode index: %d devices: %w", len(p.tree.Devices), ErrTooBig)
	}
	p.xattrPos = roundUp(pos, blockSize)
	pos = roundUp(p.xattrPos+p.sharedSize, blockSize)
	for i := range p.nodes {
		q := &p.nodes[i]
		if q.layout == layoutPlain && q.size > 0 {
			q.data = pos
			pos = roundUp(pos+q.size, blockSize)
		}
	}
	if pos>>blockBits >= nullBlock {
		return fmt.Errorf("encode index: image of %d bytes: %w", pos, ErrTooBig)
	}
	p.size = pos
	return nil
}

// placeInode puts q at the first fitting position from pos on and returns the
// next free one.
func (q *planned) placeInode(pos, xattrs int64) int64 {
	tail := int64(0)
	switch q.layout {
	case layoutInline:
		tail = q.size
	case layoutChunked:
		tail = q.chunkCount() * chunkSize
	}
	for ; ; pos += nidUnit {
		// The kernel reads an inode that crosses a block by way of a copy, and
		// refuses inline data that does.
		if pos&(blockSize-1) > blockSize-inodeSize {
			continue
		}
		start := pos + inodeSize + xattrs
		if q.layout == layoutInline && start&(blockSize-1)+tail > blockSize {
			continue
		}
		if q.layout == layoutChunked {
			start = roundUp(start, chunkSize)
		}
		q.pos = pos
		return roundUp(start+tail, nidUnit)
	}
}

func (q *planned) chunkCount() int64 {
	return (q.size-1)>>blockBits>>q.bits + 1
}
