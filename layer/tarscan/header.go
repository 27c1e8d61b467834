package tarscan

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

var errChecksum = errors.New("not a tar header: wrong checksum")

type dialect uint8

const (
	v7 dialect = iota
	ustar
	gnu
	star
)

// parseHeader reads the fields of one header block.
func parseHeader(b []byte, h *Header) error {
	d, err := dialectOf(b)
	if err != nil {
		return err
	}
	var p numbers
	h.Type = b[156]
	h.Name = cString(b[:100])
	h.Link = cString(b[157:257])
	h.Size = p.number("size", b[124:136])
	h.Stored = h.Size
	h.Mode = p.number("mode", b[100:108])
	h.UID = p.number("uid", b[108:116])
	h.GID = p.number("gid", b[116:124])
	h.Mtime = p.number("mtime", b[136:148])
	if d == v7 {
		return p.err
	}
	h.Major = p.number("devmajor", b[329:337])
	h.Minor = p.number("devminor", b[337:345])
	prefix := ""
	switch d {
	case ustar:
		prefix = cString(b[345:500])
	case star:
		prefix = cString(b[345:476])
		p.number("atime", b[476:488])
		p.number("ctime", b[488:500])
	case gnu:
		// Go before 1.8 wrote a prefix where GNU has atime and ctime. If
		// these are no numbers, and are ASCII, it is such a prefix.
		if oldGoPrefix(b) {
			if s := cString(b[345:500]); isASCII(s) {
				prefix = s
			}
		}
	}
	if prefix != "" {
		h.Name = prefix + "/" + h.Name
	}
	return p.err
}

func oldGoPrefix(b []byte) bool {
	var p numbers
	for _, f := range [][]byte{b[345:357], b[357:369]} {
		if f[0] != 0 {
			p.number("time", f)
		}
	}
	return p.err != nil
}

// dialectOf checks the checksum and guesses the dialect from the magic.
func dialectOf(b []byte) (dialect, error) {
	var p numbers
	want := p.octal("checksum", b[148:156])
	var unsigned, signed int64
	for i, c := range b {
		if 148 <= i && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c)) // old Sun tars
	}
	if p.err != nil || want != unsigned && want != signed {
		return 0, errChecksum
	}
	switch magic := string(b[257:263]); {
	case magic == "ustar\x00" && string(b[508:512]) == "tar\x00":
		return star, nil
	case magic == "ustar\x00":
		return ustar, nil
	case magic == "ustar " && string(b[263:265]) == " \x00":
		return gnu, nil
	}
	return v7, nil
}

// numbers reads numeric fields and keeps the first error.
type numbers struct{ err error }

// number reads a field that is octal or, with its first bit set, a big-endian
// two's complement number.
func (p *numbers) number(field string, b []byte) int64 {
	if b[0]&0x80 == 0 {
		return p.octal(field, b)
	}
	var inv byte
	if b[0]&0x40 != 0 {
		inv = 0xff // -a-1 == ^a
	}
	var x uint64
	for i, c := range b {
		c ^= inv
		if i == 0 {
			c &= 0x7f
		}
		if x>>56 > 0 {
			return p.bad(field, b)
		}
		x = x<<8 | uint64(c)
	}
	if x>>63 > 0 {
		return p.bad(field, b)
	}
	if inv != 0 {
		return ^int64(x)
	}
	return int64(x)
}

func (p *numbers) octal(field string, b []byte) int64 {
	t := bytes.Trim(b, " \x00")
	if len(t) == 0 {
		return 0
	}
	x, err := strconv.ParseUint(cString(t), 8, 64)
	if err != nil {
		return p.bad(field, b)
	}
	return int64(x)
}

func (p *numbers) bad(field string, b []byte) int64 {
	if p.err == nil {
		p.err = fmt.Errorf("field %s is no number: %q", field, b)
	}
	return 0
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 || s[i] == 0 {
			return false
		}
	}
	return true
}
