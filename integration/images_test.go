//go:build integration

package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
)

// TestImages mounts every image in every format from the registry, by both
// engines, and holds each against umoci's unpacking. Which engine comes first,
// and so meets an empty cache, alternates.
func TestImages(t *testing.T) {
	for i, f := range images.Formats() {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			p := shared.proxy(t, faultproxy.Config{})
			s := newStore(t, p.Host())
			for j, n := range images.Names() {
				order := engines()
				if (i+j)%2 == 1 {
					order[0], order[1] = order[1], order[0]
				}
				for _, e := range order {
					t.Run(n+"/"+e, func(t *testing.T) {
						dir := s.mount(t, p.Host()+"/lamina/"+n+":"+string(f), "--engine", e)
						if got := s.at(t, dir).Engine; got != e {
							t.Errorf("the engine is %s", got)
						}
						sameTree(t, shared.truth(t, n), dir, f)
					})
				}
			}
			// All is cached now, and the base's layer was shared.
			if twice := faultproxy.SentTwice(chunks(p.Exchanges())); len(twice) > 0 {
				t.Errorf("sent more than once: %v", twice)
			}
		})
	}
}

// TestTransports mounts what lies in local files.
func TestTransports(t *testing.T) {
	set := shared.set
	for _, e := range engines() {
		for _, f := range append(images.Formats(), images.Tar, images.Skopeo) {
			t.Run("oci/"+string(f)+"/"+e, func(t *testing.T) {
				t.Parallel()
				dir := newStore(t).mount(t, set.Ref("debian", f), "--engine", e)
				sameTree(t, shared.truth(t, "debian"), dir, f)
			})
		}
		t.Run("oci-archive/"+e, func(t *testing.T) {
			dir := newStore(t).mount(t, "oci-archive:"+set.OCIArchive(), "--engine", e)
			sameTree(t, shared.truth(t, "debian"), dir, images.Gzip)
		})
	}
	for _, n := range images.Names() {
		for _, e := range engines() {
			t.Run("docker-archive/"+n+"/"+e, func(t *testing.T) {
				t.Parallel()
				dir := newStore(t).mount(t, "docker-archive:"+set.DockerArchive(n), "--engine", e)
				sameTree(t, shared.truth(t, n), dir, images.Tar)
			})
		}
	}
}

// program is what an image is for.
type program struct {
	image string
	words []string
	want  string
}

func programs() []program {
	return []program{
		{"nginx", []string{"nginx", "-v"}, "nginx version"},
		{"httpd", []string{"apache2", "-v"}, "Apache/2"},
		{"python", []string{"python3", "-c", "import numpy; print(numpy.arange(5).sum())"}, "10"},
		{"node", []string{"node", "-e", `console.log(require("typescript").version)`}, "."},
	}
}

// command runs the program from a mounted image, with the image's environment.
func (p program) command(dir string) *exec.Cmd {
	cmd := exec.Command("chroot", append([]string{dir}, p.words...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NODE_PATH=/usr/share/nodejs"}
	return cmd
}

// TestPrograms runs programs out of mounts, each from an empty cache.
func TestPrograms(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{})
	for _, prog := range programs() {
		for _, f := range []images.Format{images.Gzip, images.EStargz, images.Podman} {
			for _, e := range engines() {
				t.Run(prog.image+"/"+string(f)+"/"+e, func(t *testing.T) {
					t.Parallel()
					s := newStore(t, p.Host())
					dir := s.mount(t, p.Host()+"/lamina/"+prog.image+":"+string(f), "--engine", e)
					out, err := prog.command(dir).CombinedOutput()
					if err != nil || !strings.Contains(string(out), prog.want) {
						t.Errorf("%v: %v\n%s", prog.words, err, out)
					}
				})
			}
		}
	}
}

// TestReadOnly: whatever one tries to change, it is a read-only file system.
func TestReadOnly(t *testing.T) {
	for _, e := range engines() {
		t.Run(e, func(t *testing.T) {
			dir := newStore(t).mount(t, shared.set.Ref("debian", images.Tar), "--engine", e)
			for what, err := range map[string]error{
				"create": os.WriteFile(filepath.Join(dir, "new"), nil, 0o644),
				"write":  os.WriteFile(filepath.Join(dir, "etc/passwd"), nil, 0o644),
				"mkdir":  os.Mkdir(filepath.Join(dir, "newdir"), 0o755),
				"remove": os.Remove(filepath.Join(dir, "etc/passwd")),
				"chmod":  os.Chmod(filepath.Join(dir, "etc/passwd"), 0o600),
				"rename": os.Rename(filepath.Join(dir, "etc/passwd"), filepath.Join(dir, "etc/p")),
				"link":   os.Symlink("x", filepath.Join(dir, "etc/s")),
			} {
				if err == nil || !strings.Contains(err.Error(), "read-only file system") {
					t.Errorf("%s: %v, want EROFS", what, err)
				}
			}
		})
	}
}
