package lookahead

import (
	"bytes"
	"path"
	"slices"

	"github.com/laminafs/lamina/cache"
)

// Programs carry the names of files that they open: their configuration, data
// and scripts. A name that is an absolute path in the tree is hardly there for
// another reason.
const (
	// mostPaths and mostBytes bound what one program makes us look for, and wish
	// for, uncompressed.
	mostPaths = 256
	mostBytes = 4 << 20
	// mostFile is how large a file may be, uncompressed: large ones are archives
	// of which some part is read.
	mostFile = 1 << 20
	// longestPath bounds the length of a path.
	longestPath = 255
	// mostNamers is how many programs of one layer are looked into as they come:
	// all of them are gone through for every chunk. The latest ones are those
	// that still come.
	mostNamers = 256
)

// namer is an ELF file that was begun.
type namer struct {
	key      string
	off, end int64 // its data
	paths    int   // how many more of its strings are looked for
	bytes    int64 // how much more is wished for
}

// listen has the file b of the layer called key looked into as it comes. mu must be
// held.
func (w *Watcher) listen(key string, b cache.Begun) {
	list := w.elfs[key]
	if len(list) == mostNamers {
		list = slices.Delete(list, 0, 1)
	}
	w.elfs[key] = append(list, &namer{key: key, off: b.Off, end: b.Off + b.Len, paths: mostPaths, bytes: mostBytes})
}

// spent forgets at if nothing more comes of it. mu must be held.
func (w *Watcher) spent(at *namer) {
	if at.paths > 0 && at.bytes > 0 {
		return
	}
	list := w.elfs[at.key]
	if i := slices.Index(list, at); i >= 0 {
		w.elfs[at.key] = slices.Delete(list, i, i+1)
	}
}

// Came is for cache.Options.Came.
func (w *Watcher) Came(l *cache.Layer, off int64, p []byte) { w.came(l.Key(), off, p) }

func (w *Watcher) came(key string, off int64, p []byte) {
	w.mu.Lock()
	var at *namer
	for _, e := range w.elfs[key] {
		if e.off <= off && off < e.end {
			at = e
		}
	}
	w.mu.Unlock()
	if at == nil {
		return
	}
	// Other files may lie behind it in one chunk: theirs are no program's names.
	names := paths(p[:min(int64(len(p)), at.end-off)])
	w.mu.Lock()
	defer w.mu.Unlock()
	names = names[:min(len(names), at.paths)]
	if w.closed || w.scene == nil || len(names) == 0 {
		return
	}
	at.paths -= len(names)
	w.spent(at)
	s := w.scene
	w.wg.Go(func() { w.seek(s, at, names) })
}

// seek wishes for those of names, which at has, that are files of the tree.
func (w *Watcher) seek(s *scene, at *namer, names []string) {
	if w.held.Acquire(w.ctx, leastHeld) != nil {
		return
	}
	defer w.held.Release(leastHeld)
	var wishes []wish
	for _, name := range names {
		if w.ctx.Err() != nil { // Close waits
			return
		}
		extents, err := s.tree.Locate(name)
		if err != nil || len(extents) == 0 {
			continue
		}
		size := int64(0)
		for _, e := range extents {
			size += e.Len
		}
		w.mu.Lock()
		take := size <= min(mostFile, at.bytes)
		if take {
			at.bytes -= size
			w.spent(at)
		}
		w.mu.Unlock()
		if take {
			wishes = append(wishes, wish{extents: extents})
		}
	}
	w.wish(wishes)
}

// paths returns copies of the strings in p, zero-terminated, that look like absolute paths
// of files other than programs.
func paths(p []byte) (list []string) {
	begin := []byte("\x00/")
	for {
		i := bytes.Index(p, begin)
		if i < 0 {
			return list
		}
		p = p[i+1:]
		n := bytes.IndexByte(p[:min(len(p), longestPath+1)], 0)
		if n < 0 {
			continue
		}
		if name := string(p[:n]); isPath(name) {
			list = append(list, name)
		}
		p = p[n:]
	}
}

func isPath(name string) bool {
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '%' || c == ':' {
			return false
		}
	}
	if path.Clean(name) != name {
		return false
	}
	dir, base := path.Split(name)
	if dir == "/" || base == "" {
		return false
	}
	switch path.Base(dir) {
	case "bin", "sbin": // a program that it may start, in its time
		return false
	}
	return true
}
