//go:build integration

package integration_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/registry"
	"github.com/laminafs/lamina/integration/tree"
)

// pushed is what push prints.
type pushed struct {
	Image, Digest, Index   string
	Present, Mounted, Sent int
	Bytes                  int64
}

// another starts a second registry and returns its host.
func another(t *testing.T) string {
	t.Helper()
	r, err := registry.Start(t.Context(), filepath.Join(t.TempDir(), "registry"), shared.authority)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Stop() })
	return r.Host()
}

// onDisk returns what the store's directory takes, in bytes.
func (s store) onDisk(t testing.TB) int64 {
	t.Helper()
	var u usage
	s.parse(t, &u, "df", "--json")
	return u.Disk
}

// digestOf asks skopeo for an image's digest.
func digestOf(t testing.TB, name string) string {
	t.Helper()
	cmd := exec.Command("skopeo", "inspect", "--tls-verify=false", "--creds", registry.User+":"+registry.Password, "docker://"+name)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	var v struct{ Digest string }
	if err := json.Unmarshal(out, &v); err != nil {
		t.Fatal(err)
	}
	return v.Digest
}

// TestPush: a lazily mounted image with a small new layer goes to another repository of
// its registry, where no byte of the base moves, and to another registry, to which the
// base is streamed and never kept.
func TestPush(t *testing.T) {
	for _, f := range []images.Format{images.EStargz, images.Podman, images.Gzip} {
		t.Run(string(f), func(t *testing.T) {
			p := shared.proxy(t, faultproxy.Config{HTTP2: true})
			elsewhere := another(t)
			s := newStore(t, p.Host(), elsewhere)
			dir := s.mount(t, p.Host()+"/lamina/nginx:"+string(f), "--rw", "--name", "w")
			if err := os.WriteFile(filepath.Join(dir, "etc", "motd"), []byte("pushed\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			s.run(t, "commit", "-q", "w", "app:1")
			before := s.onDisk(t)

			p.Reset()
			to := p.Host() + "/team/app-" + string(f) + ":1"
			var got pushed
			s.parse(t, &got, "push", "-q", "--json", "app:1", to)
			if got.Sent != 2 || got.Mounted != 2 || got.Bytes > 64<<10 { // the layer and the config
				t.Errorf("to the same registry: %+v", got)
			}
			if n := faultproxy.Sum(p.Exchanges(), "/blobs/").Bytes; n > 4<<10 {
				t.Errorf("%d bytes of blobs came for it", n)
			}
			again := got
			s.parse(t, &again, "push", "-q", "--json", "app:1", to)
			if again.Present != 4 || again.Sent+again.Mounted != 0 {
				t.Errorf("again: %+v", again)
			}

			out := elsewhere + "/team/app:1"
			var far pushed
			s.parse(t, &far, "push", "-q", "--json", "app:1", out)
			if far.Sent != 4 || far.Digest != got.Digest {
				t.Errorf("to another registry: %+v", far)
			}
			if after := s.onDisk(t); after > before+64<<10 {
				t.Errorf("the store grew from %d to %d bytes", before, after)
			}
			for _, name := range []string{to, out} {
				if d := digestOf(t, name); d != got.Digest {
					t.Errorf("%s is %s, not %s", name, d, got.Digest)
				}
				two := newStore(t, p.Host(), elsewhere)
				if text := two.run(t, "cat", "-q", name, "/etc/motd"); text != "pushed\n" {
					t.Errorf("%s: %q", name, text)
				}
			}
		})
	}
}

// TestPushIndex: an index goes beside the image, and makes it lazy where it went.
func TestPushIndex(t *testing.T) {
	elsewhere := another(t)
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host(), elsewhere)
	var got pushed
	to := elsewhere + "/far/python:1"
	file := filepath.Join(t.TempDir(), "digest")
	s.parse(t, &got, "push", "-q", "--json", "--with-index", "--digestfile", file, p.Host()+"/lamina/python:gzip", to)
	if got.Index == "" {
		t.Fatalf("%+v", got)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != got.Digest+"\n" {
		t.Errorf("digest file: %q, %v", b, err)
	}
	two := newStore(t, elsewhere)
	dir := two.mount(t, to, "--index", "require")
	sameTree(t, shared.truth(t, "python"), dir, images.Gzip)
}

// TestPushRefused: one clear line, and nothing is there.
func TestPushRefused(t *testing.T) {
	elsewhere := another(t)
	p := shared.proxy(t, faultproxy.Config{})
	from := p.Host() + "/lamina/debian:gzip"
	s := newStoreAt(t, filepath.Join(t.TempDir(), "root"), "wrong", elsewhere)
	good := newStore(t, p.Host(), elsewhere)
	for _, tt := range []struct {
		s     store
		words []string
		want  string
	}{
		{good, []string{"push", "oci:" + shared.set.LayoutDir() + ":debian-gzip"}, "second argument"},
		{good, []string{"push", "nosuch:1", elsewhere + "/a:1"}, "nosuch"},
		{good, []string{"push", from, "127.0.0.1:1/a:1"}, "127.0.0.1:1"},
		{s, []string{"push", "oci:" + shared.set.LayoutDir() + ":debian-gzip", elsewhere + "/a:1"}, "401"},
	} {
		out, err := tt.s.Command(tt.words...).CombinedOutput()
		text := strings.TrimSpace(string(out))
		if err == nil || !strings.Contains(text, tt.want) || strings.Contains(text[strings.LastIndex(text, "lamina:")+1:], "\n") {
			t.Errorf("%v: %v\n%s", tt.words, err, text)
		}
	}
	if out, err := good.Run("cat", "-q", elsewhere+"/a:1", "/etc/motd"); err == nil {
		t.Errorf("an image is there: %s", out)
	}
}

// TestPushFull: a full disk is told of in one line, and no half archive or image is there.
func TestPushFull(t *testing.T) {
	small := disk(t, "16M")
	s := newStore(t)
	from := "oci:" + shared.set.LayoutDir() + ":debian-gzip"
	for _, to := range []string{"oci-archive:" + filepath.Join(small, "a.tar"), "docker-archive:" + filepath.Join(small, "a.tar"), "oci:" + filepath.Join(small, "layout")} {
		out, err := s.Command("push", "-q", from, to).CombinedOutput()
		if text := strings.TrimSpace(string(out)); err == nil || !strings.Contains(text, "no space left") || strings.Contains(text, "\n") {
			t.Errorf("%s: %v\n%s", to, err, text)
		}
	}
	for _, name := range []string{"a.tar", "layout/index.json"} {
		if _, err := os.Stat(filepath.Join(small, name)); err == nil {
			t.Errorf("%s is there", name)
		}
	}
}

// TestPushDrops: a connection that breaks at any place, again and again, costs time only.
func TestPushDrops(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{Seed: 7, Faults: faultproxy.Faults{
		Rate: 0.3, Kinds: []faultproxy.Kind{faultproxy.Err503, faultproxy.Err500, faultproxy.Drop, faultproxy.TooMany},
		Match: func(r *http.Request) bool { return r.Method != http.MethodGet },
	}})
	s := newStore(t, p.Host())
	var got pushed
	to := p.Host() + "/drops/nginx:1"
	s.parse(t, &got, "push", "-q", "--json", "oci:"+shared.set.LayoutDir()+":nginx-estargz", to)
	if d := digestOf(t, to); d != got.Digest {
		t.Errorf("%s, not %s", d, got.Digest)
	}
}

// TestPushFiles: layouts and archives in every layer format are read by the tools that
// others use, and lead to the same image.
func TestPushFiles(t *testing.T) {
	for _, f := range []images.Format{images.Gzip, images.Zstd, images.EStargz, images.Podman} {
		t.Run(string(f), func(t *testing.T) {
			t.Parallel()
			p := shared.proxy(t, faultproxy.Config{})
			s := newStore(t, p.Host())
			name := p.Host() + "/lamina/debian:" + string(f)
			want := digestOf(t, name)
			dir := t.TempDir()
			layout, oci, docker := filepath.Join(dir, "layout"), filepath.Join(dir, "oci.tar"), filepath.Join(dir, "docker.tar")
			for _, to := range []string{"oci:" + layout + ":one", "oci-archive:" + oci + ":one", "docker-archive:" + docker + ":example.com/one:1"} {
				s.run(t, "push", "-q", name, to)
			}
			for _, from := range []string{"oci:" + layout + ":one", "oci-archive:" + oci + ":one", "oci-archive:" + docker} {
				if got := strings.TrimSpace(output(t, "skopeo", "inspect", "--format", "{{.Digest}}", from)); got != want {
					t.Errorf("%s: %s, want %s", from, got, want)
				}
			}
			other := t.TempDir()
			output(t, "skopeo", "copy", "-q", "docker-archive:"+docker, "dir:"+filepath.Join(other, "skopeo"))
			if f == images.Gzip { // umoci knows no zstd, and shows the files of an eStargz
				output(t, "umoci", "unpack", "--image", layout+":one", filepath.Join(other, "umoci"))
				got, err := tree.Read(filepath.Join(other, "umoci", "rootfs"))
				if err != nil {
					t.Fatal(err)
				}
				report(t, tree.Diff(shared.truth(t, "debian"), got, tree.Options{}))
			}
			podman := []string{"--root", filepath.Join(other, "podman"), "--runroot", filepath.Join(other, "run"), "--storage-driver", "vfs"}
			if said := output(t, "podman", append(podman, "load", "-q", "-i", docker)...); !strings.Contains(said, "example.com/one:1") {
				t.Errorf("podman load: %s", said)
			}
			sameTree(t, shared.truth(t, "debian"), s.mount(t, "oci-archive:"+docker+":1"), f)
			if f == images.Gzip || f == images.Zstd { // the others lose their annotations
				sameTree(t, shared.truth(t, "debian"), s.mount(t, "docker-archive:"+docker), f)
			}
		})
	}
}

// TestSave: several images in one archive, through a pipe.
func TestSave(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host())
	nginx, httpd := p.Host()+"/lamina/nginx:gzip", p.Host()+"/lamina/httpd:gzip"
	dir := t.TempDir()
	file := filepath.Join(dir, "both.tar")
	cmd := s.Command("save", "-q", nginx, httpd)
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	podman := []string{"--root", filepath.Join(dir, "podman"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}
	said := output(t, "podman", append(podman, "load", "-q", "-i", file)...)
	for _, name := range []string{nginx, httpd} {
		if !strings.Contains(said, name) {
			t.Errorf("podman load: %s, without %s", said, name)
		}
		if got := strings.TrimSpace(output(t, "skopeo", "inspect", "--format", "{{.Digest}}", "oci-archive:"+file+":"+name)); got != digestOf(t, name) {
			t.Errorf("%s: %s", name, got)
		}
	}
	s.run(t, "save", "-q", "--format", "oci-archive", "-o", filepath.Join(dir, "one.tar"), nginx)
	sameTree(t, shared.truth(t, "nginx"), s.mount(t, "oci-archive:"+filepath.Join(dir, "one.tar")), images.Gzip)
}

// output runs a command and returns what it prints.
func output(t *testing.T, words0 string, words ...string) string {
	t.Helper()
	cmd := exec.Command(words0, words...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, said.String())
	}
	return string(out)
}

// TestLoad: what other tools save is loaded, with the same digests where they keep them,
// compressed or not, from a file or a pipe; and what was loaded is mounted offline.
func TestLoad(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	name := p.Host() + "/lamina/debian:gzip"
	layout := "oci:" + shared.set.LayoutDir() + ":debian-gzip"
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	output(t, "skopeo", "copy", "-q", layout, "oci-archive:"+at("skopeo-oci.tar")+":example.com/debian:1")
	output(t, "skopeo", "copy", "-q", layout, "docker-archive:"+at("skopeo-docker.tar")+":example.com/debian:1")
	output(t, "skopeo", "copy", "-q", layout, "oci-archive:"+at("nameless.tar"))
	podman := []string{"--root", at("podman"), "--runroot", at("run"), "--storage-driver", "vfs"}
	output(t, "podman", append(podman, "load", "-q", "-i", at("skopeo-docker.tar"))...)
	for format, file := range map[string]string{"docker-archive": "podman-docker.tar", "oci-archive": "podman-oci.tar"} {
		output(t, "podman", append(podman, "save", "-q", "--format", format, "-o", at(file), "example.com/debian:1")...)
	}
	newStore(t, p.Host()).run(t, "save", "-q", "-o", at("lamina.tar"), name)
	output(t, "gzip", "-k", "-1", at("skopeo-oci.tar"))
	output(t, "zstd", "-q", "-k", at("skopeo-docker.tar"))
	want := digestOf(t, name)
	for file, kept := range map[string]bool{
		"skopeo-oci.tar": true, "skopeo-docker.tar": false, "podman-docker.tar": false, "podman-oci.tar": false,
		"lamina.tar": true, "skopeo-oci.tar.gz": true, "skopeo-docker.tar.zst": false,
	} {
		for _, pipe := range []bool{false, true} {
			if pipe && strings.HasPrefix(file, "podman") {
				continue
			}
			s := newStore(t)
			cmd := s.Command("load", "-q", "--json", "-i", at(file))
			if pipe {
				cmd = s.Command("load", "-q", "--json")
				in, err := os.Open(at(file))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = in.Close() }()
				cmd.Stdin = in
			}
			out, err := cmd.Output()
			var loaded []struct{ Name, Digest string }
			if err != nil || json.Unmarshal(out, &loaded) != nil || len(loaded) != 1 || kept && loaded[0].Digest != want {
				t.Errorf("%s, through a pipe: %v: %s, %v", file, pipe, out, err)
				continue
			}
			if !pipe {
				sameTree(t, shared.truth(t, "debian"), s.mount(t, loaded[0].Name), images.Gzip)
				s.run(t, "check")
			}
		}
	}
	s := newStore(t)
	if out, err := s.Command("load", "-q", "-i", at("nameless.tar")).CombinedOutput(); err == nil || !strings.Contains(string(out), "write its name") {
		t.Errorf("without a name: %s", out)
	}
	s.run(t, "load", "-q", "-i", at("nameless.tar"), "app:1")
	s.run(t, "cat", "-q", "app:1", "/etc/os-release")
	b, err := os.ReadFile(at("lamina.tar"))
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string][]byte{"cut": b[:len(b)/2], "empty": nil, "no tar": bytes.Repeat([]byte("x"), 2000)} {
		file := at("bad.tar")
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		s := newStore(t)
		out, err := s.Command("load", "-q", "-i", file).CombinedOutput()
		if err == nil || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
		if list := s.run(t, "images", "-q"); strings.TrimSpace(list) != "" {
			t.Errorf("%s: there is %s", what, list)
		}
	}
}
