//go:build integration

package integration_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/registry"
	"github.com/laminafs/lamina/integration/tree"
)

// fixture is what all tests share: made by TestMain, read-only afterwards but
// for truths.
type fixture struct {
	program   lamina.Program
	dir       string // for files of this run; on the file system of the images
	set       *images.Set
	authority *registry.Authority
	registry  *registry.Registry

	layers map[string]bool // the digests of all layers

	mu     sync.Mutex // guards truths
	truths map[string]tree.Tree
}

var shared *fixture

func TestMain(m *testing.M) {
	f, err := newFixture()
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		os.Exit(1)
	}
	shared = f
	code := m.Run()
	if err := f.registry.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
	}
	_ = os.RemoveAll(f.dir)
	os.Exit(code)
}

func newFixture() (f *fixture, err error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("these tests mount and unmount: they need root")
	}
	ctx := context.Background()
	set, err := images.Build(ctx, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err != nil {
		return nil, err
	}
	f = &fixture{set: set, truths: map[string]tree.Tree{}}
	dir, err := os.MkdirTemp(images.CacheDir(), "run-")
	if err != nil {
		return nil, err
	}
	f.dir = dir
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if f.program, err = lamina.Build(f.dir); err != nil {
		return nil, err
	}
	ca := filepath.Join(f.dir, "ca")
	if err := os.Mkdir(ca, 0o700); err != nil {
		return nil, err
	}
	if f.authority, err = registry.NewAuthority(ca); err != nil {
		return nil, err
	}
	if f.registry, err = registry.Start(ctx, filepath.Join(f.dir, "registry"), f.authority); err != nil {
		return nil, err
	}
	tags, err := images.Tagged(set.LayoutDir())
	if err != nil {
		return nil, err
	}
	f.layers = map[string]bool{}
	for tag := range tags {
		m, err := images.Manifest(set.LayoutDir(), tag)
		if err != nil {
			return nil, err
		}
		for _, l := range m.Layers {
			f.layers[l.Digest.String()] = true
		}
	}
	return f, f.registry.AddLayout(set.LayoutDir(), registry.SetTags)
}

// truth returns the image as umoci unpacks it.
func (f *fixture) truth(t testing.TB, name string) tree.Tree {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.truths[name] == nil {
		got, err := tree.Read(f.set.Tree(name))
		if err != nil {
			t.Fatal(err)
		}
		f.truths[name] = got
	}
	return f.truths[name]
}

// proxy starts a proxy in front of the registry for one test.
func (f *fixture) proxy(t testing.TB, cfg faultproxy.Config) *faultproxy.Proxy {
	t.Helper()
	p, err := f.registry.Proxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// store is a user's machine for one test.
type store struct{ *lamina.Store }

// newStore makes an empty store whose user may reach the given hosts. At the
// test's end it must be possible to unmount everything, and no process may be
// left.
func newStore(t testing.TB, hosts ...string) store {
	t.Helper()
	dir, err := os.MkdirTemp(shared.dir, "store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return newStoreAt(t, filepath.Join(dir, "root"), registry.Password, hosts...)
}

func newStoreAt(t testing.TB, root, password string, hosts ...string) store {
	t.Helper()
	s, err := shared.program.NewStore(root, t.TempDir(), shared.authority, password, hosts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return store{s}
}

// mount mounts an image for one test and returns the mountpoint.
func (s store) mount(t testing.TB, image string, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := s.Mount(dir, image, options...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if lamina.Mounted(dir) {
			s.umount(t, dir)
		}
	})
	return dir
}

func (s store) umount(t testing.TB, dir string) {
	t.Helper()
	if _, err := s.Run("umount", dir); err != nil {
		t.Error(err)
	}
	if lamina.Mounted(dir) {
		t.Errorf("%s is still mounted", dir)
	}
}

// at returns the mount at dir.
func (s store) at(t testing.TB, dir string) lamina.Mount {
	t.Helper()
	m, err := s.At(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// kill kills all processes of the store.
func (s store) kill(t testing.TB) {
	t.Helper()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
}

// wholeSeconds reports whether a format keeps times by the second only.
func wholeSeconds(f images.Format) bool {
	return f == images.EStargz || f == images.Stargz || f == images.Mixed
}

// sameTree compares what is mounted at dir, an image in a format, with the truth.
func sameTree(t testing.TB, want tree.Tree, dir string, f images.Format) {
	t.Helper()
	got, err := tree.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	report(t, tree.Diff(want, got, tree.Options{Rounded: wholeSeconds(f)}))
}

// chunks keeps the requests for layers but leaves out, for each, the first one if
// it was for the end: that fetched a table of contents of unknown size, and some
// data before it.
func chunks(all []faultproxy.Exchange) (kept []faultproxy.Exchange) {
	seen := map[string]bool{}
	for _, e := range all {
		if !shared.layers[path.Base(e.Path)] {
			continue
		}
		if !seen[e.Path] && e.Offset > 0 {
			seen[e.Path] = true
			continue
		}
		seen[e.Path] = true
		kept = append(kept, e)
	}
	return kept
}

func report(t testing.TB, lines []string) {
	t.Helper()
	if len(lines) == 0 {
		return
	}
	shown := lines[:min(len(lines), 20)]
	t.Errorf("%d entries differ:\n%s", len(lines), strings.Join(shown, "\n"))
}

// engines are the two that must show the same.
func engines() []string { return []string{"fuse", "kernel"} }
