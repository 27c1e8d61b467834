package lookahead

import (
	"context"
	"fmt"
	"strings"

	"github.com/laminafs/lamina/index"
)

// startFiles are read by nearly every program that glibc starts: by its linker,
// and by what sets locale, time zone and user of the process. They are small.
var startFiles = []string{
	"/etc/ld.so.cache",
	"/usr/lib/locale/C.utf8/LC_CTYPE",
	"/etc/nsswitch.conf",
	"/etc/passwd",
	"/etc/localtime",
}

// libraries returns what the dynamic linker reads when it loads the program or
// library f: parts of f, the interpreter, and the libraries that are named in
// it, as far as they are found where Debian, Fedora and Alpine have them. It
// reads of f what the linker reads, fetching it if need be.
func libraries(ctx context.Context, s *scene, f file) ([]wish, error) {
	p, err := parseELF(s.reader(ctx, f))
	if err != nil {
		return nil, fmt.Errorf("libraries of data at %d of layer %d: %w", f.off, f.layer, err)
	}
	var wishes []wish
	left := maxLookups
	add := func(path string, sure bool) bool {
		if left--; left < 0 {
			return false
		}
		extents, err := s.tree.Locate(path)
		if err == nil {
			wishes = append(wishes, wish{extents: extents, ends: true, sure: sure})
		}
		return err == nil
	}
	if p.interp != "" {
		add(p.interp, f.sure)
	}
	for _, name := range p.needed {
		if err := ctx.Err(); err != nil { // there may be many, and Close waits
			return nil, fmt.Errorf("libraries of data at %d of layer %d: %w", f.off, f.layer, err)
		}
		paths := []string{name}
		if !strings.Contains(name, "/") {
			paths = p.places(name)
		}
		for _, path := range paths {
			if add(path, f.sure) {
				break
			}
		}
	}
	for _, l := range p.linked {
		if l.off < f.len {
			wishes = append(wishes, wish{sure: f.sure, extents: []index.Extent{
				{Device: uint16(f.layer + 1), Off: f.off + l.off, Len: min(l.len, f.len-l.off)},
			}})
		}
	}
	if strings.Contains(p.interp, "/ld-linux") {
		for _, path := range startFiles {
			add(path, false)
		}
	}
	return wishes, nil
}
