package tarscan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// BlockSize is the unit of a tar: headers fill one block, and data is padded to
// a multiple of it.
const BlockSize = 512

const (
	// maxSpecial bounds PAX records, long names and sparse maps. It is the
	// limit of archive/tar and libarchive.
	maxSpecial = 1 << 20
	// maxOffset keeps all sums of offsets and sizes far from overflow.
	maxOffset = 1 << 62
)

// ErrTar is wrapped by every error about the tar's contents.
var ErrTar = errors.New("malformed tar")

// Entry types that Header.Type may have besides foreign ones, which are given
// as the tar has them.
const (
	TypeReg     = '0'
	TypeLink    = '1'
	TypeSymlink = '2'
	TypeChar    = '3'
	TypeBlock   = '4'
	TypeDir     = '5'
	TypeFifo    = '6'
)

// An Xattr is one extended attribute.
type Xattr struct{ Name, Value string }

// A Segment says that Len bytes of a file, from offset Off, are stored at
// offset Pos of the tar stream.
type Segment struct{ Off, Len, Pos int64 }

// A Header is one entry: a file, with all that PAX records and GNU headers
// before it said of it.
type Header struct {
	Name, Link   string
	Type         byte // old and contiguous regular files and GNU sparse ones are TypeReg
	Mode         int64
	UID, GID     int64
	Mtime        int64 // seconds
	MtimeNsec    uint32
	Major, Minor int64
	Size         int64 // of the file, holes included; as the tar says, also for types without data
	Xattrs       []Xattr
	Pos          int64     // of the entry's first header in the stream
	Data         int64     // of the entry's first data byte in the stream
	Stored       int64     // data bytes in the stream
	Sparse       bool      // Segments describe the data; all else is a hole
	Segments     []Segment // nil unless Sparse; none of length 0
}

type state uint8

const (
	atHeader  state = iota // buf collects a header block
	atSpecial              // buf collects the payload of an x, g, L or K entry
	atGNUMap               // buf collects an extension block of an old GNU sparse map
	atPAXMap               // buf collects a block of a sparse 1.0 map
	atEnd
)

// A Scanner takes a tar stream and calls back for each entry. It is for one
// goroutine. After an error it stays in that error.
type Scanner struct {
	emit  func(*Header) error
	pos   int64 // of the next byte
	skip  int64 // bytes to pass over before buf collects
	pad   int64 // how many of the bytes last skipped are padding
	state state
	buf   []byte
	need  int
	err   error

	zero    bool // the last header block was zeros
	hdr     Header
	special byte // type of the special entry that is collected
	start   int64
	begun   bool // start is valid: a special entry preceded
	pax     records
	name    string // GNU long name
	link    string // GNU long link
	sparse  sparseMap
}

// New returns a Scanner that calls emit with each entry when its headers are
// complete, before its data. The Header is valid until emit returns; its
// strings and slices may be kept. An error of emit stops the scan and is
// returned by Write as it is.
func New(emit func(*Header) error) *Scanner {
	return &Scanner{emit: emit, need: BlockSize, buf: make([]byte, 0, BlockSize)}
}

// Write takes the next bytes of the stream. It takes all of p or returns an
// error, which wraps ErrTar and names the offset.
func (s *Scanner) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && s.err == nil {
		switch {
		case s.skip > 0:
			k := min(s.skip, int64(len(p)))
			s.skip -= k
			s.pos += k
			p = p[k:]
		case s.state == atEnd:
			s.pos += int64(len(p))
			p = nil
		case len(s.buf) == 0 && len(p) >= s.need:
			b := p[:s.need]
			p = p[s.need:]
			s.pos += int64(len(b))
			s.step(b)
		default:
			k := min(s.need-len(s.buf), len(p))
			s.buf = append(s.buf, p[:k]...)
			s.pos += int64(k)
			p = p[k:]
			if len(s.buf) == s.need {
				b := s.buf
				s.buf = s.buf[:0]
				s.step(b)
			}
		}
	}
	if s.err != nil {
		return n - len(p), s.err
	}
	return n, nil
}

// Skip returns how many of the next bytes the scanner will not look at. After
// the end of the archive that is all of them, and Skip returns 0 while Done is
// true.
func (s *Scanner) Skip() int64 { return s.skip }

// Advance passes over n bytes, at most Skip, as if they had been written.
func (s *Scanner) Advance(n int64) {
	n = min(n, s.skip)
	s.skip -= n
	s.pos += n
}

// Pos returns the number of bytes taken.
func (s *Scanner) Pos() int64 { return s.pos }

// Done reports whether the end marker was seen.
func (s *Scanner) Done() bool { return s.state == atEnd }

// Close says that the stream has ended. It fails when it ended within an entry.
// A missing end marker is no error.
func (s *Scanner) Close() error {
	if s.err != nil {
		return s.err
	}
	between := s.state == atEnd || s.state == atHeader && len(s.buf) == 0
	if between && s.skip <= s.pad {
		return nil // even the last padding may be missing
	}
	return s.fail(s.pos, "archive ends within an entry: %w", io.ErrUnexpectedEOF)
}

// padding is how much is missing from n to a whole block.
func padding(n int64) int64 { return -n & (BlockSize - 1) }

func (s *Scanner) fail(off int64, format string, args ...any) error {
	s.err = fmt.Errorf("%w: at offset %d: %w", ErrTar, off, fmt.Errorf(format, args...))
	return s.err
}

// expect makes the scanner collect n bytes in state st.
func (s *Scanner) expect(st state, n int) {
	s.state, s.need = st, n
}

// step handles the bytes that the state waited for.
func (s *Scanner) step(b []byte) {
	switch s.state {
	case atHeader:
		s.header(b)
	case atSpecial:
		s.payload(b)
	case atGNUMap:
		s.gnuMap(b)
	case atPAXMap:
		s.paxMap(b)
	}
}

// header handles one header block.
func (s *Scanner) header(b []byte) {
	off := s.pos - BlockSize
	if !s.begun {
		s.start = off
	}
	if isZero(b) {
		if s.zero {
			s.state = atEnd
			return
		}
		s.zero = true
		return
	}
	if s.zero {
		_ = s.fail(off, "a header follows a block of zeros")
		return
	}
	s.hdr = Header{}
	if err := parseHeader(b, &s.hdr); err != nil {
		_ = s.fail(off, "%w", err)
		return
	}
	switch s.hdr.Type {
	case 'x', 'g', 'L', 'K':
		if s.hdr.Stored < 0 || s.hdr.Stored > maxSpecial {
			_ = s.fail(off, "%q header of %d bytes, at most %d are allowed", s.hdr.Type, s.hdr.Stored, maxSpecial)
			return
		}
		s.begun = true
		s.special = s.hdr.Type
		if s.hdr.Stored == 0 {
			s.payload(nil)
			return
		}
		s.expect(atSpecial, int(s.hdr.Stored))
	default:
		s.file(b, off)
	}
}

// payload handles the contents of a special entry.
func (s *Scanner) payload(b []byte) {
	s.pad = padding(s.hdr.Stored)
	s.skip = s.pad
	switch s.special {
	case 'x', 'g':
		r, err := parseRecords(b)
		if err != nil {
			_ = s.fail(s.pos-int64(len(b)), "PAX records: %w", err)
			return
		}
		if s.special == 'g' {
			s.forget()
			break
		}
		s.pax = r
	case 'L':
		s.name = cString(b)
	case 'K':
		s.link = cString(b)
	}
	if cap(s.buf) > 4*BlockSize {
		s.buf = make([]byte, 0, BlockSize) // one long header must not stay for ever
	}
	s.expect(atHeader, BlockSize)
}

// forget drops what special entries said: it is for the next file only.
func (s *Scanner) forget() {
	s.begun, s.name, s.link = false, "", ""
	s.pax = records{}
}

// file completes the header of a real entry, whose block is b.
func (s *Scanner) file(b []byte, off int64) {
	h := &s.hdr
	h.Pos = s.start
	if err := s.pax.merge(h); err != nil {
		_ = s.fail(s.start, "PAX records: %w", err)
		return
	}
	if s.name != "" {
		h.Name = s.name
	}
	if s.link != "" {
		h.Link = s.link
	}
	switch h.Type {
	case 0:
		h.Type = TypeReg
		if n := len(h.Name); n > 0 && h.Name[n-1] == '/' {
			h.Type = TypeDir // archives older than USTAR
		}
	case '7':
		h.Type = TypeReg
	}
	if noData(h.Type) {
		h.Stored = 0
	}
	if h.Stored < 0 || h.Stored > maxOffset-s.pos {
		_ = s.fail(off, "entry %q has a size of %d", h.Name, h.Stored)
		return
	}
	s.hdr.Data = s.pos
	if h.Type == 'S' {
		h.Type, h.Sparse = TypeReg, true
		if err := s.gnuSparse(b); err != nil {
			_ = s.fail(off, "entry %q: %w", h.Name, err)
		}
		return
	}
	kind, err := s.pax.sparse(h)
	if err == nil && kind != notSparse && noData(h.Type) {
		err = errSparse
	}
	if err != nil {
		_ = s.fail(s.start, "entry %q: %w", h.Name, err)
		return
	}
	switch kind {
	case notSparse:
		s.deliver()
	case sparseRecords:
		h.Sparse = true
		s.sparse = sparseMap{parts: s.pax.parts}
		s.deliver()
	case sparseBlocks:
		h.Sparse = true
		s.sparse = sparseMap{want: 1}
		s.expect(atPAXMap, BlockSize)
		if h.Stored < BlockSize {
			_ = s.fail(s.pos, "entry %q: %w", h.Name, errSparse)
		}
	}
}

// deliver emits the entry and passes over its data.
func (s *Scanner) deliver() {
	h := &s.hdr
	if h.Sparse {
		segs, err := s.sparse.segments(h.Size, s.pos, h.Data+h.Stored-s.pos)
		s.sparse = sparseMap{}
		if err != nil {
			_ = s.fail(h.Pos, "entry %q: %w", h.Name, err)
			return
		}
		h.Segments = segs
	}
	h.Stored = h.Data + h.Stored - s.pos
	h.Data = s.pos // behind a sparse map
	if s.err = s.emit(h); s.err != nil {
		return
	}
	s.pad = padding(h.Stored)
	s.skip = h.Stored + s.pad
	s.forget()
	s.expect(atHeader, BlockSize)
}

func noData(t byte) bool { return t >= TypeLink && t <= TypeFifo }

var zeroBlock [BlockSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:]) }

// cString returns b up to its first NUL.
func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}
