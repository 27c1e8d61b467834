package fetch_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/cli/cli/config"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/laminafs/lamina/fetch"
)

// TestLogin: a registry that wants a password by basic authentication, and one that
// wants a token that another server gives for it.
func TestLogin(t *testing.T) {
	var tokens *httptest.Server
	right := func(r *http.Request) bool {
		user, password, ok := r.BasicAuth()
		return ok && user == "me" && password == "right"
	}
	tokens = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !right(r) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(`{"token":"good"}`))
	}))
	defer tokens.Close()
	for kind, h := range map[string]http.HandlerFunc{
		"basic": func(w http.ResponseWriter, r *http.Request) {
			if !right(r) {
				w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
		},
		"token": func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer good" {
				w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`",service="here"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
		},
	} {
		t.Run(kind, func(t *testing.T) {
			s := httptest.NewServer(h)
			defer s.Close()
			host := strings.TrimPrefix(s.URL, "http://")
			for password, want := range map[string]error{"right": nil, "wrong": fetch.ErrDenied} {
				c := fetch.New(fetch.Options{HostsDirs: []string{}, Keychain: fetch.Credentials("me", password)})
				err := c.Login(t.Context(), host)
				if !errors.Is(err, want) || err != nil && strings.Contains(err.Error(), password) {
					t.Errorf("%s: %v", password, err)
				}
				c.Close()
			}
		})
	}
}

// dockerConfig makes dir the place of docker's configuration.
func dockerConfig(t *testing.T, dir string) {
	t.Helper()
	before := config.Dir()
	config.SetDir(dir)
	t.Cleanup(func() { config.SetDir(before) })
	t.Setenv("DOCKER_CONFIG", dir)
}

func TestSaveCredentials(t *testing.T) {
	dir := t.TempDir()
	dockerConfig(t, dir)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"detachKeys":"ctrl-x"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, domain := range []string{"docker.io", "host.example:5000"} {
		if err := fetch.RemoveCredentials(domain); !errors.Is(err, fetch.ErrNoCredentials) {
			t.Errorf("%s: %v", domain, err)
		}
		where, err := fetch.SaveCredentials(domain, "me", "secret")
		if err != nil || where != filepath.Join(dir, "config.json") {
			t.Fatalf("%s: %s, %v", domain, where, err)
		}
		registry, err := name.NewRegistry(domain)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := fetch.Keychain().Resolve(registry)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := auth.Authorization(); err != nil || got.Username != "me" || got.Password != "secret" {
			t.Errorf("%s: %+v, %v", domain, got, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil || !strings.Contains(string(b), "ctrl-x") || strings.Contains(string(b), "secret") {
		t.Errorf("%s, %v", b, err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "config.json")); err != nil || fi.Mode().Perm()&0o077 != 0 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if err := fetch.RemoveCredentials("docker.io"); err != nil {
		t.Error(err)
	}
	if err := fetch.RemoveCredentials("docker.io"); !errors.Is(err, fetch.ErrNoCredentials) {
		t.Errorf("removed twice: %v", err)
	}
}

// TestSaveByHelper: where docker's configuration names a helper, it is asked, and
// nothing is written to the file.
func TestSaveByHelper(t *testing.T) {
	dir := t.TempDir()
	helper := "#!/bin/sh\ncase $1 in\nstore) cat > \"" + dir + "/kept\";;\n" +
		"get) if [ -f \"" + dir + "/kept\" ]; then cat \"" + dir + "/kept\"; else echo credentials not found in native keychain; exit 1; fi;;\n" +
		"erase) rm \"" + dir + "/kept\";;\nlist) echo '{}';;\nesac\n"
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "docker-credential-box"), []byte(helper), 0o755),
		os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credHelpers":{"host.example:5000":"box"}}`), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	dockerConfig(t, dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	where, err := fetch.SaveCredentials("host.example:5000", "me", "secret")
	if err != nil || where != "docker-credential-box" {
		t.Fatalf("%s, %v", where, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "kept")); err != nil || !strings.Contains(string(b), `"Secret":"secret"`) {
		t.Errorf("%s, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "config.json")); err != nil || strings.Contains(string(b), "auth\"") {
		t.Errorf("%s, %v", b, err)
	}
	if err := fetch.RemoveCredentials("host.example:5000"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kept")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}
