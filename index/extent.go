package index

// chunked describes the chunk indexes of a regular file.
type chunked struct {
	table []byte // one chunk index for each chunk
	bits  uint   // of the bytes of a chunk
	size  int64  // of the file
}

// chunks returns the chunks of a regular file, with an empty table if the file
// is empty.
func (x *Index) chunks(nid NID, in []byte) (c chunked, err error) {
	size := inodeSizeOf(in)
	switch {
	case inodeMode(in)&modeType != modeReg || inodeFlags(in)&HardLink != 0:
		return c, badInode(nid, "not a file with data")
	case size == 0:
		return c, nil
	case size > 1<<63-1:
		return c, badInode(nid, "negative size")
	case inodeLayout(in) != layoutChunked || inodeUnion(in)&^chunkBitsMask != chunkIndexes:
		return c, badInode(nid, "data not in chunks")
	}
	c.size = int64(size)
	c.bits = blockBits + uint(inodeUnion(in)&chunkBitsMask)
	count := (size-1)>>c.bits + 1
	start := roundUp(inodeTail(nid, in), chunkSize)
	if start > int64(len(x.b)) || count > uint64(int64(len(x.b))-start)/chunkSize {
		return c, badInode(nid, "chunks outside the image")
	}
	c.table = x.b[start : start+int64(count)*chunkSize]
	return c, nil
}

// at returns what chunk i maps, clipped to the file; ok is false for a hole.
func (c *chunked) at(i int64) (e Extent, ok bool) {
	index := c.table[i*chunkSize:]
	block := le.Uint32(index[4:])
	if block == nullBlock {
		return e, false
	}
	e.FileOff = i << c.bits
	e.Len = min(1<<c.bits, c.size-e.FileOff)
	e.Off = int64(block) << blockBits
	e.Device = le.Uint16(index[2:])
	return e, true
}

// Extents calls fn with the pieces of the file nid that lie within [off, off+n),
// in order, clipped to that range and to the size of the file. Holes are left
// out; pieces that continue each other come as one. fn returns false to stop.
// It is an error if nid is not a regular file with data of its own.
func (x *Index) Extents(nid NID, off, n int64, fn func(Extent) bool) error {
	in, err := x.inode(nid)
	if err != nil {
		return err
	}
	c, err := x.chunks(nid, in)
	if err != nil {
		return err
	}
	if off < 0 {
		n += off
		off = 0
	}
	if n <= 0 || off >= c.size {
		return nil
	}
	end := off + min(n, c.size-off)
	var run Extent
	for i := off >> c.bits; i <= (end-1)>>c.bits; i++ {
		e, ok := c.at(i)
		if !ok {
			continue
		}
		if e.Device == 0 || int(e.Device) > len(x.devices) {
			return badInode(nid, "chunk on a device that is not there")
		}
		if skip := off - e.FileOff; skip > 0 {
			e.FileOff += skip
			e.Off += skip
			e.Len -= skip
		}
		e.Len = min(e.Len, end-e.FileOff)
		if run.Len > 0 && run.Device == e.Device && run.FileOff+run.Len == e.FileOff && run.Off+run.Len == e.Off {
			run.Len += e.Len
			continue
		}
		if run.Len > 0 && !fn(run) {
			return nil
		}
		run = e
	}
	if run.Len > 0 {
		fn(run)
	}
	return nil
}
