package index

import (
	"slices"
	"unsafe"
)

// Parent returns the directory that has nid as an entry, and the name it has
// there, which aliases the image. The root is its own parent and has no name. Any
// other parent is lower than nid, so that the way up ends, in a damaged image too.
//
// It is for inodes with one name: directories, and what has an Nlink of 1. Of
// others, and of numbers that are no inode of the image, it returns ErrNotExist as
// it is, or ErrCorrupt; [Index.Linked] has the names of files with several.
//
// It keeps nothing and allocates nothing, but searches: the directory of a
// directory is known, for a file the way leads down from the root. In each
// directory on it the cost is logarithmic in the number of entries. But entries of
// files with several names say nothing of the order of inodes: where hundreds of
// them stand side by side, what is among them or below their directory may be found
// only by reading them one by one.
func (x *Index) Parent(nid NID) (dir NID, name []byte, err error) {
	in, err := x.inode(nid)
	if err != nil {
		return 0, nil, err
	}
	if nid == x.root {
		return nid, nil, nil
	}
	if !inodeIsDir(in) && inodeNlink(in) != 1 {
		return 0, nil, ErrNotExist
	}
	for _, run := range [...]int{shortRun, len(x.b)} {
		f := finder{x: x, nid: nid, run: run, budget: len(x.b) / 2, blocks: maxLeaps}
		// What it finds is right, whatever it has passed over.
		if dir, name, err = f.find(inodeIsDir(in)); err != ErrNotExist {
			break
		}
	}
	return dir, name, err
}

func inodeNlink(in []byte) uint32 { return le.Uint32(in[44:]) }

// finder looks for the one name of an inode. It rests on the order of inodes: a
// directory places those of its entries that no directory before it has placed, in
// the order of their names, and then its subdirectories do the same, one after the
// other. So the entries with one name, and all subdirectories, have ascending
// NIDs, and what lies below subdirectories ascends with them. Entries with several
// names may have been placed before: they are never above this order, but can be
// anywhere below.
type finder struct {
	x      *Index
	nid    NID
	floor  NID // what is still to be searched has no inode with one name below it
	run    int // how far, in cookies, to read on through entries that say nothing
	budget int // how many entries may still be looked at
	blocks int // and how many blocks in leaps
}

// shortRun is how far the first search reads on. Where it gives up there is rarely
// anything to be found; if there is, the second search finds it.
const shortRun = 4 << cookieBits

// A directory in which subdirectories are more than sparse blocks apart is not
// searched for them; where they are is found by leaps, up to maxLeaps blocks.
const (
	sparse   = 32
	maxLeaps = 1 << 12
)

// find is Parent for an inode that is not the root.
func (f *finder) find(isDir bool) (at NID, name []byte, err error) {
	at = f.x.root
	if isDir {
		if at, err = f.x.Lookup(f.nid, ".."); err != nil {
			return 0, nil, err
		}
	}
	for {
		if at >= f.nid {
			return 0, nil, badInode(f.nid, "before its directory")
		}
		d, err := f.open(at)
		if err != nil {
			return 0, nil, err
		}
		if name, err = f.entry(&d); err != nil {
			return 0, nil, err
		}
		if name != nil {
			return at, name, nil
		}
		if isDir {
			return 0, nil, ErrNotExist
		}
		if at, err = f.below(&d); err != nil {
			return 0, nil, err
		}
	}
}

// openDir is a directory with its blocks.
type openDir struct {
	nid   NID
	nlink uint32
	block int // of the image, the first one; 0 if there is none
	data  []byte
}

func (d *openDir) end() int { return blockCount(d.data) << cookieBits }

// behind returns the block after the last one.
func (d *openDir) behind() int { return d.block + blockCount(d.data) }

func (f *finder) open(nid NID) (d openDir, err error) {
	in, err := f.x.inode(nid)
	if err != nil {
		return d, err
	}
	if !inodeIsDir(in) {
		return d, badInode(nid, "not the directory an entry says it is")
	}
	d.nid, d.nlink = nid, inodeNlink(in)
	d.data, err = f.x.flat(nid, in)
	if inodeLayout(in) == layoutPlain && len(d.data) > 0 {
		d.block = int(inodeUnion(in))
	}
	return d, err
}

// entry returns the name that f.nid has in d, nil if it has none.
func (f *finder) entry(d *openDir) ([]byte, error) {
	at, err := f.last(d, false)
	if at < 0 || err != nil {
		return nil, err
	}
	b, k := blockOf(d.data, at>>cookieBits), at&(1<<cookieBits-1)
	if b.nid(k) != f.nid {
		return nil, nil
	}
	name := b.name(k, b.count())
	if name == nil {
		return nil, badInode(d.nid, "malformed directory entry")
	}
	return name, nil
}

// below returns the subdirectory of d that f.nid must lie below. It is higher than
// d, and lower than f.nid.
func (f *finder) below(d *openDir) (NID, error) {
	if d.nlink <= 2 {
		return 0, ErrNotExist // no subdirectories
	}
	if blockCount(d.data) > sparse*int(d.nlink-1) {
		if sub, ok, err := f.leap(d); ok || err != nil {
			return sub, err
		}
	}
	at, err := f.last(d, true)
	if err != nil {
		return 0, err
	}
	if at < 0 {
		return 0, ErrNotExist
	}
	return blockOf(d.data, at>>cookieBits).nid(at & (1<<cookieBits - 1)), nil
}

// leap is below for a directory with few subdirectories among many files. Nothing
// in d says where they are. But the blocks of directories are in the order of their
// own inodes, which makes a row of the subdirectories of d, with nothing between
// them but the targets of long symlinks. leap looks for that row behind d, and in it
// for the subdirectory. ok is false if that takes too many blocks: what it looks at
// may be in the middle of another large directory, whose beginning is far.
func (f *finder) leap(d *openDir) (sub NID, ok bool, err error) {
	within := f.floor // d has placed it, or nothing has been searched yet
	lo, hi := d.behind(), len(f.x.b)>>blockBits
	for lo < hi && f.blocks > 0 {
		mid := int(uint(lo+hi) / 2)
		s, found := f.nearDir(mid, lo-1, -1)
		if !found {
			lo = mid + 1
			continue
		}
		first, c := s.block, 0
		for c == 0 && found {
			var child bool
			if c, child, err = f.side(d, &s, within); err != nil {
				return 0, false, err
			}
			switch {
			case c < 0 && child:
				sub = s.nid
				fallthrough
			case c < 0:
				lo = max(s.behind(), mid+1)
			case c == 0: // nothing in it: ask the next
				s, found = f.nearDir(s.behind(), hi, 1)
			}
		}
		if c >= 0 {
			hi = first
		}
	}
	switch {
	case f.blocks <= 0:
		return 0, false, nil
	case sub == 0:
		return 0, false, ErrNotExist
	}
	return sub, true, nil
}

// side tells where the subdirectory of d is that f.nid lies below: before the
// directory s (positive), there or behind it (negative), or nothing (0).
func (f *finder) side(d, s *openDir, within NID) (c int, child bool, err error) {
	up, err := f.x.Lookup(s.nid, "..")
	switch {
	case err != nil:
		return 0, false, err
	case up == d.nid:
		c, err = f.order(d, s.nid, ftypeDir, true)
		return c, true, err
	case s.nid < within:
		return -1, false, nil
	}
	return 1, false, nil
}

// nearDir returns the first directory with its entry "." in one of the blocks of
// the image from block on, in steps of step, and before end.
func (f *finder) nearDir(block, end, step int) (d openDir, found bool) {
	for ; block != end && f.blocks > 0; block += step {
		f.blocks--
		b := blockOf(f.x.b, block)
		n := b.count()
		for k := range n {
			// It is among the first: few names sort before it.
			name := b.name(k, n)
			if len(name) == 0 || name[0] > '.' {
				break
			}
			if string(name) != "." {
				continue
			}
			// A block of a symlink's target cannot pass: it has no zero bytes.
			d, err := f.open(b.nid(k))
			if err == nil && d.block <= block && block < d.behind() {
				return d, true
			}
			break
		}
	}
	return d, false
}

// last returns the place, which is the cookie, of the last entry of d that f.nid
// does not come before; -1 if there is none. With subdirs it compares with what
// lies below the subdirectories of d, otherwise with the entries of d.
func (f *finder) last(d *openDir, subdirs bool) (int, error) {
	found, lo, hi := -1, 0, d.end()
	// The first look is at the last block: on the way down f.nid mostly is in
	// none of the directories, but behind all of their entries.
	for mid := hi - 1<<cookieBits; lo < hi; mid = int(uint(lo+hi) / 2) {
		at, c, err := f.settle(d, mid, hi, subdirs)
		if err != nil {
			return -1, err
		}
		if c < 0 {
			found, lo = at, at+1
		} else {
			hi = mid
		}
	}
	return found, nil
}

// settle returns the first entry of d from at on, and before end, that tells where
// f.nid is: c > 0 if before it, c < 0 if not. If there is none within f.run, c is 0,
// and f.nid is taken not to be among them.
func (f *finder) settle(d *openDir, at, end int, subdirs bool) (place, c int, err error) {
	f.budget--
	if !subdirs {
		end = min(end, at+f.run)
	}
	for ; at < end; at = (at>>cookieBits + 1) << cookieBits {
		b := blockOf(d.data, at>>cookieBits)
		n := b.count()
		if n == 0 {
			return 0, 0, badInode(d.nid, "malformed directory block")
		}
		first := at &^ (1<<cookieBits - 1)
		for k := at - first; k < n && first+k < end; k++ {
			f.budget--
			kind := b[k*direntSize+10]
			if subdirs && kind != ftypeDir {
				continue
			}
			if f.budget < 0 {
				// Every entry of a sound image is in one directory, which is
				// searched a few times at most.
				return 0, 0, badInode(d.nid, "image refers to the same bytes again and again")
			}
			if c, err = f.order(d, b.nid(k), kind, subdirs); c != 0 || err != nil {
				return first + k, c, err
			}
		}
	}
	return 0, 0, nil
}

// order tells where f.nid is, seen from the entry nid of d: before it (positive),
// there or behind it (negative), or nothing (0).
func (f *finder) order(d *openDir, nid NID, kind uint8, subdirs bool) (int, error) {
	switch {
	case nid > f.nid:
		// Whoever placed it, it was there before what follows in d was placed.
		return 1, nil
	case nid <= d.nid: // ".", "..", or another name of a file before d
		return 0, nil
	case subdirs:
		sub, err := f.open(nid)
		if err != nil {
			return 0, err
		}
		_, c, err := f.settle(&sub, 0, sub.end(), false)
		return c, err
	case nid < f.floor:
		return 0, nil
	case kind != ftypeDir:
		in, err := f.x.inode(nid)
		if err != nil || !inodeIsDir(in) && inodeNlink(in) != 1 {
			return 0, err
		}
	}
	f.floor = nid
	return -1, nil
}

// Link is an entry of a file that has several.
type Link struct {
	Dir  NID
	Name string
}

// Linked returns the entries of all files, by inode, that have several names: an
// Nlink other than 1. Those of a file are in the order of a walk that lists a
// directory and then goes into its subdirectories, by name. Nothing refers to the
// image.
//
// It reads every directory, and the inode of everything that is not one; the
// memory is that of the result. In a damaged image files can have another number
// of entries than their Nlink says.
func (x *Index) Linked() (map[NID][]Link, error) {
	l := linker{x: x, links: map[NID][]Link{}, budget: len(x.b)}
	for todo := []NID{x.root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		n := len(todo) - 1
		var err error
		if todo, err = l.list(todo[:n], dir); err != nil {
			return nil, err
		}
		slices.Reverse(todo[n:]) // the last is taken first
	}
	return l.links, nil
}

// linker collects entries.
type linker struct {
	x      *Index
	links  map[NID][]Link
	budget int // bytes of directories that may still be read
	lists  slab[Link]
	names  slab[byte]
}

// list collects the entries of dir and appends its subdirectories to todo.
func (l *linker) list(todo []NID, dir NID) ([]NID, error) {
	data, err := l.x.dirData(dir)
	if err != nil {
		if err == ErrNotDir {
			err = badInode(dir, "not the directory an entry says it is")
		}
		return nil, err
	}
	if l.budget -= len(data); l.budget < 0 {
		return nil, badInode(dir, "image refers to the same bytes again and again")
	}
	for i := range blockCount(data) {
		b := blockOf(data, i)
		n := b.count()
		if n == 0 {
			return nil, badInode(dir, "malformed directory block")
		}
		for k := range n {
			nid := b.nid(k)
			if b[k*direntSize+10] == ftypeDir {
				// Directories come before what is in them: the others are "."
				// and "..".
				if nid > dir {
					todo = append(todo, nid)
				}
				continue
			}
			in, err := l.x.inode(nid)
			if err != nil {
				return nil, err
			}
			nlink := inodeNlink(in)
			if nlink == 1 {
				continue
			}
			name := b.name(k, n)
			if name == nil || inodeIsDir(in) {
				return nil, badInode(dir, "malformed directory entry")
			}
			l.add(nid, nlink, dir, name)
		}
	}
	return todo, nil
}

// add adds the entry name of dir for the inode nid.
func (l *linker) add(nid NID, nlink uint32, dir NID, name []byte) {
	list, ok := l.links[nid]
	if !ok {
		// Most have two or three names, and Nlink may not be true.
		list = l.lists.take(int(min(nlink, 4)))[:0]
	}
	s := l.names.take(len(name))
	copy(s, name)
	l.links[nid] = append(list, Link{dir, unsafe.String(unsafe.SliceData(s), len(s))})
}
