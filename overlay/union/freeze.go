package union

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/overlay"
)

// ErrFrozen: there is a picture of the union already.
var ErrFrozen = errors.New("it is being committed already")

// The parts of a picture: stubs of all that the upper directory has, which have all
// attributes and no data, and the data of the files among them, by the stubs' inode
// numbers.
const (
	stubDir = "tree"
	dataDir = "data"
)

// xattrMax is how large an xattr, and a list of their names, gets in Linux.
const xattrMax = 64 << 10

// Picture is what an upper directory was at one instant. It holds the data of files
// by a link to each, so that it costs no copies until a file is changed, which copies
// it first. It needs no more than names and attributes to be read while it is made,
// and that is all that changes wait for.
//
// The links count in the upper directory, and not in what the union shows.
type Picture struct {
	u    *Union
	dir  string // in ownDir
	data int    // descriptor of dataDir, -1 if there is none yet
	// stubs has the name of the first stub of each file that has several.
	stubs map[uint64]string
	// xattrs and value are where those of a file are read to.
	xattrs, value [xattrMax]byte

	mu    sync.Mutex
	files map[uint64]*held // by inode number in the upper directory
	lost  error            // why it is not what it was any more
}

// held is a file whose data a picture has by a link.
type held struct {
	mu   sync.Mutex // by who copies it
	name string     // in dataDir
	gone bool       // it was copied; guarded by Picture.mu
}

// Freeze makes a picture. Changes wait for it, and it waits for those under way.
// What the kernel keeps of what was written is not in it: see syncfs(2). ErrFrozen:
// one is there already.
func (u *Union) Freeze() (*Picture, error) {
	u.frozen.Lock()
	defer u.frozen.Unlock()
	if u.picture.Load() != nil {
		return nil, ErrFrozen
	}
	p := &Picture{u: u, dir: u.temp(), data: -1, stubs: make(map[uint64]string), files: make(map[uint64]*held)}
	u.picture.Store(p) // links count from now on
	if err := p.take(); err != nil {
		return nil, errors.Join(fmt.Errorf("freeze %s: %w", u.upper.Dir, err), p.drop())
	}
	return p, nil
}

// Upper is what the picture shows, as long as it is not dropped.
func (p *Picture) Upper() overlay.Upper {
	dir := filepath.Join(p.u.own, p.dir)
	return overlay.Upper{
		Dir: filepath.Join(dir, stubDir), UserXattr: p.u.upper.UserXattr, Data: filepath.Join(dir, dataDir),
	}
}

// Err tells why the picture was lost: a file could not be copied before it was
// changed. It is nil if all that was read until now is what it was.
func (p *Picture) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// Drop removes the picture. Nothing of it may be in use.
func (p *Picture) Drop() error {
	if err := p.drop(); err != nil {
		return fmt.Errorf("drop picture of %s: %w", p.u.upper.Dir, err)
	}
	return nil
}

// drop takes link after link away, each together with what says that it is one too
// many, and lets changes go on between them.
func (p *Picture) drop() error {
	u := p.u
	p.mu.Lock()
	files := maps.Clone(p.files)
	p.mu.Unlock()
	for _, h := range files {
		h.mu.Lock()
		u.names.Lock()
		p.mu.Lock()
		if !h.gone {
			_ = unix.Unlinkat(p.data, h.name, 0)
			h.gone = true
		}
		p.mu.Unlock()
		u.names.Unlock()
		h.mu.Unlock()
	}
	u.picture.CompareAndSwap(p, nil)
	err := u.removeTemp(p.dir)
	if p.data >= 0 {
		err = errors.Join(err, unix.Close(p.data))
	}
	return err
}

// take makes the picture, with changes locked out.
func (p *Picture) take() error {
	if err := unix.Mkdirat(p.u.work, p.dir, 0o700); err != nil {
		return err
	}
	own, err := openDir(p.u.work, p.dir)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(own) }()
	if err := unix.Mkdirat(own, dataDir, 0o700); err != nil {
		return err
	}
	if p.data, err = openDir(own, dataDir); err != nil {
		return err
	}
	if err := p.copyDir(p.u.top, own, ".", stubDir); err != nil {
		return err
	}
	for _, name := range p.stubs { // how many names a stub has counts
		if err := unix.Unlinkat(p.data, name, 0); err != nil {
			return err
		}
	}
	p.stubs = nil
	return nil
}

func openDir(at int, name string) (int, error) {
	return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// copyDir makes the directory to in toDir like from in fromDir, with stubs of all
// that is in it.
func (p *Picture) copyDir(fromDir, toDir int, from, to string) error {
	src, err := openDir(fromDir, from)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(src) }()
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	if err := unix.Mkdirat(toDir, to, 0o700); err != nil {
		return err
	}
	dst, err := openDir(toDir, to)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dst) }()
	err = eachEntry(src, func(e *dirent) (bool, error) {
		if e.name == "." || e.name == ".." {
			return true, nil
		}
		err := p.copyEntry(src, dst, e.name)
		if err != nil {
			err = fmt.Errorf("%s: %w", e.name, err)
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	_, err = p.likeFile(src, ".", dst, ".", &st)
	return err
}

func (p *Picture) copyEntry(src, dst int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	typ := st.Mode & unix.S_IFMT
	if typ == unix.S_IFDIR {
		return p.copyDir(src, dst, name, name)
	}
	if first, ok := p.stubs[st.Ino]; ok {
		return unix.Linkat(p.data, first, dst, name, 0)
	}
	var err error
	switch typ {
	case unix.S_IFLNK:
		b := make([]byte, unix.PathMax)
		var n int
		if n, err = unix.Readlinkat(src, name, b); err == nil {
			err = unix.Symlinkat(string(b[:n]), dst, name)
		}
	default:
		err = unix.Mknodat(dst, name, typ|0o600, int(st.Rdev))
	}
	if err != nil {
		return err
	}
	xattrs, err := p.likeFile(src, name, dst, name, &st)
	if err != nil || isWhiteout(&st) {
		return err
	}
	var stub unix.Stat_t
	if err := unix.Fstatat(dst, name, &stub, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Nlink > 1 {
		p.stubs[st.Ino] = stubName(stub.Ino)
		if err := unix.Linkat(dst, name, p.data, stubName(stub.Ino), 0); err != nil {
			return err
		}
	}
	if typ != unix.S_IFREG || st.Size == 0 || slices.Contains(xattrs, p.u.upper.Xattr(overlay.MarkMetacopy)) {
		return nil
	}
	return p.hold(src, name, &st, strconv.FormatUint(stub.Ino, 10))
}

// stubName is a second name, in dataDir, of a stub that gets more of them.
func stubName(ino uint64) string { return "s" + strconv.FormatUint(ino, 10) }

// hold gives the data of name in src, which st describes, another name in dataDir.
func (p *Picture) hold(src int, name string, st *unix.Stat_t, as string) error {
	p.u.names.Lock() // nobody may count the link before it is known
	defer p.u.names.Unlock()
	err := unix.Linkat(src, name, p.data, as, 0)
	if err == unix.EMLINK {
		return p.copyData(src, name, as)
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[st.Ino] = &held{name: as}
	return nil
}

// likeFile gives what is called to in dst the attributes of name in src, which st
// describes, and returns the names of its xattrs.
func (p *Picture) likeFile(src int, name string, dst int, to string, st *unix.Stat_t) (xattrs []string, err error) {
	if err := unix.Fchownat(dst, to, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, err
	}
	if isWhiteout(st) {
		return nil, nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG { // before it has capabilities, which it would lose
		if err := unix.Truncate(xpath(dst, to), st.Size); err != nil {
			return nil, err
		}
	}
	if xattrs, err = p.copyXattrs(xpath(src, name), xpath(dst, to)); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dst, to, st.Mode&0o7777, 0); err != nil {
			return nil, err
		}
	}
	return xattrs, unix.UtimesNanoAt(dst, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs copies all xattrs, those of overlayfs too, and returns their names.
func (p *Picture) copyXattrs(from, to string) (names []string, err error) {
	n, err := unix.Llistxattr(from, p.xattrs[:])
	if err != nil || n == 0 {
		return nil, err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(p.xattrs[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(from, name, p.value[:])
		if err == nil {
			err = unix.Lsetxattr(to, name, p.value[:n], 0)
		}
		if err != nil {
			return nil, fmt.Errorf("copy xattr %s: %w", name, err)
		}
		names = append(names, name)
	}
	return names, nil
}

// preserve sees to it that a picture, if there is one, has data of its own of n,
// which is about to be changed. If it cannot, the picture is lost, and not the
// change.
func (u *Union) preserve(n *node) {
	p := u.picture.Load()
	if p == nil {
		return
	}
	p.mu.Lock()
	h := p.files[n.ino]
	p.mu.Unlock()
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p.mu.Lock()
	gone := h.gone
	p.mu.Unlock()
	if gone {
		return
	}
	tmp := h.name + ".new"
	err := p.copyData(p.data, h.name, tmp)
	u.names.Lock()
	defer u.names.Unlock()
	if err == nil {
		err = unix.Renameat(p.data, tmp, p.data, h.name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.lost = errors.Join(p.lost, fmt.Errorf("keep a file as it was while it is changed: %w", err))
		_ = unix.Unlinkat(p.data, tmp, 0)
		_ = unix.Unlinkat(p.data, h.name, 0)
	}
	h.gone = true
}

// copyData copies the data of name in src to a new file in dataDir, and no holes.
func (p *Picture) copyData(src int, name, to string) error {
	from, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_LARGEFILE, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(from) }()
	dst, err := unix.Openat(p.data, to, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_LARGEFILE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(dst) }()
	if unix.IoctlFileClone(dst, from) == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Ftruncate(dst, st.Size); err != nil {
		return err
	}
	return copyRanges(dst, from, st.Size)
}

// copyRanges copies what is no hole of the first size bytes of from.
func copyRanges(dst, from int, size int64) error {
	for off := int64(0); off < size; {
		begin, err := unix.Seek(from, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(from, begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for off = begin; off < end; {
			in, out := off, off
			n, err := unix.CopyFileRange(from, &in, dst, &out, int(min(end-off, 1<<30)), 0)
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("copy: file ends at %d of %d bytes", off, size)
			}
			off += int64(n)
		}
	}
	return nil
}

// lstat is fstatat(2) of something in the upper directory, with names locked for
// reading at least, but for the links of a picture.
func (u *Union) lstat(fd int, path string, st *unix.Stat_t) error {
	if err := unix.Fstatat(fd, path, st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	p := u.picture.Load()
	if p == nil || st.Nlink < 2 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if h := p.files[st.Ino]; h != nil && !h.gone {
		st.Nlink--
	}
	return nil
}
