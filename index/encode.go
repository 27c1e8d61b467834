package index

import (
	"bufio"
	"fmt"
	"io"
)

// encoder writes an image front to back.
type encoder struct {
	*plan
	w   *bufio.Writer
	pos int64
	err error
	buf [blockSize]byte // what is written next; a local array would be on the heap each time
}

// scratch returns n zero bytes to fill and write.
func (e *encoder) scratch(n int) []byte {
	b := e.buf[:n]
	clear(b)
	return b
}

// write writes the planned image and returns its size.
func (p *plan) write(w io.Writer) (int64, error) {
	e := &encoder{plan: p, w: bufio.NewWriterSize(w, 1<<18)}
	e.writeSuper()
	for i := range p.nodes {
		e.writeInode(uint32(i))
	}
	e.seek(p.xattrPos)
	for _, x := range p.shared {
		e.writeXattr(x)
	}
	for i := range p.nodes {
		q := &p.nodes[i]
		if q.data == 0 {
			continue
		}
		e.seek(q.data)
		if q.node.IsDir() {
			e.writeDir(uint32(i))
		} else {
			e.write(q.node.Target)
		}
	}
	e.seek(p.size)
	if e.err == nil {
		e.err = e.w.Flush()
	}
	return e.pos, e.err
}

// write writes b; after an error it only counts.
func (e *encoder) write(b []byte) {
	e.pos += int64(len(b))
	if e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

func (e *encoder) writeString(s string) {
	e.pos += int64(len(s))
	if e.err == nil {
		_, e.err = e.w.WriteString(s)
	}
}

// seek writes zeros up to pos.
func (e *encoder) seek(pos int64) {
	if pos < e.pos && e.err == nil {
		e.err = fmt.Errorf("encode index: at %d, past %d", e.pos, pos) // the plan is wrong
	}
	for e.pos < pos && e.err == nil {
		e.write(e.scratch(int(min(pos-e.pos, blockSize))))
	}
}

// writeSuper writes everything before the first inode.
func (e *encoder) writeSuper() {
	head := make([]byte, e.firstInode())
	for i, d := range e.tree.Devices {
		slot := head[devOffset+i*devSlotSize:]
		copy(slot[:devTagSize], d.Tag)
		le.PutUint32(slot[devTagSize:], uint32(roundUp(d.Size, blockSize)>>blockBits))
	}
	sb := head[superOffset:]
	le.PutUint32(sb, superMagic)
	le.PutUint32(sb[sbCompat:], compatChecksum|compatMtime)
	sb[sbBlockBits] = blockBits
	le.PutUint16(sb[sbRootNID:], uint16(e.nodes[0].pos>>nidBits))
	le.PutUint64(sb[sbInodes:], uint64(len(e.nodes)))
	le.PutUint32(sb[sbBlocks:], uint32(e.size>>blockBits))
	le.PutUint32(sb[sbXattrs:], uint32(e.xattrPos>>blockBits))
	le.PutUint32(sb[sbIncompat:], incompatChunked|incompatDevices)
	le.PutUint16(sb[sbDevices:], uint16(len(e.tree.Devices)))
	le.PutUint16(sb[sbDevTable:], devOffset/devSlotSize)
	le.PutUint32(sb[sbChecksum:], superChecksum(sb[:blockSize]))
	e.write(head)
}

// writeInode writes the inode i with what follows it.
func (e *encoder) writeInode(i uint32) {
	q := &e.nodes[i]
	n := q.node
	e.seek(q.pos)
	b := e.scratch(inodeSize)
	le.PutUint16(b[0:], 1|uint16(q.layout)<<1)
	if q.xattrs >= 0 {
		le.PutUint16(b[2:], uint16((e.xattrs[q.xattrs].size-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.Mode))
	le.PutUint64(b[8:], uint64(q.size))
	switch {
	case q.layout == layoutChunked:
		le.PutUint32(b[16:], chunkIndexes|uint32(q.bits))
	case q.layout == layoutPlain && q.data != 0:
		le.PutUint32(b[16:], uint32(q.data>>blockBits))
	case n.Mode&modeType == modeChar || n.Mode&modeType == modeBlock:
		le.PutUint32(b[16:], n.Rdev)
	}
	le.PutUint32(b[20:], i+1)
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Mtime+int64(n.MtimeNsec/1e9)))
	le.PutUint32(b[40:], n.MtimeNsec%1e9)
	le.PutUint32(b[44:], q.nlink)
	b[flagsByte] = byte(n.Flags)
	e.write(b)
	if q.xattrs >= 0 {
		e.writeXattrs(&e.xattrs[q.xattrs])
	}
	switch q.layout {
	case layoutInline:
		e.write(n.Target)
	case layoutChunked:
		e.seek(roundUp(e.pos, chunkSize))
		e.writeChunks(q)
	}
}

func (e *encoder) writeXattrs(set *xattrSet) {
	b := e.scratch(xattrHeader)
	b[4] = uint8(len(set.shared))
	e.write(b)
	for _, x := range set.shared {
		le.PutUint32(b, x.id)
		e.write(b[:4])
	}
	for _, x := range set.inline {
		e.writeXattr(x)
	}
}

func (e *encoder) writeXattr(x *packedXattr) {
	b := e.scratch(xattrEntry)
	b[0] = uint8(len(x.suffix))
	b[1] = x.index
	le.PutUint16(b[2:], uint16(len(x.value)))
	e.write(b)
	e.writeString(x.suffix)
	e.writeString(x.value)
	e.seek(roundUp(e.pos, 4)) // entries start at multiples of 4, wherever they are
}

// writeChunks writes the chunk indexes of q. checkFile has chosen the chunk so
// that the extent at a chunk's start holds for the whole chunk.
func (e *encoder) writeChunks(q *planned) {
	b := e.scratch(chunkSize)
	extents := q.node.Extents
	for c := range q.chunkCount() {
		at := c << q.bits << blockBits
		for len(extents) > 0 && roundUp(extents[0].FileOff+extents[0].Len, blockSize) <= at {
			extents = extents[1:]
		}
		le.PutUint64(b, nullBlock<<32)
		if len(extents) > 0 && extents[0].FileOff <= at {
			x := &extents[0]
			le.PutUint16(b[2:], x.Device)
			le.PutUint32(b[4:], uint32((x.Off+at-x.FileOff)>>blockBits))
		}
		e.write(b)
	}
}

// dirent is an entry about to be written.
type dirent struct {
	name string
	node uint32 // place in the plan
	kind uint8
}

// eachName calls fn with the names of a directory in order, "." and ".." among
// them, and the node of each, nil for those two. (Names can sort before ".".)
func eachName(entries []entry, fn func(name string, n *Node)) {
	const dots = ".."
	next := 1
	for i := range entries {
		for next <= 2 && dots[:next] < entries[i].name {
			fn(dots[:next], nil)
			next++
		}
		fn(entries[i].name, entries[i].node)
	}
	for ; next <= 2; next++ {
		fn(dots[:next], nil)
	}
}

// dirSize returns the size of a directory's data. Entries do not cross blocks;
// the last block ends with its last name.
func dirSize(entries []entry) int64 {
	var full int64
	used := 0
	eachName(entries, func(name string, _ *Node) {
		size := direntSize + len(name)
		if used+size > blockSize {
			full += blockSize
			used = 0
		}
		used += size
	})
	return full + int64(used)
}

// writeDir writes the blocks of directory i.
func (e *encoder) writeDir(i uint32) {
	var block [blockSize / (direntSize + 1)]dirent
	n, used := 0, 0
	eachName(e.nodes[i].node.entries(), func(name string, child *Node) {
		d := dirent{name: name, node: i, kind: ftypeDir}
		switch {
		case child != nil:
			d.node, d.kind = child.slot, ftype(child.Mode)
		case name == "..":
			d.node = e.nodes[i].parent
		}
		size := direntSize + len(name)
		if used+size > blockSize {
			e.writeDirents(block[:n])
			e.seek(roundUp(e.pos, blockSize))
			n, used = 0, 0
		}
		block[n] = d
		n++
		used += size
	})
	e.writeDirents(block[:n])
}

// writeDirents writes one block of a directory, up to the end of the last name.
func (e *encoder) writeDirents(list []dirent) {
	b := e.scratch(blockSize)
	off := direntSize * len(list)
	for k := range list {
		d := &list[k]
		at := b[k*direntSize:]
		le.PutUint64(at, uint64(e.nodes[d.node].pos>>nidBits))
		le.PutUint16(at[8:], uint16(off))
		at[10] = d.kind
		off += copy(b[off:], d.name)
	}
	e.write(b[:off])
}
