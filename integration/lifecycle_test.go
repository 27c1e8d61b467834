//go:build integration

package integration_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/registry"
	"github.com/laminafs/lamina/integration/tree"
)

// eachEngine runs a test with either engine.
func eachEngine(t *testing.T, test func(t *testing.T, engine string)) {
	for _, e := range engines() {
		t.Run(e, func(t *testing.T) { test(t, e) })
	}
}

func TestBusyAndLazy(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		s := newStore(t)
		dir := s.mount(t, shared.set.Ref("debian", images.Gzip), "--engine", engine)
		f, err := os.Open(filepath.Join(dir, "etc/passwd"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		_, err = s.Run("umount", dir)
		if err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "--lazy") {
			t.Errorf("umount of a busy mount: %v", err)
		}
		if !lamina.Mounted(dir) {
			t.Fatal("the busy mount is gone")
		}
		if _, err := s.Run("umount", "--lazy", dir); err != nil {
			t.Fatal(err)
		}
		if lamina.Mounted(dir) {
			t.Error("still mounted after umount --lazy")
		}
		// Its user goes on, and the server ends with him: newStore's clean-up
		// waits for that.
		if b := make([]byte, 5); readAt(t, f, b) != "root:" {
			t.Errorf("read %q from a lazily unmounted tree", b)
		}
	})
}

func readAt(t *testing.T, f *os.File, b []byte) string {
	t.Helper()
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Error(err)
	}
	return string(b)
}

// TestKilledServerIsReplaced kills the server alone: the holder starts another
// one, and readers notice a pause at most.
func TestKilledServerIsReplaced(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		p := shared.proxy(t, faultproxy.Config{})
		s := newStore(t, p.Host())
		dir := s.mount(t, p.Host()+"/lamina/debian:estargz", "--engine", engine)
		m := s.at(t, dir)
		if m.Server.PID == 0 || m.Holder.PID == 0 {
			t.Fatalf("no server or no holder: %+v", m)
		}
		if err := unix.Kill(m.Server.PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		sameTree(t, shared.truth(t, "debian"), dir, images.EStargz)
		if again := s.at(t, dir); again.Server.PID == m.Server.PID || again.Status != "serving" {
			t.Errorf("after the server was killed: %+v", again)
		}
	})
}

// TestStaleMountIsCleanedUp kills server and holder: the dead mount is listed as
// such, and the next mount at its place just works.
func TestStaleMountIsCleanedUp(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host())
	ref := p.Host() + "/lamina/debian:estargz"
	dir := s.mount(t, ref, "--engine", "fuse")
	s.kill(t)
	if _, err := os.Stat(filepath.Join(dir, "etc")); err == nil {
		t.Fatal("a mount without server answers")
	}
	if got := s.at(t, dir).Status; got != "dead" {
		t.Errorf("its status is %q, want dead", got)
	}
	if err := s.Mount(dir, ref, "--engine", "fuse"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/passwd")); err != nil {
		t.Error(err)
	}
	s.kill(t)
	s.umount(t, dir) // a dead mount can simply be unmounted, too
}

func TestMountsAndStats(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		p := shared.proxy(t, faultproxy.Config{})
		s := newStore(t, p.Host())
		ref := p.Host() + "/lamina/nginx:estargz"
		dir := s.mount(t, ref, "--engine", engine)
		if _, err := os.ReadFile(filepath.Join(dir, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		m := s.at(t, dir)
		if m.Image != ref || m.Engine != engine || m.Status != "serving" || len(m.Layers) != 2 {
			t.Errorf("mounts --json says %+v", m)
		}
		out, err := s.Run("mounts")
		if err != nil || !strings.Contains(out, ref) || !strings.Contains(out, dir) || !strings.Contains(out, engine) {
			t.Errorf("mounts: %v\n%s", err, out)
		}
		out, err = s.Run("stats", "--json", dir)
		if err != nil {
			t.Fatal(err)
		}
		var st struct {
			ImageSize int64
			Fetch     struct{ Requests, Bytes int64 }
			Layers    []struct {
				Size  int64
				Cache struct{ Size, Served int64 }
			}
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatalf("stats --json: %v\n%s", err, out)
		}
		sent := faultproxy.Sum(p.Exchanges(), "/v2/")
		if st.Fetch.Bytes == 0 || st.Fetch.Bytes > sent.Bytes || st.ImageSize <= st.Fetch.Bytes || st.Fetch.Requests > int64(sent.Requests) {
			t.Errorf("stats say %+v, the proxy sent %+v", st, sent)
		}
		if len(st.Layers) != 2 || st.Layers[0].Size == 0 || st.Layers[0].Cache.Size <= st.Layers[0].Size {
			t.Errorf("stats say of the layers %+v", st.Layers)
		}
		if out, err = s.Run("stats"); err != nil || !strings.Contains(out, ref) {
			t.Errorf("stats: %v\n%s", err, out)
		}
	})
}

// TestSecondMountIsOffline: what was read once needs no registry, neither for
// a further mount nor after all of them were unmounted.
func TestSecondMountIsOffline(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		for _, f := range []images.Format{images.Gzip, images.EStargz} {
			t.Run(string(f), func(t *testing.T) {
				p := shared.proxy(t, faultproxy.Config{})
				s := newStore(t, p.Host())
				ref := p.Host() + "/lamina/nginx:" + string(f)
				dir := s.mount(t, ref, "--engine", engine)
				sameTree(t, shared.truth(t, "nginx"), dir, f)
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				beside := s.mount(t, ref, "--engine", engine)
				sameTree(t, shared.truth(t, "nginx"), beside, f)
				s.umount(t, dir)
				s.umount(t, beside)
				again := s.mount(t, ref, "--engine", engine)
				sameTree(t, shared.truth(t, "nginx"), again, f)
			})
		}
	})
}

// TestRefusals: what cannot be mounted is refused in one line that says why, and
// leaves nothing behind.
func TestRefusals(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{})
	nowhere := "127.0.0.1:1/lamina/debian:gzip"
	dir := t.TempDir()
	for _, tc := range []struct {
		name, password, image, dir string
		says                       []string // one of these
	}{
		{"wrong password", "wrong", p.Host() + "/lamina/debian:gzip", dir, []string{"401", "denied", "unauthorized"}},
		{"no such tag", "", p.Host() + "/lamina/debian:nosuch", dir, []string{"not found", "404"}},
		{"no such repository", "", p.Host() + "/lamina/nosuch:x", dir, []string{"not found", "404"}},
		{"no registry", "", nowhere, dir, []string{"refused"}},
		{"no mountpoint", "", p.Host() + "/lamina/debian:gzip", "/nonexistent/dir", []string{"does not exist"}},
		{"bad reference", "", "UPPER//case", dir, []string{"reference", "invalid"}},
		{"no layout", "", "oci:/nonexistent", dir, []string{"not found"}},
		{"no archive", "", "docker-archive:/nonexistent.tar", dir, []string{"not found"}},
		{"not an archive", "", "docker-archive:/etc/passwd", dir, []string{"/etc/passwd"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			password := tc.password
			if password == "" {
				password = registry.Password
			}
			s := newStoreAt(t, filepath.Join(t.TempDir(), "root"), password, p.Host())
			began := time.Now()
			err := s.Mount(tc.dir, tc.image, "--quiet")
			if err == nil {
				t.Fatal("it was mounted")
			}
			said := strings.TrimSpace(err.Error())
			if !slices.ContainsFunc(tc.says, func(w string) bool { return strings.Contains(strings.ToLower(said), w) }) {
				t.Errorf("says %q, want one of %q in it", said, tc.says)
			}
			if strings.Count(said, "\n") > 1 { // a usage error points to --help
				t.Errorf("more than a line: %q", said)
			}
			if strings.Contains(said, registry.Password) || strings.Contains(said, "wrong\"") {
				t.Errorf("a password is shown: %q", said)
			}
			if d := time.Since(began); d > time.Minute {
				t.Errorf("it took %v", d)
			}
			if all, err := s.Mounts(); err != nil || lamina.Mounted(tc.dir) || len(all) > 0 {
				t.Errorf("left mounted: %v, %v", all, err)
			}
		})
	}
}

// TestFullDisk gives the store a file system too small for the image: reads go
// on, past the cache.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		small := disk(t, "24M")
		p := shared.proxy(t, faultproxy.Config{})
		s := newStoreAt(t, filepath.Join(small, "root"), registry.Password, p.Host())
		dir := s.mount(t, p.Host()+"/lamina/debian:estargz", "--engine", engine)
		// What does not fit is fetched for each reader: do not read it all.
		some := tree.Tree{}
		for name, e := range shared.truth(t, "debian") {
			if len(some) < 400 {
				some[name] = e
			}
		}
		if failed := rightOrEIO(t, some, dir); len(failed) > 0 {
			t.Errorf("EIO: %q", failed)
		}
	})
}

// disk makes a small ext4 file system for one test. It is unmounted after the
// clean-ups that are registered later.
func disk(t *testing.T, size string) string {
	t.Helper()
	file, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if out, err := exec.Command("sh", "-euc", `truncate -s "$1" "$2"; mkfs.ext4 -q "$2"; mount -o loop "$2" "$3"`, "disk", size, file, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the small disk: %v", err)
		}
	})
	return dir
}

// TestAutoFallsBack: a store on tmpfs cannot be mounted by EROFS, which auto
// must find out, and the kernel engine say.
func TestAutoFallsBack(t *testing.T) {
	ram := t.TempDir()
	if err := unix.Mount("tmpfs", ram, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(ram, 0); err != nil {
			t.Error(err)
		}
	})
	s := newStoreAt(t, filepath.Join(ram, "root"), registry.Password)
	ref := shared.set.Ref("debian", images.Gzip)
	if err := s.Mount(t.TempDir(), ref, "--engine", "kernel", "--quiet"); err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("--engine kernel: %v, want the reason", err)
	}
	dir := s.mount(t, ref)
	if m := s.at(t, dir); m.Engine != "fuse" {
		t.Errorf("auto took %s", m.Engine)
	}
}

// TestCacheLimit reads an image through a cache that holds a part of it.
func TestCacheLimit(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		p := shared.proxy(t, faultproxy.Config{})
		s := newStore(t, p.Host())
		dir := s.mount(t, p.Host()+"/lamina/debian:estargz", "--engine", engine, "--cache-limit", "40MB")
		sameTree(t, shared.truth(t, "debian"), dir, images.EStargz)
		var used int64
		err := filepath.Walk(filepath.Join(s.Root, "layers"), func(path string, _ os.FileInfo, err error) error {
			var st unix.Stat_t
			if err == nil && filepath.Base(path) == "data" && unix.Lstat(path, &st) == nil {
				used += st.Blocks * 512
			}
			return err
		})
		if err != nil || used > 48<<20 {
			t.Errorf("the cache uses %d MB of 40, %v", used>>20, err)
		}
	})
}

// TestNothingIsFetchedTwice starts several processes that mount and read the
// same image at once.
func TestNothingIsFetchedTwice(t *testing.T) {
	for _, f := range []images.Format{images.Gzip, images.EStargz, images.Podman} {
		t.Run(string(f), func(t *testing.T) {
			// Latency leaves time to collide.
			p := shared.proxy(t, faultproxy.Config{Link: faultproxy.Link{RTT: 5 * time.Millisecond}})
			s := newStore(t, p.Host())
			ref := p.Host() + "/lamina/nginx:" + string(f)
			done := make(chan func(), 3)
			for i := range 3 {
				dir := t.TempDir()
				go func() {
					if err := s.Mount(dir, ref, "--engine", engines()[i%2]); err != nil {
						done <- func() { t.Error(err) }
						return
					}
					done <- func() { sameTree(t, shared.truth(t, "nginx"), dir, f) }
				}()
			}
			var checks []func()
			for range 3 {
				checks = append(checks, <-done)
			}
			parallel(checks)
			if twice := faultproxy.SentTwice(chunks(p.Exchanges())); len(twice) > 0 {
				t.Errorf("sent more than once: %v", twice)
			}
		})
	}
}

// parallel runs all functions at once and waits for them.
func parallel(fs []func()) {
	done := make(chan struct{})
	for _, f := range fs {
		go func() {
			defer func() { done <- struct{}{} }()
			f()
		}()
	}
	for range fs {
		<-done
	}
}
