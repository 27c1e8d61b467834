//go:build integration

package integration

import (
	"context"
	"fmt"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/index"
)

// BenchmarkFSRequests compares our session loop with go-fuse's own server, each in
// a process of its own, on requests that the kernel cannot answer by itself.
func BenchmarkFSRequests(b *testing.B) {
	s := newSample(1)
	s.tree.Root.SetChild("big", s.file(256<<20, 0o644))
	s.dir(s.tree.Root, "dir")
	store, _ := s.write(b)
	for _, server := range []string{"lamina", "go-fuse"} {
		dir := ""
		var process *exec.Cmd
		if server == "lamina" {
			dir, process = mountServed(b, store)
		} else {
			dir = b.TempDir()
			process = startServer(b, store, nil, serverGoFuse+"="+dir)
			for i := 0; i < 1000; i++ {
				if _, err := os.Lstat(dir + "/big"); err == nil {
					break
				}
				unixSleep()
			}
			b.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					b.Error(err)
				}
			})
		}
		// Time on a processor, unlike time, does not depend on who else is busy.
		metered := func(name string, run func(b *testing.B)) {
			b.Run(name+"/"+server, func(b *testing.B) {
				before := cpuTime(b, process.Process.Pid)
				run(b)
				b.ReportMetric(float64(cpuTime(b, process.Process.Pid)-before)/float64(b.N), "server-ns/op")
			})
		}
		var serial atomic.Int64
		missing := func() {
			var st unix.Stat_t
			if err := unix.Lstat(dir+"/dir/"+strconv.FormatInt(serial.Add(1), 10), &st); err != unix.ENOENT {
				b.Error(err)
			}
		}
		metered("lookup", func(b *testing.B) {
			for b.Loop() {
				missing()
			}
		})
		metered("lookup4", func(b *testing.B) {
			b.SetParallelism(2)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					missing()
				}
			})
		})
		big, err := os.Open(dir + "/big")
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, 1<<20)
		metered("statfs", func(b *testing.B) {
			var st unix.Statfs_t
			for b.Loop() {
				if err := unix.Fstatfs(int(big.Fd()), &st); err != nil {
					b.Fatal(err)
				}
			}
		})
		metered("read", func(b *testing.B) {
			b.SetBytes(256 << 20)
			for b.Loop() {
				if err := unix.Fadvise(int(big.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
					b.Fatal(err)
				}
				for off := int64(0); off < 256<<20; off += 1 << 20 {
					if _, err := big.ReadAt(buf, off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		_ = big.Close()
	}
}

// cpuTime is how long the threads of a process have run, in ns.
func cpuTime(b *testing.B, pid int) (ns int64) {
	b.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		ns += n
	}
	return ns
}

func unixSleep() { _ = unix.Nanosleep(&unix.Timespec{Nsec: 5e6}, nil) }

// benchTree is about as large as an image of a language runtime.
func benchTree() *sample {
	s := newSample(4)
	for d := range 400 {
		dir := s.dir(s.tree.Root, fmt.Sprintf("package-%03d", d))
		sub := s.dir(dir, "lib")
		for f := range 30 {
			dir.SetChild(fmt.Sprintf("module_%02d.py", f), s.file(500+(d*37+f*997)%12000, 0o644))
			sub.SetChild(fmt.Sprintf("data_%02d.bin", f), s.file(100+(d*91+f*577)%5000, 0o644))
		}
	}
	return s
}

// unpack writes the sample to a directory of the machine's own filesystem.
func unpack(b *testing.B, s *sample, dir string, n *index.Node) {
	b.Helper()
	for name, c := range n.Children() {
		path := filepath.Join(dir, name)
		if !c.IsDir() {
			if err := os.WriteFile(path, s.contents[c], 0o644); err != nil {
				b.Fatal(err)
			}
			continue
		}
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
		unpack(b, s, path, c)
	}
}

// BenchmarkFSTree times passes over a whole tree, engine by engine in turn, beside
// the filesystem of the temporary directory. What it reports for each is the best
// pass, in microseconds for each entry: the machine is not ours alone.
func BenchmarkFSTree(b *testing.B) {
	s := benchTree()
	store, _ := s.write(b)
	disk := b.TempDir()
	unpack(b, s, disk, s.tree.Root)
	unix.Sync()
	dirs := map[string]string{"disk": disk}
	dirs["fuse"], _ = mountServed(b, store)
	dirs["kernel"] = mountErofsServed(b, store, len(s.layers), false)
	dirs["served"] = mountErofsServed(b, store, len(s.layers), true)
	var paths, files []string
	if err := filepath.WalkDir(disk, func(path string, d iofs.DirEntry, err error) error {
		rel, _ := filepath.Rel(disk, path)
		paths = append(paths, rel)
		if d.Type().IsRegular() {
			files = append(files, rel)
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	for _, op := range []struct {
		name    string
		entries int
		pass    func(dir string)
	}{
		{"lstat", len(paths), func(dir string) {
			var st unix.Stat_t
			for _, p := range paths {
				if err := unix.Lstat(dir+"/"+p, &st); err != nil {
					b.Fatal(err)
				}
			}
		}},
		{"walk", len(paths), func(dir string) { walkAll(b, dir, new(atomic.Int64)) }},
		{"read", len(files), func(dir string) {
			for _, p := range files {
				fd, err := unix.Open(dir+"/"+p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := unix.Read(fd, buf); err != nil {
					b.Fatal(err)
				}
				_ = unix.Close(fd)
			}
		}},
	} {
		for _, state := range []string{"warm", "cold"} {
			b.Run(op.name+"/"+state, func(b *testing.B) {
				best := map[string]time.Duration{}
				for _, dir := range dirs {
					op.pass(dir)
				}
				for b.Loop() {
					for engine, dir := range dirs {
						if state == "cold" {
							if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
								b.Fatal(err)
							}
						}
						began := time.Now()
						op.pass(dir)
						if took := time.Since(began); best[engine] == 0 || took < best[engine] {
							best[engine] = took
						}
					}
				}
				for engine, took := range best {
					b.ReportMetric(float64(took.Nanoseconds())/1000/float64(op.entries), engine+"-us")
				}
			})
		}
	}
}

// mountErofsServed is the kernel engine with a server process of its own.
func mountErofsServed(b *testing.B, store string, layers int, served bool) string {
	b.Helper()
	dir := b.TempDir()
	k := fs.KernelMount{Meta: filepath.Join(store, "merged.erofs")}
	for i := range layers {
		path := ""
		if !served {
			path = filepath.Join(store, strconv.Itoa(i))
		}
		k.Devices = append(k.Devices, path)
	}
	k.Serve = func(dev *os.File) error {
		startServer(b, store, dev, serverData+"=1")
		return nil
	}
	if err := fs.MountKernel(dir, k); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := fs.Unmount(context.Background(), dir, false); err != nil {
			b.Error(err)
		}
	})
	return dir
}
