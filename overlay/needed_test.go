package overlay_test

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
	"github.com/laminafs/lamina/overlay"
)

// A binaryFile is a minimal program: a header, three or four program headers,
// the interpreter's path, the strings, and the dynamic section.
type binaryFile struct {
	machine elf.Machine
	interp  string
	needed  []string
	runpath string
	rpath   string
	after   []string // names behind the end of the dynamic section
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

// padded returns a layer that has image at offset 512, with room behind it.
func padded(image []byte) memory {
	b := make(memory, 512, 512+len(image)+512)
	return append(append(b, image...), make([]byte, 512)...)
}

// system is a tree with libraries, each at a data offset of its own in layer 1:
// the program is in layer 0.
func system(t testing.TB, program []byte) (tree *overlay.Tree, at map[string]int64) {
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
	return merged(t, root, 3, padded(program), make(memory, 1<<12)), at
}

func TestNeeded(t *testing.T) {
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
		tree, at := system(t, c.file.bytes())
		got, err := tree.Needed(t.Context(), 0, 512)
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

// TestNeededPieces: a library that is not in one piece is returned whole.
func TestNeededPieces(t *testing.T) {
	tree, _ := system(t, (&binaryFile{needed: []string{"libholes.so"}}).bytes())
	got, err := tree.Needed(t.Context(), 0, 512)
	want := []index.Extent{
		{Len: 1 << 12, Off: 1 << 20, Device: 1}, {FileOff: 2 << 12, Len: 1 << 12, Off: 2 << 20, Device: 2},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// TestNeededHostile: what is wrong with a program is an error, and found out
// without much effort.
func TestNeededHostile(t *testing.T) {
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
		f := binaryFile{needed: []string{"libc.so.6"}, change: change}
		tree, _ := system(t, f.bytes())
		if got, err := tree.Needed(t.Context(), 0, 512); err == nil {
			t.Errorf("%s: no error, %v", name, got)
		} else if !strings.Contains(err.Error(), "512 of layer 0") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: message %q", name, err)
		}
	}
	for name, f := range map[string]binaryFile{
		"name without an end": {needed: []string{strings.Repeat("n", 256)}},
		"long name":           {needed: []string{strings.Repeat("n", 5000)}},
	} {
		tree, _ := system(t, f.bytes())
		if got, err := tree.Needed(t.Context(), 0, 512); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestNeededForgives: a bad interpreter or run path leaves the libraries.
func TestNeededForgives(t *testing.T) {
	for name, f := range map[string]binaryFile{
		"interpreter": {interp: "/x", change: func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[3].Off = 1 << 30 }},
		"run path":    {runpath: "/x", change: func(_ *elf.Header64, _ []elf.Prog64, d []elf.Dyn64) { d[1].Val = math.MaxUint32 }},
	} {
		f.needed = []string{"libc.so.6"}
		tree, at := system(t, f.bytes())
		got, err := tree.Needed(t.Context(), 0, 512)
		if err != nil || len(got) != 1 || got[0].Off != at["/usr/lib/x86_64-linux-gnu/libc.so.6"] {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestNeededMany: of endless names some are looked for.
func TestNeededMany(t *testing.T) {
	f := binaryFile{runpath: strings.Repeat("/a:", 60)}
	for range 3000 {
		f.needed = append(f.needed, "libc.so.6")
	}
	tree, _ := system(t, f.bytes())
	if got, err := tree.Needed(t.Context(), 0, 512); err != nil || len(got) == 0 || len(got) > 1000 {
		t.Errorf("%d extents, %v", len(got), err)
	}
}

// TestNeededCut: no beginning of a program is taken for all of it.
func TestNeededCut(t *testing.T) {
	f := binaryFile{interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libz.so.1", "libc.so.6"}}
	image := f.bytes()
	root := &index.Node{Mode: unix.S_IFDIR | 0o755}
	for n := range image {
		tree := merged(t, root, 1, memory(image[:n]))
		if _, err := tree.Needed(t.Context(), 0, 0); err == nil {
			t.Errorf("%d bytes of %d: no error", n, len(image))
		}
	}
	// A file that ends where its layer does.
	tree := merged(t, root, 1, memory(image))
	if _, err := tree.Needed(t.Context(), 0, 0); err != nil {
		t.Errorf("all of it: %v", err)
	}
}

func TestNeededArguments(t *testing.T) {
	tree, _ := system(t, (&binaryFile{}).bytes())
	for _, c := range []struct {
		layer int
		off   int64
	}{{-1, 512}, {2, 512}, {math.MaxInt, 512}, {0, -1}, {0, math.MinInt64}, {0, 1 << 40}, {0, math.MaxInt64}, {0, 0}, {1, 0}} {
		if _, err := tree.Needed(t.Context(), c.layer, c.off); err == nil {
			t.Errorf("layer %d at %d: no error", c.layer, c.off)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tree.Needed(ctx, 0, 512); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestIsProgram(t *testing.T) {
	image := (&binaryFile{}).bytes()
	for n, want := range map[int]bool{0: false, 4: false, 5: false, 6: true, 64: true} {
		if overlay.IsProgram(image[:n]) != want {
			t.Errorf("%d bytes: not %v", n, want)
		}
	}
	for _, head := range []string{"#!/bin/sh\n", "\x7fELF\x01\x01\x01", "\x7fELF\x02\x02\x01", "\x7fELG\x02\x01\x01"} {
		if overlay.IsProgram([]byte(head)) {
			t.Errorf("%q is a program", head)
		}
	}
}

// FuzzNeeded: no program makes us panic, or name what is not in the tree.
func FuzzNeeded(f *testing.F) {
	for _, b := range []binaryFile{
		{interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libz.so.1", "libc.so.6"}, runpath: "/opt/app/lib:$ORIGIN"},
		{needed: []string{"libplain.so.1", "libholes.so", "libforeign.so"}, rpath: "/opt/../../opt/old"},
		{machine: elf.EM_AARCH64, change: func(h *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { h.Phnum, p[2].Filesz = 128, 1<<63 }},
	} {
		f.Add(b.bytes())
	}
	tree, _ := system(f, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := overlay.New(tree.Index, []overlay.Data{padded(b), memory{}}).Needed(t.Context(), 0, 512)
		if err != nil && got != nil {
			t.Errorf("%v and %v", got, err)
		}
		for _, e := range got {
			if e.Device < 1 || e.Device > 2 || e.Len <= 0 {
				t.Error(fmt.Sprint(e))
			}
		}
	})
}
