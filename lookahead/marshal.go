package lookahead

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds on what is believed of a compiled module.
const (
	maxModule = 8 << 20 // bytes of its file
	maxNested = 200     // objects in one another
	maxRefs   = 1 << 20 // objects that are referred to

	// A list of names is written once, and may be imported from by every
	// instruction.
	maxImports = 4 << 10 // names that are imported
	maxRoots   = 64      // places where modules are looked for
	maxPlaces  = 1 << 14 // paths that one module has looked at
	maxSeen    = 1 << 16 // modules that are wished for; by links, one has many paths
)

var errNotCompiled = errors.New("not a compiled Python module")

// code is a code object of CPython, as far as it matters here.
type code struct {
	ops      string // shared, as all strings are that are written once
	consts   []any
	names    []any
	filename string
}

// unmarshaler reads CPython's marshal format, versions 4 and 5 (Python/marshal.c, and
// the documentation of the module marshal). Strings and bytes become string,
// small integers int, tuples and lists []any, code objects *code, and whatever
// does not matter nil.
type unmarshaler struct {
	b      []byte
	i      int
	minor  int // of the version of Python 3, which decides on the form of code
	depth  int
	refs   []any
	budget int // objects still believed in
}

func (u *unmarshaler) take(n int) []byte {
	if n < 0 || n > len(u.b)-u.i {
		panic(errNotCompiled) // recovered in unmarshal
	}
	u.i += n
	return u.b[u.i-n : u.i]
}

func (u *unmarshaler) byte() byte { return u.take(1)[0] }
func (u *unmarshaler) long() int  { return int(int32(binary.LittleEndian.Uint32(u.take(4)))) }
func (u *unmarshaler) skip(n int) { u.take(n) }
func (u *unmarshaler) text() any  { return string(u.take(u.long())) }
func (u *unmarshaler) tiny() any  { return string(u.take(int(u.byte()))) }
func (u *unmarshaler) count() int { return u.fits(u.long()) }
func (u *unmarshaler) small() int { return u.fits(int(u.byte())) }
func (u *unmarshaler) string() string {
	s, _ := u.value().(string)
	return s
}

// fits checks a number of objects: each takes a byte at least.
func (u *unmarshaler) fits(n int) int {
	if n < 0 || n > len(u.b)-u.i {
		panic(errNotCompiled)
	}
	return n
}

// unmarshal reads the code object of a module that was compiled by Python
// 3.minor.
func unmarshal(b []byte, minor int) (c *code, err error) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case errNotCompiled:
			err = errNotCompiled
		default:
			panic(r)
		}
	}()
	u := &unmarshaler{b: b, minor: minor, budget: maxRefs}
	c, ok := u.value().(*code)
	if !ok {
		return nil, fmt.Errorf("%w: it holds no code", errNotCompiled)
	}
	return c, nil
}

// value reads an object.
func (u *unmarshaler) value() any {
	if u.depth++; u.depth > maxNested {
		panic(errNotCompiled)
	}
	if u.budget--; u.budget < 0 {
		panic(errNotCompiled)
	}
	defer func() { u.depth-- }()
	typ := u.byte()
	if typ&0x80 == 0 {
		return u.object(typ)
	}
	// An object is numbered before those within it.
	at := len(u.refs)
	u.refs = append(u.refs, nil)
	v := u.object(typ & 0x7f)
	u.refs[at] = v
	return v
}

func (u *unmarshaler) object(typ byte) any {
	switch typ {
	case '0', 'N', 'F', 'T', 'S', '.': // null, None, False, True, StopIteration, Ellipsis
	case 'i':
		return u.long()
	case 'I', 'g': // int64, float
		u.skip(8)
	case 'f', 'x': // as text; float, complex
		u.skip(int(u.byte()))
		if typ == 'x' {
			u.skip(int(u.byte()))
		}
	case 'y': // complex
		u.skip(16)
	case 'l': // of 15 bits each
		n := u.long()
		if n < 0 {
			n = -n
		}
		u.skip(2 * n)
	case 's', 't', 'u', 'a', 'A': // bytes; interned, and other text
		return u.text()
	case 'z', 'Z':
		return u.tiny()
	case 'r':
		n := u.long()
		if n < 0 || n >= len(u.refs) {
			panic(errNotCompiled)
		}
		return u.refs[n]
	case ')':
		return u.list(u.small())
	case '(', '[', '<', '>': // tuple, list, set, frozenset
		return u.list(u.count())
	case ':': // slice
		u.list(3)
	case '{':
		u.dict()
	case 'c':
		return u.code()
	default:
		panic(errNotCompiled)
	}
	return nil
}

func (u *unmarshaler) list(n int) []any {
	list := make([]any, 0, min(n, 1<<10))
	for range n {
		list = append(list, u.value())
	}
	return list
}

// dict reads pairs until a null for a key.
func (u *unmarshaler) dict() {
	for u.i < len(u.b) && u.b[u.i] != '0' {
		u.value()
		u.value()
	}
	u.byte()
}

// code reads a code object.
func (u *unmarshaler) code() *code {
	c := new(code)
	if u.minor >= 11 {
		u.skip(5 * 4) // counts of arguments (3), size of the stack, flags
	} else {
		u.skip(6 * 4) // the number of locals too
	}
	c.ops = u.string()
	c.consts, _ = u.value().([]any)
	c.names, _ = u.value().([]any)
	if u.minor >= 11 {
		u.value() // names of variables
		u.value() // and their kinds
		c.filename = u.string()
		u.value() // name
		u.value() // qualified name
		u.skip(4) // first line
		u.value() // lines
		u.value() // exceptions
		return c
	}
	u.value() // names of variables
	u.value() // free ones
	u.value() // cells
	c.filename = u.string()
	u.value() // name
	u.skip(4) // first line
	u.value() // lines
	return c
}
