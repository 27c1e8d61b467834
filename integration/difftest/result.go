package difftest

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what an operation did in one directory.
type Result struct {
	Errno  unix.Errno
	N      int64    // bytes read, written, copied
	Data   []byte   // bytes read, a link's target, names and values
	Stats  []Stat   // the files it named, afterwards
	Broken []string // what is wrong whatever other directories do
}

func (r *Result) fail(err error) {
	if err != nil {
		r.Errno = errno(err)
	}
}

func (r *Result) broken(format string, args ...any) {
	r.Broken = append(r.Broken, fmt.Sprintf(format, args...))
}

// Stat is what stat said of a file.
type Stat struct {
	What         string // which file of the operation
	Errno        unix.Errno
	Mode         uint32
	UID, GID     uint32
	Nlink        uint64
	Size         int64
	Rdev         uint64
	Dev, Ino     uint64
	Mtime, Atime int64 // ns
	atimeSet     bool  // Atime has just been set
	handle       string
}

func (s *Stat) set(st *unix.Stat_t) {
	s.Mode, s.UID, s.GID = st.Mode, st.Uid, st.Gid
	s.Nlink, s.Size, s.Rdev = uint64(st.Nlink), st.Size, st.Rdev
	s.Dev, s.Ino = st.Dev, st.Ino
	s.Mtime, s.Atime = st.Mtim.Nano(), st.Atim.Nano()
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		s.Nlink, s.Size, s.Rdev = 0, 0, 0
	case unix.S_IFCHR, unix.S_IFBLK:
	default:
		s.Rdev = 0
	}
}

// Delta is one thing in which a result, or a tree, is not the reference's.
type Delta struct {
	// Field is "errno", "n", "data", "broken", "identity", or of a stat
	// "path.mode" and the like, or in a comparison of trees "tree.mode" and the
	// like.
	Field string
	// Path is the name in a comparison of trees.
	Path      string
	Want, Got string
	// Mode is st_mode in the reference, of a stat or in a comparison of trees.
	Mode uint32
	// WantErrno and GotErrno are those of the operation.
	WantErrno, GotErrno unix.Errno
}

func (d Delta) String() string {
	s := d.Field
	if d.Path != "" {
		s += " of " + strconv.QuoteToASCII(d.Path)
	}
	return s + " is " + d.Got + ", want " + d.Want
}

// deltas compares a result with the reference's.
func deltas(want, got Result) []Delta {
	var all []Delta
	add := func(field, w, g string) {
		if w != g {
			all = append(all, Delta{Field: field, Want: w, Got: g, WantErrno: want.Errno, GotErrno: got.Errno})
		}
	}
	for _, b := range got.Broken {
		add("broken", "", b)
	}
	if want.Errno != got.Errno {
		add("errno", name(want.Errno), name(got.Errno))
	}
	if want.N != got.N {
		add("n", strconv.FormatInt(want.N, 10), strconv.FormatInt(got.N, 10))
	}
	if !bytes.Equal(want.Data, got.Data) {
		w, g := differing(want.Data, got.Data)
		add("data", w, g)
	}
	if len(want.Stats) != len(got.Stats) {
		add("stats", strconv.Itoa(len(want.Stats)), strconv.Itoa(len(got.Stats)))
		return all
	}
	for i := range want.Stats {
		from := len(all)
		want.Stats[i].compare(&got.Stats[i], add)
		for j := range all[from:] {
			all[from+j].Mode = want.Stats[i].Mode
		}
		for j := range i {
			a := want.Stats[i].same(&want.Stats[j])
			b := got.Stats[i].same(&got.Stats[j])
			add(want.Stats[j].What+" and "+want.Stats[i].What+" are one file", strconv.FormatBool(a), strconv.FormatBool(b))
		}
	}
	return all
}

func (s *Stat) same(o *Stat) bool {
	return s.Errno == 0 && o.Errno == 0 && s.Ino == o.Ino && s.Dev == o.Dev
}

func (s *Stat) compare(g *Stat, add func(field, want, got string)) {
	if s.Errno != g.Errno {
		add(s.What+".errno", name(s.Errno), name(g.Errno))
		return
	}
	number := func(field string, want, got uint64, format string) {
		if want != got {
			add(s.What+"."+field, fmt.Sprintf(format, want), fmt.Sprintf(format, got))
		}
	}
	number("mode", uint64(s.Mode), uint64(g.Mode), "%#o")
	number("uid", uint64(s.UID), uint64(g.UID), "%d")
	number("gid", uint64(s.GID), uint64(g.GID), "%d")
	number("nlink", s.Nlink, g.Nlink, "%d")
	number("size", uint64(s.Size), uint64(g.Size), "%d")
	number("rdev", s.Rdev, g.Rdev, "%#x")
	if !sameTime(s.Mtime, g.Mtime) {
		add(s.What+".mtime", clock(s.Mtime), clock(g.Mtime))
	}
	if s.atimeSet && !sameTime(s.Atime, g.Atime) {
		add(s.What+".atime", clock(s.Atime), clock(g.Atime))
	}
}

// setBefore is the time, in ns, that all times are before that operations set:
// 2008. Later times come from the clock.
const setBefore = 1_200_000_000 * int64(time.Second)

func sameTime(a, b int64) bool {
	return a == b || a >= setBefore && b >= setBefore
}

func clock(ns int64) string {
	if ns >= setBefore {
		return "from the clock"
	}
	return strconv.FormatInt(ns, 10)
}

func name(e unix.Errno) string {
	if e == 0 {
		return "success"
	}
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return strconv.Itoa(int(e))
}

// differing shows where two contents differ.
func differing(want, got []byte) (w, g string) {
	at := 0
	for at < len(want) && at < len(got) && want[at] == got[at] {
		at++
	}
	show := func(b []byte) string {
		from := max(0, at-8)
		return fmt.Sprintf("%d bytes, from %d %q", len(b), from, b[from:min(len(b), at+40)])
	}
	return show(want), show(got)
}
