//go:build integration

package integration_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/tree"
)

// run runs lamina and returns what it prints.
func (s store) run(t testing.TB, words ...string) string {
	t.Helper()
	out, err := s.Run(words...)
	if err != nil {
		t.Fatalf("lamina %s: %v\n%s", strings.Join(words, " "), err, out)
	}
	return out
}

// parse runs lamina and reads the JSON it prints into v.
func (s store) parse(t testing.TB, v any, words ...string) {
	t.Helper()
	// Progress goes to standard error: the output alone is read.
	cmd := s.Command(words...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("lamina %s: %v\n%s", strings.Join(words, " "), err, said.String())
	}
	if err := json.Unmarshal(out.Bytes(), v); err != nil {
		t.Fatalf("lamina %s: %v\n%s", strings.Join(words, " "), err, out.String())
	}
}

// usage is what df prints.
type usage struct {
	Images []struct {
		Name                             string
		Size, Here, Disk, Shared, Unique int64
		Mounted                          bool
	}
	Disk, Saved, Unused int64
}

// TestPullShares: of two images with one base its layer is fetched and stored
// once; other tools read the store; and with all here nothing is asked of the
// registry.
func TestPullShares(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host())
	nginx, httpd := p.Host()+"/lamina/nginx:gzip", p.Host()+"/lamina/httpd:gzip"
	s.run(t, "pull", "-q", nginx)
	s.run(t, "pull", "-q", httpd)
	if twice := faultproxy.SentTwice(p.Exchanges()); len(twice) > 0 {
		t.Errorf("sent more than once: %v", twice)
	}
	base, err := images.Manifest(shared.set.LayoutDir(), images.Tag("nginx", images.Gzip))
	if err != nil {
		t.Fatal(err)
	}
	var u usage
	s.parse(t, &u, "df", "--json")
	if len(u.Images) != 2 || u.Saved != base.Layers[0].Size || u.Unused != 0 {
		t.Errorf("df: %+v, the shared layer has %d bytes", u, base.Layers[0].Size)
	}
	for _, im := range u.Images {
		if im.Here != im.Size || im.Shared != base.Layers[0].Size || im.Disk != im.Shared+im.Unique {
			t.Errorf("df: %+v", im)
		}
	}
	asked := len(p.Exchanges())
	s.run(t, "pull", "-q", nginx) // asks for the manifest, and for nothing else
	for _, e := range p.Exchanges()[asked:] {
		if strings.Contains(e.Path, "/blobs/") {
			t.Errorf("asked for %s again", e.Path)
		}
	}
	asked = len(p.Exchanges())
	dir := s.mount(t, nginx)
	sameTree(t, shared.truth(t, "nginx"), dir, images.Gzip)
	s.run(t, "cat", httpd, "/etc/os-release")
	s.run(t, "inspect", httpd)
	for _, e := range p.Exchanges()[asked:] {
		t.Errorf("all is here, and %s %s was asked", e.Method, e.Path)
	}
	othersRead(t, filepath.Join(s.Root, "images"), nginx)
}

// othersRead has other tools read the store's layout.
func othersRead(t *testing.T, layout, name string) {
	t.Helper()
	dir := t.TempDir()
	for _, words := range [][]string{
		{"skopeo", "inspect", "oci:" + layout + ":" + name},
		{"skopeo", "copy", "-q", "oci:" + layout + ":" + name, "dir:" + filepath.Join(dir, "skopeo")},
		{"umoci", "ls", "--layout", layout},
		{"podman", "--root", filepath.Join(dir, "podman"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs", "pull", "-q", "oci:" + layout + ":" + name},
	} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(words, " "), err, out)
		}
	}
}

// TestPullResumes: a pull that was killed goes on in the middle of a blob.
func TestPullResumes(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{Link: faultproxy.Link{RTT: time.Millisecond, BytesPerSecond: 8 << 20}})
	s := newStore(t, p.Host())
	name := p.Host() + "/lamina/python:gzip"
	for range 3 {
		cmd := s.Command("pull", "-q", name)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	p.SetLink(faultproxy.Link{})
	s.run(t, "pull", "-q", name)
	m, err := images.Manifest(shared.set.LayoutDir(), images.Tag("python", images.Gzip))
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, l := range m.Layers {
		size += l.Size
	}
	// What was on its way when it was killed is lost, and may have been sent.
	if got := faultproxy.Sum(p.Exchanges(), "/blobs/").Bytes; got > size+size/2 {
		t.Errorf("%d bytes were sent for %d", got, size)
	}
	if out := s.run(t, "check"); !strings.Contains(out, "as it should be") {
		t.Errorf("check: %s", out)
	}
}

// TestLook: an image's files without a mount are those that umoci unpacks, and
// one small file of a lazy image does not cost a pull.
func TestLook(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	for _, f := range []images.Format{images.Gzip, images.EStargz, images.Podman} {
		t.Run(string(f), func(t *testing.T) {
			s := newStore(t, p.Host())
			name := p.Host() + "/lamina/python:" + string(f)
			p.Reset()
			want, err := os.ReadFile(filepath.Join(shared.set.Tree("python"), "etc/os-release"))
			if err != nil {
				t.Fatal(err)
			}
			if got := s.run(t, "cat", "-q", name, "/etc/os-release"); got != string(want) {
				t.Errorf("cat: %q, want %q", got, want)
			}
			if got := faultproxy.Sum(p.Exchanges(), "/blobs/").Bytes; f != images.Gzip && got > 4<<20 {
				t.Errorf("cat of a small file fetched %d bytes", got)
			}
			truth := shared.truth(t, "python")
			var entries []struct {
				Path string
				Size int64
				UID  uint32
			}
			s.parse(t, &entries, "ls", "-R", "--json", name, "/")
			if len(entries) != len(truth)-1 { // the root itself is not in it
				t.Errorf("ls -R: %d entries, %d are there", len(entries), len(truth)-1)
			}
			for _, e := range entries {
				if w, ok := truth[strings.TrimPrefix(e.Path, "/")]; !ok || w.UID != e.UID || w.Mode&0o170000 == 0o100000 && w.Size != e.Size {
					t.Errorf("ls -R: %+v, want %+v", e, w)
				}
			}
			dir := filepath.Join(t.TempDir(), "all")
			s.run(t, "cp", "-q", name, "/.", dir)
			sameTree(t, truth, dir, f)
			if got := s.run(t, "find", name, "/etc", "--name", "os-rel*"); got != "/etc/os-release\n" {
				t.Errorf("find: %q", got)
			}
			if got := s.run(t, "which", name, "/usr/bin/python3"); !strings.Contains(got, "layer 1") {
				t.Errorf("which: %s", got)
			}
			if got := s.run(t, "layers", name); strings.Count(got, "\n") != 3 {
				t.Errorf("layers: %s", got)
			}
		})
	}
}

// TestDiffImages: the same image in two formats does not differ, and two images
// on one base differ in what their own layers have.
func TestDiffImages(t *testing.T) {
	s := newStore(t)
	if got := s.run(t, "diff", "-q", shared.set.Ref("nginx", images.Gzip), shared.set.Ref("nginx", images.Zstd)); got != "" {
		t.Errorf("gzip and zstd differ: %.500s", got)
	}
	got := s.run(t, "diff", "-q", shared.set.Ref("debian", images.Gzip), shared.set.Ref("nginx", images.Gzip))
	a, b := shared.truth(t, "debian"), shared.truth(t, "nginx")
	for line := range strings.Lines(got) {
		kind, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " /")
		_, inA := a[path]
		_, inB := b[path]
		if kind == "A" && (inA || !inB) || kind == "D" && (!inA || inB) || kind == "C" && (!inA || !inB) {
			t.Errorf("%s: in the first %v, in the second %v", line, inA, inB)
		}
	}
	for path := range b {
		if _, ok := a[path]; !ok && !strings.Contains(got, "A /"+path+"\n") {
			t.Errorf("%s was added, and not said", path)
		}
	}
}

// TestThrowAway: what is mounted stays, what nobody uses goes, and what was
// pruned can be had again.
func TestThrowAway(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host())
	nginx, httpd := p.Host()+"/lamina/nginx:gzip", p.Host()+"/lamina/httpd:estargz"
	s.run(t, "pull", "-q", httpd)
	dir := s.mount(t, nginx)
	if _, err := s.Run("rmi", nginx); err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("rmi of a mounted image: %v", err)
	}
	s.run(t, "tag", httpd, "kept:1")
	s.run(t, "rmi", httpd)
	s.run(t, "cat", "--pull", "never", "kept:1", "/etc/os-release")
	if out := s.run(t, "prune", "--dry-run", "--all"); !strings.Contains(out, "would remove image") {
		t.Errorf("prune --dry-run: %s", out)
	}
	s.run(t, "cat", "--pull", "never", "kept:1", "/etc/os-release")
	s.run(t, "prune", "--all")
	sameTree(t, shared.truth(t, "nginx"), dir, images.Gzip)
	var u usage
	s.parse(t, &u, "df", "--json")
	if len(u.Images) != 1 || u.Images[0].Name != nginx || !u.Images[0].Mounted {
		t.Errorf("left after prune --all: %+v", u)
	}
	s.umount(t, dir)
	s.run(t, "prune", "--all")
	s.parse(t, &u, "df", "--json")
	if len(u.Images) != 0 || u.Disk != 0 || u.Unused != 0 {
		t.Errorf("left when nothing is used: %+v", u)
	}
	dir = s.mount(t, nginx)
	sameTree(t, shared.truth(t, "nginx"), dir, images.Gzip)
}

// TestCheckRepairs: what was damaged on the disk is found, dropped and fetched
// again.
func TestCheckRepairs(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host())
	name := p.Host() + "/lamina/nginx:estargz"
	s.run(t, "pull", "-q", name)
	dir := s.mount(t, name, "--engine", "fuse")
	if _, err := tree.Read(dir); err != nil {
		t.Fatal(err)
	}
	s.umount(t, dir)
	if out := s.run(t, "check"); !strings.Contains(out, "as it should be") {
		t.Fatalf("check: %s", out)
	}
	damaged := 0
	for _, pattern := range []string{"images/blobs/sha256/*", "layers/*/data", "layers/*/chunks", "layers/*/index.erofs", "chains/*/merged.erofs"} {
		found, err := filepath.Glob(filepath.Join(s.Root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v, %d files", pattern, err, len(found))
		}
		damage(t, found[0])
		damaged++
	}
	if out, err := s.Run("check"); err == nil {
		t.Errorf("check finds nothing wrong: %s", out)
	}
	s.run(t, "check", "--repair")
	if out := s.run(t, "check"); !strings.Contains(out, "as it should be") {
		t.Errorf("check after --repair: %s", out)
	}
	s.run(t, "pull", "-q", name)
	sameTree(t, shared.truth(t, "nginx"), s.mount(t, name, "--engine", "fuse"), images.EStargz)
}

// damage turns bytes in the middle of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, min(4096, info.Size()))
	off := (info.Size() - int64(len(p))) / 2
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] ^= 0x5a
	}
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}
