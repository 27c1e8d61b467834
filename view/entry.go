package view

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// Entry is a name in the tree and what is there. Paths, names and targets are
// bytes, as the image has them.
type Entry struct {
	Path   string // from the root, with a slash in front
	Name   string // the last part of Path; "/" of the root
	Mode   uint32 // st_mode, with the type
	Size   int64  // bytes; of a symbolic link, those of its target
	UID    uint32
	GID    uint32
	Mtime  time.Time // UTC
	Nlink  uint32
	Rdev   uint32    // of a device, as index.Makedev makes it
	Target string    // of a symbolic link
	NID    index.NID // in the merged tree
}

// IsDir reports whether e is a directory.
func (e *Entry) IsDir() bool { return e.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// isDevice reports whether e has a device number.
func (e *Entry) isDevice() bool {
	t := e.Mode & syscall.S_IFMT
	return t == syscall.S_IFCHR || t == syscall.S_IFBLK
}

// jsonEntry is the form of an Entry in JSON.
type jsonEntry struct {
	Path      string  `json:"path"`
	Name      string  `json:"name"`
	Type      string  `json:"type"`
	Mode      string  `json:"mode"` // octal, without the type
	Size      int64   `json:"size"`
	UID       uint32  `json:"uid"`
	GID       uint32  `json:"gid"`
	Mtime     string  `json:"mtime"`
	Nlink     uint32  `json:"nlink"`
	Major     *uint32 `json:"major,omitempty"`
	Minor     *uint32 `json:"minor,omitempty"`
	Target    string  `json:"target,omitempty"`
	RawPath   []byte  `json:"pathBase64,omitempty"`
	RawTarget []byte  `json:"targetBase64,omitempty"`
}

func (e *Entry) json() jsonEntry {
	j := jsonEntry{
		Path: e.Path, Name: e.Name, Type: typeName(e.Mode), Mode: fmt.Sprintf("%04o", e.Mode&0o7777),
		Size: e.Size, UID: e.UID, GID: e.GID, Nlink: e.Nlink, Target: e.Target,
		// Format, because time's own JSON refuses the years that a tar can have.
		Mtime: e.Mtime.Format(time.RFC3339Nano),
	}
	if e.isDevice() {
		major, minor := unix.Major(uint64(e.Rdev)), unix.Minor(uint64(e.Rdev))
		j.Major, j.Minor = &major, &minor
	}
	if !utf8.ValidString(e.Path) {
		j.RawPath = []byte(e.Path)
	}
	if !utf8.ValidString(e.Target) {
		j.RawTarget = []byte(e.Target)
	}
	return j
}

// MarshalJSON gives paths as strings. JSON has no bytes: in a path or target that
// is not UTF-8 what is wrong becomes U+FFFD, and pathBase64 or targetBase64 has
// the bytes.
func (e Entry) MarshalJSON() ([]byte, error) { return json.Marshal(e.json()) }

// typeName is what people call a type of file.
func typeName(mode uint32) string {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return "file"
	case syscall.S_IFDIR:
		return "directory"
	case syscall.S_IFLNK:
		return "symlink"
	case syscall.S_IFCHR:
		return "char device"
	case syscall.S_IFBLK:
		return "block device"
	case syscall.S_IFIFO:
		return "fifo"
	case syscall.S_IFSOCK:
		return "socket"
	}
	return "unknown"
}

// typeLetter is the first letter of a mode as ls prints it.
func typeLetter(mode uint32) byte {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return '-'
	case syscall.S_IFDIR:
		return 'd'
	case syscall.S_IFLNK:
		return 'l'
	case syscall.S_IFCHR:
		return 'c'
	case syscall.S_IFBLK:
		return 'b'
	case syscall.S_IFIFO:
		return 'p'
	case syscall.S_IFSOCK:
		return 's'
	}
	return '?'
}

// entry makes an Entry of nid.
func (m *Image) entry(path, name string, nid index.NID) (Entry, error) {
	var a index.Attr
	if err := m.Tree.Attr(nid, &a); err != nil {
		return Entry{}, err
	}
	e := Entry{
		Path: path, Name: name, Mode: a.Mode, Size: a.Size, UID: a.UID, GID: a.GID,
		Mtime: time.Unix(a.Mtime, int64(a.MtimeNsec)).UTC(), Nlink: a.Nlink, Rdev: a.Rdev, NID: nid,
	}
	if a.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		target, err := m.Tree.Readlink(nid)
		if err != nil {
			return Entry{}, err
		}
		e.Target = string(target)
	}
	return e, nil
}

// entryAt makes an Entry of a spot.
func (m *Image) entryAt(s spot) (Entry, error) {
	return m.entry(s.path, base(s.path), s.nid)
}

// base is the last part of a spot's path.
func base(path string) string {
	if path == "/" {
		return path
	}
	return path[strings.LastIndexByte(path, '/')+1:]
}

// readDir returns the entries of the directory nid in byte order, "." and ".."
// left out.
func (m *Image) readDir(path string, nid index.NID, g *guard) ([]Entry, error) {
	if err := g.enter(nid); err != nil {
		return nil, err
	}
	var entries []Entry
	var failed error
	err := m.Tree.ReadDir(nid, 0, func(d *index.Dirent) bool {
		name := string(d.Name)
		if name == "." || name == ".." {
			return true
		}
		// It becomes a name on the disk, where a slash would lead elsewhere.
		if strings.ContainsAny(name, "/\x00") {
			failed = fmt.Errorf("name %q in %s: %w", name, path, index.ErrCorrupt)
			return false
		}
		var e Entry
		e, failed = m.entry(join(path, name), name, d.NID)
		entries = append(entries, e)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return entries, errno(err)
}
