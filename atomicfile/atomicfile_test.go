package atomicfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/atomicfile"
)

const prefix = ".begun-"

// names lists dir.
func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

// want compares the content of a file.
func want(t *testing.T, path, content string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		t.Errorf("%s: %.20q, %v, want %.20q", path, b, err, content)
	}
}

// TestWrite: a file appears, and is replaced, in one step; while it is written the
// name stands for what it stood for.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"first", "the second", ""} {
		before := names(t, dir)
		err := atomicfile.Write(path, filepath.Join(dir, prefix), func(f *os.File) error {
			if names(t, dir) != before {
				t.Errorf("while it is written: %s", names(t, dir))
			}
			if _, err := f.WriteString(content); err != nil {
				return err
			}
			return f.Chmod(0o640)
		})
		if err != nil {
			t.Fatal(err)
		}
		want(t, path, content)
		if fi, err := os.Stat(path); err != nil || fi.Mode() != 0o640 {
			t.Errorf("%v, %v", fi.Mode(), err)
		}
	}
	if got := names(t, dir); got != "f" {
		t.Error(got)
	}
	if err := atomicfile.WriteBytes(path, filepath.Join(dir, prefix), []byte("bytes")); err != nil {
		t.Fatal(err)
	}
	want(t, path, "bytes")
}

// TestElsewhere: the unfinished file may lie in another directory.
func TestElsewhere(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	err := atomicfile.Place(filepath.Join(sub, "f"), filepath.Join(dir, prefix), func(f *os.File) error {
		if filepath.Dir(f.Name()) != dir || names(t, sub) != "" {
			t.Errorf("%s is written", f.Name())
		}
		return nil
	})
	if err != nil || names(t, dir) != "sub" || names(t, sub) != "f" {
		t.Errorf("%v, %q, %q", err, names(t, dir), names(t, sub))
	}
}

// TestErrors: whichever step fails, what was there stays and nothing else is left.
func TestErrors(t *testing.T) {
	wrong := errors.New("wrong")
	for name, c := range map[string]struct {
		path string // in the directory; f is there
		fill func(f *os.File) error
		want error
	}{
		"fill":   {"f", func(f *os.File) error { _, err := f.WriteString("half"); return errors.Join(wrong, err) }, wrong},
		"write":  {"f", func(f *os.File) error { _ = f.Close(); _, err := f.WriteString("half"); return err }, fs.ErrClosed},
		"sync":   {"f", func(f *os.File) error { return f.Close() }, fs.ErrClosed},
		"rename": {"d", func(*os.File) error { return nil }, fs.ErrExist},
		"no dir": {"none/f", func(*os.File) error { return nil }, fs.ErrNotExist},
		"gone":   {"f", func(f *os.File) error { return os.Remove(f.Name()) }, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := errors.Join(os.WriteFile(filepath.Join(dir, "f"), []byte("old"), 0o600), os.Mkdir(filepath.Join(dir, "d"), 0o700)); err != nil {
				t.Fatal(err)
			}
			err := atomicfile.Write(filepath.Join(dir, c.path), filepath.Join(dir, prefix), c.fill)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got := names(t, dir); got != "d f" {
				t.Errorf("left: %s", got)
			}
			want(t, filepath.Join(dir, "f"), "old")
		})
	}
	if err := atomicfile.WriteBytes("/nonexistent/f", "/nonexistent/"+prefix, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := atomicfile.SyncDir("/nonexistent"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// hang names the directory in which TestKilled's child writes a file for ever.
const hang = "LAMINA_TEST_HANG"

// TestKilled: a process that is killed while it writes leaves nothing.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(hang); dir != "" {
		_ = atomicfile.Write(filepath.Join(dir, "f"), filepath.Join(dir, prefix), func(f *os.File) error {
			_, err := f.WriteString("half")
			_, _ = os.Stdout.WriteString("begun\n")
			select {
			case <-t.Context().Done():
			case <-time.After(time.Minute):
			}
			return err
		})
		return
	}
	dir := t.TempDir()
	for _, old := range []string{"", "f"} {
		if old != "" {
			if err := os.WriteFile(filepath.Join(dir, old), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), hang+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 6)); err != nil {
			t.Error(err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if got := names(t, dir); got != old {
			t.Errorf("left: %s", got)
		}
	}
}

// TestManyWriters: of several at a time one stays, whole.
func TestManyWriters(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := atomicfile.WriteBytes(path, filepath.Join(dir, prefix), bytes.Repeat([]byte{'a' + byte(i)}, 10_000)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 10_000 || len(bytes.Trim(b, string(b[:1]))) > 0 || names(t, dir) != "f" {
		t.Errorf("%d bytes, %v, %s", len(b), err, names(t, dir))
	}
}

// smallDisk names the directory, in a mount namespace of the process's own, where
// TestDisk is to mount a filesystem of 64 KiB.
const smallDisk = "LAMINA_TEST_SMALL_DISK"

// TestDisk: a disk that is full, and then one that cannot be written to.
func TestDisk(t *testing.T) {
	dir := os.Getenv(smallDisk)
	if dir == "" {
		inNamespace(t)
		return
	}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	path, temp := filepath.Join(dir, "f"), filepath.Join(dir, prefix)
	if err := atomicfile.WriteBytes(path, temp, []byte("old")); err != nil {
		t.Fatal(err)
	}
	unchanged := func(what string, err, sentinel error) {
		t.Helper()
		if !errors.Is(err, sentinel) || names(t, dir) != "f" {
			t.Errorf("%s: %v, left: %s", what, err, names(t, dir))
		}
		want(t, path, "old")
	}
	unchanged("full", atomicfile.WriteBytes(path, temp, make([]byte, 1<<20)), unix.ENOSPC)
	if err := unix.Mount("none", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	unchanged("read-only", atomicfile.WriteBytes(path, temp, []byte("new")), unix.EROFS)
}

// inNamespace runs the calling test as root of namespaces of its own, where those
// can be had.
func inNamespace(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), smallDisk+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("no user namespaces here: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &out)
	}
	if strings.Contains(out.String(), "--- SKIP") {
		t.Skip(out.String())
	}
}
