// Package ztoctest makes SOCI ztocs for tests, right ones and wrong ones.
//
// Its central type is Ztoc: New fills one from a layer, tests change what they like,
// and Bytes writes it. It reads tars with archive/tar, as SOCI does and as the
// reader under test does not.
package ztoctest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"

	flatbuffers "github.com/google/flatbuffers/go"
	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/layer/checkpoint"
	"github.com/laminafs/lamina/published/soci/ztocfb"
)

// Ztoc is what a ztoc says.
type Ztoc struct {
	Version                  string
	Compression              ztocfb.Compression
	Compressed, Uncompressed int64
	Entries                  []Entry
	Spans                    []Span
	// Implied leaves out the first checkpoint, as old versions did.
	Implied bool
}

// Entry is a file.
type Entry struct {
	Name, Type, Link   string
	Offset, Size, Mode int64
	UID, GID           uint32
	Mtime              string
	Major, Minor       int64
	PAX                map[string]string
}

// Span is a part of the blob with the checkpoint that it starts with, in SOCI's way
// to count bits.
type Span struct {
	In, Out int64
	Bits    uint8
	Window  [checkpoint.WindowSize]byte
	Digest  string
}

// New returns the ztoc of a gzip layer, with spans of that many bytes of data or
// somewhat more.
func New(blob []byte, span int64) (*Ztoc, error) {
	z := &Ztoc{Version: "0.9", Compression: ztocfb.CompressionGzip, Compressed: int64(len(blob))}
	r := checkpoint.NewReader(bytes.NewReader(blob), span, func(c checkpoint.Checkpoint) error {
		s := Span{In: c.In, Out: c.Out}
		if c.Bits > 0 {
			s.In, s.Bits = c.In+1, 8-c.Bits
		}
		copy(s.Window[len(s.Window)-len(c.Window):], c.Window)
		z.Spans = append(z.Spans, s)
		return nil
	})
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	for i := range z.Spans {
		start, end := z.Range(i)
		z.Spans[i].Digest = digest.FromBytes(blob[start:end]).String()
	}
	return z, z.readTar(blob)
}

// Range returns the part of the blob that span i takes.
func (z *Ztoc) Range(i int) (start, end int64) {
	start, end = z.Spans[i].In, z.Compressed
	if z.Spans[i].Bits > 0 {
		start--
	}
	if i+1 < len(z.Spans) {
		end = z.Spans[i+1].In
	}
	return start, end
}

// counter counts what was read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (z *Ztoc) readTar(blob []byte) error {
	g, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return err
	}
	in := &counter{r: g}
	types := map[byte]string{
		tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeLink: "hardlink", tar.TypeSymlink: "symlink",
		tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
	}
	for t := tar.NewReader(in); ; {
		h, err := t.Next()
		if err == io.EOF {
			z.Uncompressed = in.n
			return nil
		}
		if err != nil {
			return err
		}
		when, err := h.ModTime.MarshalText()
		if err != nil || types[h.Typeflag] == "" {
			return fmt.Errorf("%s: type %c, %w", h.Name, h.Typeflag, err)
		}
		z.Entries = append(z.Entries, Entry{
			Name: h.Name, Type: types[h.Typeflag], Link: h.Linkname, Offset: in.n, Size: h.Size, Mode: h.Mode,
			UID: uint32(h.Uid), GID: uint32(h.Gid), Mtime: string(when), Major: h.Devmajor, Minor: h.Devminor, PAX: h.PAXRecords,
		})
	}
}

// Bytes returns the ztoc as a flatbuffer.
func (z *Ztoc) Bytes() []byte {
	b := flatbuffers.NewBuilder(1 << 16)
	var entries []flatbuffers.UOffsetT
	for i := range z.Entries {
		entries = append(entries, z.Entries[i].build(b))
	}
	list := vector(b, entries)
	ztocfb.ContentsStart(b)
	ztocfb.ContentsAddEntries(b, list)
	contents := ztocfb.ContentsEnd(b)

	points := b.CreateByteVector(z.points())
	var sums []flatbuffers.UOffsetT
	for _, s := range z.Spans {
		sums = append(sums, b.CreateString(s.Digest))
	}
	digests := vector(b, sums)
	ztocfb.BlobStart(b)
	ztocfb.BlobAddMaxSpan(b, int32(len(z.Spans)-1))
	ztocfb.BlobAddDigests(b, digests)
	ztocfb.BlobAddCheckpoints(b, points)
	ztocfb.BlobAddCompression(b, z.Compression)
	blob := ztocfb.BlobEnd(b)

	version := b.CreateString(z.Version)
	ztocfb.ZtocStart(b)
	ztocfb.ZtocAddVersion(b, version)
	ztocfb.ZtocAddContents(b, contents)
	ztocfb.ZtocAddCompressedSize(b, z.Compressed)
	ztocfb.ZtocAddUncompressedSize(b, z.Uncompressed)
	ztocfb.ZtocAddBlob(b, blob)
	b.Finish(ztocfb.ZtocEnd(b))
	return b.FinishedBytes()
}

// points returns the checkpoints.
func (z *Ztoc) points() []byte {
	le := binary.LittleEndian
	p := le.AppendUint32(nil, uint32(len(z.Spans)))
	p = le.AppendUint64(p, 4<<20)
	for i := range z.Spans {
		if i == 0 && z.Implied {
			continue
		}
		s := &z.Spans[i]
		p = le.AppendUint64(p, uint64(s.In))
		p = le.AppendUint64(p, uint64(s.Out))
		p = append(p, s.Bits)
		p = append(p, s.Window[:]...)
	}
	return p
}

func (e *Entry) build(b *flatbuffers.Builder) flatbuffers.UOffsetT {
	var pax []flatbuffers.UOffsetT
	for _, k := range slices.Sorted(maps.Keys(e.PAX)) {
		key, value := b.CreateString(k), b.CreateString(e.PAX[k])
		ztocfb.AttributeStart(b)
		ztocfb.AttributeAddKey(b, key)
		ztocfb.AttributeAddValue(b, value)
		pax = append(pax, ztocfb.AttributeEnd(b))
	}
	list := vector(b, pax)
	name, typ, link, mtime := b.CreateString(e.Name), b.CreateString(e.Type), b.CreateString(e.Link), b.CreateString(e.Mtime)
	ztocfb.EntryStart(b)
	ztocfb.EntryAddName(b, name)
	ztocfb.EntryAddType(b, typ)
	ztocfb.EntryAddOffset(b, e.Offset)
	ztocfb.EntryAddSize(b, e.Size)
	ztocfb.EntryAddLink(b, link)
	ztocfb.EntryAddMode(b, e.Mode)
	ztocfb.EntryAddUid(b, e.UID)
	ztocfb.EntryAddGid(b, e.GID)
	ztocfb.EntryAddMtime(b, mtime)
	ztocfb.EntryAddMajor(b, e.Major)
	ztocfb.EntryAddMinor(b, e.Minor)
	ztocfb.EntryAddPax(b, list)
	return ztocfb.EntryEnd(b)
}

func vector(b *flatbuffers.Builder, at []flatbuffers.UOffsetT) flatbuffers.UOffsetT {
	b.StartVector(flatbuffers.SizeUOffsetT, len(at), flatbuffers.SizeUOffsetT)
	for _, o := range slices.Backward(at) {
		b.PrependUOffsetT(o)
	}
	return b.EndVector(len(at))
}
