package difftest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is a name in a tree.
type entry struct {
	st     Stat
	target string
	sum    [sha256.Size]byte
	xattrs string
	first  string // the first name, in order, of the same file
}

// snapshot takes down a whole tree. The second result is what is wrong with it
// whatever other trees look like.
func (r *Root) snapshot() (map[string]*entry, Result) {
	all, res := map[string]*entry{}, Result{}
	r.call(func() {
		firsts := map[uint64]*entry{}
		r.walk(".", func(p string, st *unix.Stat_t) {
			e := &entry{first: p}
			e.st.set(st)
			all[p] = e
			if f := firsts[st.Ino]; f != nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				e.first, e.target, e.sum, e.xattrs = f.first, f.target, f.sum, f.xattrs
				return
			}
			firsts[st.Ino] = e
			r.read(p, e, &res)
		}, &res)
	})
	return all, res
}

// walk calls each for the directory p and all below it, in order of names within
// each directory.
func (r *Root) walk(p string, each func(string, *unix.Stat_t), res *Result) {
	var st unix.Stat_t
	if err := unix.Fstatat(r.dir, p, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		res.broken("stat of %q, which is in the listing: %v", p, err)
		return
	}
	each(p, &st)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return
	}
	names, twice, err := list(r.dir, p, unix.O_NOFOLLOW)
	if err != nil || len(twice) > 0 {
		res.broken("listing of %q: error %v, twice %q", p, err, twice)
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		r.walk(join(p, n), each, res)
	}
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// read takes down what stat does not say.
func (r *Root) read(p string, e *entry, res *Result) {
	var err error
	if e.xattrs, err = xattrs(p); err != nil {
		res.broken("attributes of %q: %v", p, err)
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		b := make([]byte, 4096)
		n, err := unix.Readlinkat(r.dir, p, b)
		if err != nil {
			res.broken("target of %q: %v", p, err)
		}
		e.target = string(b[:max(0, n)])
		if int64(len(e.target)) != e.st.Size {
			res.broken("target of %q has %d bytes, its size is %d", p, len(e.target), e.st.Size)
		}
	case unix.S_IFREG:
		fd, err := unix.Openat(r.dir, p, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			res.broken("open of %q: %v", p, err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := e.content(fd, e.st.Size); err != nil {
			res.broken("content of %q: %v", p, err)
		}
	}
}

// content takes the content's digest, and sees that holes are zeros.
func (e *entry) content(fd int, size int64) error {
	gaps, bad := holes(fd, size)
	if bad != nil {
		return errors.New(strings.Join(bad, "; "))
	}
	h := sha256.New()
	b := make([]byte, 256<<10)
	at := int64(0)
	for {
		n, err := unix.Pread(fd, b, at)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		_, _ = h.Write(b[:n])
		for _, g := range gaps {
			from, to := max(g[0], at), min(g[1], at+int64(n))
			if from < to && notZero(b[from-at:to-at]) >= 0 {
				return errors.New("data in the hole from " + strconv.FormatInt(g[0], 10))
			}
		}
		at += int64(n)
	}
	if at != size {
		return errors.New(strconv.FormatInt(at, 10) + " bytes, size is " + strconv.FormatInt(size, 10))
	}
	h.Sum(e.sum[:0])
	return nil
}

// xattrs returns names and values, in order, relative to the working directory.
func xattrs(p string) (string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, b)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			err = nil
		}
		return "", err
	}
	names := bytes.Split(bytes.TrimSuffix(b[:n], []byte{0}), []byte{0})
	var all []string
	v := make([]byte, 64<<10)
	for _, name := range names {
		// What the kernel's overlayfs keeps for itself it shows to nobody, but a
		// directory of its upper half could be the one that is tested.
		if len(name) == 0 || bytes.HasPrefix(name, []byte("trusted.overlay.")) {
			continue
		}
		n, err := unix.Lgetxattr(p, string(name), v)
		if err != nil {
			return "", err
		}
		all = append(all, string(name)+"="+strconv.QuoteToASCII(string(v[:n])))
	}
	slices.Sort(all)
	return strings.Join(all, " "), nil
}

// treeDeltas compares a tree with the reference's.
func treeDeltas(want, got map[string]*entry) []Delta {
	var all []Delta
	names := map[string]bool{}
	for n := range want {
		names[n] = true
	}
	for n := range got {
		names[n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		w, g := want[n], got[n]
		mode := uint32(0)
		if w != nil {
			mode = w.st.Mode
		}
		add := func(field, w, g string) {
			if w != g {
				all = append(all, Delta{Field: field, Path: n, Want: w, Got: g, Mode: mode})
			}
		}
		if w == nil || g == nil {
			add("tree.exists", strconv.FormatBool(w != nil), strconv.FormatBool(g != nil))
			continue
		}
		w.st.What = "tree"
		w.st.compare(&g.st, add)
		add("tree.target", w.target, g.target)
		add("tree.xattrs", w.xattrs, g.xattrs)
		add("tree.first", w.first, g.first)
		add("tree.content", strconv.QuoteToASCII(string(w.sum[:4])), strconv.QuoteToASCII(string(g.sum[:4])))
	}
	return all
}
