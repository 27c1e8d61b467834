package layer

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/laminafs/lamina/index"
)

// maxDepth bounds how deep values that nobody asked for may nest.
const maxDepth = 64

var errJSON = errors.New("malformed JSON")

// parseTOC reads the JSON of a table of contents and calls entry with each of
// its entries, which is valid until entry returns but for its strings and
// xattrs. It is on the way of every first mount: encoding/json takes several
// times as long, most of it for values that nobody asked for.
func parseTOC(b []byte, entry func(*tocEntry) error) error {
	p := &jsonParser{b: b}
	seen := false
	err := p.object(func(key []byte) error {
		switch string(key) {
		case "version":
			v, err := p.int()
			if err == nil && v != 1 {
				err = fmt.Errorf("version %d", v)
			}
			return err
		case "entries":
			if seen {
				return errors.New("two lists of entries")
			}
			seen = true
			return p.array(func() error {
				var e tocEntry
				if err := p.object(func(key []byte) error { return p.field(&e, key) }); err != nil {
					return err
				}
				return entry(&e)
			})
		}
		return p.skip(0)
	})
	if err == nil && !seen {
		err = errors.New("no entries")
	}
	if err == nil && p.peek() != 0 {
		err = errJSON
	}
	if err != nil {
		return fmt.Errorf("byte %d: %w", p.i, err)
	}
	return nil
}

// field reads the value of one key of an entry.
func (p *jsonParser) field(e *tocEntry, key []byte) (err error) {
	switch string(key) {
	case "name":
		e.name, err = p.text()
	case "type":
		e.typ, err = p.known("reg", "dir", "symlink", "chunk", "hardlink")
	case "linkName":
		e.link, err = p.text()
	case "mode":
		e.mode, err = p.int()
	case "uid":
		e.uid, err = p.int()
	case "gid":
		e.gid, err = p.int()
	case "modtime":
		err = p.time(e)
	case "size":
		e.size, err = p.int()
	case "devMajor":
		e.major, err = p.int()
	case "devMinor":
		e.minor, err = p.int()
	case "digest":
		err = p.sum(&e.digest)
	case "offset":
		e.offset, err = p.int()
	case "endOffset":
		e.endOffset, err = p.int()
	case "innerOffset":
		e.inner, err = p.int()
	case "chunkOffset":
		e.chunkOff, err = p.int()
	case "chunkSize":
		e.chunkLen, err = p.int()
	case "chunkDigest":
		err = p.sum(&e.chunkDigest)
	case "chunkType":
		e.chunkType, err = p.text()
	case "xattrs":
		e.xattrs = nil
		if p.null() {
			return nil
		}
		err = p.object(func(key []byte) error { return p.xattr(e, string(key)) })
	default:
		err = p.skip(0)
	}
	return err
}

// time reads a modification time. Most are that of the entry before.
func (p *jsonParser) time(e *tocEntry) error {
	e.mtime, e.nsec = 0, 0
	if p.null() {
		return nil
	}
	b, err := p.string()
	if err != nil || len(b) == 0 {
		return err
	}
	if string(b) != p.lastTime {
		t, err := time.Parse(time.RFC3339, string(b))
		if err != nil {
			return fmt.Errorf("time %s", short(string(b)))
		}
		p.lastTime, p.lastSec, p.lastNsec = string(b), t.Unix(), uint32(t.Nanosecond())
	}
	e.mtime, e.nsec = p.lastSec, p.lastNsec
	return nil
}

// sum reads a digest. One that is no sha256 is an error only where it is needed.
func (p *jsonParser) sum(s *sum) error {
	*s = sum{}
	if p.null() {
		return nil
	}
	b, err := p.string()
	if err != nil || len(b) == 0 {
		return err
	}
	s.given = true
	h, ok := bytes.CutPrefix(b, []byte("sha256:"))
	if ok && len(h) == 2*len(s.sha256) {
		_, err := hex.Decode(s.sha256[:], h)
		s.ok = err == nil
	}
	return nil
}

// xattr reads the base64 value of one xattr.
func (p *jsonParser) xattr(e *tocEntry, name string) error {
	s, err := p.string()
	if err != nil {
		return err
	}
	v := make([]byte, base64.StdEncoding.DecodedLen(len(s)))
	n, err := base64.StdEncoding.Decode(v, s)
	if err != nil {
		return fmt.Errorf("xattr %s is not base64", short(name))
	}
	for i := range e.xattrs {
		if e.xattrs[i].Name == name {
			e.xattrs[i].Value = v[:n]
			return nil
		}
	}
	e.xattrs = append(e.xattrs, index.Xattr{Name: name, Value: v[:n]})
	return nil
}

// jsonParser reads JSON values in order. It knows no more than parseTOC needs.
type jsonParser struct {
	b   []byte
	i   int
	tmp []byte // the last string that had escapes

	lastTime string
	lastSec  int64
	lastNsec uint32
}

// peek returns the next byte that is not space, 0 at the end.
func (p *jsonParser) peek() byte {
	for p.i < len(p.b) {
		switch c := p.b[p.i]; c {
		case ' ', '\t', '\n', '\r':
			p.i++
		default:
			return c
		}
	}
	return 0
}

func (p *jsonParser) expect(c byte) error {
	if p.peek() != c || c == 0 {
		return errJSON
	}
	p.i++
	return nil
}

// null passes over a null, if that is next.
func (p *jsonParser) null() bool {
	if p.peek() != 'n' || len(p.b)-p.i < 4 || string(p.b[p.i:p.i+4]) != "null" {
		return false
	}
	p.i += 4
	return true
}

// object calls field for each key; field must read the value. The key is valid
// until then.
func (p *jsonParser) object(field func(key []byte) error) error {
	if err := p.expect('{'); err != nil {
		return err
	}
	if p.peek() == '}' {
		p.i++
		return nil
	}
	for {
		key, err := p.string()
		if err != nil {
			return err
		}
		if err := p.expect(':'); err != nil {
			return err
		}
		if err := field(key); err != nil {
			return err
		}
		switch p.peek() {
		case ',':
			p.i++
		case '}':
			p.i++
			return nil
		default:
			return errJSON
		}
	}
}

// array calls element for each element; element must read it.
func (p *jsonParser) array(element func() error) error {
	if p.null() {
		return nil
	}
	if err := p.expect('['); err != nil {
		return err
	}
	if p.peek() == ']' {
		p.i++
		return nil
	}
	for {
		if err := element(); err != nil {
			return err
		}
		switch p.peek() {
		case ',':
			p.i++
		case ']':
			p.i++
			return nil
		default:
			return errJSON
		}
	}
}

// string returns the next string. It is valid until the next call.
func (p *jsonParser) string() ([]byte, error) {
	if err := p.expect('"'); err != nil {
		return nil, err
	}
	start := p.i
	n := bytes.IndexByte(p.b[start:], '"')
	if n < 0 {
		return nil, errJSON
	}
	s := p.b[start : start+n]
	if k := bytes.IndexByte(s, '\\'); k >= 0 {
		p.i += k
		return p.escaped(start)
	}
	p.i += n + 1
	return s, nil
}

// escaped goes on with a string that has its first escape at p.i.
func (p *jsonParser) escaped(start int) ([]byte, error) {
	out := append(p.tmp[:0], p.b[start:p.i]...)
	for p.i < len(p.b) {
		c := p.b[p.i]
		p.i++
		switch {
		case c == '"':
			p.tmp = out
			return out, nil
		case c != '\\':
			out = append(out, c)
			continue
		}
		if p.i == len(p.b) {
			break
		}
		c = p.b[p.i]
		p.i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, err := p.hex4()
			if err != nil {
				return nil, err
			}
			if utf16.IsSurrogate(r) {
				r = p.pair(r)
			}
			out = utf8.AppendRune(out, r)
		default:
			return nil, errJSON
		}
	}
	return nil, errJSON
}

// pair returns the rune of a surrogate and the escape behind it, or U+FFFD.
func (p *jsonParser) pair(first rune) rune {
	if len(p.b)-p.i < 6 || p.b[p.i] != '\\' || p.b[p.i+1] != 'u' {
		return utf8.RuneError
	}
	p.i += 2
	second, err := p.hex4()
	r := utf16.DecodeRune(first, second)
	if err != nil || r == utf8.RuneError {
		p.i -= 2 // it stands for itself
		if err == nil {
			p.i -= 4
		}
		return utf8.RuneError
	}
	return r
}

func (p *jsonParser) hex4() (rune, error) {
	if len(p.b)-p.i < 4 {
		return 0, errJSON
	}
	v, err := strconv.ParseUint(string(p.b[p.i:p.i+4]), 16, 16)
	if err != nil {
		return 0, errJSON
	}
	p.i += 4
	return rune(v), nil
}

// text returns the next string as its own, "" for null.
func (p *jsonParser) text() (string, error) {
	if p.null() {
		return "", nil
	}
	b, err := p.string()
	return string(b), err
}

// known is text that allocates nothing for these values.
func (p *jsonParser) known(values ...string) (string, error) {
	b, err := p.string()
	for _, v := range values {
		if string(b) == v {
			return v, err
		}
	}
	return string(b), err
}

// int returns the next number, which must be an integer of 64 bits; 0 for null.
func (p *jsonParser) int() (int64, error) {
	if p.null() {
		return 0, nil
	}
	p.peek()
	start := p.i
	for p.i < len(p.b) && (p.b[p.i] == '-' || '0' <= p.b[p.i] && p.b[p.i] <= '9') {
		p.i++
	}
	if p.i-start > 20 {
		return 0, errJSON
	}
	v, err := strconv.ParseInt(string(p.b[start:p.i]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: not an integer", errJSON)
	}
	return v, nil
}

// skip passes over the next value, whatever it is.
func (p *jsonParser) skip(depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: nested too deep", errJSON)
	}
	switch c := p.peek(); {
	case c == '"':
		_, err := p.string()
		return err
	case c == '{':
		return p.object(func([]byte) error { return p.skip(depth + 1) })
	case c == '[':
		return p.array(func() error { return p.skip(depth + 1) })
	case c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z':
		for p.i < len(p.b) {
			switch c := p.b[p.i]; {
			case '0' <= c && c <= '9', 'a' <= c && c <= 'z', c == '-', c == '+', c == '.', c == 'E':
				p.i++
				continue
			}
			break
		}
		return nil
	}
	return errJSON
}
