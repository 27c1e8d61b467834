package overlay

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// Bounds on what is believed of a program's own tables.
const (
	maxHeaders = 128
	maxDynamic = 64 << 10
	maxNames   = 256
	maxNameLen = 256
)

var errNotELF = errors.New("not a 64-bit little-endian ELF file")

// IsProgram tells by its first bytes whether a file may be a program or shared
// library that Needed understands.
func IsProgram(head []byte) bool {
	return len(head) >= 6 && string(head[:4]) == elf.ELFMAG &&
		head[elf.EI_CLASS] == byte(elf.ELFCLASS64) && head[elf.EI_DATA] == byte(elf.ELFDATA2LSB)
}

// Needed returns where the files lie that the dynamic linker maps when it loads
// the program or library whose data begins at off of layer (0 is the bottom):
// the interpreter and the libraries that are named in it, as far as they are
// found where Debian, Fedora and Alpine have them. It reads of the file what the
// linker reads, fetching it if need be. Of a library that is found the extents
// are those of the whole file.
func (t *Tree) Needed(ctx context.Context, layer int, off int64) ([]index.Extent, error) {
	if layer < 0 || layer >= len(t.layers) {
		return nil, fmt.Errorf("libraries of data at %d of layer %d: %w", off, layer, index.ErrCorrupt)
	}
	p := program{r: dataReader{ctx, t.layers[layer], off}}
	if err := p.parse(); err != nil {
		return nil, fmt.Errorf("libraries of data at %d of layer %d: %w", off, layer, err)
	}
	var found []index.Extent
	for _, name := range p.needed {
		paths := []string{name}
		if !strings.Contains(name, "/") {
			paths = p.places(name)
		}
		for _, path := range paths {
			if e, ok := t.file(path); ok {
				found = append(found, e...)
				break
			}
		}
	}
	return found, nil
}

// file returns the extents of the regular file at path.
func (t *Tree) file(path string) (extents []index.Extent, ok bool) {
	nid, err := t.Resolve(path)
	if err != nil {
		return nil, false
	}
	var a index.Attr
	if err := t.Attr(nid, &a); err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, false
	}
	known := true
	err = t.Extents(nid, 0, a.Size, func(e index.Extent) bool {
		known = e.Device > 0 && int(e.Device) <= len(t.layers)
		extents = append(extents, e)
		return known && len(extents) < maxNames
	})
	return extents, err == nil && known
}

// dataReader reads a file by its data offset. Its size is not known: what is
// read behind its end is some other file's, or an error.
type dataReader struct {
	ctx  context.Context
	data Data
	off  int64
}

func (r dataReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > 1<<40 {
		return 0, errNotELF
	}
	if err := r.data.ReadAt(r.ctx, p, r.off+off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// program is what is read of an ELF file: see the System V ABI, chapters 4, 5.
type program struct {
	r       io.ReaderAt
	header  elf.Header64
	loads   []elf.Prog64
	needed  []string // names of libraries, and the interpreter's path
	runpath []string
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
	if !IsProgram(h.Ident[:]) || h.Phentsize != uint16(binary.Size(elf.Prog64{})) || h.Phnum > maxHeaders {
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
		case elf.PT_INTERP:
			if name, err := p.text(int64(g.Off)); err == nil {
				p.needed = append(p.needed, name)
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
	strings64 := uint64(0)
	for _, d := range entries {
		if elf.DynTag(d.Tag) == elf.DT_NULL {
			break // what is behind it was never there, or was taken out
		}
		switch elf.DynTag(d.Tag) {
		case elf.DT_STRTAB:
			strings64 = d.Val
		case elf.DT_NEEDED:
			names = append(names, d.Val)
		case elf.DT_RUNPATH, elf.DT_RPATH:
			paths = append(paths, d.Val)
		}
	}
	table, err := p.fileOffset(strings64)
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
	for _, n := range paths[:min(len(paths), maxNames)] {
		if s, err := p.text(table + int64(n&0xffffffff)); err == nil {
			p.runpath = append(p.runpath, strings.Split(s, ":")...)
		}
	}
	return nil
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
	n := len(b)
	if _, err := p.r.ReadAt(b[:], off); err != nil {
		// It may end near the end of the layer.
		n = 32
		if _, err := p.r.ReadAt(b[:n], off); err != nil {
			return "", err
		}
	}
	s, _, ok := strings.Cut(string(b[:n]), "\x00")
	if !ok || s == "" {
		return "", fmt.Errorf("%w: bad name", errNotELF)
	}
	return s, nil
}

// places lists the paths at which the dynamic linker looks for a library.
func (p *program) places(name string) []string {
	dirs := p.runpath
	triplet := map[elf.Machine]string{
		elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu",
		elf.EM_RISCV: "riscv64-linux-gnu", elf.EM_PPC64: "powerpc64le-linux-gnu",
	}[elf.Machine(p.header.Machine)]
	if triplet != "" {
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
