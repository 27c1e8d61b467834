//go:build integration

package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/registry"
	"github.com/laminafs/lamina/integration/tree"
)

// TestFixture shows, without lamina, that what the other tests stand on holds:
// skopeo gets an image through the proxy, and what umoci makes of it is the
// truth; with a wrong password it gets nothing.
func TestFixture(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{})
	layout := filepath.Join(t.TempDir(), "layout")
	pull := func(password string) ([]byte, error) {
		cmd := exec.Command("skopeo", "copy", "--quiet", "--insecure-policy",
			"--src-creds", registry.User+":"+password,
			"docker://"+p.Host()+"/lamina/nginx:gzip", "oci:"+layout+":nginx")
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+shared.authority.CA())
		return cmd.CombinedOutput()
	}
	if out, err := pull("wrong"); err == nil {
		t.Errorf("a wrong password was taken: %s", out)
	}
	if out, err := pull(registry.Password); err != nil {
		t.Fatalf("skopeo: %v\n%s", err, out)
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	if out, err := exec.Command("umoci", "unpack", "--image", layout+":nginx", bundle).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	got, err := tree.Read(filepath.Join(bundle, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	report(t, tree.Diff(shared.truth(t, "nginx"), got, tree.Options{}))
	if len(got) < 5000 {
		t.Errorf("only %d entries", len(got))
	}
	for _, prog := range programs() {
		if out, err := prog.command(shared.set.Tree(prog.image)).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", prog.words, err, out)
		}
	}
}
