//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// Random ranges of random files, by many readers at once.
func TestFSHammer(t *testing.T) {
	s := newSample(3)
	s.oddities()
	files := map[string][]byte{}
	for name, n := range s.tree.Root.Children() {
		if b := s.contents[n]; len(b) > 0 {
			files[name] = b
		}
	}
	for name, n := range s.tree.Root.Child("many").Children() {
		files["many/"+name] = s.contents[n]
	}
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	engines(t, s, func(t *testing.T, m *mounted) {
		var wg sync.WaitGroup
		for g := range 16 {
			wg.Go(func() { hammer(t, m.dir, names, files, rand.New(rand.NewPCG(uint64(g), 3))) })
		}
		wg.Wait()
	})
}

func hammer(t *testing.T, dir string, names []string, files map[string][]byte, rng *rand.Rand) {
	for range 400 {
		name := names[rng.IntN(len(names))]
		if rng.IntN(3) == 0 {
			name = "big"
		}
		want := files[name]
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			return
		}
		off := rng.IntN(len(want) + 1)
		p := make([]byte, rng.IntN(300<<10))
		n, err := f.ReadAt(p, int64(off))
		if err != nil && err != io.EOF {
			t.Errorf("read %s: %v", name, err)
		}
		if w := want[off:min(off+len(p), len(want))]; !bytes.Equal(p[:n], w) {
			t.Errorf("read %s: %d bytes at %d differ", name, len(p), off)
		}
		// Makes the kernel ask again; only this file's pages.
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		_ = f.Close()
	}
}

// Whatever a program tries, the tree stays as it is.
func TestFSIsReadOnly(t *testing.T) {
	s := newSample(1)
	s.oddities()
	engines(t, s, func(t *testing.T, m *mounted) {
		in := func(name string) string { return filepath.Join(m.dir, name) }
		for what, err := range map[string]error{
			"create": os.WriteFile(in("new"), nil, 0o600), "write": os.WriteFile(in("big"), nil, 0o600),
			"mkdir": os.Mkdir(in("newdir"), 0o700), "remove": os.Remove(in("big")), "chmod": os.Chmod(in("big"), 0),
			"rename": os.Rename(in("big"), in("small")), "link": os.Link(in("big"), in("hard")),
			"symlink": os.Symlink("x", in("soft")), "times": os.Chtimes(in("big"), time.Now(), time.Now()),
			"truncate": os.Truncate(in("big"), 0), "mknod": unix.Mknod(in("node"), unix.S_IFIFO, 0),
			"setxattr":    unix.Setxattr(in("big"), "user.x", nil, 0),
			"removexattr": unix.Removexattr(in("attrs"), "user.empty"),
		} {
			if !errors.Is(err, unix.EROFS) {
				t.Errorf("%s: %v, want EROFS", what, err)
			}
		}
		var st unix.Statfs_t
		if err := unix.Statfs(m.dir, &st); err != nil || st.Namelen != 255 || st.Blocks == 0 {
			t.Errorf("statfs: %v, %+v", err, st)
		}
	})
}

// The kernel enforces what the image says: modes, owners and ACLs.
func TestFSPermissions(t *testing.T) {
	s := newSample(1)
	s.oddities() // attrs is 0750 and lets user 1000 read by its ACL
	private := s.file(5, 0o600)
	private.UID, private.GID = 1001, 1001
	s.tree.Root.SetChild("private", private)
	engines(t, s, func(t *testing.T, m *mounted) {
		if err := os.Chmod(filepath.Dir(m.dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			uid     uint32
			name    string
			allowed bool
		}{{1000, "attrs", true}, {1001, "attrs", false}, {1000, "private", false}, {1001, "private", true}, {1001, "name2", true}} {
			cmd := exec.Command("cat", filepath.Join(m.dir, c.name))
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
			out, err := cmd.CombinedOutput()
			if (err == nil) != c.allowed || c.allowed && !bytes.Equal(out, s.contents[s.tree.Root.Child(c.name)]) {
				t.Errorf("user %d reads %s: %v, %q", c.uid, c.name, err, out)
			}
		}
	})
}

func TestFSMountFlags(t *testing.T) {
	s := newSample(1)
	s.oddities()
	store, _ := s.write(t)
	for _, restrict := range []bool{false, true} {
		dir := t.TempDir()
		dev, err := fs.Mount(dir, fs.MountOptions{NoSuid: restrict, NoDev: restrict})
		if err != nil {
			t.Fatal(err)
		}
		_ = dev.Close()
		below := t.TempDir()
		err = fs.MountErofs(below, filepath.Join(store, "merged.erofs"), []string{filepath.Join(store, "0")},
			fs.ErofsOptions{NoSuid: restrict, NoDev: restrict})
		if err != nil {
			t.Fatal(err)
		}
		mounts, err := fs.Mounts()
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, m := range mounts {
			if m.MountPoint != dir && m.MountPoint != below {
				continue
			}
			seen++
			if strings.Contains(m.Options, "nosuid") != restrict || strings.Contains(m.Options, "nodev") != restrict || !strings.HasPrefix(m.Options, "ro") {
				t.Errorf("restricted %v: %s has %s", restrict, m.FSType, m.Options)
			}
		}
		if seen != 2 {
			t.Errorf("%d mounts, want 2", seen)
		}
		for _, d := range []string{dir, below} {
			if err := fs.Unmount(context.Background(), d, true); err != nil {
				t.Error(err)
			}
		}
	}
}

// Once seen, nothing is asked for again: that is what the speed rests on.
func TestFSWarmNeedsNoRequests(t *testing.T) {
	s := newSample(1)
	s.oddities()
	_, x := s.write(t)
	m := mountFuse(t, s, x, fs.TreeOptions{})
	readAll := func() (n int) {
		err := filepath.WalkDir(m.dir, func(path string, d iofs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			n++
			if _, err := os.Lstat(path); err != nil {
				return err
			}
			_, _ = os.Lstat(path + ".missing")
			switch d.Type() {
			case iofs.ModeSymlink:
				_, err = os.Readlink(path)
			case 0:
				_, err = os.ReadFile(path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	readAll()
	before := m.stats.Snapshot().Requests
	entries := readAll()
	after := m.stats.Snapshot().Requests
	for op, n := range after {
		// A machine short of memory may drop a few.
		if again := n - before[op]; again > uint64(entries/100) {
			t.Errorf("%d %s requests in a warm walk of %d entries", again, op, entries)
		}
	}
	if after["open"] > 1 || after["opendir"] > 1 || after["flush"] > 1 {
		t.Errorf("opens were asked for: %v", after)
	}
	if after["lookup"] > uint64(entries)*11/10+100 {
		t.Errorf("%d lookups for %d entries and their missing twins: READDIRPLUS does not fill the cache: %v", after["lookup"], entries, after)
	}
	if b, err := os.ReadFile("/sys/class/bdi/" + deviceOf(t, m.dir) + "/read_ahead_kb"); err != nil || string(b) != "1024\n" {
		t.Errorf("read_ahead_kb: %q, %v", b, err)
	}
}

func deviceOf(t testing.TB, dir string) string {
	t.Helper()
	mounts, err := fs.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.MountPoint == dir {
			return m.Device
		}
	}
	t.Fatalf("%s is not in mountinfo", dir)
	return ""
}

// A cat that waits for the network ends with ctrl-C, and its request with it; a
// signal that does not kill leaves the read alone.
func TestFSInterruptedRead(t *testing.T) {
	s := newSample(1)
	// A file for each, so that each waits in a request of its own.
	s.tree.Root.SetChild("file", s.file(1<<20, 0o644))
	s.tree.Root.SetChild("other", s.file(1<<20, 0o644))
	content := s.contents[s.tree.Root.Child("file")]
	store, x := s.write(t)
	for engine, mount := range map[string]func(t *testing.T) *mounted{
		"fuse":   func(t *testing.T) *mounted { return mountFuse(t, s, x, fs.TreeOptions{}) },
		"kernel": func(t *testing.T) *mounted { return mountErofs(t, s, store, func(int) bool { return false }) },
	} {
		t.Run(engine, func(t *testing.T) {
			dir := mount(t).dir
			open := s.layers[0].block(t)
			reads := s.layers[0].reads.Load()
			// dd takes SIGUSR1 as a question, once it runs.
			handles, cat := exec.Command("dd", "if="+dir+"/file", "bs=64k"), exec.Command("cat", dir+"/other")
			var out bytes.Buffer
			handles.Stdout = &out
			for i, c := range []*exec.Cmd{handles, cat} {
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				for end := time.Now().Add(10 * time.Second); s.layers[0].reads.Load() <= reads+int64(i) && time.Now().Before(end); {
					time.Sleep(time.Millisecond)
				}
			}
			time.Sleep(50 * time.Millisecond)
			for range 5 {
				_ = handles.Process.Signal(unix.SIGUSR1)
				time.Sleep(20 * time.Millisecond)
			}
			began := time.Now()
			if err := cat.Process.Signal(unix.SIGINT); err != nil {
				t.Fatal(err)
			}
			_ = cat.Wait()
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("cat ended %v after ctrl-C", took)
			}
			open()
			if err := handles.Wait(); err != nil || !bytes.Equal(out.Bytes(), content) {
				t.Errorf("a reader was failed by a signal that it handles: %v, %d bytes", err, out.Len())
			}
			if b, err := os.ReadFile(dir + "/other"); err != nil || !bytes.Equal(b, s.contents[s.tree.Root.Child("other")]) {
				t.Errorf("read after an interrupted one: %d bytes, %v", len(b), err)
			}
		})
	}
}

func TestFSDeadline(t *testing.T) {
	s := newSample(1)
	s.tree.Root.SetChild("file", s.file(10000, 0o644))
	_, x := s.write(t)
	m := mountFuse(t, s, x, fs.TreeOptions{ReadDeadline: 100 * time.Millisecond})
	open := s.layers[0].block(t)
	if _, err := os.ReadFile(filepath.Join(m.dir, "file")); !errors.Is(err, unix.EIO) {
		t.Errorf("read past its deadline: %v", err)
	}
	open()
	if b, err := os.ReadFile(filepath.Join(m.dir, "file")); err != nil || len(b) != 10000 {
		t.Errorf("read after the deadline of another: %d bytes, %v", len(b), err)
	}
}

func TestFSUnmount(t *testing.T) {
	s := newSample(1)
	s.oddities()
	store, x := s.write(t)
	for engine, mount := range map[string]func(t *testing.T) *mounted{
		"fuse":   func(t *testing.T) *mounted { return mountFuse(t, s, x, fs.TreeOptions{}) },
		"kernel": func(t *testing.T) *mounted { return mountErofs(t, s, store, func(int) bool { return false }) },
	} {
		t.Run(engine, func(t *testing.T) {
			m := mount(t)
			ours, err := fs.OurMounts(store)
			if err != nil || !slices.ContainsFunc(ours, func(i fs.MountInfo) bool { return i.MountPoint == m.dir }) {
				t.Errorf("our mounts: %v, %v", ours, err)
			}
			f, err := os.Open(filepath.Join(m.dir, "big"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			err = fs.Unmount(context.Background(), m.dir, false)
			if !errors.Is(err, fs.ErrBusy) || !strings.Contains(err.Error(), "--lazy") || !strings.Contains(err.Error(), "lsof") {
				t.Errorf("unmount of a busy mount: %v", err)
			}
			if fs.IsStale(m.dir) {
				t.Error("a live mount is called stale")
			}
			clone := t.TempDir()
			if err := fs.CloneMount(m.dir, clone); err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(filepath.Join(clone, "suid")); err != nil || len(b) != 100 {
				t.Errorf("clone: %d bytes, %v", len(b), err)
			}
			if err := fs.Unmount(context.Background(), clone, false); err != nil {
				t.Error(err)
			}
			if err := fs.Unmount(context.Background(), clone, false); !errors.Is(err, fs.ErrNotMounted) {
				t.Errorf("second unmount: %v", err)
			}
			if _, err := os.Lstat(filepath.Join(m.dir, "big")); err != nil {
				t.Errorf("after the clone has gone: %v", err)
			}
		})
	}
}

// A lazily detached mount goes on for who has it open, then its server ends.
func TestFSLazyUnmount(t *testing.T) {
	s := newSample(1)
	s.oddities()
	_, x := s.write(t)
	dir, done := t.TempDir(), make(chan error, 1)
	dev, err := fs.Mount(dir, fs.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	go func() {
		done <- fs.Serve(context.Background(), dev, fs.NewTree(overlay.New(x, s.data()), fs.TreeOptions{}), fs.SessionOptions{})
	}()
	noPoll(t, filepath.Join(dir, "big"))
	f, err := os.Open(filepath.Join(dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if err := fs.Unmount(context.Background(), dir, true); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); err != nil || !bytes.Equal(b, s.contents[s.tree.Root.Child("big")]) {
		t.Errorf("read of a detached mount: %d bytes, %v", len(b), err)
	}
	_ = f.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("server goes on after its last user")
	}
}

func TestFSStaleMount(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		dev, err := fs.Mount(dir, fs.MountOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		if !fs.IsStale(dir) {
			t.Error("a mount without a server is not called stale")
		}
		if found, err := fs.CleanStale(context.Background(), dir); err != nil || !found {
			t.Errorf("clean: %v, %v", found, err)
		}
	}
	if found, err := fs.CleanStale(context.Background(), dir); err != nil || found {
		t.Errorf("clean of nothing: %v, %v", found, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("after cleaning: %v, %v", entries, err)
	}
}

// More devices than mount(2) has room for, all served by one FUSE superblock.
func TestFSManyLayers(t *testing.T) {
	s := newSample(220)
	for i := range 440 {
		s.tree.Root.SetChild(strconv.Itoa(i), s.file(1000+i, 0o644))
	}
	engines(t, s, func(t *testing.T, m *mounted) {
		names := map[*index.Node]int{}
		countNames(s.tree.Root, names)
		compareTree(t, s, m.dir, s.tree.Root, names)
	})
}

// When a kernel mount's server dies, what was not cached is EIO and never zeros.
func TestFSKernelMountWithoutServer(t *testing.T) {
	s := newSample(1)
	s.tree.Root.SetChild("seen", s.file(100000, 0o644))
	s.tree.Root.SetChild("unseen", s.file(100000, 0o644))
	store, _ := s.write(t)
	dir, done := t.TempDir(), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	err := fs.MountKernel(dir, fs.KernelMount{
		Meta: filepath.Join(store, "merged.erofs"), Devices: []string{""},
		Serve: func(dev *os.File) error {
			fd, err := unix.Dup(int(dev.Fd()))
			if err != nil {
				return err
			}
			go func() {
				mine := os.NewFile(uintptr(fd), "data")
				err := fs.Serve(ctx, mine, fs.NewData(s.served(), fs.TreeOptions{}), fs.SessionOptions{})
				_ = mine.Close()
				done <- err
			}()
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := fs.Unmount(context.Background(), dir, false); err != nil {
			t.Error(err)
		}
	}()
	mounts, err := fs.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.FSType == "fuse.lamina" && m.Source == filepath.Join(store, "merged.erofs") {
			t.Errorf("the layer data is mounted where people see it: %+v", m)
		}
	}
	read := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }
	if _, err := read("seen"); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	if b, err := read("seen"); err != nil || !bytes.Equal(b, s.contents[s.tree.Root.Child("seen")]) {
		t.Errorf("cached file: %d bytes, %v", len(b), err)
	}
	if b, err := read("unseen"); !errors.Is(err, unix.EIO) {
		t.Errorf("file that was not cached: %d bytes, %v", len(b), err)
	}
}

func TestFSMountErrors(t *testing.T) {
	s := newSample(2)
	s.oddities()
	store, _ := s.write(t)
	meta, dir := filepath.Join(store, "merged.erofs"), t.TempDir()
	bad := filepath.Join(t.TempDir(), "bad")
	if err := os.WriteFile(bad, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	both := []string{filepath.Join(store, "0"), filepath.Join(store, "1")}
	for what, err := range map[string]error{
		"missing mount point":  fs.MountErofs(filepath.Join(dir, "none"), meta, both, fs.ErofsOptions{}),
		"file as mount point":  fs.MountErofs(meta, meta, both, fs.ErofsOptions{}),
		"missing index":        fs.MountErofs(dir, filepath.Join(dir, "none"), both, fs.ErofsOptions{}),
		"too few devices":      fs.MountErofs(dir, meta, both[:1], fs.ErofsOptions{}),
		"missing device":       fs.MountErofs(dir, meta, []string{both[0], filepath.Join(dir, "none")}, fs.ErofsOptions{}),
		"garbage as the index": fs.MountErofs(dir, bad, nil, fs.ErofsOptions{}),
		"server that fails": fs.MountKernel(dir, fs.KernelMount{
			Meta: meta, Devices: []string{"", ""}, Serve: func(*os.File) error { return io.ErrClosedPipe },
		}),
		"server that dies": fs.MountKernel(dir, fs.KernelMount{
			Meta: meta, Devices: []string{"", ""}, Serve: func(*os.File) error { return nil },
		}),
	} {
		if err == nil {
			t.Errorf("%s: mounted", what)
			continue
		}
		t.Logf("%s: %v", what, err)
	}
	if err := fs.KernelSupport(); err != nil {
		t.Error(err)
	}
	mounts, err := fs.OurMounts(store)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if m.MountPoint == dir || strings.HasPrefix(m.Source, store) {
			t.Errorf("a failed mount stayed: %+v", m)
		}
	}
}

// A connection cut through fusectl is no unmount.
func TestFSAbort(t *testing.T) {
	s := newSample(1)
	s.oddities()
	_, x := s.write(t)
	dir, done := t.TempDir(), make(chan error, 1)
	dev, err := fs.Mount(dir, fs.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	go func() {
		done <- fs.Serve(context.Background(), dev, fs.NewTree(overlay.New(x, s.data()), fs.TreeOptions{}), fs.SessionOptions{})
	}()
	noPoll(t, filepath.Join(dir, "big"))
	control := t.TempDir()
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(control, 0); err != nil {
			t.Error(err)
		}
	}()
	_, minor, _ := strings.Cut(deviceOf(t, dir), ":")
	if err := os.WriteFile(filepath.Join(control, minor, "abort"), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, fs.ErrAborted) {
			t.Errorf("Serve: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("server goes on after its connection was cut")
	}
	if !fs.IsStale(dir) {
		t.Error("a cut mount is not called stale")
	}
	if found, err := fs.CleanStale(context.Background(), dir); err != nil || !found {
		t.Errorf("clean: %v, %v", found, err)
	}
}
