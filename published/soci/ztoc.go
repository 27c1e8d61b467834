package soci

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/checkpoint"
	"github.com/laminafs/lamina/layer/tarscan"
	"github.com/laminafs/lamina/published/soci/ztocfb"
)

//go:generate flatc --go -o . ztoc.fbs

// ztoc reads a ztoc that nobody has looked at. Its methods do not panic.
type ztoc struct {
	root     *ztocfb.Ztoc
	contents *ztocfb.Contents
	blob     *ztocfb.Blob
	entries  int
	spans    int
	points   []byte // the checkpoints, without their header
	implied  bool   // the first checkpoint is not among them
	// left is how much may still be taken: a flatbuffer may use the same bytes
	// in many places, and become as large as it likes.
	left int
}

const (
	// reuse is how many times the bytes of a ztoc may be used. Who makes them
	// uses each once.
	reuse = 4
	// head is the length of the checkpoints' header, point of each of them.
	head  = 4 + 8
	point = 8 + 8 + 1 + checkpoint.WindowSize
	// gzipHead is the length of a gzip header as most writers make it. Old ztocs
	// leave the first checkpoint out, as it were always there.
	gzipHead = 10
)

// catch turns a panic into an error: generated accessors index the buffer with what
// they find there.
func catch(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("malformed flatbuffer: %v", r)
	}
}

// openZtoc looks at all of b but for the entries.
func openZtoc(b []byte) (z *ztoc, err error) {
	defer catch(&err)
	z = &ztoc{root: ztocfb.GetRootAsZtoc(b, 0), left: reuse * len(b)}
	switch v := string(z.root.Version()); v {
	case "0.9", "1.0":
	default:
		return nil, fmt.Errorf("version %.20q", v)
	}
	z.contents, z.blob = z.root.Contents(nil), z.root.Blob(nil)
	if z.contents == nil || z.blob == nil {
		return nil, errors.New("table missing")
	}
	if c := z.blob.Compression(); c != ztocfb.CompressionGzip {
		return nil, fmt.Errorf("compression %d", c)
	}
	z.entries, z.spans = z.contents.EntriesLength(), int(z.blob.MaxSpan())+1
	points := z.blob.CheckpointsBytes()
	if len(points) < head || z.spans <= 0 || int(int32(binary.LittleEndian.Uint32(points))) != z.spans ||
		z.blob.DigestsLength() != z.spans {
		return nil, fmt.Errorf("%d spans, %d digests and %d bytes of checkpoints", z.spans, z.blob.DigestsLength(), len(points))
	}
	z.points = points[head:]
	switch len(z.points) {
	case z.spans * point:
	case (z.spans - 1) * point:
		z.implied = true
	default:
		return nil, fmt.Errorf("%d bytes of checkpoints for %d spans", len(points), z.spans)
	}
	return z, nil
}

// sizes returns the sizes of blob and tar.
func (z *ztoc) sizes() (blob, tar int64, err error) {
	defer catch(&err)
	return z.root.CompressedSize(), z.root.UncompressedSize(), nil
}

// span returns where span i starts and the digest of its part of the blob. The
// window is a part of the ztoc.
func (z *ztoc) span(i int) (c checkpoint.Checkpoint, sha256 [32]byte, err error) {
	defer catch(&err)
	text := z.blob.Digests(i)
	d := digest.Digest(text[:min(len(text), 100)])
	if d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return c, sha256, fmt.Errorf("digest %q", d)
	}
	if _, err := hex.Decode(sha256[:], []byte(d.Encoded())); err != nil {
		return c, sha256, err
	}
	if z.implied {
		if i == 0 {
			return checkpoint.Checkpoint{In: gzipHead}, sha256, nil
		}
		i--
	}
	p := z.points[i*point:][:point]
	c.In = int64(binary.LittleEndian.Uint64(p))
	c.Out = int64(binary.LittleEndian.Uint64(p[8:]))
	// A window is always whole: what would be before the data is no part of it.
	c.Window = p[17:]
	if c.Out < 0 || c.In <= 0 || p[16] > 7 {
		return c, sha256, fmt.Errorf("checkpoint at byte %d, %d bits before it, data offset %d", c.In, p[16], c.Out)
	}
	if c.Out < checkpoint.WindowSize {
		c.Window = c.Window[checkpoint.WindowSize-c.Out:]
	}
	if p[16] > 0 { // they count the bits that are left of a byte, we those that are gone
		c.In, c.Bits = c.In-1, 8-p[16]
	}
	return c, sha256, nil
}

// entry returns the header of entry i.
func (z *ztoc) entry(i int) (h *tarscan.Header, err error) {
	defer catch(&err)
	var e ztocfb.Entry
	if !z.contents.Entries(&e, i) {
		return nil, errors.New("no entry")
	}
	h = &tarscan.Header{
		Type: layer.TOCType(string(e.Type())), Mode: e.Mode(), UID: int64(e.Uid()), GID: int64(e.Gid()),
		Major: e.Major(), Minor: e.Minor(), Size: e.Size(), Data: e.Offset(), Pos: e.Offset(),
	}
	if h.Name, err = z.take(e.Name()); err != nil {
		return nil, err
	}
	if h.Link, err = z.take(e.Link()); err != nil {
		return nil, err
	}
	if h.Type == 0 {
		return nil, fmt.Errorf("entry %.200q: type %.20q", h.Name, e.Type())
	}
	when := e.Mtime()
	t, err := time.Parse(time.RFC3339Nano, string(when[:min(len(when), 64)]))
	if err != nil { // of a year that the format does not have, SOCI writes nothing
		return nil, fmt.Errorf("entry %.200q: %w", h.Name, err)
	}
	h.Mtime, h.MtimeNsec = t.Unix(), uint32(t.Nanosecond())
	var failed error
	h.Xattrs, h.Sparse, err = tarscan.Xattrs(func(yield func(string, string) bool) {
		var x ztocfb.Attribute
		for k := range e.PaxLength() {
			if !e.Pax(&x, k) {
				return
			}
			key, err := z.take(x.Key())
			if err == nil {
				var value string
				if value, err = z.take(x.Value()); err == nil && !yield(key, value) {
					return
				}
			}
			if failed = err; err != nil {
				return
			}
		}
	})
	return h, errors.Join(failed, err)
}

// take copies a text, as often as reuse allows.
func (z *ztoc) take(b []byte) (string, error) {
	const each = 4 // bytes that refer to it
	if z.left -= len(b) + each; z.left < 0 {
		return "", errors.New("the same bytes are used too often")
	}
	return string(b), nil
}
