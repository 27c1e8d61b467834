package layer

import (
	"errors"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer/tarscan"
)

const (
	blockSize = 512
	// maxMapEntries bounds the chunk indexes of one sparse file: 8 MiB.
	maxMapEntries = 1 << 20
	// maxExtension bounds what the sparse files of one layer may need past
	// the end of its tar.
	maxExtension = 4 << 30
)

var errScattered = errors.New("sparse file is too large or too scattered to map")

// A Copy says that Len bytes of data at Src appear again at Dst. All are in
// bytes, Src and Dst in data offset space.
type Copy struct{ Dst, Src, Len int64 }

// extension collects what must be stored again past the end of the tar: parts
// of sparse files that EROFS cannot map where they are, because a chunk of the
// file is data and hole, or starts in the middle of a block. Until the end of
// the tar is known, places in it are relative to its start.
type extension struct {
	size   int64
	copies []Copy
	nodes  []extended
}

// extended is a node with extents from..to of its list in the extension.
type extended struct {
	node *index.Node
	at   []int
}

func alignUp(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

// mapSparse gives n the extents of a sparse file with these segments, which it
// may change.
func (x *extension) mapSparse(n *index.Node, segs []tarscan.Segment) error {
	segs = coalesce(segs)
	if len(segs) == 0 || n.Size == 0 {
		return nil
	}
	bits, ok := chunkBits(n.Size, segs, maxExtension-x.size)
	if !ok {
		return errScattered
	}
	c := int64(blockSize) << bits
	ext := extended{node: n}
	for i := 0; i < len(segs); {
		s := segs[i]
		start := s.Off &^ (c - 1)
		if direct := directRun(s, start, c, n.Size); direct > 0 {
			n.Extents = append(n.Extents, index.Extent{FileOff: start, Len: direct, Off: s.Pos, Device: 1})
			if direct == s.Len {
				i++
			} else {
				segs[i] = cut(s, start+direct)
			}
			continue
		}
		// These chunks are stored again, with all that segments have in them.
		end := min(againEnd(s, start, c), n.Size)
		ext.at = append(ext.at, len(n.Extents))
		n.Extents = append(n.Extents, index.Extent{FileOff: start, Len: end - start, Off: x.size, Device: 1})
		for ; i < len(segs) && segs[i].Off < end; i++ {
			s := segs[i]
			l := min(s.Off+s.Len, end) - s.Off
			x.copies = append(x.copies, Copy{Dst: x.size + s.Off - start, Src: s.Pos, Len: l})
			if l < s.Len {
				segs[i] = cut(s, end)
				break
			}
		}
		x.size += alignUp(end - start)
	}
	if len(ext.at) > 0 {
		x.nodes = append(x.nodes, ext)
	}
	return nil
}

// coalesce joins segments that continue one another.
func coalesce(segs []tarscan.Segment) []tarscan.Segment {
	out := segs[:0]
	for _, s := range segs {
		if k := len(out) - 1; k >= 0 && out[k].Off+out[k].Len == s.Off && out[k].Pos+out[k].Len == s.Pos {
			out[k].Len += s.Len
			continue
		}
		out = append(out, s)
	}
	return out
}

// cut returns what of s lies from file offset off on.
func cut(s tarscan.Segment, off int64) tarscan.Segment {
	d := off - s.Off
	return tarscan.Segment{Off: off, Len: s.Len - d, Pos: s.Pos + d}
}

// directRun returns how many bytes from the start of a chunk of c bytes can be
// mapped where segment s has them: whole chunks, and the file's last one.
func directRun(s tarscan.Segment, start, c, size int64) int64 {
	if s.Off != start || s.Pos%blockSize != 0 {
		return 0
	}
	if s.Off+s.Len == size {
		return s.Len
	}
	return s.Len &^ (c - 1)
}

// againEnd returns where the run of chunks ends that starts at start, cannot be
// mapped directly, and is stored again because of s.
func againEnd(s tarscan.Segment, start, c int64) int64 {
	if (s.Pos-s.Off)%blockSize != 0 {
		// No block of the file is a block of the tar: all of s.
		return (s.Off + s.Len + c - 1) &^ (c - 1)
	}
	return start + c
}

// chunkBits chooses the chunk size, 512<<bits, that costs least: 8 bytes for
// each chunk of the file, and the data that must be stored again.
func chunkBits(size int64, segs []tarscan.Segment, room int64) (best uint, ok bool) {
	var least int64
	for bits := uint(0); bits < 32; bits++ {
		c := int64(blockSize) << bits
		entries := (size-1)/c + 1
		if entries > maxMapEntries {
			continue
		}
		again := storedAgain(size, segs, c)
		if again > room {
			break // larger chunks only store more
		}
		if cost := entries*8 + again; !ok || cost < least {
			best, least, ok = bits, cost, true
		}
		if entries == 1 {
			break
		}
	}
	return best, ok
}

// storedAgain returns how many bytes mapSparse would store again with chunks of
// c bytes.
func storedAgain(size int64, segs []tarscan.Segment, c int64) int64 {
	var total, done int64 // done: file offset up to which all is mapped
	for _, s := range segs {
		for s.Off+s.Len > done {
			if s.Off < done {
				s = cut(s, done)
			}
			start := s.Off &^ (c - 1)
			if direct := directRun(s, start, c, size); direct > 0 {
				done = start + direct
				continue
			}
			done = min(againEnd(s, start, c), size)
			total += alignUp(done - start)
		}
	}
	return total
}

// place makes the relative offsets absolute, base being the extension's start.
func (x *extension) place(base int64) {
	for _, e := range x.nodes {
		for _, i := range e.at {
			e.node.Extents[i].Off += base
		}
	}
	for i := range x.copies {
		x.copies[i].Dst += base
	}
}
