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
	"github.com/laminafs/lamina/integration/registry"
	"github.com/laminafs/lamina/integration/tree"
)

// TestImportExport: what is exported and imported again is the same tree, in every layer
// format, and the same digest for the same tar.
func TestImportExport(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host())
	name := p.Host() + "/lamina/debian:gzip"
	dir := t.TempDir()
	tar := filepath.Join(dir, "tree.tar")
	s.run(t, "export", "-o", tar, name)
	out, err := s.Command("export", name).Output()
	if b, rerr := os.ReadFile(tar); err != nil || rerr != nil || string(b) != string(out) {
		t.Errorf("to a pipe it is another tar: %v, %v", err, rerr)
	}
	for _, format := range []string{"gzip", "zstd:chunked"} {
		var digests []string
		for _, again := range []string{"1", "2"} {
			cmd := s.Command("import", "--format", format, "-c", "CMD [\"/bin/bash\"]", "-m", "imported", tar, "again:"+again)
			cmd.Env = append(cmd.Env, "SOURCE_DATE_EPOCH=1700000000")
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			digests = append(digests, strings.TrimSpace(string(out)))
		}
		if digests[0] != digests[1] {
			t.Errorf("%s: %v", format, digests)
		}
		sameTree(t, shared.truth(t, "debian"), s.mount(t, "again:1"), images.Gzip)
		if got := s.run(t, "inspect", "--format", "{{json .Config.Cmd}}", "again:1"); strings.TrimSpace(got) != `["/bin/bash"]` {
			t.Errorf("command: %s", got)
		}
	}
	m := s.mount(t, name, "--rw", "--name", "w")
	if err := os.WriteFile(filepath.Join(m, "etc", "motd"), []byte("changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(m, "usr", "share", "doc")); err != nil {
		t.Fatal(err)
	}
	want := readUnion(t, m)
	s.run(t, "export", "-o", tar, "w")
	output(t, "gzip", "-1", tar)
	in, err := os.Open(tar + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	cmd := s.Command("import", "-", "changed:1")
	cmd.Stdin = in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	report(t, tree.Diff(want, readUnion(t, s.mount(t, "changed:1")), tree.Options{}))
	bad := filepath.Join(dir, "bad.tar")
	b, err := os.ReadFile(tar + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string][]byte{"cut": b[:len(b)/2], "empty": nil, "text": []byte(strings.Repeat("no tar ", 300))} {
		if err := os.WriteFile(bad, b, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := s.Command("import", bad, "bad:1").CombinedOutput()
		if err == nil || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}
	if list := s.run(t, "images"); strings.Contains(list, "bad") {
		t.Errorf("half an image is there:\n%s", list)
	}
}

// TestLoginLogout: the password is kept for lamina and others, a wrong one is not.
func TestLoginLogout(t *testing.T) {
	t.Parallel()
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t)
	docker := t.TempDir()
	command := func(stdin string, words ...string) *exec.Cmd {
		cmd := s.Command(words...)
		cmd.Env = append(cmd.Env, "DOCKER_CONFIG="+docker)
		cmd.Stdin = strings.NewReader(stdin)
		return cmd
	}
	name := p.Host() + "/lamina/debian:gzip"
	login := []string{"login", "-u", registry.User, "--password-stdin", p.Host()}
	if out, err := command("wrong\n", login...).CombinedOutput(); err == nil || strings.Contains(string(out), "wrong") {
		t.Errorf("a wrong password: %v: %s", err, out)
	}
	if out, err := command("", "inspect", name).CombinedOutput(); err == nil {
		t.Errorf("without a password: %s", out)
	}
	if out, err := command(registry.Password+"\n", login...).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := command("", "inspect", name).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	output(t, "skopeo", "inspect", "--tls-verify=false", "--authfile", filepath.Join(docker, "config.json"), "docker://"+name)
	if out, err := command("", "logout", p.Host()).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := command("", "inspect", "--pull", "always", name).CombinedOutput(); err == nil {
		t.Errorf("after logout: %s", out)
	}
	if out, err := command("", "logout", p.Host()).CombinedOutput(); err == nil {
		t.Errorf("logged out twice: %s", out)
	}
}
