package lookahead

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// compiledModules returns testdata/name.py as the versions of CPython compiled
// it, by the number behind the 3.
func compiledModules(t testing.TB, name string) map[int][]byte {
	t.Helper()
	modules := make(map[int][]byte)
	for minor := 8; minor <= 14; minor++ {
		b, err := os.ReadFile(filepath.Join("testdata", fmt.Sprintf("%s.cpython-3%d.pyc", name, minor)))
		if err != nil {
			t.Fatal(err)
		}
		modules[minor] = b
	}
	return modules
}

// TestParseModule: of what each version of CPython compiles the same is read.
func TestParseModule(t *testing.T) {
	// The order of branches and handlers differs among the versions.
	want := []string{
		"0 __future__ annotations",
		"0 a.b.c ",
		"0 a.b.c ",
		"0 collections OrderedDict namedtuple defaultdict",
		"0 elsewhere p",
		"0 extended ",
		"0 extended one two",
		"0 extended.sub ",
		"0 fast ",
		"0 fast speed",
		"0 json ",
		"0 looped ",
		"0 never ",
		"0 ntpath ",
		"0 os ",
		"0 os.path ",
		"0 otherwise ",
		"0 posixpath ",
		"0 slow ",
		"0 star.inner *",
		"0 within ",
		"1  x y",
		"1 beside v",
		"1 extended three",
		"2  extended",
		"2  z",
		"2 p.q r t",
		"3 deep u",
		"5 extended four",
	}
	for minor, b := range compiledModules(t, "mod") {
		if got := versionOf(b); got != minor || !isCompiled(b[:headerLen]) {
			t.Errorf("3.%d: taken for 3.%d", minor, got)
		}
		m, err := parseModule(b)
		if err != nil {
			t.Errorf("3.%d: %v", minor, err)
			continue
		}
		if m.minor != minor || m.filename != "/opt/app/pkg/sub/mod.py" {
			t.Errorf("3.%d: version 3.%d, of %s", minor, m.minor, m.filename)
		}
		var got []string
		for _, i := range m.imports {
			got = append(got, fmt.Sprintf("%d %s %s", i.level, i.name, strings.Join(i.from, " ")))
		}
		if first := "0 __future__ annotations"; got[0] != first || got[1] != "0 os " {
			t.Errorf("3.%d: begins with %q", minor, got[:2])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("3.%d:\n%s\nwant\n%s", minor, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// TestParseSmallModule: so it is of the modules that FuzzModule begins with.
func TestParseSmallModule(t *testing.T) {
	want := []importing{{name: "a.b"}, {level: 2, name: "c", from: []string{"d", "e"}}}
	for minor, b := range compiledModules(t, "small") {
		m, err := parseModule(b)
		if err != nil || m.minor != minor || m.filename != "/opt/app/pkg/sub/mod.py" || !reflect.DeepEqual(m.imports, want) {
			t.Errorf("3.%d: %+v, %v", minor, m, err)
		}
	}
}

// TestPyc holds the tests' own modules against what is compiled for real.
func TestPyc(t *testing.T) {
	list := []importing{{name: "os"}, {level: 2, name: "a.b", from: []string{"c", "d"}}, {level: 1, from: []string{"ä"}}}
	for i := range 300 {
		list = append(list, importing{name: fmt.Sprint("n", i)})
	}
	for minor := range magics {
		m, err := parseModule(pyc(minor, "/a/m.py", list...))
		if err != nil || m.minor != minor || m.filename != "/a/m.py" || !reflect.DeepEqual(m.imports, list) {
			t.Errorf("3.%d: %+v, %v", minor, m, err)
		}
	}
}

func TestVersionOf(t *testing.T) {
	for magic, want := range map[int]int{
		// Of the last releases of each version.
		62211: 0, 3379: 0, 3394: 0, 3413: 8, 3425: 9, 3439: 10, 3495: 11, 3531: 12, 3571: 13, 3627: 14,
		// Of what there is not, or not yet.
		0: 0, 3399: 0, 3450: 0, 3494: 0, 3650: 0, 65535: 0,
	} {
		b := append(binary.LittleEndian.AppendUint16(nil, uint16(magic)), "\r\n"...)
		b = append(b, make([]byte, 12)...)
		if got := versionOf(b); got != want || isCompiled(b) != (want > 0) {
			t.Errorf("magic number %d: 3.%d, want 3.%d", magic, got, want)
		}
		if versionOf(b[:15]) != 0 || versionOf(b[:2]) != 0 || versionOf(nil) != 0 {
			t.Errorf("magic number %d: less than a header is enough", magic)
		}
		b[2], b[3] = '\n', '\r'
		if versionOf(b) != 0 {
			t.Errorf("magic number %d: any line end will do", magic)
		}
	}
}

// TestUnmarshalObjects: every object is passed by as a whole, though CPython
// does not put all of them into modules.
func TestUnmarshalObjects(t *testing.T) {
	s := func(typ string, n int, rest string) string {
		return typ + string(binary.LittleEndian.AppendUint32(nil, uint32(n))) + rest
	}
	for _, c := range []struct {
		in   string
		want any
	}{
		{"0", nil},
		{"N", nil},
		{"F", nil},
		{"T", nil},
		{"S", nil},
		{".", nil},
		{"i\x02\x01\x00\x00", 0x102},
		{"i\xff\xff\xff\xff", -1},
		{"I12345678", nil},
		{"g12345678", nil},
		{"f\x031.5", nil},
		{"x\x031.5\x042.25", nil},
		{"y1234567812345678", nil},
		{s("l", 3, "112233"), nil},
		{s("l", -3, "112233"), nil},
		{s("l", 0, ""), nil},
		{s("s", 3, "a\x00c"), "a\x00c"},
		{s("t", 2, "ab"), "ab"},
		{s("u", 2, "ä"), "ä"},
		{s("a", 2, "ab"), "ab"},
		{s("A", 2, "ab"), "ab"},
		{s("u", 0, ""), ""},
		{"z\x02ab", "ab"},
		{"Z\x02ab", "ab"},
		{")\x00", []any{}},
		{")\x02Nz\x01a", []any{nil, "a"}},
		{s("(", 2, "Nz\x01a"), []any{nil, "a"}},
		{s("[", 2, "Nz\x01a"), []any{nil, "a"}},
		{s("<", 2, "Nz\x01a"), []any{nil, "a"}},
		{s(">", 2, "Nz\x01a"), []any{nil, "a"}},
		{":i\x00\x00\x00\x00NN", nil},
		{"{0", nil},
		{"{z\x01aNNz\x01b0", nil},
		// The second of what is numbered, which is before what is within it.
		{s("\xa9\x04\xfa\x01a\xa9\x01\xfa\x01br", 2, s("r", 3, "")), []any{"a", []any{"b"}, []any{"b"}, "b"}},
		// What is not complete cannot be referred to.
		{s("\xa9\x01r", 0, ""), []any{nil}},
		{s("\xa9\x02\xfb0r", 1, ""), []any{nil, nil}},
	} {
		u := &unmarshaler{b: []byte(c.in + "rest"), minor: 12, budget: maxRefs}
		got := u.value()
		if !reflect.DeepEqual(got, c.want) || string(u.b[u.i:]) != "rest" || u.depth != 0 {
			t.Errorf("%q: %#v, want %#v; left %q at depth %d", c.in, got, c.want, u.b[u.i:], u.depth)
		}
	}
}

// within returns a module whose constants are objects.
func within(n int, objects []byte) []byte {
	return wrapped(12, "/a/m.py", "", sequence(n, objects), sequence(0, nil))
}

// TestUnmarshalHostile: what is wrong with a module is an error, found without
// much time and memory.
func TestUnmarshalHostile(t *testing.T) {
	long := func(typ byte, n int) []byte {
		return binary.LittleEndian.AppendUint32([]byte{typ}, uint32(n))
	}
	header := within(0, nil)[:headerLen]
	for name, objects := range map[string][]byte{
		"unknown object":               {'?'},
		"string of Python 2":           long('R', 0),
		"huge string":                  long('s', math.MaxInt32),
		"string of negative length":    long('u', -1),
		"huge name":                    long('u', 1<<30),
		"huge tuple":                   long('(', math.MaxInt32),
		"tuple of negative length":     long('(', -1),
		"list of negative length":      long('[', math.MinInt32),
		"huge list":                    long('[', 1<<28),
		"huge set":                     long('>', math.MaxInt32),
		"short tuple":                  {')', 255},
		"short text":                   {'z', 255},
		"huge number":                  long('l', math.MaxInt32),
		"huge negative number":         long('l', math.MinInt32),
		"long decimal":                 {'f', 255},
		"reference to nothing":         long('r', 1),
		"reference to what comes":      append(long('r', 2), 0xfa, 1, 'a'),
		"negative reference":           long('r', -1),
		"huge reference":               long('r', math.MaxInt32),
		"endless dictionary":           {'{', 'N'},
		"tuples without end":           bytes.Repeat([]byte{')', 1}, 1<<20),
		"dictionaries without end":     bytes.Repeat([]byte{'{', 'N'}, 1<<20),
		"slices without end":           bytes.Repeat([]byte{':'}, 1<<20),
		"code without end":             bytes.Repeat(append([]byte{'c'}, make([]byte, 20)...), 1<<15),
		"numbered tuples without end":  bytes.Repeat([]byte{')' | 0x80, 1}, 1<<20),
		"lists in lists":               bytes.Repeat(append(long('[', 1<<20), 'N'), 1<<18),
		"more objects than any module": append(long('(', 2<<20), bytes.Repeat([]byte{'N'}, 2<<20)...),
		"and all are numbered":         append(long('(', 2<<20), bytes.Repeat([]byte{'N' | 0x80}, 2<<20)...),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		m, err := parseModule(within(1, objects))
		took := time.Since(began)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, errNotCompiled) || m != nil {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 256<<20 || took > 10*time.Second {
			t.Errorf("%s: %v and %d bytes", name, took, used)
		}
		// In the place of the code.
		if _, err := parseModule(slices.Concat(header, objects)); !errors.Is(err, errNotCompiled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, b := range map[string][]byte{
		"no code":                    append(slices.Clone(header), 'N'),
		"code that is text":          append(slices.Clone(header), bytesOf('u', "code")...),
		"code for a reference":       append(slices.Clone(header), long('r', 0)...),
		"nothing but a header":       header,
		"no header":                  nil,
		"a module of a Python to be": append([]byte{0x42, 0x0e}, within(0, nil)[2:]...),
	} {
		if m, err := parseModule(b); !errors.Is(err, errNotCompiled) || m != nil {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// TestUnmarshalShares: what is written once is kept once, however often it is
// referred to.
func TestUnmarshalShares(t *testing.T) {
	const size, n = 1 << 20, 500
	text := bytesOf('s', strings.Repeat("\x90\xff", size/2))
	text[0] |= 0x80
	again := binary.LittleEndian.AppendUint32([]byte{'r'}, 1) // the module itself is the first
	nested := append([]byte{'c'}, make([]byte, 5*4)...)
	nested = slices.Concat(nested, again, again, []byte("NNN"), again, again, again, make([]byte, 4), again, again)
	b := within(1+n, append(text, bytes.Repeat(nested, n)...))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if m, err := parseModule(b); err != nil || m.filename != "/a/m.py" {
		t.Fatalf("%+v, %v", m, err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 8*size {
		t.Errorf("%d bytes for a module of %d", used, len(b))
	}
}

// TestUnmarshalForgives: objects of another kind than they should be are as good
// as none.
func TestUnmarshalForgives(t *testing.T) {
	none := []byte{'N'}
	imports := func(consts, names []byte) []byte {
		op := operationsOf(12)
		return wrapped(12, "/m.py", string([]byte{op.loadConst, 0, op.loadConst, 1, op.importName, 0, op.importName}), consts, names)
	}
	two := sequence(2, slices.Concat(marshalled(int32(0)), none))
	for name, b := range map[string][]byte{
		"no constants":          imports(none, sequence(1, marshalled("a"))),
		"few constants":         imports(sequence(1, marshalled(int32(0))), none),
		"no names":              imports(two, none),
		"names in no tuple":     imports(two, marshalled("a")),
		"a name that is a code": imports(two, sequence(1, pyc(12, "/m.py")[headerLen:])),
		"a name that is long":   imports(two, sequence(1, marshalled(strings.Repeat("a", 257)))),
		"arguments without end": wrapped(12, "/m.py",
			strings.Repeat("\x90\xff", 9)+"\x64\xff"+strings.Repeat("\x90\xff", 9)+"\x6c\xff", two, sequence(1, marshalled("a"))),
		"instructions missing": wrapped(12, "/m.py", "", two, none),
	} {
		m, err := parseModule(b)
		if err != nil || m.filename != "/m.py" || name != "no constants" && len(m.imports) != 0 {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	odd := imports(
		sequence(2, slices.Concat(marshalled("level"), sequence(3, slices.Concat(none, marshalled("b"), marshalled(int32(5)))))),
		sequence(1, marshalled("a")))
	m, err := parseModule(odd)
	if want := []importing{{name: "a", from: []string{"b"}}}; err != nil || !reflect.DeepEqual(m.imports, want) {
		t.Errorf("odd constants: %+v, %v", m, err)
	}
}

// TestImportsBounded: a list of names that is written once can be imported from
// by every instruction.
func TestImportsBounded(t *testing.T) {
	many := make([]string, 200_000)
	for i := range many {
		many[i] = "a"
	}
	op := operationsOf(12)
	ops := string([]byte{op.loadConst, 0, op.loadConst, 1}) + strings.Repeat(string([]byte{op.importName, 0}), 200_000)
	for _, from := range [][]string{many, {"a"}, nil} {
		b := wrapped(12, "/m.py", ops, sequence(2, slices.Concat(marshalled(int32(0)), marshalled(from))), sequence(1, marshalled("a")))
		m, err := parseModule(b)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, i := range m.imports {
			sum += 1 + len(i.from)
		}
		if sum < maxImports || sum > maxImports+1 {
			t.Errorf("%d names are imported", sum)
		}
	}
}

// TestParseModuleCut: no beginning of a module is taken for all of it.
func TestParseModuleCut(t *testing.T) {
	cut := func(minor int, b []byte, step int) {
		for n := 0; n < len(b); n += step {
			if m, err := parseModule(b[:n]); !errors.Is(err, errNotCompiled) || m != nil {
				t.Errorf("3.%d, %d bytes of %d: %+v, %v", minor, n, len(b), m, err)
			}
		}
		if _, err := parseModule(append(slices.Clone(b), "more"...)); err != nil {
			t.Errorf("3.%d, and more: %v", minor, err)
		}
	}
	for minor, b := range compiledModules(t, "mod") {
		step := 31
		if minor == 9 {
			step = 1 // the others differ little
		}
		cut(minor, b, step)
	}
	for minor := range magics {
		cut(minor, pyc(minor, "/m.py", importing{level: 1, name: "a", from: []string{"b"}}), 1)
	}
}

// TestParseModuleFlipped: what is changed in transit is read or not, but soon.
func TestParseModuleFlipped(t *testing.T) {
	b := compiledModules(t, "mod")[14]
	for i := headerLen; i < len(b); i += 11 {
		for _, x := range []byte{0x80, 0x01, 0xff} {
			b[i] ^= x
			if m, err := parseModule(b); (m == nil) == (err == nil) {
				t.Errorf("byte %d ^ %#x: %+v, %v", i, x, m, err)
			}
			b[i] ^= x
		}
	}
}

// FuzzModule: no module makes us panic, or believe in more than there can be.
func FuzzModule(f *testing.F) {
	for _, b := range compiledModules(f, "small") {
		f.Add(b)
	}
	for minor := range magics {
		f.Add(pyc(minor, "/m.py", importing{level: 1, name: "a", from: []string{"b"}}, importing{name: "c"}))
	}
	// Whatever the version, the file is where testdata says.
	image := newImage(1)
	for minor := 8; minor <= 14; minor++ {
		image.add(0, fmt.Sprintf("/opt/app/pkg/sub/__pycache__/mod.cpython-3%d.pyc", minor), []byte{0})
		image.add(0, fmt.Sprintf("/opt/app/pkg/sub/__pycache__/beside.cpython-3%d.pyc", minor), []byte{0})
		image.add(0, fmt.Sprintf("/opt/app/pkg/__pycache__/__init__.cpython-3%d.pyc", minor), []byte{0})
	}
	tree := image.scene(f).tree.Index
	f.Add(within(3, []byte(")\x02\xfa\x01ar\x01\x00\x00\x00{z\x01aN0:NNN")))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseModule(b)
		if (m == nil) == (err == nil) {
			t.Errorf("%+v, %v", m, err)
		}
		if err != nil {
			if !errors.Is(err, errNotCompiled) {
				t.Error(err)
			}
			return
		}
		sum := 0
		for _, i := range m.imports {
			sum += 1 + len(i.from)
			for _, s := range append(i.from, i.name) {
				if len(s) > maxNameLen {
					t.Errorf("name of %d bytes", len(s))
				}
			}
		}
		if sum > maxImports+1 || len(m.filename) > len(b) {
			t.Errorf("%d imports, %d bytes of name", sum, len(m.filename))
		}
		at := image.files[fmt.Sprintf("/opt/app/pkg/sub/__pycache__/mod.cpython-3%d.pyc", m.minor)]
		s := sceneOf(tree, &fakeLayer{data: append(make([]byte, at.off), b...)})
		wishes, err := imports(t.Context(), s, file{off: at.off, len: int64(len(b))})
		if err != nil && (wishes != nil || s.python.roots != nil) || err == nil && !path.IsAbs(m.filename) {
			t.Errorf("%v, %v, roots %q", wishes, err, s.python.roots)
		}
	})
}
