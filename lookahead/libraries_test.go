package lookahead

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/laminafs/lamina/index"
)

// notLinked makes a program that has no parts that are linked.
func notLinked(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Flags = uint32(elf.PF_X) }

// TestLinked: what the dynamic linker reads all of is wished for, within the
// file.
func TestLinked(t *testing.T) {
	const flagR, flagW, flagX = uint32(elf.PF_R), uint32(elf.PF_W), uint32(elf.PF_X)
	const whole = -1
	rela := func(addr, n uint64) []elf.Dyn64 {
		return []elf.Dyn64{{Tag: int64(elf.DT_RELA), Val: addr}, {Tag: int64(elf.DT_RELASZ), Val: n}}
	}
	plt := func(addr, n uint64) []elf.Dyn64 {
		return []elf.Dyn64{{Tag: int64(elf.DT_JMPREL), Val: addr}, {Tag: int64(elf.DT_PLTRELSZ), Val: n}}
	}
	// The segment that is loaded first is that of the names.
	first := func(flags uint32) func(*elf.Header64, []elf.Prog64, []elf.Dyn64) {
		return func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) { p[1].Flags = flags }
	}
	second := func(flags uint32, off, n uint64) func(*elf.Header64, []elf.Prog64, []elf.Dyn64) {
		return func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) {
			p[1].Flags = flagX
			p[3] = elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: flags, Off: off, Vaddr: 1 << 40, Filesz: n}
		}
	}
	for name, c := range map[string]struct {
		file binaryFile
		want []part // of the file; whole stands for its length
	}{
		"the beginning":               {binaryFile{change: first(flagR)}, []part{{0, whole}}},
		"code at the beginning":       {binaryFile{change: first(flagR | flagX)}, nil},
		"all in one":                  {binaryFile{change: first(flagR | flagW | flagX)}, []part{{0, whole}}},
		"variables":                   {binaryFile{change: second(flagR|flagW, 8, 24)}, []part{{8, 24}}},
		"constants":                   {binaryFile{change: second(flagR, 8, 24)}, nil},
		"variables that are zero":     {binaryFile{change: second(flagR|flagW, 8, 0)}, nil},
		"variables past the end":      {binaryFile{change: second(flagR|flagW, 8, 1<<30)}, []part{{8, whole}}},
		"variables far past the end":  {binaryFile{change: second(flagR|flagW, 1<<30, 8)}, nil},
		"variables without an end":    {binaryFile{change: second(flagR|flagW, 8, 1<<63)}, nil},
		"variables out of this world": {binaryFile{change: second(flagR|flagW, 1<<64-8, 16)}, nil},
		"relocations":                 {binaryFile{change: first(flagX), entries: rela(address+16, 48)}, []part{{16, 48}}},
		"relocations of functions":    {binaryFile{change: first(flagX), entries: plt(address+16, 48)}, []part{{16, 48}}},
		"both": {
			binaryFile{change: first(flagX), entries: append(rela(address+16, 48), plt(address+64, 24)...)},
			[]part{{16, 48}, {64, 24}},
		},
		"relocations past the end": {binaryFile{change: first(flagX), entries: rela(address+16, 1<<30)}, []part{{16, whole}}},
		"relocations without end":  {binaryFile{change: first(flagX), entries: rela(address+16, 1<<64-1)}, nil},
		"relocations not loaded":   {binaryFile{change: first(flagX), entries: rela(16, 48)}, nil},
		"no relocations":           {binaryFile{change: first(flagX), entries: rela(address+16, 0)}, nil},
		"many symbols": {
			binaryFile{change: func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) {
				p[1].Flags, p[1].Filesz = flagR, maxSymbols
			}},
			[]part{{0, whole}},
		},
		"too many symbols": {
			binaryFile{change: func(_ *elf.Header64, p []elf.Prog64, _ []elf.Dyn64) {
				p[1].Flags, p[1].Filesz = flagR, maxSymbols+1
			}},
			nil,
		},
	} {
		for _, sure := range []bool{true, false} {
			s, f, _ := system(t, c.file.bytes())
			f.sure = sure
			wishes, err := libraries(t.Context(), s, f)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			var got, want []index.Extent
			for _, w := range wishes {
				if w.sure != sure || w.ends {
					t.Errorf("%s: wish %+v", name, w)
				}
				got = append(got, w.extents...)
			}
			for _, p := range c.want {
				if p.len == whole {
					p.len = f.len - p.off
				}
				want = append(want, index.Extent{Off: 512 + p.off, Len: p.len, Device: 1})
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
	}
}

// TestStartFiles: what glibc reads when it starts a program goes with its
// linker, and with no other.
func TestStartFiles(t *testing.T) {
	for interp, want := range map[string][]string{
		"/lib64/ld-linux-x86-64.so.2": {"/lib64/ld-linux-x86-64.so.2", "/etc/ld.so.cache", "/etc/passwd", "/etc/localtime"},
		"/lib/ld-linux-aarch64.so.1":  {"/etc/ld.so.cache", "/etc/passwd", "/etc/localtime"}, // though it is not there
		"/lib/ld-musl-x86_64.so.1":    {"/lib/ld-musl-x86_64.so.1"},
		"":                            nil,
	} {
		m := newImage(2)
		m.add(0, "/bin/program", (&binaryFile{interp: interp, change: notLinked}).bytes())
		for _, path := range []string{
			"/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1",
			"/etc/ld.so.cache", "/etc/passwd", "/etc/shadow", "/usr/share/zoneinfo/UTC",
		} {
			m.add(1, path, []byte(path))
		}
		m.files["/etc/localtime"] = m.files["/usr/share/zoneinfo/UTC"]
		delete(m.files, "/usr/share/zoneinfo/UTC")
		put(m.root, "/etc/localtime", symlink("/usr/share/zoneinfo/UTC"))
		wishes, err := libraries(t.Context(), m.scene(t), m.files["/bin/program"])
		if got := m.paths(wishes); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", interp, got, err, want)
		}
		for _, w := range wishes {
			// The linker is read for certain, the others are a guess.
			linker := strings.HasPrefix(m.paths([]wish{w})[0], "/lib")
			if !w.ends || w.sure != linker {
				t.Errorf("%s: wish %+v", interp, w)
			}
		}
	}
}

// TestLibrarySure: what a library needs is as sure as the library.
func TestLibrarySure(t *testing.T) {
	for _, sure := range []bool{true, false} {
		s, f, _ := system(t, (&binaryFile{interp: "/lib64/ld-linux-x86-64.so.2", needed: []string{"libz.so.1"}}).bytes())
		f.sure = sure
		wishes, err := libraries(t.Context(), s, f)
		if err != nil || len(wishes) < 2 {
			t.Errorf("%v, %v", wishes, err)
		}
		for _, w := range wishes {
			if w.sure != sure {
				t.Errorf("wish %+v of a file that is sure: %v", w, sure)
			}
		}
	}
}

// TestLookupsBounded: a program that names many libraries in many folders does
// not keep the machine busy.
func TestLookupsBounded(t *testing.T) {
	var dirs strings.Builder
	for i := range maxRunpath {
		fmt.Fprintf(&dirs, "/r%d:", i)
	}
	for n, want := range map[int]int{10: 1, maxNames - 1: 0} {
		m := newImage(1)
		var names []string
		for i := range n {
			names = append(names, fmt.Sprintf("lib%d.so", i))
		}
		m.add(0, "/lib/libthere.so", []byte("there"))
		m.add(0, "/over/libover.so", []byte("in one folder too many"))
		m.add(0, "/bin/program", (&binaryFile{
			needed:  append(names, "libover.so", "libthere.so")[1:],
			runpath: dirs.String() + "/over", change: notLinked,
		}).bytes())
		wishes, err := libraries(t.Context(), m.scene(t), m.files["/bin/program"])
		if err != nil || len(wishes) != want {
			t.Errorf("%d libraries: %q, %v", n, m.paths(wishes), err)
		}
	}
}
