package fetch

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Credentials are sent unasked only to a host that has proved who it is, or that
// is this machine.
func TestAnybodyMayListen(t *testing.T) {
	for _, c := range []struct {
		domain, text string
		o            Options
		want         bool
	}{
		{"up.example", "", Options{}, false},
		{"up.example", "", Options{PlainHTTP: true}, true},
		{"up.example", "", Options{Insecure: true}, true},
		{"up.example", "server = \"https://up.example\"\n", Options{}, false},
		{"up.example", "server = \"http://up.example\"\n", Options{}, true},
		{"up.example", "server = \"https://up.example\"\nskip_verify = true\n", Options{}, true},
		{"up.example", "server = \"https://up.example\"\nskip_verify = false\n", Options{Insecure: true}, false},
		// TLS, and plain HTTP where that fails.
		{"up.example", "server = \"http://up.example:5000\"\nskip_verify = false\n", Options{}, true},
		{"localhost:5000", "", Options{}, false},
		{"localhost:5000", "server = \"https://localhost:5000\"\nskip_verify = true\n", Options{}, false},
	} {
		root := t.TempDir()
		if c.text != "" {
			if err := os.Mkdir(filepath.Join(root, c.domain), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, c.domain, "hosts.toml"), []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.o.HostsDirs = []string{root}
		client := New(c.o)
		r, err := client.registry(c.domain)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s %q, plain HTTP %v, insecure %v", c.domain, c.text, c.o.PlainHTTP, c.o.Insecure)
		if got := r.server().anybodyMayListen(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if look := r.server().session(client, "x").foresee(); (look == nil) != (c.want || c.o.Insecure) {
			t.Errorf("%s: credentials are looked up: %v", name, look != nil)
		}
		client.Close()
	}
}
