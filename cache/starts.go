package cache

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// maxStarts bounds the files of a layer whose beginnings are kept, at 16 bytes
// each. Beyond, nobody looks ahead of its programs.
const maxStarts = 1 << 18

// maxEntries bounds the names that are looked at for that.
const maxEntries = 4 * maxStarts

// starts knows where the files of a layer begin whose chunks know nothing of
// files, so that Options.Began can be told all the same. Its list is immutable.
type starts struct {
	list []fileStart // by offset
	told []atomic.Uint32

	mu     sync.Mutex
	wished map[int]bool // not told yet: whether it will be read for certain
}

// fileStart is a file's data.
type fileStart struct{ off, len int64 }

// findStarts begins to look for the files of l, in the background: a mount does
// not wait for it.
func (l *Layer) findStarts() {
	if l.store.opts.Began == nil || l.index.Inodes() > maxStarts {
		return
	}
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		s := &starts{wished: make(map[int]bool)}
		s.walk(l)
		slices.SortFunc(s.list, func(a, b fileStart) int { return cmp.Compare(a.off, b.off) })
		s.list = slices.Compact(s.list) // of files with several names
		s.told = make([]atomic.Uint32, (len(s.list)+31)/32)
		l.starts.Store(s)
	}()
}

// walk lists the files of l. A damaged index, which may go round in circles, shows
// itself to who reads it: here it ends the list.
func (s *starts) walk(l *Layer) {
	unseen := []index.NID{l.index.Root()}
	// Every entry of a sound index but hard links has an inode of its own, and
	// a file with many names is one of few.
	dirs, entries := l.index.Inodes(), int64(maxEntries)
	for len(unseen) > 0 && dirs > 0 {
		dir := unseen[len(unseen)-1]
		unseen = unseen[:len(unseen)-1]
		dirs--
		err := l.index.ReadDir(dir, 0, func(d *index.Dirent) bool {
			if name := string(d.Name); name != "." && name != ".." {
				unseen = s.entry(l, d.NID, unseen)
			}
			entries--
			return l.ctx.Err() == nil && len(s.list) < maxStarts && entries > 0
		})
		if err != nil || l.ctx.Err() != nil || len(s.list) >= maxStarts || entries <= 0 {
			return
		}
	}
}

// entry lists the inode nid if it is a file, and adds it to unseen if it is a
// directory.
func (s *starts) entry(l *Layer, nid index.NID, unseen []index.NID) []index.NID {
	var a index.Attr
	if l.index.Attr(nid, &a) != nil {
		return unseen
	}
	switch {
	case a.Mode&unix.S_IFMT == unix.S_IFDIR:
		return append(unseen, nid)
	case a.Mode&unix.S_IFMT == unix.S_IFREG && a.Size > 0:
		// One without extents may be a hard link to a file of another layer.
		_ = l.index.Extents(nid, 0, a.Size, func(e index.Extent) bool {
			if e.FileOff == 0 {
				s.list = append(s.list, fileStart{e.Off, e.Len})
			}
			return false
		})
	}
	return unseen
}

// from returns the first file that begins at off or behind it.
func (s *starts) from(off int64) int {
	i, _ := slices.BinarySearchFunc(s.list, off, func(f fileStart, off int64) int { return cmp.Compare(f.off, off) })
	return i
}

// read tells of the files that begin in p, which was read at off.
func (s *starts) read(l *Layer, p []byte, off int64) {
	if l.ahead.orderly() {
		return
	}
	for i := s.from(off); i < len(s.list) && s.list[i].off < off+int64(len(p)); i++ {
		s.tell(l, i, p[s.list[i].off-off:], true)
	}
}

// came tells of the files that begin in p, which has come to off, and were
// wished for.
func (s *starts) came(l *Layer, p []byte, off int64) {
	for i := s.from(off); i < len(s.list) && s.list[i].off < off+int64(len(p)); i++ {
		s.mu.Lock()
		sure, ok := s.wished[i]
		delete(s.wished, i)
		s.mu.Unlock()
		if ok {
			s.tell(l, i, p[s.list[i].off-off:], sure)
		}
	}
}

// wish notes that the file that begins at off is wished for. If its beginning is
// here already it is told of at once: it came along with another.
func (s *starts) wish(l *Layer, w Wish) {
	i := s.from(w.Off)
	if i == len(s.list) || s.list[i].off != w.Off || s.isTold(i) {
		return
	}
	head := make([]byte, min(s.list[i].len, headLen))
	s.mu.Lock()
	s.wished[i] = s.wished[i] || w.Sure
	s.mu.Unlock()
	if l.peek(head, w.Off) {
		s.came(l, head, w.Off)
	}
}

func (s *starts) isTold(i int) bool { return s.told[i/32].Load()&(1<<(i%32)) != 0 }

// tell tells of file i, which begins with p, unless it was told of.
func (s *starts) tell(l *Layer, i int, p []byte, sure bool) {
	f := s.list[i]
	want := min(f.len, headLen)
	if s.isTold(i) {
		return
	}
	if int64(len(p)) < want { // a short read
		p = make([]byte, want)
		if !l.peek(p, f.off) {
			return // told at the next one
		}
	}
	if bit := uint32(1) << (i % 32); s.told[i/32].Or(bit)&bit != 0 {
		return
	}
	l.store.opts.Began(l, Begun{Off: f.off, Len: f.len, Head: p[:want], Sure: sure})
}
