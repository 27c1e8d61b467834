package layer

import (
	"hash/fnv"
	"io"
	"path"
	"strings"
)

// groupOf returns the group of the file called name: its folder and its suffix.
// Programs, libraries with a version, and compiled Python modules are in none:
// which of a folder's is needed has nothing to do with where it lies. The files
// that name them tell.
func groupOf(name string) Group {
	dir, base := path.Split(name)
	suffix := path.Ext(base)
	switch {
	case strings.Contains(base, ".so."), suffix == ".pyc", suffix == ".so" && strings.Contains(base, ".cpython-"):
		return 0
	case suffix == "" && (path.Base(dir) == "bin" || path.Base(dir) == "sbin"):
		return 0
	}
	h := fnv.New32a()
	_, _ = io.WriteString(h, dir)
	_, _ = io.WriteString(h, suffix)
	if g := h.Sum32(); g != noPoint {
		return Group(g)
	}
	return 0
}
