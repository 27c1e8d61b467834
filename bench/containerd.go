package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/registry"
)

// containerdFirst measures containerd with its overlayfs snapshotter: from the
// start of the pull to the program's first line, caches dropped. The daemon runs
// already, as it does on machines that have one.
func (b *bench) containerdFirst(ctx context.Context, p *faultproxy.Proxy, prog program, ref string) (m firstMount, err error) {
	ctr, end, err := b.startContainerd(ctx)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, end()) }()
	hosts, err := b.hostsDir(p.Host())
	if err != nil {
		return m, err
	}
	root, err := b.newDir("ctr")
	if err != nil {
		return m, err
	}
	if err := dropCaches(); err != nil {
		return m, err
	}
	p.Reset()
	began := time.Now()
	if _, err := ctr("images", "pull", "--hosts-dir", hosts, "--user", registry.User+":"+registry.Password, ref); err != nil {
		return m, err
	}
	if _, err := ctr("images", "mount", ref, root); err != nil {
		return m, err
	}
	err = prog.start(ctx, root)
	m.took = time.Since(began)
	sum := faultproxy.Sum(p.Exchanges(), "/v2/")
	m.bytes, m.requests = sum.Bytes, sum.Requests
	_, uerr := ctr("images", "unmount", "--rm", root)
	return m, errors.Join(err, uerr)
}

// hostsDir makes a certs.d directory by which containerd reaches host: without it
// loopback is spoken to in plain HTTP.
func (b *bench) hostsDir(host string) (string, error) {
	dir, err := b.newDir("hosts")
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(dir, host), 0o755); err != nil {
		return "", err
	}
	text := fmt.Sprintf("server = %q\nca = %q\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n",
		"https://"+host, b.auth.CA(), "https://"+host, b.auth.CA())
	return dir, os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(text), 0o644)
}

// startContainerd starts a daemon of its own and returns how to speak to it.
func (b *bench) startContainerd(ctx context.Context) (ctr func(words ...string) (string, error), end func() error, err error) {
	dir, err := os.MkdirTemp("", "ctrd") // a socket's path is short
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(dir, "sock")
	conf := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, nil, err
	}
	daemon := exec.CommandContext(ctx, "containerd", "--config", conf)
	daemon.Cancel = func() error { return daemon.Process.Signal(unix.SIGTERM) }
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	end = func() error {
		_ = daemon.Process.Signal(unix.SIGTERM)
		_ = daemon.Wait()
		return os.RemoveAll(dir)
	}
	ctr = tool(ctx, "ctr", "--address", socket)
	for range 100 {
		if _, err = ctr("version"); err == nil {
			return ctr, end, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil, nil, errors.Join(err, end())
}
