package mount

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func record(t *testing.T, root, name string) *State {
	t.Helper()
	s := &State{
		Name:    name,
		Options: Options{Root: root, Image: "nginx", Dir: filepath.Join(root, "mnt"), Engine: Auto},
		Image:   "docker.io/library/nginx:latest", Digest: digest.FromString("manifest"),
		Layers: []LayerState{{
			Desc: ocispec.Descriptor{Digest: digest.FromString("blob"), Size: 4}, DiffID: digest.FromString("tar"),
			Key: "abc", File: "/archive", Offset: 512,
		}},
		Chain: "def", Engine: FUSE, ImageSize: 4, Created: time.Now().Add(-time.Hour).Truncate(time.Second),
	}
	if err := os.MkdirAll(s.dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStateSurvivesItsFile(t *testing.T) {
	root := t.TempDir()
	want := record(t, root, "a-1")
	got, err := Load(root, "a-1")
	if err != nil {
		t.Fatal(err)
	}
	w, _ := json.Marshal(want)
	g, _ := json.Marshal(got)
	if string(w) != string(g) {
		t.Errorf("loaded %s, want %s", g, w)
	}
	if _, err := Load(root, "b-2"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a record that is not there: %v, want fs.ErrNotExist", err)
	}
	if err := os.WriteFile(filepath.Join(want.dir(), "state.json"), []byte(`{"name":"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(root, "a-1"); err == nil {
		t.Error("half a record was loaded")
	}
	if all, damaged, err := records(root); damaged == nil || err != nil || len(all) != 0 {
		t.Errorf("records = %v, %v; a damaged one must not stop the others or be listed", all, err)
	}
}

// A record without a mount and without processes is what a crash leaves.
func TestListRemovesRubbish(t *testing.T) {
	root := t.TempDir()
	s := record(t, root, "a-1")
	young := record(t, root, "b-2")
	young.Created = time.Now()
	if err := young.save(); err != nil {
		t.Fatal(err)
	}
	clone := record(t, root, "b-3") // about to be cloned from another
	clone.Created, clone.ServedBy, clone.Engine = time.Now(), "c-3", Kernel
	if err := clone.save(); err != nil {
		t.Fatal(err)
	}
	alive := record(t, root, "c-3")
	alive.Server = self()
	if err := alive.save(); err != nil {
		t.Fatal(err)
	}
	busy := record(t, root, "d-4")
	busy.Server = self()
	if err := busy.save(); err != nil {
		t.Fatal(err)
	}
	slow := record(t, root, "e-5") // being mounted, for longer than that
	slow.Maker = self()
	if err := slow.save(); err != nil {
		t.Fatal(err)
	}
	got, err := List(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got[0].Name != "b-2" || got[1].Name != "b-3" || got[2].Name != "d-4" || got[2].Status != Detached || got[3].Name != "e-5" {
		t.Errorf("listed %+v, want the young records and those with a server or a maker of their own", got)
	}
	if used, err := InUse(root); err != nil || len(used) != 5 || used[2].Name != "c-3" {
		t.Errorf("in use are %+v, %v; want the one whose server another lives on, too", used, err)
	}
	if _, err := os.Stat(s.dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the rubbish is still there: %v", err)
	}
}

func TestStatus(t *testing.T) {
	dead := Process{PID: 1, Start: "not its start time"}
	for _, tt := range []struct {
		name           string
		server, holder Process
		mounted        bool
		want           Status
	}{
		{"kernel alone", Process{}, Process{}, true, NoServer},
		{"served", self(), Process{}, true, Serving},
		{"server died, holder lives", dead, self(), true, Recovering},
		{"both died", dead, dead, true, Dead},
		{"unmounted with users", self(), self(), false, Detached},
		{"nothing left", dead, dead, false, ""},
	} {
		s := &State{Server: tt.server, Holder: tt.holder}
		if got := s.status(nil, tt.mounted); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	clone := &State{ServedBy: "x"}
	if got := clone.status(map[string]*State{"x": {Server: self()}}, true); got != Serving {
		t.Errorf("a clone of a served mount is %q", got)
	}
}

// What a kernel mount that failed has noted must not keep layers from eviction
// while FUSE serves them, nor send who asks for statistics to another server.
func TestClearKernel(t *testing.T) {
	root := t.TempDir()
	s := record(t, root, "a-1")
	s.Server, s.Layers[0].Direct, s.ServedBy = self(), true, "x"
	s.clearKernel()
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	if held, err := Held(root); err != nil || len(held) != 0 {
		t.Errorf("held: %v, %v", held, err)
	}
	if s.ServedBy != "" {
		t.Errorf("served by %q", s.ServedBy)
	}
}

func TestProcess(t *testing.T) {
	if !self().Alive() {
		t.Error("this process is not alive")
	}
	if (Process{}).Alive() {
		t.Error("no process is alive")
	}
	p := self()
	p.Start = "1"
	if p.Alive() {
		t.Error("another process with our id passes for us")
	}
	c := exec.Command("true")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	child := processOf(c.Process.Pid)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if child.Alive() {
		t.Error("a process that was waited for is alive")
	}
}

func TestReceive(t *testing.T) {
	type step struct {
		i           int
		done, total int64
	}
	var steps []step
	p := progressFunc(func(i int, _ string, done, total int64) { steps = append(steps, step{i, done, total}) })
	s, err := receive(strings.NewReader(`{"layer":1,"done":5,"total":10}
{"done":10,"total":10}
{"ready":{"name":"n"}}
`), p)
	if err != nil || s.Name != "n" {
		t.Fatalf("receive = %+v, %v", s, err)
	}
	if len(steps) != 2 || steps[0] != (step{1, 5, 10}) || steps[1] != (step{0, 10, 10}) {
		t.Errorf("progress %v", steps)
	}
	if _, err := receive(strings.NewReader(`{"error":"no such image"}`), nil); err == nil || err.Error() != "no such image" {
		t.Errorf("an error arrived as %v", err)
	}
	for _, cut := range []string{"", `{"layer":1}`, `{"ready":{"na`} {
		if _, err := receive(strings.NewReader(cut), nil); !errors.Is(err, errServerGone) {
			t.Errorf("after %q: %v, want errServerGone", cut, err)
		}
	}
}

type progressFunc func(i int, digest string, done, total int64)

func (f progressFunc) Layer(i int, digest string, done, total int64) { f(i, digest, done, total) }

func TestNewName(t *testing.T) {
	for in, want := range map[string]string{
		"/mnt/nginx": "nginx-", "/mnt/a b": "a_b-", "/": "_-", "/mnt/.hidden": "hidden-",
		"/mnt/" + strings.Repeat("x", 255): strings.Repeat("x", 40) + "-",
	} {
		if got := newName(in); !strings.HasPrefix(got, want) || len(got) != len(want)+8 {
			t.Errorf("newName(%q) = %q, want %s and 8 digits", in, got, want)
		}
	}
}

func TestResolveDir(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	real := filepath.Join(dir, "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{real, link, real + "/", dir + "/./real"} {
		if got, err := ResolveDir(in); err != nil || got != real {
			t.Errorf("ResolveDir(%q) = %q, %v, want %q", in, got, err, real)
		}
	}
	if _, err := ResolveDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}
