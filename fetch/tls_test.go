package fetch_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/laminafs/lamina/fetch"
)

// clientCertificate makes a certificate that signs itself, and its key, in PEM.
func clientCertificate(t *testing.T) (cert *x509.Certificate, certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}}, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// TestClientCertificate has a registry that wants one, as hosts.toml names it and
// as docker's folders have it.
func TestClientCertificate(t *testing.T) {
	p := randomBytes(1000)
	cert, certPEM, keyPEM := clientCertificate(t)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	for _, c := range []struct {
		name  string
		text  string // hosts.toml
		files map[string][]byte
		fails bool
	}{
		{name: "a pair", text: "client = [[\"my.cert\", \"my.key\"]]\n", files: map[string][]byte{"my.cert": certPEM, "my.key": keyPEM}},
		{name: "one file", text: "client = [\"my.pem\"]\n", files: map[string][]byte{"my.pem": append(certPEM, keyPEM...)}},
		{name: "docker's names", files: map[string][]byte{"client.cert": certPEM, "client.key": keyPEM}},
		{name: "none", text: "#\n", fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, func(h http.Handler) *httptest.Server {
				s := newUnstartedTLS(h)
				s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
				s.StartTLS()
				return s
			})
			f.put(p)
			root := t.TempDir()
			dir := filepath.Join(root, f.host())
			for name, b := range c.files {
				writeFile(t, filepath.Join(dir, name), b)
			}
			writeFile(t, filepath.Join(dir, "ca.crt"), f.certificate())
			if c.text != "" {
				writeFile(t, filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\nca = \"ca.crt\"\n%s", f.URL, c.text))
			}
			b := f.blob(t, newClient(t, fetch.Options{HostsDirs: []string{root}, Retries: 1}), p)
			if !c.fails {
				wantRange(t, b, p, 0, 1000)
			} else if _, err := readRange(t.Context(), b, 0, 1000); !errors.Is(err, fetch.ErrUnavailable) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestCredentialHelper has docker's config name a program that knows a password.
func TestCredentialHelper(t *testing.T) {
	p := randomBytes(1000)
	f := newFake(t, httptest.NewServer)
	f.put(p)
	f.allow = func(w http.ResponseWriter, r *http.Request) bool {
		if user, pw, _ := r.BasicAuth(); user == "me" && pw == "from helper" {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	dir := t.TempDir()
	const script = `#!/bin/sh
server=$(cat)
[ "$1 $server" = "get $HELPER_KNOWS" ] || {
	echo "credentials not found in native keychain"
	exit 1
}
echo "{\"ServerURL\":\"$server\",\"Username\":\"me\",\"Secret\":\"from helper\"}"
`
	writeFile(t, filepath.Join(dir, "docker-credential-fake"), []byte(script))
	if err := os.Chmod(filepath.Join(dir, "docker-credential-fake"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("HELPER_KNOWS", f.host())
	for name, config := range map[string]string{
		"of the registry": fmt.Sprintf(`{"credHelpers":{%q:"fake"}}`, f.host()),
		"of all":          `{"credsStore":"fake"}`,
	} {
		for _, place := range []string{"docker", "podman"} {
			docker, podman := config, "{}"
			if place == "podman" {
				docker, podman = "{}", config
			}
			writeFile(t, filepath.Join(dir, "config.json"), []byte(docker))
			writeFile(t, filepath.Join(dir, "auth.json"), []byte(podman))
			t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(dir, "auth.json"))
			got, err := readRange(t.Context(), f.blob(t, newClient(t, fetch.Options{Keychain: fetch.Keychain()}), p), 0, 1000)
			if err != nil || string(got) != string(p) {
				t.Errorf("%s, in %s's file: %d bytes, %v", name, place, len(got), err)
			}
		}
	}
	t.Setenv("HELPER_KNOWS", "another.example")
	if _, err := readRange(t.Context(), f.blob(t, newClient(t, fetch.Options{Keychain: fetch.Keychain()}), p), 0, 1000); !errors.Is(err, fetch.ErrDenied) {
		t.Errorf("a helper that does not know: %v", err)
	}
}
