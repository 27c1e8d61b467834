package difftest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// oddNames are names that programs get wrong. All are allowed.
func oddNames() []string {
	return []string{
		"\xff\xfeodd", "sp ace", "new\nline", "-rf", "a\\b", "%41", "\"'", "...", "é", "e\u0301",
		longName(255, 'L'), longName(255, '\xfe'), longName(200, 'm'), " ", "\x01\x7f", "CON", "UPPER", "upper",
	}
}

func longName(n int, c byte) string { return strings.Repeat(string([]byte{c}), n) }

// Tops is how many top directories MakeTree makes besides the shared one: as many
// workers can run.
const Tops = 8

// treeMaker makes a tree. The first error stays.
type treeMaker struct {
	*rand.Rand
	dir   string
	times []string // what to set the time of, from the leaves up
	err   error
}

// MakeTree makes a tree of some 300 entries in dir, which exists and is empty, to
// begin tests with. One seed always makes one tree. It has Tops top directories
// and the one called Shared, 4 levels of directories, and of everything that the
// operations work on: sparse, suid and linked files, links, attributes, access
// control lists, fifos, devices and odd names. Nothing in it leads from one top
// directory to another. Needs root.
func MakeTree(dir string, seed uint64) error {
	t := &treeMaker{Rand: newRand(seed), dir: dir}
	for i := range Tops {
		t.top(fmt.Sprintf("top%d", i))
	}
	t.top(Shared)
	t.sparse("top0/sparse")
	t.setTimes()
	if t.err != nil {
		return fmt.Errorf("make tree %s: %w", dir, t.err)
	}
	return nil
}

func (t *treeMaker) path(p string) string { return filepath.Join(t.dir, p) }

func (t *treeMaker) do(p string, err error) {
	if err != nil && t.err == nil {
		t.err = fmt.Errorf("%q: %w", p, err)
	}
}

// made sets what every new file gets.
func (t *treeMaker) made(p string, mode uint32, err error) {
	t.do(p, err)
	t.times = append(t.times, p)
	id := [...]int{0, 0, 1000, 1001}[t.IntN(4)]
	t.do(p, unix.Lchown(t.path(p), id, id))
	if mode != 0 {
		t.do(p, unix.Chmod(t.path(p), mode))
	}
}

func (t *treeMaker) directory(p string) {
	mode := [...]uint32{0o755, 0o755, 0o777, 0o1777, 0o2775, 0o700}[t.IntN(6)]
	t.made(p, mode, unix.Mkdir(t.path(p), 0o755))
}

func (t *treeMaker) file(p string) {
	size := [...]int64{0, 1, 100, 4095, 4096, 5000, 70000, 300 << 10}[t.IntN(8)]
	if size > 100 && size < 100000 {
		size += t.Int64N(3)
	}
	mode := [...]uint32{0o644, 0o644, 0o600, 0o666, 0o755, 0o4755, 0o2755, 0o6711}[t.IntN(8)]
	t.made(p, mode, os.WriteFile(t.path(p), fill(1+t.Int64N(1<<30), size), 0o600))
}

// top makes a top directory.
func (t *treeMaker) top(name string) {
	t.directory(name)
	dirs := []string{name}
	for i := range 6 {
		up := dirs[len(dirs)-1]
		if strings.Count(up, "/") > 3 || t.IntN(3) == 0 {
			up = dirs[t.IntN(len(dirs))]
		}
		p := fmt.Sprintf("%s/d%d", up, i)
		t.directory(p)
		if strings.Count(p, "/") < 4 {
			dirs = append(dirs, p)
		}
	}
	in := func(base string) string { return dirs[t.IntN(len(dirs))] + "/" + base }
	files := []string{}
	for i := range 10 {
		p := in(fmt.Sprintf("f%d", i))
		t.file(p)
		files = append(files, p)
	}
	odd := oddNames()
	for _, i := range t.Perm(len(odd))[:3] {
		p := in(odd[i])
		t.file(p)
		files = append(files, p)
	}
	t.special(name, files, dirs, in)
}

// special makes what is neither a directory nor just a file.
func (t *treeMaker) special(top string, files, dirs []string, in func(string) string) {
	for i := range 3 {
		p := in(fmt.Sprintf("h%d", i))
		t.do(p, unix.Link(t.path(files[i/2]), t.path(p)))
	}
	inside := strings.TrimPrefix(files[3], top+"/")
	targets := []string{"nowhere", "../nowhere", "d0", ".", "/" + files[4], "/" + inside, "/" + dirs[1], "loop"}
	for i, target := range targets {
		p := in(fmt.Sprintf("l%d", i))
		if target == "loop" {
			p = top + "/loop"
		}
		if top == Shared {
			target = "nowhere" // workers' links lead nowhere else
		}
		t.made(p, 0, unix.Symlink(target, t.path(p)))
	}
	p := in("fifo")
	t.made(p, 0o666, unix.Mkfifo(t.path(p), 0o600))
	p = in("null")
	t.made(p, 0o666, unix.Mknod(t.path(p), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	set := func(p, name, value string) { t.do(p, unix.Setxattr(t.path(p), name, []byte(value), 0)) }
	set(files[5], "user.a", "lower")
	set(files[5], "user.b", "")
	set(files[6], "trusted.foo", "\x00\xff")
	set(files[7], capability, capabilities(1<<10))
	acl := []aclEntry{{aclUserObj, 6, none}, {aclUser, 4, 1000}, {aclGroupObj, 4, none}, {aclMask, 6, none}, {aclOther, 0, none}}
	set(files[8], accessACL, packACL(acl))
	acl[1].perm = 7
	set(dirs[len(dirs)-1], defaultACL, packACL(acl))
	set(dirs[0], "user.a", "directory")
}

// sparse makes a file of 8 MiB, most of which is holes.
func (t *treeMaker) sparse(p string) {
	f, err := os.Create(t.path(p))
	t.made(p, 0o644, err)
	if err != nil {
		return
	}
	for _, off := range []int64{0, 1 << 20, 5<<20 + 123} {
		_, err := f.WriteAt(fill(off+1, 10000), off)
		t.do(p, err)
	}
	t.do(p, f.Truncate(8<<20))
	t.do(p, f.Close())
}

// setTimes gives everything a time, which is the last thing to be done to it.
func (t *treeMaker) setTimes() {
	for i := len(t.times) - 1; i >= 0; i-- {
		p := t.times[i]
		m := unix.NsecToTimespec(t.Int64N(setBefore))
		err := unix.UtimesNanoAt(unix.AT_FDCWD, t.path(p), []unix.Timespec{m, m}, unix.AT_SYMLINK_NOFOLLOW)
		t.do(p, err)
	}
	m := unix.NsecToTimespec(int64(time.Hour))
	t.do(".", unix.UtimesNanoAt(unix.AT_FDCWD, t.dir, []unix.Timespec{m, m}, 0))
	t.do(".", unix.Chmod(t.dir, 0o777))
}
