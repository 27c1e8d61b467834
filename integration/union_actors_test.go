//go:build integration

package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// kinds are what a workload is made of. POSIX promises little: what a file has when
// fsync of it returned, and its name when fsync of its directory did. The union's
// own promise is added to it: each change is there in whole or not at all, but for
// data that is written in place.
func kinds() []kind {
	return []kind{
		{name: "replaced", lower: lowerFile, step: replaceFile, check: versions(lookReplaced)},
		{name: "pointed", lower: lowerLink, step: replaceLink, check: versions(lookPointed)},
		{name: "appended", lower: lowerFile, step: appendRecord, check: checkAppended, most: 60},
		{name: "owned", lower: lowerFile, step: changeOwner, check: versions(lookOwned)},
		{name: "marked", lower: lowerFile, step: changeMark, check: versions(lookMarked)},
		{name: "made", lower: lowerFile, step: unlinkAndMake, check: versions(lookMade)},
		{name: "unnamed", lower: lowerFile, step: unlinkAndLink, check: versions(lookUnnamed)},
		{name: "moved", lower: lowerMoved, step: moveFile, check: versions(lookMoved)},
		{name: "moved folder", lower: lowerFolder, step: moveFolder, check: versions(lookFolder)},
		{name: "exchanged", lower: lowerPair, step: exchangePair, check: versions(lookPair)},
		{name: "remade", lower: lowerRemade, step: remakeFolder, check: versions(lookRemade)},
		{name: "copied", lower: lowerCopied, step: copyUpOne, check: checkCopied, most: manyFiles},
		{name: "linked", lower: lowerLinked, step: changeLinked, check: checkLinked, most: manyFiles / 3},
	}
}

// content is what the file called name has in a version: mostly little.
func content(name string, v int) []byte {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // never an error
	r := rand.New(rand.NewPCG(h.Sum64(), uint64(v)))
	b := make([]byte, 1+r.IntN([]int{200, 5000, 20_000, 300_000}[r.IntN(4)]))
	for i := range b {
		b[i] = 1 + byte(r.Uint32()%255) // no zeros: those are holes
	}
	return b
}

// own is the name of what an actor has: content tells actors apart by it.
func own(dir, name string) string { return filepath.Join(filepath.Base(dir), name) }

const file = "file"

func lowerFile(dir string) error {
	path := filepath.Join(dir, file)
	return errors.Join(os.WriteFile(path, content(own(dir, file), 0), 0o644), os.Lchown(path, 0, 1),
		unix.Setxattr(path, mark, []byte("0"), 0))
}

// isContent says whether a file has what it has in a version.
func isContent(path, name string, v int) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return sameBytes(got, content(name, v))
}

func sameBytes(got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	n := 0
	for n < min(len(got), len(want)) && got[n] == want[n] {
		n++
	}
	return fmt.Errorf("%d bytes, not %d, and otherwise from %d on: %.8x", len(got), len(want), n, got[n:])
}

func absent(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(fmt.Errorf("%s is there", filepath.Base(path)), err)
}

// writeSynced makes a file and syncs it.
func writeSynced(path string, b []byte, flags int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// replaceFile is how editors and databases replace a file.
func replaceFile(s *step) error {
	tmp := s.path(".tmp")
	if err := writeSynced(tmp, content(own(s.dir, file), s.v), os.O_CREATE|os.O_EXCL); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.path(file)); err != nil {
		return err
	}
	return s.sync(".")
}

func lookReplaced(dir string) func(int) error {
	return func(v int) error { return isContent(filepath.Join(dir, file), own(dir, file), v) }
}

func lowerLink(dir string) error { return os.Symlink("0", filepath.Join(dir, file)) }

func replaceLink(s *step) error {
	if err := os.Symlink(strconv.Itoa(s.v), s.path(".tmp")); err != nil {
		return err
	}
	if err := os.Rename(s.path(".tmp"), s.path(file)); err != nil {
		return err
	}
	return s.sync(".")
}

func lookPointed(dir string) func(int) error {
	return func(v int) error {
		target, err := os.Readlink(filepath.Join(dir, file))
		if err == nil && target != strconv.Itoa(v) {
			err = fmt.Errorf("points to %s", target)
		}
		return err
	}
}

func record(dir string, v int) []byte { return content(own(dir, "record"), v)[:1] }

func appendRecord(s *step) error {
	f, err := os.OpenFile(s.path(file), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Write(bytes.Repeat(record(s.dir, s.v), s.v*50)); err != nil {
		return err
	}
	if s.rng.IntN(4) > 0 {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	s.synced()
	return nil
}

// appended is what a file has in a version.
func appended(dir string, v int) []byte {
	b := content(own(dir, file), 0)
	for i := 1; i <= v; i++ {
		b = append(b, bytes.Repeat(record(dir, i), i*50)...)
	}
	return b
}

func checkAppended(dir string, b bounds) error {
	return checkWritten(filepath.Join(dir, file), appended(dir, b.least), appended(dir, b.most))
}

func checkExactly(path string, want []byte) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return sameBytes(got, want)
}

// checkWritten says whether a file has what was synced, old, and of what was written
// since, with which it would be new, anything.
func checkWritten(path string, old, written []byte) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(got) < len(old) || len(got) > max(len(old), len(written)) {
		return fmt.Errorf("%d bytes, not %d to %d", len(got), len(old), len(written))
	}
	for i, b := range got {
		switch {
		case i < len(written) && b == written[i]:
		case i < len(old) && b != old[i]:
			return fmt.Errorf("wrong from %d on, of %d to %d: %.8x", i, len(old), len(written), got[i:])
		case i >= len(old) && b != 0:
			return fmt.Errorf("garbage at %d: %.8x", i, got[i:])
		case i >= len(old) && len(old) == len(written):
			return fmt.Errorf("garbage at %d: %.8x", i, got[i:])
		}
	}
	return nil
}

func changeOwner(s *step) error {
	if err := os.Lchown(s.path(file), s.v, s.v+1); err != nil {
		return err
	}
	return s.sync(file)
}

func lookOwned(dir string) func(int) error {
	return func(v int) error {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, file), &st); err != nil {
			return err
		}
		if int(st.Uid) != v || int(st.Gid) != v+1 {
			return fmt.Errorf("owned by %d and %d", st.Uid, st.Gid)
		}
		return isContent(filepath.Join(dir, file), own(dir, file), 0)
	}
}

const mark = "user.version"

func changeMark(s *step) error {
	if err := unix.Setxattr(s.path(file), mark, strconv.AppendInt(nil, int64(s.v), 10), 0); err != nil {
		return err
	}
	return s.sync(file)
}

func lookMarked(dir string) func(int) error {
	return func(v int) error {
		b := make([]byte, 20)
		n, err := unix.Getxattr(filepath.Join(dir, file), mark, b)
		if err != nil {
			return err
		}
		if string(b[:n]) != strconv.Itoa(v) {
			return fmt.Errorf("marked %s", b[:n])
		}
		return isContent(filepath.Join(dir, file), own(dir, file), 0)
	}
}

// unlinkAndMake goes round: a file, none, an empty one that gets its content.
func unlinkAndMake(s *step) error {
	switch s.v % 3 {
	case 1:
		if err := os.Remove(s.path(file)); err != nil {
			return err
		}
	case 2:
		if err := writeSynced(s.path(file), nil, os.O_CREATE|os.O_EXCL); err != nil {
			return err
		}
	default:
		if err := writeSynced(s.path(file), content(own(s.dir, file), s.v), 0); err != nil {
			return err
		}
	}
	return s.sync(".")
}

func lookMade(dir string) func(int) error {
	path := filepath.Join(dir, file)
	return func(v int) error {
		switch v % 3 {
		case 1:
			return absent(path)
		case 2: // and what of the next version was written
			_, err := os.ReadFile(path)
			return err
		}
		return isContent(path, own(dir, file), v)
	}
}

// unlinkAndLink goes between no file and one that got its name when it was whole.
func unlinkAndLink(s *step) error {
	if s.v%2 == 1 {
		if err := os.Remove(s.path(file)); err != nil {
			return err
		}
		return s.sync(".")
	}
	fd, err := unix.Open(s.dir, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), file)
	defer func() { _ = f.Close() }()
	if _, err := f.Write(content(own(s.dir, file), s.v)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, s.path(file), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return err
	}
	return s.sync(".")
}

func lookUnnamed(dir string) func(int) error {
	path := filepath.Join(dir, file)
	return func(v int) error {
		if v%2 == 1 {
			return absent(path)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if st.Nlink != 1 {
			return fmt.Errorf("%d links", st.Nlink)
		}
		return isContent(path, own(dir, file), v)
	}
}
