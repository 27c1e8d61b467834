package lookahead

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// A binaryFile is a minimal program: a header, three or four program headers,
// the interpreter's path, the strings, and the dynamic section.
type binaryFile struct {
	machine elf.Machine
	interp  string
	needed  []string
	runpath string
	rpath   string
	entries []elf.Dyn64 // further entries of the dynamic section
	after   []string    // names behind the end of the dynamic section
	change  func(h *elf.Header64, progs []elf.Prog64, dyn []elf.Dyn64)
}

// address is where binaryFile's programs are loaded.
const address = 0x400000

func (f *binaryFile) bytes() []byte {
	const headers = 64 + 4*56
	text := []byte{0}
	add := func(s string) uint64 {
		at := len(text)
		text = append(append(text, s...), 0)
		return uint64(at)
	}
	var dyn []elf.Dyn64
	entry := func(tag elf.DynTag, v uint64) { dyn = append(dyn, elf.Dyn64{Tag: int64(tag), Val: v}) }
	for _, n := range f.needed {
		entry(elf.DT_NEEDED, add(n))
	}
	if f.runpath != "" {
		entry(elf.DT_RUNPATH, add(f.runpath))
	}
	if f.rpath != "" {
		entry(elf.DT_RPATH, add(f.rpath))
	}
	dyn = append(dyn, f.entries...)
	entry(elf.DT_STRTAB, address+headers)
	entry(elf.DT_NULL, 0)
	for _, n := range f.after {
		entry(elf.DT_NEEDED, add(n))
	}
	interp := add(f.interp)
	for len(text)%16 != 0 {
		text = append(text, 0)
	}
	size := uint64(headers + len(text) + 16*len(dyn))
	progs := []elf.Prog64{
		{Type: uint32(elf.PT_PHDR), Off: 64, Vaddr: address + 64, Filesz: 4 * 56},
		{Type: uint32(elf.PT_LOAD), Vaddr: address, Filesz: size, Memsz: size},
		{Type: uint32(elf.PT_DYNAMIC), Off: uint64(headers + len(text)), Filesz: uint64(16 * len(dyn))},
		{Type: uint32(elf.PT_NULL)},
	}
	if f.interp != "" {
		progs[3] = elf.Prog64{Type: uint32(elf.PT_INTERP), Off: headers + interp, Filesz: uint64(len(f.interp) + 1)}
	}
	h := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(f.machine), Phoff: 64, Phentsize: 56, Phnum: 4, Ehsize: 64}
	if f.machine == 0 {
		h.Machine = uint16(elf.EM_X86_64)
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB)
	if f.change != nil {
		f.change(&h, progs, dyn)
	}
	var b bytes.Buffer
	for _, v := range []any{h, progs, text, dyn} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // the types are fixed
		}
	}
	return b.Bytes()
}

// padded returns a layer that has program at offset 512, with room behind it.
func padded(program []byte) *fakeLayer {
	b := make([]byte, 512, 512+len(program)+512)
	return &fakeLayer{key: "program", data: append(append(b, program...), make([]byte, 512)...)}
}

// needed returns where the interpreter and the libraries of f lie.
func needed(ctx context.Context, s *scene, f file) (extents []index.Extent, err error) {
	wishes, err := libraries(ctx, s, f)
	for _, w := range wishes {
		if w.ends { // no part of f itself
			extents = append(extents, w.extents...)
		}
	}
	return extents, err
}

// system is a tree with libraries, each at a data offset of its own in layer 1:
// the program is in layer 0, and f.
func system(t testing.TB, program []byte) (s *scene, f file, at map[string]int64) {
	t.Helper()
	root := &index.Node{Mode: unix.S_IFDIR | 0o755}
	at = make(map[string]int64)
	off := int64(0)
	for _, path := range []string{
		"usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/libc.so.6",
		"usr/lib/x86_64-linux-gnu/libz.so.1.3",
		"usr/lib/aarch64-linux-gnu/libc.so.6",
		"usr/lib/libplain.so.1",
		"usr/lib64/libfedora.so.1",
		"usr/local/lib/libplain.so.1",
		"opt/app/lib/libapp.so",
		"opt/app/lib/libc.so.6",
		"opt/old/libold.so",
		"app/libcwd.so",
	} {
		at["/"+path] = off
		put(root, path, &index.Node{
			Mode: unix.S_IFREG | 0o755, Size: 1000,
			Extents: []index.Extent{{Len: 1000, Off: off, Device: 2}},
		})
		off += 1024
	}
	for path, target := range map[string]string{
		"lib":                                   "usr/lib",
		"lib64":                                 "usr/lib64",
		"usr/lib64/ld-linux-x86-64.so.2":        "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
		"usr/lib/x86_64-linux-gnu/libz.so.1":    "libz.so.1.3",
		"usr/lib/x86_64-linux-gnu/libbad.so":    "nowhere",
		"usr/lib/libbad.so":                     "libplain.so.1",
		"opt/current":                           "/opt/app",
		"usr/lib/x86_64-linux-gnu/liblost.so.1": "liblost.so.1",
	} {
		put(root, path, symlink(target))
	}
	put(root, "usr/lib/libdir.so/x", &index.Node{Mode: unix.S_IFREG})
	put(root, "usr/lib/libempty.so", &index.Node{Mode: unix.S_IFREG})
	// Two pieces, with a hole between them.
	put(root, "usr/lib/libholes.so", &index.Node{Mode: unix.S_IFREG, Size: 3 << 12, Extents: []index.Extent{
		{Len: 1 << 12, Off: 1 << 20, Device: 1}, {FileOff: 2 << 12, Len: 1 << 12, Off: 2 << 20, Device: 2},
	}})
	// In a layer that the tree was not given.
	put(root, "usr/lib/libforeign.so", &index.Node{Mode: unix.S_IFREG, Size: 5, Extents: []index.Extent{{Len: 5, Device: 3}}})
	s = sceneOf(merged(t, root, 3), padded(program), &fakeLayer{key: "libraries"})
	return s, file{off: 512, len: int64(len(program)), sure: true}, at
}

func TestLibraries(t *testing.T) {
	const lib = "/usr/lib/x86_64-linux-gnu/"
	for name, c := range map[string]struct {
		file binaryFile
		want []string
	}{
		"interpreter and libraries": {
			binaryFile{interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libz.so.1", "libc.so.6"}},
			[]string{lib + "ld-linux-x86-64.so.2", lib + "libz.so.1.3", lib + "libc.so.6"},
		},
		"static":           {binaryFile{}, nil},
		"unknown library":  {binaryFile{needed: []string{"libnone.so.1", "libc.so.6"}}, []string{lib + "libc.so.6"}},
		"no interpreter":   {binaryFile{interp: "/lib/ld-none.so", needed: []string{"libc.so.6"}}, []string{lib + "libc.so.6"}},
		"link in circles":  {binaryFile{needed: []string{"liblost.so.1", "libc.so.6"}}, []string{lib + "libc.so.6"}},
		"dangling link":    {binaryFile{needed: []string{"libbad.so"}}, []string{"/usr/lib/libplain.so.1"}},
		"folder":           {binaryFile{needed: []string{"libdir.so"}}, nil},
		"empty library":    {binaryFile{needed: []string{"libempty.so"}}, nil},
		"layer not there":  {binaryFile{needed: []string{"libforeign.so", "libc.so.6"}}, []string{lib + "libc.so.6"}},
		"/usr/local first": {binaryFile{needed: []string{"libplain.so.1"}}, []string{"/usr/local/lib/libplain.so.1"}},
		"Fedora":           {binaryFile{needed: []string{"libfedora.so.1"}}, []string{"/usr/lib64/libfedora.so.1"}},
		"RUNPATH":          {binaryFile{needed: []string{"libapp.so"}, runpath: "/opt/app/lib"}, []string{"/opt/app/lib/libapp.so"}},
		"RUNPATH is a link": {
			binaryFile{needed: []string{"libc.so.6", "libapp.so", "libz.so.1"}, runpath: "/none:/opt/current/lib"},
			[]string{"/opt/app/lib/libc.so.6", "/opt/app/lib/libapp.so", lib + "libz.so.1.3"},
		},
		"RPATH":       {binaryFile{needed: []string{"libold.so"}, rpath: "/opt/old"}, []string{"/opt/old/libold.so"}},
		"ORIGIN":      {binaryFile{needed: []string{"libapp.so", "libc.so.6"}, runpath: "$ORIGIN/../lib:${ORIGIN}::app"}, []string{lib + "libc.so.6"}},
		"path":        {binaryFile{needed: []string{"/opt/app/lib/libapp.so", "app/libcwd.so"}}, []string{"/opt/app/lib/libapp.so", "/app/libcwd.so"}},
		"arm64":       {binaryFile{machine: elf.EM_AARCH64, needed: []string{"libc.so.6", "libz.so.1"}}, []string{"/usr/lib/aarch64-linux-gnu/libc.so.6"}},
		"odd machine": {binaryFile{machine: elf.EM_68K, needed: []string{"libc.so.6", "libplain.so.1"}}, []string{"/usr/local/lib/libplain.so.1"}},
		"behind the end of the dynamic section": {
			binaryFile{needed: []string{"libc.so.6"}, after: []string{"libz.so.1"}}, []string{lib + "libc.so.6"},
		},
		"name as long as can be": {binaryFile{needed: []string{strings.Repeat("n", 255), "libc.so.6"}}, []string{lib + "libc.so.6"}},
	} {
		s, f, at := system(t, c.file.bytes())
		got, err := needed(t.Context(), s, f)
		var want []index.Extent
		for _, path := range c.want {
			off, ok := at[path]
			if !ok {
				t.Fatalf("%s: no %s in the tree", name, path)
			}
			want = append(want, index.Extent{Len: 1000, Off: off, Device: 2})
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, want)
		}
	}
}

// TestLibrariesPieces: a library that is not in one piece is returned whole.
func TestLibrariesPieces(t *testing.T) {
	s, f, _ := system(t, (&binaryFile{needed: []string{"libholes.so"}}).bytes())
	got, err := needed(t.Context(), s, f)
	want := []index.Extent{
		{Len: 1 << 12, Off: 1 << 20, Device: 1}, {FileOff: 2 << 12, Len: 1 << 12, Off: 2 << 20, Device: 2},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// TestLibrariesHostile: what is wrong with a program is an error, and found out
// without much effort.
func TestLibrariesHostile(t *testing.T) {
	type header = func(h *elf.Header64, progs []elf.Prog64, dyn []elf.Dyn64)
	for name, change := range map[string]header{
		"no magic":                func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Ident[0] = 0 },
		"32 bits":                 func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Ident[elf.EI_CLASS] = 1 },
		"big-endian":              func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Ident[elf.EI_DATA] = 2 },
		"huge Phnum":              func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Phnum = math.MaxUint16 },
		"Phnum past the end":      func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Phnum = 120 },
		"Phentsize":               func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Phentsize = 57 },
		"Phoff past the end":      func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Phoff = 1 << 20 },
		"Phoff overflows":         func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Phoff = math.MaxUint64 - 8 },
		"Phoff is huge":           func(h *elf.Header64, _ []elf.Prog64, _ []elf.Dyn64) { h.Phoff = math.MaxInt64 },
		"dynamic section is far":  func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[2].Off = 1 << 30 },
		"dynamic offset overflow": func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[2].Off = math.MaxUint64 },
		"dynamic section is huge": func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[2].Filesz = math.MaxUint64 },
		"nothing loaded":          func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Type = 0 },
		"strings not loaded":      func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Vaddr = 1 << 40 },
		"strings offset overflow": func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Off = math.MaxInt64 - 300 },
		"strings offset wraps":    func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Off = math.MaxUint64 },
		"strings are far":         func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Off = 1 << 45 },
		"name is far":             func(_ *elf.Header64, _ []elf.Prog64, d []elf.Dyn64) { d[0].Val = math.MaxUint32 },
		"name is nothing":         func(_ *elf.Header64, _ []elf.Prog64, d []elf.Dyn64) { d[0].Val = 0 },
		"no strings": func(_ *elf.Header64, _ []elf.Prog64, d []elf.Dyn64) {
			for i := range d {
				if elf.DynTag(d[i].Tag) == elf.DT_STRTAB {
					d[i].Tag = int64(elf.DT_DEBUG)
				}
			}
		},
	} {
		s, f, _ := system(t, (&binaryFile{needed: []string{"libc.so.6"}, change: change}).bytes())
		if got, err := libraries(t.Context(), s, f); err == nil || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		} else if !strings.Contains(err.Error(), "512 of layer 0") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: message %q", name, err)
		}
	}
	for name, b := range map[string]binaryFile{
		"name without an end": {needed: []string{strings.Repeat("n", 256)}},
		"long name":           {needed: []string{strings.Repeat("n", 5000)}},
	} {
		s, f, _ := system(t, b.bytes())
		if got, err := libraries(t.Context(), s, f); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestLibrariesForgives: a bad interpreter or run path leaves the libraries.
func TestLibrariesForgives(t *testing.T) {
	for name, b := range map[string]binaryFile{
		"interpreter": {interp: "/x", change: func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[3].Off = 1 << 30 }},
		"run path":    {runpath: "/x", change: func(_ *elf.Header64, _ []elf.Prog64, d []elf.Dyn64) { d[1].Val = math.MaxUint32 }},
	} {
		b.needed = []string{"libc.so.6"}
		s, f, at := system(t, b.bytes())
		got, err := needed(t.Context(), s, f)
		if err != nil || len(got) != 1 || got[0].Off != at["/usr/lib/x86_64-linux-gnu/libc.so.6"] {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestLibrariesMany: of endless names some are looked for.
func TestLibrariesMany(t *testing.T) {
	b := binaryFile{runpath: strings.Repeat("/a:", 60)}
	for range 3000 {
		b.needed = append(b.needed, "libc.so.6")
	}
	s, f, _ := system(t, b.bytes())
	if got, err := needed(t.Context(), s, f); err != nil || len(got) == 0 || len(got) > 1000 {
		t.Errorf("%d extents, %v", len(got), err)
	}
}

// TestLibrariesCut: no beginning of a program is taken for all of it, whether
// its layer ends there or goes on, and nothing is read of what follows it.
func TestLibrariesCut(t *testing.T) {
	program := (&binaryFile{interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libz.so.1", "libc.so.6"}}).bytes()
	x := merged(t, &index.Node{Mode: unix.S_IFDIR | 0o755}, 1)
	for n := range program {
		s := sceneOf(x, &fakeLayer{data: program[:n]})
		if _, err := libraries(t.Context(), s, file{len: int64(len(program))}); err == nil {
			t.Errorf("layer of %d bytes of %d: no error", n, len(program))
		}
		l := padded(program)
		if _, err := libraries(t.Context(), sceneOf(x, l), file{off: 512, len: int64(n)}); err == nil {
			t.Errorf("%d bytes of %d: no error", n, len(program))
		}
		if l.read > 512+int64(n) {
			t.Errorf("%d bytes of %d: read up to %d", n, len(program), l.read-512)
		}
	}
	// A file that ends where its layer does.
	s := sceneOf(x, &fakeLayer{data: program})
	if _, err := libraries(t.Context(), s, file{len: int64(len(program))}); err != nil {
		t.Errorf("all of it: %v", err)
	}
}

// TestLibrariesNamesLast: a program may end with the last of its names.
func TestLibrariesNamesLast(t *testing.T) {
	b := binaryFile{needed: []string{"libz.so.1", "libc.so.6"}}
	var table int
	b.change = func(h *elf.Header64, p []elf.Prog64, d []elf.Dyn64) {
		table = int(p[2].Off) + 16*len(d)
		p[1].Filesz = 1 << 20
		for i := range d {
			if elf.DynTag(d[i].Tag) == elf.DT_STRTAB {
				d[i].Val = address + uint64(table)
			}
		}
	}
	program := b.bytes()
	program = append(program, "\x00libz.so.1\x00libc.so.6\x00"...)
	s, f, at := system(t, program)
	got, err := needed(t.Context(), s, f)
	const lib = "/usr/lib/x86_64-linux-gnu/"
	if err != nil || len(got) != 2 || got[0].Off != at[lib+"libz.so.1.3"] || got[1].Off != at[lib+"libc.so.6"] {
		t.Errorf("%v, %v", got, err)
	}
}

func TestLibrariesNotThere(t *testing.T) {
	s, f, _ := system(t, (&binaryFile{}).bytes())
	for _, g := range []file{
		{off: -1, len: f.len},
		{off: math.MinInt64, len: f.len},
		{off: 1 << 40, len: f.len},
		{off: math.MaxInt64, len: f.len},
		{off: 0, len: f.len},
		{off: 512, len: 0},
		{off: 512, len: -1},
		{off: 512, len: math.MinInt64},
		{layer: 1, len: f.len},
	} {
		if _, err := libraries(t.Context(), s, g); err == nil {
			t.Errorf("%+v: no error", g)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := libraries(ctx, s, f); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestIsELF(t *testing.T) {
	image := (&binaryFile{}).bytes()
	for n, want := range map[int]bool{0: false, 4: false, 5: false, 6: true, 64: true} {
		if isELF(image[:n]) != want {
			t.Errorf("%d bytes: not %v", n, want)
		}
	}
	for _, head := range []string{"#!/bin/sh\n", "\x7fELF\x01\x01\x01", "\x7fELF\x02\x02\x01", "\x7fELG\x02\x01\x01"} {
		if isELF([]byte(head)) {
			t.Errorf("%q is a program", head)
		}
	}
}

// FuzzLibraries: no program makes us panic, or name what is not in the tree, or
// read or wish for what is behind its end.
func FuzzLibraries(f *testing.F) {
	for _, b := range []binaryFile{
		{interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libz.so.1", "libc.so.6"}, runpath: "/opt/app/lib:$ORIGIN"},
		{needed: []string{"libplain.so.1", "libholes.so", "libforeign.so"}, rpath: "/opt/../../opt/old"},
		{machine: elf.EM_AARCH64, change: func(h *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { h.Phnum, p[2].Filesz = 128, 1<<63 }},
		{
			entries: []elf.Dyn64{
				{Tag: int64(elf.DT_RELA), Val: address + 8},
				{Tag: int64(elf.DT_RELASZ), Val: 24},
				{Tag: int64(elf.DT_JMPREL), Val: address + 32},
				{Tag: int64(elf.DT_PLTRELSZ), Val: 1 << 39},
			},
			change: func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Flags = uint32(elf.PF_W) },
		},
	} {
		f.Add(b.bytes())
	}
	system, _, _ := system(f, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		l := padded(b)
		end := 512 + int64(len(b))
		got, err := libraries(t.Context(), sceneOf(system.tree.Index, l, &fakeLayer{}), file{off: 512, len: int64(len(b))})
		if err != nil && got != nil {
			t.Errorf("%v and %v", got, err)
		}
		if l.read > end {
			t.Errorf("read up to %d of %d", l.read, end)
		}
		for _, w := range got {
			for _, e := range w.extents {
				if e.Device < 1 || e.Device > 2 || e.Len <= 0 || w.sure {
					t.Error(fmt.Sprint(e))
				}
				if !w.ends && (e.Device != 1 || e.Off < 512 || e.Off+e.Len > end) {
					t.Errorf("part %v of %d", e, end)
				}
			}
		}
	})
}
