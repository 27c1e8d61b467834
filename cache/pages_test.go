package cache

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// diskDir returns a directory whose file system can forget what it has cached: a
// tmpfs cannot.
func diskDir(t *testing.T) string {
	t.Helper()
	dirs := []string{os.TempDir()}
	if dir, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, dir)
	}
	for _, parent := range append(dirs, "/var/tmp", ".") {
		var fs unix.Statfs_t
		if unix.Statfs(parent, &fs) != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(parent, "lamina-pages-")
		if err != nil {
			continue
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	t.Fatal("no directory on a disk among TMPDIR, the user's cache, /var/tmp and this one: set TMPDIR to one")
	return ""
}

// coldFile is a file of n random bytes that are on the disk and not in memory.
func coldFile(t *testing.T, n int) (*os.File, []byte) {
	t.Helper()
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	path := filepath.Join(diskDir(t), "data")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	forget(t, f)
	return f, data
}

// forget makes the kernel forget the pages of f: it is asked until it has, as it keeps
// those that somebody is just about to read or write.
func forget(t *testing.T, f *os.File) {
	t.Helper()
	fi, err := f.Stat()
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		left := held(t, f, 0, fi.Size())
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the kernel does not forget %d pages of a file on a disk", left)
		}
	}
}

// held returns how many pages of f, of those from off to off+n, are in memory. To read
// them without waiting would not tell: the kernel may begin to fetch them for that.
func held(t *testing.T, f *os.File, off, n int64) (pages int) {
	t.Helper()
	page := int64(os.Getpagesize())
	n += off % page
	off -= off % page
	m, err := unix.Mmap(int(f.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	resident := make([]byte, (n+page-1)/page)
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(n), uintptr(unsafe.Pointer(&resident[0]))); e != 0 {
		t.Fatalf("mincore: %v", e)
	}
	for _, b := range resident {
		pages += int(b & 1)
	}
	return pages
}

// cached waits for n bytes at off to be in memory.
func cached(t *testing.T, f *os.File, off, n int64) bool {
	t.Helper()
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if held(t, f, off, n) > 0 {
			return true
		}
	}
	return false
}

// TestPagesRead: whatever is asked for ahead, reads return what is in the file.
func TestPagesRead(t *testing.T) {
	f, data := coldFile(t, 8<<20)
	var a pages
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 1))
			p := make([]byte, 200_000)
			for range 300 {
				off := rnd.Int64N(int64(len(data)))
				b := p[:rnd.Int64N(min(int64(len(p)), int64(len(data))-off)+1)]
				if rnd.IntN(20) == 0 {
					_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
				}
				if n, err := a.read(f, b, off); err != nil || n != len(b) || !bytes.Equal(b, data[off:off+int64(n)]) {
					t.Errorf("%d of %d bytes at %d: %v", n, len(b), off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	p := make([]byte, 100)
	if n, err := a.read(f, p, int64(len(data))-10); n != 10 || err == nil {
		t.Errorf("past the end: %d bytes, %v", n, err)
	}
}

// TestPagesNoWait: to ask for pages is a hint, for which no reader waits.
func TestPagesNoWait(t *testing.T) {
	f, _ := coldFile(t, 1<<20)
	var a pages
	a.mu.Lock()
	defer a.mu.Unlock()
	done := make(chan error)
	go func() {
		_, err := a.read(f, make([]byte, 1000), 0)
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a reader waits for another one's hint")
	}
}

// TestPagesAhead: who reads small pieces with gaps finds the next ones in memory;
// who reads here and there is not given much around it.
func TestPagesAhead(t *testing.T) {
	f, _ := coldFile(t, 16<<20)
	p := make([]byte, 1000)
	ahead := func() bool {
		forget(t, f)
		var a pages
		off := int64(1 << 20)
		for range 40 { // 40 times 1,000 bytes in steps of 10,000
			if _, err := a.read(f, p, off); err != nil {
				t.Fatal(err)
			}
			off += 10_000
		}
		return cached(t, f, off, int64(len(p))) && cached(t, f, off+10_000, int64(len(p)))
	}
	// A disk may be so quick that pages are there whenever they are looked for, and
	// there is nothing to ask for; but not always.
	found := false
	for try := 0; try < 4 && !found; try++ {
		found = ahead()
	}
	if !found {
		t.Error("what follows was not asked for")
	}
	forget(t, f)
	var a pages
	if _, err := a.read(f, p, 10<<20); err != nil {
		t.Fatal(err)
	}
	if held(t, f, 10<<20+2*minPages, int64(len(p))) > 0 {
		t.Error("a read somewhere brought what is far from it")
	}
}
