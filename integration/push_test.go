//go:build integration

package integration_test

import (
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
		{good, []string{"push", from, "oci:dir"}, "second argument"},
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
