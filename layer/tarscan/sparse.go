package tarscan

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
)

var (
	errSparse     = errors.New("malformed sparse map")
	errSparseLong = errors.New("sparse map too long")
)

// part is one data range of a sparse file; the parts of a file are stored one
// after the other without padding.
type part struct{ off, len int64 }

// sparseMap is the map of the current file while it is collected.
type sparseMap struct {
	parts []part
	read  int    // bytes of map read so far
	text  []byte // format 1.0: blocks not parsed yet
	lines int    // format 1.0: newlines in text
	want  int    // format 1.0: newlines needed to go on
}

// segments checks the map against the size of the file and the number of bytes
// stored at pos.
func (m *sparseMap) segments(size, pos, stored int64) ([]Segment, error) {
	if size < 0 || size > maxOffset {
		return nil, errSparse
	}
	segs := make([]Segment, 0, len(m.parts))
	var end, used int64
	for _, p := range m.parts {
		if p.off < end || p.len < 0 || p.off > size || p.len > size-p.off {
			return nil, errSparse
		}
		end = p.off + p.len
		if p.len > 0 {
			segs = append(segs, Segment{Off: p.off, Len: p.len, Pos: pos + used})
		}
		used += p.len
	}
	if used != stored {
		return nil, errSparse
	}
	return segs, nil
}

// gnuSparse reads the map of an old GNU sparse file from its header block.
func (s *Scanner) gnuSparse(b []byte) error {
	if d, err := dialectOf(b); err != nil || d != gnu {
		return errSparse // STAR has the same type with another layout
	}
	var p numbers
	s.hdr.Size = p.number("realsize", b[483:495])
	if p.err != nil {
		return p.err
	}
	s.sparse = sparseMap{}
	s.gnuMap(b[386 : 386+97])
	return nil
}

// gnuMap reads map entries of 24 bytes and the byte behind them that tells
// whether an extension block follows.
func (s *Scanner) gnuMap(b []byte) {
	m := &s.sparse
	m.read += len(b)
	if m.read > maxSpecial {
		_ = s.fail(s.pos, "entry %q: %w", s.hdr.Name, errSparseLong)
		return
	}
	n := len(b) / 24
	var p numbers
	for i := range n {
		e := b[24*i:]
		if e[0] == 0 {
			break // as GNU and BSD tar do; extensions may follow all the same
		}
		m.parts = append(m.parts, part{p.number("offset", e[:12]), p.number("length", e[12:24])})
	}
	if p.err != nil {
		_ = s.fail(s.pos, "entry %q: sparse map: %w", s.hdr.Name, p.err)
		return
	}
	if b[24*n] > 0 {
		// The extension is no part of the data: the data moves back.
		s.hdr.Data += BlockSize
		s.expect(atGNUMap, BlockSize)
		return
	}
	s.deliver()
}

type sparseKind uint8

const (
	notSparse     sparseKind = iota
	sparseRecords            // formats 0.0 and 0.1: the map is in the records
	sparseBlocks             // format 1.0: the map is before the data
)

// sparse recognises a PAX sparse file, and corrects its name and size. For
// sparseRecords it fills r.parts.
func (r *records) sparse(h *Header) (sparseKind, error) {
	if len(r.pairs) > 0 {
		r.smap = strings.Join(r.pairs, ",") // 0.0 becomes 0.1
	}
	var kind sparseKind
	switch {
	case r.major == "0" && (r.minor == "0" || r.minor == "1"):
		kind = sparseRecords
	case r.major == "1" && r.minor == "0":
		kind = sparseBlocks
	case r.major != "" || r.minor != "":
		return notSparse, nil // an unknown version: a plain file
	case r.smap != "":
		kind = sparseRecords
	default:
		return notSparse, nil
	}
	if r.name != "" {
		h.Name = r.name
	}
	size := r.rsize
	if size == "" {
		size = r.realsize
	}
	if size != "" {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			return kind, errSparse
		}
		h.Size = n
	}
	if kind == sparseRecords {
		return kind, r.parseMap()
	}
	return kind, nil
}

// parseMap reads the comma-separated map of format 0.1.
func (r *records) parseMap() error {
	n, err := strconv.Atoi(r.numblocks)
	if err != nil || n < 0 {
		return errSparse
	}
	var fields []string
	if r.smap != "" {
		fields = strings.Split(r.smap, ",")
	}
	if len(fields)%2 != 0 || len(fields)/2 != n {
		return errSparse
	}
	r.parts = make([]part, 0, n)
	for i := 0; i < len(fields); i += 2 {
		off, err1 := strconv.ParseInt(fields[i], 10, 64)
		length, err2 := strconv.ParseInt(fields[i+1], 10, 64)
		if err1 != nil || err2 != nil {
			return errSparse
		}
		r.parts = append(r.parts, part{off, length})
	}
	return nil
}

// paxMap takes one block of a format 1.0 map: the number of parts, then offset
// and length of each, a line each, padded to a block.
func (s *Scanner) paxMap(b []byte) {
	m := &s.sparse
	m.text = append(m.text, b...)
	m.lines += bytes.Count(b, []byte{'\n'})
	m.read += len(b)
	if m.want == 1 && m.lines >= 1 {
		n, err := strconv.Atoi(m.line())
		if err != nil || n < 0 || n > maxSpecial {
			_ = s.fail(s.pos, "entry %q: %w", s.hdr.Name, errSparse)
			return
		}
		m.want = 2 * n
		m.lines--
		m.parts = make([]part, 0, min(n, 1024))
		if n == 0 {
			s.deliver()
			return
		}
		// want is even from here on, so it is never taken for the first line
	}
	if m.want != 1 && m.lines >= m.want {
		for range m.want / 2 {
			off, err1 := strconv.ParseInt(m.line(), 10, 64)
			length, err2 := strconv.ParseInt(m.line(), 10, 64)
			if err1 != nil || err2 != nil {
				_ = s.fail(s.pos, "entry %q: %w", s.hdr.Name, errSparse)
				return
			}
			m.parts = append(m.parts, part{off, length})
		}
		s.deliver()
		return
	}
	if m.read >= maxSpecial {
		_ = s.fail(s.pos, "entry %q: %w", s.hdr.Name, errSparseLong)
		return
	}
	if s.hdr.Stored-int64(m.read) < BlockSize {
		_ = s.fail(s.pos, "entry %q: %w", s.hdr.Name, errSparse)
		return
	}
	s.expect(atPAXMap, BlockSize)
}

// line takes the next line off the text. The caller knows that there is one.
func (m *sparseMap) line() string {
	i := bytes.IndexByte(m.text, '\n')
	if i < 0 {
		return ""
	}
	l := string(m.text[:i])
	m.text = m.text[i+1:]
	return l
}
