package view_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
	"github.com/laminafs/lamina/view"
)

// mustCopy copies and lets special files be left out, for who is not root.
func mustCopy(t *testing.T, m *view.Image, src, dst string) {
	t.Helper()
	err := m.Copy(t.Context(), src, dst, view.CopyOptions{Owners: true})
	var skipped *view.SkippedError
	if errors.As(err, &skipped) && os.Geteuid() != 0 {
		err = nil
	}
	if err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st
}

func TestCopyTree(t *testing.T) {
	m, dir := sample(t), filepath.Join(t.TempDir(), "new")
	mustCopy(t, m, "/", dir)
	if b, err := os.ReadFile(filepath.Join(dir, "etc/passwd")); err != nil || string(b) != "root:x:0:0\n" {
		t.Errorf("passwd: %q, %v", b, err)
	}
	passwd := stat(t, filepath.Join(dir, "etc/passwd"))
	if passwd.Mtim != (unix.Timespec{Sec: 1e9, Nsec: 123456789}) || passwd.Mode != 0o100644 {
		t.Errorf("passwd: %+v", passwd)
	}
	value := make([]byte, 10)
	n, err := unix.Getxattr(filepath.Join(dir, "etc/passwd"), "user.note", value)
	if err != unix.ENOTSUP && (err != nil || string(value[:n]) != "a\x00b") {
		t.Errorf("xattr: %q, %v", value[:max(n, 0)], err)
	}
	if etc := stat(t, filepath.Join(dir, "etc")); etc.Mode != 0o40750 || etc.Mtim != (unix.Timespec{Sec: 1e9, Nsec: 5}) {
		t.Errorf("etc: %+v", etc)
	}
	su, sudo := stat(t, filepath.Join(dir, "bin/su")), stat(t, filepath.Join(dir, "bin/sudo"))
	if su.Ino != sudo.Ino || su.Nlink != 2 {
		t.Errorf("hard link lost: %+v, %+v", su, sudo)
	}
	if target, err := os.Readlink(filepath.Join(dir, "etc/out")); err != nil || target != "../../../../etc/passwd" {
		t.Errorf("symlink: %q, %v", target, err)
	}
	if out := stat(t, filepath.Join(dir, "etc/out")); out.Mtim.Sec != 1e9 {
		t.Errorf("time of a symlink: %+v", out.Mtim)
	}
	if sparse := stat(t, filepath.Join(dir, "sparse")); sparse.Size != 3<<20+17 || sparse.Blocks*512 > 1<<20 || sparse.Mode != 0o100444 {
		t.Errorf("sparse: %+v", sparse)
	}
	var want bytes.Buffer
	if err := m.Cat(t.Context(), &want, "/sparse"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "sparse")); err != nil || !bytes.Equal(b, want.Bytes()) {
		t.Errorf("sparse: %d bytes, %v", len(b), err)
	}
	// Set-id bits and devices are for root.
	null := filepath.Join(dir, "dev/null")
	if os.Geteuid() == 0 {
		if su.Mode != 0o104755 || su.Gid != 42 {
			t.Errorf("su: %o of group %d", su.Mode, su.Gid)
		}
		if st := stat(t, null); st.Mode != syscall.S_IFCHR|0o666 || st.Rdev != unix.Mkdev(1, 3) {
			t.Errorf("null: %o %x", st.Mode, st.Rdev)
		}
	} else {
		if su.Mode != 0o100755 {
			t.Errorf("su: %o", su.Mode)
		}
		if _, err := os.Lstat(null); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("null: %v", err)
		}
	}
	if fifo := stat(t, filepath.Join(dir, "dev/fifo")); fifo.Mode != syscall.S_IFIFO|0o600 || fifo.Mtim.Sec != 1e9 {
		t.Errorf("fifo: %+v", fifo)
	}
	// Once more, over what is there.
	mustCopy(t, m, "/.", dir)
	if su := stat(t, filepath.Join(dir, "bin/su")); su.Nlink != 2 {
		t.Errorf("after a second copy su has %d names", su.Nlink)
	}
	noTemps(t, dir)
}

// noTemps: nothing is left of files in the making.
func noTemps(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.HasPrefix(d.Name(), ".lamina-") {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCopyWithoutOwners(t *testing.T) {
	dir := t.TempDir()
	if err := sample(t).Copy(t.Context(), "/bin/su", dir, view.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, filepath.Join(dir, "su")); st.Mode != 0o100755 || int(st.Gid) != os.Getegid() {
		t.Errorf("%o of %d:%d", st.Mode, st.Uid, st.Gid)
	}
}

// TestCopySkips: devices are left out, and told, if they cannot be made.
func TestCopySkips(t *testing.T) {
	dir := t.TempDir()
	err := sample(t).Copy(t.Context(), "/dev", dir, view.CopyOptions{})
	var skipped *view.SkippedError
	switch {
	case os.Geteuid() == 0:
		if err != nil {
			t.Fatal(err)
		}
	case !errors.As(err, &skipped) || !errors.Is(err, syscall.EPERM) || !slices.Equal(skipped.Paths, []string{"/dev/null", "/dev/sda"}):
		t.Fatal(err)
	}
	stat(t, filepath.Join(dir, "dev/socket")) // what comes behind is there
}

// TestCopyPlaces: where a copy goes.
func TestCopyPlaces(t *testing.T) {
	m := sample(t)
	for _, c := range []struct {
		src, dst string // dst is in a directory with a directory d and a file f
		want     string // what is there then
		err      error
	}{
		{src: "/etc/passwd", dst: "new", want: "new"},
		{src: "/etc/passwd", dst: "f", want: "f"},
		{src: "/etc/passwd", dst: "d", want: "d/passwd"},
		{src: "/etc/passwd", dst: "d/", want: "d/passwd"},
		{src: "/etc/passwd", dst: "new/", err: fs.ErrNotExist},
		{src: "/etc/passwd", dst: "none/new", err: fs.ErrNotExist},
		{src: "/etc/passwd", dst: "f/x", err: syscall.ENOTDIR},
		{src: "/etc", dst: "new", want: "new/passwd"},
		{src: "/etc", dst: "new/", want: "new/passwd"},
		{src: "/etc", dst: "d", want: "d/etc/passwd"},
		{src: "/etc/.", dst: "d", want: "d/passwd"},
		{src: "/etc/.", dst: "new", want: "new/passwd"},
		{src: "/etc/link", dst: "d", want: "d/link"},
		{src: "/config", dst: "d", want: "d/config"},
		{src: "/config/", dst: "d", want: "d/config/passwd"},
		{src: "/config/.", dst: "d", want: "d/passwd"},
		{src: "/etc/../", dst: "d", want: "d/etc/passwd"},
		{src: "/odd/d:d d/../", dst: "d", want: "d/d:d d"},
		{src: "/etc/..", dst: "new", want: "new/etc/passwd"},
		{src: "/etc/./", dst: "d/", want: "d/passwd"},
		{src: "/etc//", dst: "d", want: "d/etc/passwd"},
		{src: "/etc/passwd", dst: "away/../x", want: "e/x"},
		{src: "/etc", dst: "away/../x//", want: "e/x/passwd"},
		{src: "/etc", dst: "missing/..", err: fs.ErrNotExist},
		{src: "/etc", dst: "missing/.", err: fs.ErrNotExist},
		{src: "/etc/.", dst: "missing/../", err: fs.ErrNotExist},
		{src: "/etc", dst: "f", err: syscall.ENOTDIR},
		{src: "/none", dst: "d", err: fs.ErrNotExist},
		{src: "/etc/passwd/.", dst: "d", err: syscall.ENOTDIR},
		{src: "/etc/passwd", dst: "e", err: syscall.EISDIR}, // e/passwd is a directory
	} {
		dir := t.TempDir()
		for _, d := range []string{"d", "e/passwd"} {
			if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("e/passwd", filepath.Join(dir, "away")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := m.Copy(t.Context(), c.src, dir+"/"+c.dst, view.CopyOptions{})
		if !errors.Is(err, c.err) {
			t.Errorf("copy %s to %s: %v, want %v", c.src, c.dst, err, c.err)
		}
		if c.want != "" {
			stat(t, filepath.Join(dir, c.want))
		}
		if b, err := os.ReadFile(filepath.Join(dir, c.want)); strings.HasSuffix(c.src, "passwd") && c.want != "" && (err != nil || string(b) != "root:x:0:0\n") {
			t.Errorf("copy %s to %s: %q, %v", c.src, c.dst, b, err)
		}
		for _, name := range []string{"etc", "d:d d"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				t.Errorf("copy %s to %s: came into the directory above", c.src, c.dst)
			}
		}
		noTemps(t, dir)
	}
}

// TestCopyDots: a source that ends with ".." and slashes names what is in a
// directory, and nothing above the destination is written, on the disk or in a tar.
func TestCopyDots(t *testing.T) {
	m := sample(t)
	for _, src := range []string{"/odd/d:d d/../", "/odd/d:d d/..", "etc/..//", "/bin/./", "."} {
		var b bytes.Buffer
		var skipped *view.SkippedError
		if err := m.CopyTar(t.Context(), &b, src); err != nil && !errors.As(err, &skipped) {
			t.Fatal(err)
		}
		for r := tar.NewReader(&b); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(h.Name, "./") {
				t.Errorf("%s: %q in the tar", src, h.Name)
			}
		}
	}
}

// TestCopyStaysInside: links in the destination, from an earlier copy or from
// somebody else, lead no file elsewhere.
func TestCopyStaysInside(t *testing.T) {
	outside := t.TempDir()
	for name, prepare := range map[string]func(dir string) error{
		"directory": func(dir string) error { return os.Symlink(outside, filepath.Join(dir, "a")) },
		"inside": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "b"), 0o755), os.Symlink("b", filepath.Join(dir, "a")))
		},
		"file": func(dir string) error {
			return errors.Join(os.Mkdir(filepath.Join(dir, "a"), 0o755), os.Symlink(outside+"/x", filepath.Join(dir, "a/f")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := prepare(dir); err != nil {
				t.Fatal(err)
			}
			l := newLayer()
			l.file("a/f", 0o644, "data")
			err := stack(t, l).Copy(t.Context(), "/", dir, view.CopyOptions{})
			if name == "file" {
				if st := stat(t, filepath.Join(dir, "a/f")); err != nil || st.Mode != 0o100644 {
					t.Errorf("%o, %v", st.Mode, err)
				}
			} else if !errors.Is(err, syscall.ENOTDIR) {
				t.Errorf("through a link: %v", err)
			}
			if list, err := os.ReadDir(outside); err != nil || len(list) > 0 {
				t.Errorf("outside: %v, %v", list, err)
			}
		})
	}
}

// TestCopyCut: a file that cannot be read leaves what was there.
func TestCopyCut(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := newLayer()
	l.file("f", 0o644, strings.Repeat("x", 3<<20))
	m := stack(t, l)
	l.data = l.data[:2<<20]
	if err := m.Copy(t.Context(), "f", path, view.CopyOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "old" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	noTemps(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Copy(ctx, "f", path, view.CopyOptions{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCopyTar(t *testing.T) {
	m := sample(t)
	var b bytes.Buffer
	err := m.CopyTar(t.Context(), &b, "/.")
	var skipped *view.SkippedError
	if !errors.As(err, &skipped) || !slices.Equal(skipped.Paths, []string{"/dev/socket"}) {
		t.Fatal(err)
	}
	headers := map[string]*tar.Header{}
	content := map[string]string{}
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		headers[h.Name], content[h.Name] = h, string(data)
	}
	n := 1
	for e, err := range m.List("/", view.ListOptions{Recursive: true}) {
		if n++; err != nil {
			t.Fatal(err)
		}
		name := "." + e.Path
		if e.IsDir() {
			name += "/"
		}
		h := headers[name]
		switch {
		case e.Path == "/dev/socket":
			n--
		case h == nil:
			t.Errorf("no %q", name)
		case h.Typeflag != tar.TypeLink && (!h.ModTime.Equal(e.Mtime) || h.Mode != int64(e.Mode&0o7777) || h.Uid != int(e.UID) || h.Gid != int(e.GID)):
			t.Errorf("%q: %+v", name, h)
		}
	}
	if n != len(headers) {
		t.Errorf("%d entries, want %d", len(headers), n)
	}
	if h := headers["./etc/passwd"]; h.PAXRecords["SCHILY.xattr.user.note"] != "a\x00b" || content[h.Name] != "root:x:0:0\n" {
		t.Errorf("passwd: %+v", h)
	}
	if h := headers["./bin/sudo"]; h.Typeflag != tar.TypeLink || h.Linkname != "./bin/su" {
		t.Errorf("sudo: %+v", h)
	}
	if h := headers["./dev/sda"]; h.Devmajor != 259 || h.Devminor != 100000 {
		t.Errorf("sda: %+v", h)
	}
	if h := headers["./etc/out"]; h.Linkname != "../../../../etc/passwd" {
		t.Errorf("out: %+v", h)
	}
	b.Reset()
	if err := m.CopyTar(t.Context(), &b, "/config/passwd"); err != nil {
		t.Fatal(err)
	}
	if h, err := tar.NewReader(&b).Next(); err != nil || h.Name != "passwd" {
		t.Errorf("%+v, %v", h, err)
	}
	if err := m.CopyTar(t.Context(), &b, "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestCopyLongNames: a temporary name is not made of the name.
func TestCopyLongNames(t *testing.T) {
	l := newLayer()
	name := strings.Repeat("n", 255)
	l.put(name+"/"+name, &index.Node{Mode: syscall.S_IFREG | 0o400})
	dir := t.TempDir()
	if err := stack(t, l).Copy(t.Context(), "/", dir, view.CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	stat(t, filepath.Join(dir, name, name))
}

// TestCopyBadName: a name that is none leads no file elsewhere.
func TestCopyBadName(t *testing.T) {
	l := newLayer()
	l.file("..!x", 0o644, "")
	m := stack(t, l)
	merged, err := m.Tree.Tree()
	if err != nil {
		t.Fatal(err)
	}
	b, err := merged.Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(bytes.ReplaceAll(b, []byte("..!x"), []byte("../x")))
	if err != nil {
		t.Fatal(err)
	}
	m.Tree = overlay.New(x, nil)
	dir := t.TempDir()
	inner := filepath.Join(dir, "inner")
	if err := m.Copy(t.Context(), "/", inner, view.CopyOptions{}); !errors.Is(err, index.ErrCorrupt) {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "x")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a file got out:", err)
	}
}
