package difftest

import (
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dirent is what getdents says of an entry.
type dirent struct {
	ino  uint64
	kind byte
}

// listing is a listing that goes on while operations change the directory.
type listing struct {
	start   map[string]dirent // what there was when it began
	seen    map[string]int
	touched map[string]bool // names that operations have since named, in any directory
}

// touch notes that an operation may change the names it ends in. In which
// directory does not matter: the names are left out of the check of listings.
func (r *Root) touch(op Op) {
	for i := range r.slots {
		if l := r.slots[i].list; l != nil {
			l.touched[base(op.Path)] = true
			l.touched[base(op.Path2)] = true
		}
	}
}

// entries parses what getdents gave, but for "." and "..".
func entries(b []byte, each func(name string, d dirent)) {
	for len(b) >= 19 {
		n := int(binary.NativeEndian.Uint16(b[16:]))
		name, _, _ := strings.Cut(string(b[19:n]), "\x00")
		if name != "." && name != ".." {
			each(name, dirent{binary.NativeEndian.Uint64(b), b[18]})
		}
		b = b[n:]
	}
}

// list lists a whole directory. Names that come twice are in the second result.
func list(dir int, p string, flags int) (map[string]dirent, []string, error) {
	fd, err := unix.Openat(dir, p, flags|unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	all, twice := map[string]dirent{}, []string(nil)
	b := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, b)
		if err != nil || n == 0 {
			return all, twice, err
		}
		entries(b[:n], func(name string, d dirent) {
			if _, ok := all[name]; ok {
				twice = append(twice, name)
			}
			all[name] = d
		})
	}
}

func doOpendir(r *Root, op Op, res *Result) {
	r.drop(op.Slot)
	fd, err := unix.Openat(r.at(op), op.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		res.fail(err)
		return
	}
	l := &listing{}
	r.keep(op.Slot, fd, l)
	l.begin(fd, res)
}

func (l *listing) begin(fd int, res *Result) {
	all, twice, err := list(fd, ".", 0)
	if err != nil {
		all = nil // the directory has been removed
	}
	for _, n := range twice {
		res.broken("the listing has %q twice", n)
	}
	*l = listing{all, map[string]int{}, map[string]bool{}}
}

func doRewind(r *Root, op Op, res *Result) {
	s := r.slot(op.Slot)
	if s.list == nil {
		res.fail(unix.ENOTDIR)
		return
	}
	_, err := unix.Seek(s.fd, 0, unix.SEEK_SET)
	res.fail(err)
	s.list.begin(s.fd, res)
}

// doReaddir compares nothing but the error, as the order of entries and how many
// fit is the file system's. At the end it looks back.
func doReaddir(r *Root, op Op, res *Result) {
	s := r.slot(op.Slot)
	if s.list == nil {
		res.fail(unix.ENOTDIR)
		return
	}
	b := make([]byte, op.Len)
	n, err := unix.Getdents(s.fd, b)
	if err != nil {
		res.fail(err)
		return
	}
	if n > 0 {
		entries(b[:n], func(name string, _ dirent) { s.list.seen[name]++ })
		return
	}
	if now, _, err := list(s.fd, ".", 0); err == nil && s.list.start != nil {
		s.list.check(now, res)
	}
	if _, err := unix.Seek(s.fd, 0, unix.SEEK_SET); err != nil {
		res.fail(err)
	}
	s.list.begin(s.fd, res)
}

// check looks back on a whole listing.
func (l *listing) check(now map[string]dirent, res *Result) {
	for _, n := range slices.Sorted(maps.Keys(l.start)) {
		if _, ok := now[n]; ok && !l.touched[n] && l.seen[n] != 1 {
			res.broken("%q was there throughout the listing, which had it %d times", n, l.seen[n])
		}
	}
	for _, n := range slices.Sorted(maps.Keys(l.seen)) {
		_, before := l.start[n]
		_, after := now[n]
		if !before && !after && !l.touched[n] {
			res.broken("the listing had %q, which was never there", n)
		}
	}
}

func doList(r *Root, op Op, res *Result) {
	all, twice, err := list(r.at(op), op.Path, int(op.Flags))
	res.fail(err)
	if err != nil {
		return
	}
	for _, n := range twice {
		res.broken("the listing has %q twice", n)
	}
	names := slices.Sorted(maps.Keys(all))
	res.N, res.Data = int64(len(names)), []byte(strings.Join(names, "\x00"))
	if op.As != 0 {
		return
	}
	dir, err := unix.Openat(r.at(op), op.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		res.fail(err)
		return
	}
	defer func() { _ = unix.Close(dir) }()
	for _, n := range names {
		checkDirent(dir, n, all[n], res)
	}
}

// checkDirent holds what the listing says of an entry against its stat.
func checkDirent(dir int, name string, d dirent, res *Result) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		res.broken("%q is in the listing, but stat: %v", name, err)
		return
	}
	if st.Ino != d.ino {
		res.broken("%q has inode number %d, in the listing %d", name, st.Ino, d.ino)
	}
	if kind := byte(st.Mode >> 12); d.kind != kind && d.kind != unix.DT_UNKNOWN {
		res.broken("%q has type %d, in the listing %d", name, kind, d.kind)
	}
}
