//go:build integration

package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/registry"
	"github.com/laminafs/lamina/integration/tree"
)

// fixture is what all tests share: made by TestMain, read-only afterwards but
// for truths.
type fixture struct {
	bin       string // the lamina program
	dir       string // for files of this run; on the file system of the images
	set       *images.Set
	authority *registry.Authority
	registry  *registry.Registry

	mu     sync.Mutex // guards truths
	truths map[string]tree.Tree
}

var shared *fixture

func TestMain(m *testing.M) {
	f, err := newFixture()
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		os.Exit(1)
	}
	shared = f
	code := m.Run()
	if err := f.registry.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
	}
	_ = os.RemoveAll(f.dir)
	os.Exit(code)
}

func newFixture() (*fixture, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("these tests mount and unmount: they need root")
	}
	ctx := context.Background()
	set, err := images.Build(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return nil, err
	}
	f := &fixture{set: set, truths: map[string]tree.Tree{}}
	if f.dir, err = os.MkdirTemp(images.CacheDir(), "run-"); err != nil {
		return nil, err
	}
	f.bin = filepath.Join(f.dir, "lamina")
	build := exec.Command("go", "build", "-o", f.bin, "../cmd/lamina")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if os.Getenv("LAMINA_TEST_RACE") != "" {
		build = exec.Command("go", "build", "-race", "-o", f.bin, "../cmd/lamina")
	}
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build lamina: %w\n%s", err, out)
	}
	ca := filepath.Join(f.dir, "ca")
	if err := os.Mkdir(ca, 0o700); err != nil {
		return nil, err
	}
	if f.authority, err = registry.NewAuthority(ca); err != nil {
		return nil, err
	}
	if f.registry, err = registry.Start(ctx, filepath.Join(f.dir, "registry"), f.authority); err != nil {
		return nil, err
	}
	return f, f.registry.AddLayout(set.LayoutDir(), registry.SetTags)
}

// truth returns the image as umoci unpacks it.
func (f *fixture) truth(t testing.TB, name string) tree.Tree {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.truths[name] == nil {
		got, err := tree.Read(f.set.Tree(name))
		if err != nil {
			t.Fatal(err)
		}
		f.truths[name] = got
	}
	return f.truths[name]
}

// proxy starts a proxy in front of the registry for one test.
func (f *fixture) proxy(t testing.TB, cfg faultproxy.Config) *faultproxy.Proxy {
	t.Helper()
	p, err := f.registry.Proxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// store is a user's machine: a store, credentials, certificates.
type store struct {
	root  string
	certs string
	env   []string
}

// newStore makes an empty store whose user may reach the given hosts. At the
// test's end it must be possible to unmount everything, and no process may be
// left.
func newStore(t testing.TB, hosts ...string) *store {
	t.Helper()
	dir, err := os.MkdirTemp(shared.dir, "store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return newStoreAt(t, filepath.Join(dir, "root"), registry.Password, hosts...)
}

func newStoreAt(t testing.TB, root, password string, hosts ...string) *store {
	t.Helper()
	s := &store{root: root}
	certs, docker, err := registry.Access(t.TempDir(), shared.authority, password, hosts...)
	if err != nil {
		t.Fatal(err)
	}
	s.certs = certs
	s.env = append(os.Environ(), "LAMINA_ROOT="+root, "DOCKER_CONFIG="+docker, "REGISTRY_AUTH_FILE=/nonexistent")
	t.Cleanup(func() { s.close(t) })
	return s
}

// close unmounts what is left of a test.
func (s *store) close(t testing.TB) {
	for _, m := range s.mounts(t) {
		if _, err := s.run("umount", "--lazy", m.Options.Dir); err != nil {
			t.Errorf("clean up: %v", err)
			s.kill(t, m)
			_ = unix.Unmount(m.Options.Dir, unix.MNT_DETACH)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left := s.processes(t)
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			for pid, words := range left {
				t.Errorf("left behind: process %d: %s", pid, words)
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			return
		}
	}
}

// processes returns the running lamina processes of this store.
func (s *store) processes(t testing.TB) map[int]string {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	for _, p := range procs {
		env, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(env, []byte("LAMINA_ROOT="+s.root+"\x00")) {
			continue
		}
		exe, err := os.Readlink(filepath.Join(filepath.Dir(p), "exe"))
		if err != nil || exe != shared.bin {
			continue
		}
		words, err := os.ReadFile(filepath.Join(filepath.Dir(p), "cmdline"))
		if err != nil {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d/", &pid); err == nil {
			found[pid] = string(bytes.ReplaceAll(words, []byte{0}, []byte{' '}))
		}
	}
	return found
}

// command returns a lamina command that runs as this store's user.
func (s *store) command(args ...string) *exec.Cmd {
	cmd := exec.Command(shared.bin, args...)
	cmd.Env = s.env
	return cmd
}

// run runs a lamina command and returns what it prints. It may take a minute;
// an error carries standard error.
func (s *store) run(args ...string) (string, error) {
	cmd := s.command(args...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		return "", err
	}
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("lamina %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out.String(), nil
}

// mount mounts an image for one test and returns the mountpoint.
func (s *store) mount(t testing.TB, image string, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := s.tryMount(dir, image, options...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if mounted(dir) {
			s.umount(t, dir)
		}
	})
	return dir
}

func (s *store) tryMount(dir, image string, options ...string) error {
	args := append([]string{"mount", "--hosts-dir", s.certs}, options...)
	_, err := s.run(append(args, image, dir)...)
	return err
}

func (s *store) umount(t testing.TB, dir string) {
	t.Helper()
	if _, err := s.run("umount", dir); err != nil {
		t.Error(err)
	}
	if mounted(dir) {
		t.Errorf("%s is still mounted", dir)
	}
}

// mounted reports whether something is mounted at dir, dead or alive.
func mounted(dir string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(b), " "+dir+" ")
}

// entry is what the tests use of `lamina mounts --json`.
type entry struct {
	Name    string
	Image   string
	Engine  string
	Status  string
	Options struct{ Dir string }
	Server  struct{ PID int }
	Holder  struct{ PID int }
	Layers  []struct{ Key string }
}

func (s *store) mounts(t testing.TB) []entry {
	t.Helper()
	out, err := s.run("mounts", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var all []entry
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("mounts --json: %v\n%s", err, out)
	}
	return all
}

// at returns the mount at dir.
func (s *store) at(t testing.TB, dir string) entry {
	t.Helper()
	for _, m := range s.mounts(t) {
		if m.Options.Dir == dir {
			return m
		}
	}
	t.Fatalf("no mount at %s", dir)
	return entry{}
}

// kill ends the mount's processes as an out-of-memory killer would, the holder
// first, so that nothing is left to start another server.
func (s *store) kill(t testing.TB, m entry) {
	t.Helper()
	for _, pid := range []int{m.Holder.PID, m.Server.PID} {
		if pid == 0 {
			continue
		}
		if _, ours := s.processes(t)[pid]; ours {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	for end := time.Now().Add(5 * time.Second); len(s.processes(t)) > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

// wholeSeconds reports whether a format keeps times by the second only.
func wholeSeconds(f images.Format) bool {
	return f == images.EStargz || f == images.Stargz || f == images.Mixed
}

// sameTree compares what is mounted at dir, an image in a format, with the truth.
func sameTree(t testing.TB, want tree.Tree, dir string, f images.Format) {
	t.Helper()
	got, err := tree.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	report(t, tree.Diff(want, got, tree.Options{Seconds: wholeSeconds(f)}))
}

func report(t testing.TB, lines []string) {
	t.Helper()
	if len(lines) == 0 {
		return
	}
	shown := lines[:min(len(lines), 20)]
	t.Errorf("%d entries differ:\n%s", len(lines), strings.Join(shown, "\n"))
}

// engines are the two that must show the same.
func engines() []string { return []string{"fuse", "kernel"} }
