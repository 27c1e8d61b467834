package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// The namespaces in which overlayfs keeps its xattrs: with privileges, and with
// the mount option userxattr.
const (
	trustedPrefix = "trusted.overlay."
	userPrefix    = "user.overlay."
)

// maxXattrs bounds the xattrs of one file, names and values, as Linux does.
const maxXattrs = 64 << 10

// Upper is an upper directory in overlayfs's format: see "Whiteouts and opaque
// directories", "redirect_dir" and "Metadata only copy up" in the kernel's
// Documentation/filesystems/overlayfs.rst.
type Upper struct {
	// Dir is the directory.
	Dir string
	// UserXattr says that overlayfs's xattrs are in user.overlay.*, as without
	// privileges, not in trusted.overlay.*.
	UserXattr bool
	// Data, if it is not empty, says that the regular files in Dir are stubs without
	// data. What they would have is in this directory, in files called by the stubs'
	// inode numbers; each may be replaced at any time by a copy of it.
	Data string
	// Orphans, if it is not empty, is a directory that has a link to each file which
	// lost the name that a server knew it by, called OrphanName. It may not be there.
	// Such a link is no name of the file and does not count.
	Orphans string
}

// OrphanName is what the file with the inode number ino is called in Upper.Orphans.
func OrphanName(ino uint64) string { return strconv.FormatUint(ino, 16) }

// orphaned tells whether one of the links of the file that st describes is in Orphans.
func (u Upper) orphaned(st *unix.Stat_t) bool {
	if st.Nlink < 2 || u.Orphans == "" || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false
	}
	var orphan unix.Stat_t
	err := unix.Lstat(filepath.Join(u.Orphans, OrphanName(st.Ino)), &orphan)
	return err == nil && orphan.Ino == st.Ino && orphan.Dev == st.Dev
}

func (u Upper) prefix() string {
	if u.UserXattr {
		return userPrefix
	}
	return trustedPrefix
}

// upperEntry is an entry of an upper directory.
type upperEntry struct {
	name   string
	stat   unix.Stat_t   // Nlink is the number of its names
	xattrs []index.Xattr // without overlayfs's
	target string        // of a symbolic link

	whiteout bool
	opaque   bool
	// lazy: whiteouts beneath this directory may be files with an xattr.
	lazy     bool
	metacopy bool
	redirect string
}

func (e *upperEntry) is(typ uint32) bool { return e.stat.Mode&unix.S_IFMT == typ }

// attr returns the attributes of e.
func (e *upperEntry) attr() index.Attr {
	a := index.Attr{
		Mode: e.stat.Mode, UID: e.stat.Uid, GID: e.stat.Gid,
		Mtime: e.stat.Mtim.Sec, MtimeNsec: uint32(e.stat.Mtim.Nsec),
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		a.Size = e.stat.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = index.Makedev(unix.Major(e.stat.Rdev), unix.Minor(e.stat.Rdev))
	}
	if !e.is(unix.S_IFDIR) {
		a.Nlink = uint32(e.stat.Nlink)
	}
	return a
}

// readUpper returns the entries of dir, in the order of their names.
func (u Upper) readUpper(dir *os.File, lazy bool) ([]upperEntry, error) {
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	entries := make([]upperEntry, 0, len(names))
	for _, name := range names {
		e, err := u.entry(dir, name, lazy)
		if errors.Is(err, unix.ENOENT) {
			continue // it has gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		entries = append(entries, *e)
	}
	return entries, nil
}

// entry looks at name in dir. lazy says that whiteouts may be files there.
func (u Upper) entry(dir *os.File, name string, lazy bool) (*upperEntry, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	e := &upperEntry{name: name}
	if err := unix.Fstat(fd, &e.stat); err != nil {
		return nil, err
	}
	if u.orphaned(&e.stat) {
		e.stat.Nlink--
	}
	if e.is(unix.S_IFCHR) && e.stat.Rdev == 0 {
		e.whiteout = true
		return e, nil
	}
	if e.is(unix.S_IFLNK) {
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", b)
		if err != nil {
			return nil, err
		}
		e.target = string(b[:n])
	}
	// A descriptor with O_PATH has no xattrs of its own, but a path.
	if err := u.readXattrs(e, "/proc/self/fd/"+strconv.Itoa(fd)); err != nil {
		return nil, err
	}
	if !lazy || e.stat.Size != 0 || !e.is(unix.S_IFREG) {
		e.whiteout = false
	}
	return e, nil
}

// readXattrs reads the xattrs of the file at path and what overlayfs says in
// them.
func (u Upper) readXattrs(e *upperEntry, path string) error {
	list := make([]byte, maxXattrs)
	n, err := unix.Listxattr(path, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, maxXattrs)
	for _, name := range strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue // the host's label says nothing about the image
		}
		mark, ours := strings.CutPrefix(name, u.prefix())
		if !ours && (strings.HasPrefix(name, trustedPrefix) || strings.HasPrefix(name, userPrefix)) {
			continue
		}
		n, err := unix.Getxattr(path, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("xattr %s: %w", name, err)
		}
		if ours {
			e.mark(mark, string(value[:n]))
			continue
		}
		e.xattrs = append(e.xattrs, index.Xattr{Name: name, Value: bytes.Clone(value[:n])})
	}
	sortXattrs(e.xattrs)
	return nil
}

// mark notes one of overlayfs's xattrs, without its prefix.
func (e *upperEntry) mark(name, value string) {
	switch name {
	case "opaque":
		e.opaque, e.lazy = value == "y", value == "x"
	case "whiteout":
		e.whiteout = true
	case "metacopy":
		e.metacopy = e.is(unix.S_IFREG)
	case "redirect":
		e.redirect = value
	}
}

func sortXattrs(x []index.Xattr) {
	slices.SortFunc(x, func(a, b index.Xattr) int { return strings.Compare(a.Name, b.Name) })
}

// openIn opens the entry e of dir, which must be the one that was looked at.
func (e *upperEntry) openIn(dir *os.File, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), e.name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + e.name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+e.name), nil
}
