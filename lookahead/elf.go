package lookahead

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Bounds on what is believed of a program's own tables.
const (
	maxHeaders = 128
	maxDynamic = 64 << 10
	maxNames   = 256
	// maxRunpath is how many folders a program may name for its libraries, and
	// maxLookups how often they are looked for in all.
	maxRunpath = 16
	maxLookups = 2048
	maxNameLen = 256
	maxOffset  = 1 << 40

	// maxSymbols is up to what size all symbols of a program are taken to be
	// looked at.
	maxSymbols = 1 << 20
	// maxLinked is how much of one part that is read to relocate a program is
	// asked for: larger ones are tables of other things.
	maxLinked = 16 << 20
)

var errNotELF = errors.New("not a 64-bit little-endian ELF file")

// isELF tells by its first bytes whether a file may be a program or shared
// library that parseELF understands.
func isELF(head []byte) bool {
	return len(head) >= 6 && string(head[:4]) == elf.ELFMAG &&
		head[elf.EI_CLASS] == byte(elf.ELFCLASS64) && head[elf.EI_DATA] == byte(elf.ELFDATA2LSB)
}

// program is what is read of an ELF file: see the System V ABI, chapters 4, 5.
type program struct {
	r       io.ReaderAt
	header  elf.Header64
	loads   []elf.Prog64
	interp  string   // path of the interpreter, or empty
	needed  []string // names of libraries, or paths
	runpath []string
	linked  []part // what the dynamic linker reads all of to relocate the program
}

// part is a part of a file.
type part struct{ off, len int64 }

// parseELF reads of r what the dynamic linker reads of a program or library to
// find out what it needs.
func parseELF(r io.ReaderAt) (*program, error) {
	p := &program{r: r}
	return p, p.parse()
}

func (p *program) read(v any, off int64) error {
	b := make([]byte, binary.Size(v))
	if _, err := p.r.ReadAt(b, off); err != nil {
		return err
	}
	return binary.Read(bytes.NewReader(b), binary.LittleEndian, v)
}

func (p *program) parse() error {
	if err := p.read(&p.header, 0); err != nil {
		return err
	}
	h := &p.header
	if !isELF(h.Ident[:]) || h.Phentsize != uint16(binary.Size(elf.Prog64{})) || h.Phnum > maxHeaders {
		return errNotELF
	}
	progs := make([]elf.Prog64, h.Phnum)
	if err := p.read(progs, int64(h.Phoff)); err != nil {
		return err
	}
	for _, g := range progs {
		switch elf.ProgType(g.Type) {
		case elf.PT_LOAD:
			p.loads = append(p.loads, g)
			// Variables, and, at the beginning, symbols.
			if elf.ProgFlag(g.Flags)&elf.PF_W != 0 || g.Off == 0 && elf.ProgFlag(g.Flags)&elf.PF_X == 0 && g.Filesz <= maxSymbols {
				p.link(g.Off, g.Filesz)
			}
		case elf.PT_INTERP:
			if name, err := p.text(int64(g.Off)); err == nil {
				p.interp = name
			}
		}
	}
	for _, g := range progs {
		if elf.ProgType(g.Type) == elf.PT_DYNAMIC {
			return p.dynamic(g)
		}
	}
	return nil
}

// dynamic reads the names in the dynamic section.
func (p *program) dynamic(g elf.Prog64) error {
	entries := make([]elf.Dyn64, min(g.Filesz, maxDynamic)/uint64(binary.Size(elf.Dyn64{})))
	if err := p.read(entries, int64(g.Off)); err != nil {
		return err
	}
	var names, paths []uint64
	var strtab, rela, relaSize, jmprel, pltSize uint64
	for _, d := range entries {
		if elf.DynTag(d.Tag) == elf.DT_NULL {
			break // what is behind it was never there, or was taken out
		}
		switch elf.DynTag(d.Tag) {
		case elf.DT_STRTAB:
			strtab = d.Val
		case elf.DT_RELA:
			rela = d.Val
		case elf.DT_RELASZ:
			relaSize = d.Val
		case elf.DT_JMPREL:
			jmprel = d.Val
		case elf.DT_PLTRELSZ:
			pltSize = d.Val
		case elf.DT_NEEDED:
			names = append(names, d.Val)
		case elf.DT_RUNPATH, elf.DT_RPATH:
			paths = append(paths, d.Val)
		}
	}
	for _, t := range [][2]uint64{{rela, relaSize}, {jmprel, pltSize}} {
		if off, err := p.fileOffset(t[0]); err == nil {
			p.link(uint64(off), t[1])
		}
	}
	table, err := p.fileOffset(strtab)
	if err != nil {
		return err
	}
	for _, n := range names[:min(len(names), maxNames)] {
		name, err := p.text(table + int64(n&0xffffffff))
		if err != nil {
			return err
		}
		p.needed = append(p.needed, name)
	}
	for _, n := range paths[:min(len(paths), maxRunpath)] {
		if s, err := p.text(table + int64(n&0xffffffff)); err == nil {
			p.runpath = append(p.runpath, strings.Split(s, ":")...)
		}
	}
	p.runpath = p.runpath[:min(len(p.runpath), maxRunpath)]
	return nil
}

// link notes a part of the file that is read to relocate the program.
func (p *program) link(off, n uint64) {
	if n > 0 && off < maxOffset && n < maxOffset {
		p.linked = append(p.linked, part{int64(off), int64(min(n, maxLinked))})
	}
}

// fileOffset translates an address of the loaded program.
func (p *program) fileOffset(addr uint64) (int64, error) {
	for _, g := range p.loads {
		if addr >= g.Vaddr && addr-g.Vaddr < g.Filesz {
			return int64(g.Off + (addr - g.Vaddr)), nil
		}
	}
	return 0, fmt.Errorf("%w: address %#x is not loaded", errNotELF, addr)
}

// text reads a string that ends with a zero byte.
func (p *program) text(off int64) (string, error) {
	var b [maxNameLen]byte
	n, err := p.r.ReadAt(b[:], off)
	if err != nil && err != io.EOF { // it may lie near the end of the file
		return "", err
	}
	s, _, ok := strings.Cut(string(b[:n]), "\x00")
	if !ok || s == "" {
		return "", fmt.Errorf("%w: bad name", errNotELF)
	}
	return s, nil
}

// tripletOf is what Debian calls the machine in the names of folders, or empty.
func tripletOf(m elf.Machine) string {
	switch m {
	case elf.EM_X86_64:
		return "x86_64-linux-gnu"
	case elf.EM_AARCH64:
		return "aarch64-linux-gnu"
	case elf.EM_RISCV:
		return "riscv64-linux-gnu"
	case elf.EM_PPC64:
		return "powerpc64le-linux-gnu"
	}
	return ""
}

// places lists the paths at which the dynamic linker looks for a library.
func (p *program) places(name string) []string {
	dirs := slices.Clip(p.runpath)
	if triplet := tripletOf(elf.Machine(p.header.Machine)); triplet != "" {
		dirs = append(dirs, "/usr/local/lib/"+triplet, "/lib/"+triplet, "/usr/lib/"+triplet)
	}
	dirs = append(dirs, "/usr/local/lib", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	paths := make([]string, 0, len(dirs))
	for _, d := range dirs {
		if strings.HasPrefix(d, "/") { // $ORIGIN is not known here
			paths = append(paths, d+"/"+name)
		}
	}
	return paths
}
