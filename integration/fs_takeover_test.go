//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	iofs "io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// The processes these tests need beside them are this test binary, run again with
// what to do in its environment. It is done before TestMain, whose fixture they
// have no use for and which wants root.
var _ = runAsProcess()

const (
	serverStore    = "LAMINA_TEST_STORE"    // directory of merged.erofs and layers; set: be a server
	serverTakeover = "LAMINA_TEST_TAKEOVER" // "1": continue a session
	serverDelay    = "LAMINA_TEST_DELAY"    // of each read of a layer
	serverGoFuse   = "LAMINA_TEST_GOFUSE"   // mount point: go-fuse's own server, for comparison
	serverData     = "LAMINA_TEST_DATA"     // "1": serve the layers' data, not the tree
	serverMount    = "LAMINA_TEST_MOUNT"    // mount here first
	serverUnmount  = "LAMINA_TEST_UNMOUNT"  // unmount this and end
	serverReader   = "LAMINA_TEST_READER"   // be no server: read this file through a mapping
)

// layerFile is a layer's data file, read as slowly as a network would be.
type layerFile struct {
	f     *os.File
	delay time.Duration
}

func (l layerFile) ReadAt(ctx context.Context, p []byte, off int64) error {
	if l.delay > 0 {
		select {
		case <-time.After(l.delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, err := l.f.ReadAt(p, off)
	return err
}

// runAsProcess does what the environment asks for and ends the process, or returns.
func runAsProcess() bool {
	var err error
	switch store, file, dir := os.Getenv(serverStore), os.Getenv(serverReader), os.Getenv(serverUnmount); {
	case file != "":
		err = readByFaults(file)
	case dir != "":
		err = fs.Unmount(context.Background(), dir, false)
	case store != "":
		err = serveStore(store)
	default:
		return false
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
	return true
}

func serveStore(store string) error {
	x, err := index.Open(filepath.Join(store, "merged.erofs"))
	if err != nil {
		return err
	}
	delay, _ := time.ParseDuration(os.Getenv(serverDelay))
	var layers []overlay.Data
	var served []fs.LayerData
	for i, d := range x.Devices() {
		f, err := os.Open(filepath.Join(store, strconv.Itoa(i)))
		if err != nil {
			return err
		}
		layers = append(layers, layerFile{f, delay})
		served = append(served, fs.LayerData{Data: layerFile{f, delay}, Size: d.Size})
	}
	raw := fs.NewTree(overlay.New(x, layers), fs.TreeOptions{})
	if os.Getenv(serverData) != "" {
		raw = fs.NewData(served, fs.TreeOptions{})
	}
	if dir := os.Getenv(serverGoFuse); dir != "" {
		server, err := fuse.NewServer(raw, dir, &fuse.MountOptions{
			MaxWrite: 1 << 20, MaxReadAhead: 1 << 20, MaxBackground: 64, EnableSymlinkCaching: true, ExplicitDataCacheControl: true,
			EnableAcl: true, DirectMount: true, Options: []string{"default_permissions", "ro"}, AllowOther: true,
			ExtraCapabilities: fuse.CAP_NO_OPENDIR_SUPPORT, DisableSplice: true,
		})
		if err != nil {
			return err
		}
		server.Serve()
		return nil
	}
	dev := os.NewFile(3, "session")
	if dir := os.Getenv(serverMount); dir != "" {
		if dev, err = fs.Mount(dir, fs.MountOptions{Source: "a,b\\c d"}); err != nil {
			return err
		}
	}
	return fs.Serve(context.Background(), dev, raw, fs.SessionOptions{
		InitFile: filepath.Join(store, "init"), Takeover: os.Getenv(serverTakeover) != "", Trim: x.Release,
	})
}

// A user without privileges mounts, reads and unmounts through fusermount3.
func TestFSRootless(t *testing.T) {
	const nobody = 65534
	// As udev leaves it everywhere; a bare virtual machine may not have udev.
	st, err := os.Stat("/dev/fuse")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod("/dev/fuse", 0o666); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Chmod("/dev/fuse", st.Mode().Perm()) }()
	s := newSample(2)
	s.oddities()
	store, _ := s.write(t)
	// What the user must reach: the test binary, the store and a mount point.
	home := filepath.Dir(store)
	mnt, exe := filepath.Join(home, "mnt"), filepath.Join(home, "server")
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{os.Chmod(home, 0o755), os.Chmod(store, 0o755), chownAll(store, nobody), os.Chown(mnt, nobody, nobody)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	as := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir = home
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return cmd
	}
	server := as(exe)
	server.Env = append(os.Environ(), serverStore+"="+store, serverMount+"="+mnt, "TMPDIR="+store)
	var said bytes.Buffer
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
	}()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if out, err := as("ls", mnt).CombinedOutput(); err == nil && bytes.Contains(out, []byte("name2")) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no mount: %s", said.Bytes())
		}
	}
	if out, err := as("cat", mnt+"/name2").Output(); err != nil || !bytes.Equal(out, s.contents[s.tree.Root.Child("name2")]) {
		t.Errorf("read by the user: %d bytes, %v", len(out), err)
	}
	mounts, err := fs.OurMounts(store)
	if err != nil || len(mounts) == 0 {
		t.Fatalf("mounts: %v, %v", mounts, err)
	}
	m := mounts[len(mounts)-1]
	if m.MountPoint != mnt || m.Source != "a,b\\c d" || !strings.Contains(m.Options, "nosuid") || !strings.Contains(m.Options, "nodev") {
		t.Errorf("mount of the user: %+v", m)
	}
	end := as(exe)
	end.Env = append(os.Environ(), serverStore+"="+store, serverUnmount+"="+mnt)
	if out, err := end.CombinedOutput(); err != nil {
		t.Errorf("unmount by the user: %v: %s", err, out)
	}
	if err := server.Wait(); err != nil {
		t.Errorf("server after unmount: %v: %s", err, said.Bytes())
	}
}

func chownAll(dir string, id int) error {
	return filepath.WalkDir(dir, func(path string, _ iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, id, id)
	})
}

// readByFaults prints its thread, then reads the file's first page by a page fault
// without read-ahead: the one kind of read that every signal interrupts.
func readByFaults(file string) error {
	runtime.LockOSThread()
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if err := unix.Madvise(m, unix.MADV_RANDOM); err != nil {
		return err
	}
	fmt.Println(unix.Gettid())
	fmt.Printf("%x\n", sha256.Sum256(m))
	return nil
}

// faultReader is a process in readByFaults.
type faultReader struct {
	cmd *exec.Cmd
	out *bufio.Reader
	tid int
}

func startFaultReader(t *testing.T, file string) *faultReader {
	t.Helper()
	r := &faultReader{cmd: exec.Command(os.Args[0])}
	r.cmd.Env = append(os.Environ(), serverReader+"="+file)
	pipe, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.out = bufio.NewReader(pipe)
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	r.tid, err = strconv.Atoi(r.line(t))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *faultReader) line(t *testing.T) string {
	t.Helper()
	line, err := r.out.ReadString('\n')
	if err != nil {
		t.Errorf("reader ended: %v", err)
	}
	return strings.TrimSpace(line)
}

// A page fault that waits for the network is no victim of signals: one that a
// program handles must not become SIGBUS, and one that kills must end it at once.
func TestFSInterruptedFault(t *testing.T) {
	s := newSample(1)
	s.tree.Root.SetChild("file", s.file(1<<20, 0o644))
	s.tree.Root.SetChild("other", s.file(1<<20, 0o644))
	want := fmt.Sprintf("%x", sha256.Sum256(s.contents[s.tree.Root.Child("file")][:4096]))
	_, x := s.write(t)
	m := mountFuse(t, s, x, fs.TreeOptions{})
	open := s.layers[0].block(t)
	lives, dies := startFaultReader(t, m.dir+"/file"), startFaultReader(t, m.dir+"/other")
	for end := time.Now().Add(10 * time.Second); s.layers[0].reads.Load() < 2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	for range 5 {
		if err := unix.Tgkill(lives.cmd.Process.Pid, lives.tid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := m.stats.Snapshot().Requests["interrupt"]; n == 0 {
		t.Error("the kernel did not report the signal: this test shows nothing")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = dies.cmd.Process.Kill()
		_ = dies.cmd.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("a killed reader lives on")
	}
	if n := s.layers[0].gaveUp.Load(); n != 1 {
		t.Errorf("%d reads were given up, want that of the killed one", n)
	}
	open()
	if got := lives.line(t); got != want {
		t.Errorf("page read through signals: %q, want %q", got, want)
	}
	if err := lives.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// startServer starts a server process; it ends with the test at the latest.
func startServer(t testing.TB, store string, dev *os.File, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), serverStore+"="+store), env...)
	if dev != nil {
		cmd.ExtraFiles = []*os.File{dev}
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("server %d: %s", cmd.Process.Pid, out.Bytes())
		}
	})
	return cmd
}

// mountServed mounts store with the tree served by a process of its own.
func mountServed(t testing.TB, store string, env ...string) (dir string, server *exec.Cmd) {
	t.Helper()
	dir = t.TempDir()
	dev, err := fs.Mount(dir, fs.MountOptions{Source: "sample"})
	if err != nil {
		t.Fatal(err)
	}
	server = startServer(t, store, dev, env...)
	_ = dev.Close()
	t.Cleanup(func() {
		if err := fs.Unmount(context.Background(), dir, false); err != nil {
			t.Error(err)
			_ = fs.Unmount(context.Background(), dir, true)
		}
	})
	return dir, server
}

// Servers are killed while a file is read through them: the reader gets every
// byte, and notices nothing.
func TestFSTakeover(t *testing.T) {
	s := newSample(1)
	big := s.file(48<<20, 0o644)
	s.tree.Root.SetChild("big", big)
	small := s.dir(s.tree.Root, "small")
	for i := range 2000 {
		small.SetChild(strconv.Itoa(i), s.file(3000, 0o644))
	}
	store, _ := s.write(t)
	dir := t.TempDir()
	dev, err := fs.Mount(dir, fs.MountOptions{Source: "sample"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	defer func() {
		if err := fs.Unmount(context.Background(), dir, false); err != nil {
			t.Error(err)
			_ = fs.Unmount(context.Background(), dir, true)
		}
	}()
	var readers sync.WaitGroup
	var finished atomic.Int32
	server := startServer(t, store, dev, serverDelay+"=20ms")
	readers.Go(func() {
		defer finished.Add(1)
		b, err := os.ReadFile(filepath.Join(dir, "big"))
		if err != nil || sha256.Sum256(b) != sha256.Sum256(s.contents[big]) {
			t.Errorf("big: %d bytes of %d, %v", len(b), big.Size, err)
		}
	})
	readers.Go(func() {
		defer finished.Add(1)
		n := 0
		for name, node := range small.Children() {
			b, err := os.ReadFile(filepath.Join(dir, "small", name))
			if err != nil || !bytes.Equal(b, s.contents[node]) {
				t.Errorf("small/%s: %d bytes, %v", name, len(b), err)
			}
			if n++; n == 100 {
				return
			}
		}
	})
	kills := 0
	for finished.Load() < 2 && kills < 8 {
		time.Sleep(120 * time.Millisecond)
		if err := server.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = server.Wait()
		kills++
		server = startServer(t, store, dev, serverDelay+"=20ms", serverTakeover+"=1")
	}
	readers.Wait()
	if kills != 8 {
		t.Errorf("the reads were over after %d kills", kills)
	}
}

// A server that has walked a million files has given the index's pages back.
func TestFSMemory(t *testing.T) {
	s := newSample(1)
	const dirs, files = 1000, 1000
	tree := s.tree.Root
	for d := range dirs {
		sub := s.dir(tree, fmt.Sprintf("directory-%04d", d))
		for f := range files {
			sub.SetChild(fmt.Sprintf("some-file-name-%04d.txt", f), &index.Node{Mode: unix.S_IFREG | 0o644, Mtime: int64(f)})
		}
	}
	store, x := s.write(t)
	dir, server := mountServed(t, store)
	t.Logf("index of %d inodes: %d MB", x.Inodes(), x.Len()>>20)
	_ = x.Close()
	s.tree = nil
	began := time.Now()
	var entries, peak atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		walkAll(t, dir, &entries)
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(50 * time.Millisecond):
			peak.Store(max(peak.Load(), residentKB(t, server.Process.Pid)))
		}
	}
	took := time.Since(began)
	time.Sleep(2500 * time.Millisecond)
	rss := residentKB(t, server.Process.Pid)
	t.Logf("%d entries in %v, %.1f us each; server %d MB at most, %d MB after", entries.Load(), took,
		float64(took.Microseconds())/float64(entries.Load()), peak.Load()>>10, rss>>10)
	if entries.Load() != dirs*(files+1) {
		t.Errorf("%d entries, want %d", entries.Load(), dirs*(files+1))
	}
	if rss > 40<<10 {
		t.Errorf("server has %d MB resident after the walk, want less than 40", rss>>10)
	}
}

func walkAll(t testing.TB, dir string, entries *atomic.Int64) {
	err := filepath.WalkDir(dir, func(path string, d iofs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		entries.Add(1)
		var st unix.Stat_t
		return unix.Lstat(path, &st)
	})
	if err != nil {
		t.Error(err)
	}
}

func residentKB(t testing.TB, pid int) int64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
