// Package walk reads trees with system calls and nothing else, so that what a
// benchmark measures is the file system.
//
// A List is the names of a tree, taken once. Its methods go through all of them
// without allocating: paths are kept as the kernel wants them. All work is done
// by the calling goroutine.
package walk

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// List is a tree's names, relative to its root. It is immutable.
type List struct {
	all   [][]byte // NUL-terminated, in order of names
	small [][]byte // regular files of at most Small bytes
	dirs  int
}

// Small is the size up to which a file is a small one.
const Small = 16 << 10

// NewList takes down the names of a tree.
func NewList(root string) (*List, error) {
	l := &List{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		c := append([]byte(name), 0)
		l.all = append(l.all, c)
		if d.IsDir() {
			l.dirs++
		}
		if !d.Type().IsRegular() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Size() <= Small {
			l.small = append(l.small, c)
		}
		return nil
	})
	return l, err
}

// Len returns the number of names; Files that of small files.
func (l *List) Len() int   { return len(l.all) }
func (l *List) Files() int { return len(l.small) }

// Lstat calls lstat on every name.
func (l *List) Lstat(root string) error {
	fd, err := openDir(root)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	for _, name := range l.all {
		_, _, e := syscall.Syscall6(unix.SYS_NEWFSTATAT, uintptr(fd), uintptr(unsafe.Pointer(&name[0])),
			uintptr(unsafe.Pointer(&st)), unix.AT_SYMLINK_NOFOLLOW, 0, 0)
		if e != 0 {
			return fmt.Errorf("lstat %s: %w", name, e)
		}
	}
	return nil
}

// ReadSmall opens, reads and closes every small file.
func (l *List) ReadSmall(root string) error {
	fd, err := openDir(root)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, Small+1)
	for _, name := range l.small {
		f, _, e := syscall.Syscall6(unix.SYS_OPENAT, uintptr(fd), uintptr(unsafe.Pointer(&name[0])),
			unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
		if e != 0 {
			return fmt.Errorf("open %s: %w", name, e)
		}
		_, _, e = syscall.Syscall(unix.SYS_READ, f, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
		_, _, _ = syscall.Syscall(unix.SYS_CLOSE, f, 0, 0)
		if e != 0 {
			return fmt.Errorf("read %s: %w", name, e)
		}
	}
	return nil
}

// Walk reads every directory, as find does, and fails unless it meets as many
// names as the list has.
func (l *List) Walk(root string) error {
	fd, err := openDir(root)
	if err != nil {
		return err
	}
	n, err := readDir(fd, make([]byte, 32<<10))
	if err == nil && n+1 != len(l.all) {
		err = fmt.Errorf("walk %s: %d names, want %d", root, n+1, len(l.all))
	}
	return err
}

// readDir reads the directory fd and those below it, closes fd, and returns the
// number of names. Names of directories are kept aside first: buf is shared.
func readDir(fd int, buf []byte) (int, error) {
	defer func() { _ = unix.Close(fd) }()
	total := 0
	var below []byte // NUL-terminated names, one after the other
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return total, fmt.Errorf("getdents: %w", err)
		}
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			reclen := int(b[16]) | int(b[17])<<8
			name := b[19:reclen]
			kind := b[18]
			b = b[reclen:]
			if name[0] == '.' && (name[1] == 0 || name[1] == '.' && name[2] == 0) {
				continue
			}
			total++
			if kind != unix.DT_DIR {
				continue
			}
			end := 0
			for name[end] != 0 {
				end++
			}
			below = append(below, name[:end+1]...)
		}
	}
	for len(below) > 0 {
		end := 0
		for below[end] != 0 {
			end++
		}
		f, _, e := syscall.Syscall6(unix.SYS_OPENAT, uintptr(fd), uintptr(unsafe.Pointer(&below[0])),
			unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0, 0, 0)
		if e != 0 {
			return total, fmt.Errorf("open %s: %w", below[:end], e)
		}
		below = below[end+1:]
		n, err := readDir(int(f), buf)
		total += n
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

func openDir(root string) (int, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: root, Err: err}
	}
	return fd, nil
}

// Sequential reads a file from start to end in pieces of 1 MiB and returns its
// size.
func Sequential(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 1<<20)
	total := int64(0)
	for {
		n, err := unix.Read(int(f.Fd()), buf)
		if err != nil {
			return total, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return total, nil
		}
		total += int64(n)
	}
}

// Random reads n pieces of 4 KiB of a file, at aligned places that depend on n
// only.
func Random(path string, n int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pages := uint64(info.Size() / 4096)
	buf := make([]byte, 4096)
	for i, x := 0, uint64(88172645463325252); i < n; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		if _, err := unix.Pread(int(f.Fd()), buf, int64(x%pages)*4096); err != nil {
			return &os.PathError{Op: "pread", Path: path, Err: err}
		}
	}
	return nil
}
