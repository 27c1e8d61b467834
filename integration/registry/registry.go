package registry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
)

// User and Password open every Registry.
const (
	User     = "tester"
	Password = "correct horse"
)

// Registry is a running docker-registry. Its methods may be called from one
// goroutine at a time.
type Registry struct {
	authority *Authority
	dir       string
	storage   storage
	addr      string

	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{} // closed when the process has ended
}

// Start runs a registry that keeps its files in dir, which must lie on the file
// system of the layouts to be added. It returns when the registry answers.
func Start(ctx context.Context, dir string, a *Authority) (*Registry, error) {
	r := &Registry{authority: a, dir: dir, storage: storage{dir: filepath.Join(dir, "storage")}}
	if err := os.MkdirAll(r.storage.dir, 0o755); err != nil {
		return nil, err
	}
	// The password goes in by htpasswd's own program: what it writes is what
	// registries are set up with.
	out, err := exec.CommandContext(ctx, "htpasswd", "-Bbn", User, Password).Output()
	if err != nil {
		return nil, fmt.Errorf("htpasswd: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "htpasswd"), bytes.TrimSpace(out), 0o600); err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.addr = ln.Addr().String()
	if err := ln.Close(); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %q, maxthreads: 100}
  delete: {enabled: true}
http:
  addr: %s
  secret: lamina
  tls: {certificate: %q, key: %q}
auth:
  htpasswd: {realm: lamina, path: %q}
`, r.storage.dir, r.addr, a.cert(), a.key(), filepath.Join(dir, "htpasswd"))
	if err := os.WriteFile(filepath.Join(dir, "config.yml"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	return r, r.Resume(ctx)
}

// Resume starts the registry again, at the same address, after Stop.
func (r *Registry) Resume(ctx context.Context) error {
	r.cmd = exec.Command("docker-registry", "serve", filepath.Join(r.dir, "config.yml"))
	r.log.Reset()
	r.cmd.Stdout, r.cmd.Stderr = &r.log, &r.log
	// A test that times out cleans nothing up.
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("start docker-registry: %w", err)
	}
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		_ = r.cmd.Wait() // it is killed in the end: always an error
	}()
	if err := r.ready(ctx); err != nil {
		return errors.Join(err, r.Stop())
	}
	return nil
}

// ready waits until the registry answers.
func (r *Registry) ready(ctx context.Context) error {
	c := &http.Client{Transport: r.transport(), Timeout: time.Second}
	for end := time.Now().Add(20 * time.Second); ; {
		resp, err := c.Get("https://" + r.addr + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusUnauthorized {
				return nil
			}
			err = fmt.Errorf("status %s", resp.Status)
		}
		select {
		case <-r.done:
			return fmt.Errorf("docker-registry ended: %s", r.log.String())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("docker-registry does not answer: %w", err)
		}
	}
}

func (r *Registry) transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig: r.authority.Client(), DisableCompression: true, MaxIdleConnsPerHost: 64,
	}
}

// Stop kills the registry and waits for its end.
func (r *Registry) Stop() error {
	err := r.cmd.Process.Kill()
	<-r.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Host returns the registry's host:port.
func (r *Registry) Host() string { return r.addr }

// AddLayout publishes every tagged image of an OCI layout; where says the
// repository and tag of each. An empty repository leaves the image out.
func (r *Registry) AddLayout(layout string, where func(tag string) (repo, version string)) error {
	tags, err := images.Tagged(layout)
	if err != nil {
		return err
	}
	s := r.storage
	s.layout = layout
	for tag, desc := range tags {
		if repo, version := where(tag); repo != "" {
			if err := s.add(repo, version, desc); err != nil {
				return err
			}
		}
	}
	return nil
}

// SetTags publishes a Set's images: "nginx-zstd" as lamina/nginx:zstd.
func SetTags(tag string) (repo, version string) {
	name, format, _ := strings.Cut(tag, "-")
	return "lamina/" + name, format
}

// Proxy starts a proxy in front of the registry, under the same authority.
func (r *Registry) Proxy(cfg faultproxy.Config) (*faultproxy.Proxy, error) {
	cfg.Upstream = &url.URL{Scheme: "https", Host: r.addr}
	cfg.Transport = r.transport()
	cfg.Certificate = r.authority.Certificate()
	return faultproxy.Start(cfg)
}

// Access writes what clients need to reach the registry, or a proxy in front of
// it, as host: a certs.d directory with the authority, and an auth file that
// docker, podman and skopeo read. It returns their paths, below dir.
func Access(dir string, a *Authority, password string, hosts ...string) (certsD, dockerConfig string, err error) {
	certsD, dockerConfig = filepath.Join(dir, "certs.d"), filepath.Join(dir, "docker")
	auths := map[string]map[string]string{}
	ca, err := os.ReadFile(a.CA())
	if err != nil {
		return "", "", err
	}
	for _, h := range hosts {
		d := filepath.Join(certsD, h)
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", "", err
		}
		toml := fmt.Sprintf("server = \"https://%s\"\n\n[host.\"https://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"ca.crt\"\n", h, h)
		if err := errors.Join(
			os.WriteFile(filepath.Join(d, "hosts.toml"), []byte(toml), 0o644),
			os.WriteFile(filepath.Join(d, "ca.crt"), ca, 0o644),
		); err != nil {
			return "", "", err
		}
		auths[h] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(User + ":" + password))}
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(dockerConfig, 0o700); err != nil {
		return "", "", err
	}
	return certsD, dockerConfig, os.WriteFile(filepath.Join(dockerConfig, "config.json"), b, 0o600)
}
