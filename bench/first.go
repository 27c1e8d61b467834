package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/registry"
)

// link is the way to the registry in these measurements.
func link() faultproxy.Link {
	return faultproxy.Link{RTT: 20 * time.Millisecond, BytesPerSecond: 200_000_000 / 8}
}

type program struct {
	image string
	words []string
	limit time.Duration // what the project promises for lazy formats
}

func programs() []program {
	return []program{
		{"nginx", []string{"nginx", "-v"}, 600 * time.Millisecond},
		{"python", []string{"python3", "-c", "import numpy; print(numpy.__version__)"}, 2 * time.Second},
		{"node", []string{"node", "-e", `console.log(require("typescript").version)`}, 2 * time.Second},
	}
}

// start runs the program from a tree until it has printed a line and ended.
func (p program) start(ctx context.Context, root string) error {
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, p.words...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "NODE_PATH=/usr/share/nodejs"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %w\n%s", p.words, err, out)
	}
	return nil
}

// slow starts a proxy with the slow link.
func (b *bench) slow() (*faultproxy.Proxy, error) {
	p, err := b.reg.Proxy(faultproxy.Config{Link: link(), HTTP2: true})
	if err == nil {
		b.later(p.Close)
	}
	return p, err
}

// firstMount is what one first mount and run cost.
type firstMount struct {
	took, mount, all time.Duration
	bytes            int64
	requests         int
}

// medianRun returns the run that took the median time.
func medianRun(runs []firstMount) firstMount {
	sorted := slices.SortedFunc(slices.Values(runs), func(a, b firstMount) int { return cmp.Compare(a.took, b.took) })
	return sorted[len(sorted)/2]
}

// first measures mounts of images that were never seen, in lazy formats.
func (b *bench) first(ctx context.Context) error {
	p, err := b.slow()
	if err != nil {
		return err
	}
	rows := [][]string{{"image, format, engine", "mount, ms", "first line, ms", "promised, ms", "fetched, MB", "needed, MB", "ratio", "requests", "then tar c, s", "x image/bandwidth"}}
	for _, prog := range programs() {
		pages, err := b.touches(ctx, b.set.Tree(prog.image), func(root string) error { return prog.start(ctx, root) })
		if err != nil {
			return err
		}
		for _, f := range []images.Format{images.EStargz, images.Podman} {
			need, err := needed(b.set.LayoutDir(), images.Tag(prog.image, f), f, pages)
			if err != nil {
				return err
			}
			size, err := imageSize(b.set.LayoutDir(), images.Tag(prog.image, f))
			if err != nil {
				return err
			}
			for _, e := range []string{"kernel", "fuse"} {
				var runs []firstMount
				for range b.runs {
					m, err := b.firstMount(ctx, p, prog, f, e)
					if err != nil {
						return err
					}
					runs = append(runs, m)
				}
				m := medianRun(runs)
				ideal := time.Duration(float64(size) / float64(link().BytesPerSecond) * float64(time.Second))
				rows = append(rows, []string{
					fmt.Sprintf("%s, %s, %s", prog.image, f, e), ms(m.mount), ms(m.took), ms(prog.limit),
					mb(m.bytes), mb(need), fmt.Sprintf("%.2f", float64(m.bytes)/float64(need)),
					fmt.Sprint(m.requests), fmt.Sprintf("%.1f", m.all.Seconds()), fmt.Sprintf("%.2f", float64(m.all)/float64(ideal)),
				})
			}
		}
	}
	b.printf("\n### First mount of lazy formats at 20 ms and 200 Mbit/s\n\n"+
		"From the start of `mount` to the program's end. Needed: the compressed chunks of the pages it read, with the tables of contents (2.00 promised).\n\n%s", markdown(rows))
	return b.roundTrips(ctx, p)
}

func mb(n int64) string { return fmt.Sprintf("%.1f", float64(n)/1e6) }

func (b *bench) firstMount(ctx context.Context, p *faultproxy.Proxy, prog program, f images.Format, engine string) (firstMount, error) {
	return b.firstMountOf(ctx, p, prog, p.Host()+"/lamina/"+prog.image+":"+string(f), engine)
}

// firstMountOf mounts ref in an empty store and runs the program.
func (b *bench) firstMountOf(ctx context.Context, p *faultproxy.Proxy, prog program, ref, engine string) (m firstMount, err error) {
	s, err := b.newStore(p.Host())
	if err != nil {
		return m, err
	}
	dir, err := b.newDir("mnt")
	if err != nil {
		return m, err
	}
	if err := dropCaches(); err != nil {
		return m, err
	}
	p.Reset()
	began := time.Now()
	if err := s.Mount(dir, ref, "--engine", engine); err != nil {
		return m, err
	}
	m.mount = time.Since(began)
	if err := prog.start(ctx, dir); err != nil {
		return m, err
	}
	m.took = time.Since(began)
	sum := faultproxy.Sum(p.Exchanges(), "/v2/")
	m.bytes, m.requests = sum.Bytes, sum.Requests
	began = time.Now()
	if err := tarAll(ctx, dir); err != nil {
		return m, err
	}
	m.all = time.Since(began)
	if _, err := s.Run("umount", dir); err != nil {
		return m, err
	}
	return m, os.RemoveAll(s.Root)
}

// roundTrips counts those of a first `cat /etc/os-release` after the manifest.
func (b *bench) roundTrips(ctx context.Context, p *faultproxy.Proxy) error {
	rows := [][]string{{"format, engine", "round trips after the manifest (5 promised)", "requests", "ms"}}
	for _, f := range []images.Format{images.EStargz, images.Podman} {
		for _, e := range []string{"kernel", "fuse"} {
			s, err := b.newStore(p.Host())
			if err != nil {
				return err
			}
			dir, err := b.newDir("mnt")
			if err != nil {
				return err
			}
			p.Reset()
			began := time.Now()
			if err := s.Mount(dir, p.Host()+"/lamina/nginx:"+string(f), "--engine", e); err != nil {
				return err
			}
			if err := command(ctx, "cat", filepath.Join(dir, "etc/os-release")); err != nil {
				return err
			}
			took := time.Since(began)
			after := afterManifest(p.Exchanges())
			rows = append(rows, []string{
				fmt.Sprintf("%s, %s", f, e), fmt.Sprint(faultproxy.RoundTrips(after)), fmt.Sprint(len(after)), ms(took),
			})
			if _, err := s.Run("umount", dir); err != nil {
				return err
			}
		}
	}
	b.printf("\n### First `cat /etc/os-release` (nginx image)\n\n%s", markdown(rows))
	return nil
}

// afterManifest returns the exchanges begun after the manifest was there.
func afterManifest(all []faultproxy.Exchange) (after []faultproxy.Exchange) {
	var have time.Time
	for _, e := range all {
		if strings.Contains(e.Path, "/manifests/") && e.Method == "GET" && e.Status == 200 {
			have = e.End
		}
	}
	for _, e := range all {
		// The client begins half a round trip before the proxy hears of it: allow
		// for the proxy's own reckoning.
		if !e.Start.Before(have.Add(-time.Millisecond)) {
			after = append(after, e)
		}
	}
	return after
}

// plain measures the first mount of a gzip image beside what people do today.
func (b *bench) plain(ctx context.Context) error {
	p, err := b.slow()
	if err != nil {
		return err
	}
	prog := programs()[1]
	size, err := imageSize(b.set.LayoutDir(), images.Tag(prog.image, images.Gzip))
	if err != nil {
		return err
	}
	ref := p.Host() + "/lamina/" + prog.image + ":" + string(images.Gzip)
	ways := []struct {
		name string
		do   func(dir string, s *lamina.Store) (undo func() error, root string, err error)
	}{
		{"lamina", func(dir string, s *lamina.Store) (func() error, string, error) {
			return func() error { _, err := s.Run("umount", dir); return err }, dir, s.Mount(dir, ref)
		}},
		{"podman pull + image mount", func(dir string, _ *lamina.Store) (func() error, string, error) {
			return b.podman(ctx, dir, ref)
		}},
		{"skopeo copy + umoci unpack", func(dir string, _ *lamina.Store) (func() error, string, error) {
			return func() error { return nil }, filepath.Join(dir, "bundle", "rootfs"), b.umoci(ctx, dir, ref)
		}},
	}
	var g grid
	for range b.runs {
		for _, w := range ways {
			s, err := b.newStore(p.Host())
			if err != nil {
				return err
			}
			dir, err := b.newDir("plain")
			if err != nil {
				return err
			}
			if err := dropCaches(); err != nil {
				return err
			}
			began := time.Now()
			undo, root, err := w.do(dir, s)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			err = prog.start(ctx, root)
			took := time.Since(began)
			if err := errors.Join(err, undo()); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			g.add("first line", w.name, took)
		}
	}
	ideal := time.Duration(float64(size) / float64(link().BytesPerSecond) * float64(time.Second))
	own := g.cells[[2]string{"first line", "lamina"}].median()
	b.printf("\n### First mount of a plain gzip image (python, %s MB) at 20 ms and 200 Mbit/s\n\n%s\nimage / bandwidth is %s ms; lamina takes %.2f of it (1.20 promised).\n",
		mb(size), g.markdown("lamina"), ms(ideal), float64(own)/float64(ideal))
	return b.warm(ctx, p, ref)
}

// warm measures mounts of what is cached.
func (b *bench) warm(_ context.Context, p *faultproxy.Proxy, ref string) error {
	s, err := b.newStore(p.Host())
	if err != nil {
		return err
	}
	took, err := b.warmMounts(s, ref)
	if err != nil {
		return err
	}
	b.printf("\nSecond mount, all cached: %s ms by the kernel engine, %s ms by the fuse engine (30 promised).\n",
		ms(took["kernel"]), ms(took["fuse"]))
	return nil
}

// warmMounts returns the median wall time of `lamina mount`, once all is cached
// and nothing mounted.
func (b *bench) warmMounts(s *lamina.Store, ref string) (map[string]time.Duration, error) {
	dir, err := b.newDir("warm")
	if err != nil {
		return nil, err
	}
	took := map[string]time.Duration{}
	for _, e := range []string{"kernel", "fuse"} {
		var all samples
		for i := range 11 {
			began := time.Now()
			if err := s.Mount(dir, ref, "--engine", e); err != nil {
				return nil, err
			}
			if i > 0 { // the first one may have to fetch
				all = append(all, time.Since(began))
			}
			if _, err := s.Run("umount", dir); err != nil {
				return nil, err
			}
		}
		took[e] = all.median()
	}
	return took, nil
}

// podmanIn returns a podman with a store of its own in dir, and what ends it.
func (b *bench) podmanIn(ctx context.Context, dir string) (podman func(args ...string) (string, error), done func() error, err error) {
	// podman takes no long paths for its run directory.
	run, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, nil, err
	}
	podman = func(args ...string) (string, error) {
		global := []string{
			"--root", filepath.Join(dir, "root"), "--runroot", run, "--tmpdir", filepath.Join(run, "tmp"),
			"--storage-driver", "overlay",
		}
		cmd := exec.CommandContext(ctx, "podman", append(global, args...)...)
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+b.auth.CA())
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("podman %s: %w\n%s", args[0], err, stderr.String())
		}
		return strings.TrimSpace(string(out)), nil
	}
	return podman, func() error { return os.RemoveAll(run) }, nil
}

// podman pulls into a store of its own and mounts there.
func (b *bench) podman(ctx context.Context, dir, ref string) (undo func() error, root string, err error) {
	podman, done, err := b.podmanIn(ctx, dir)
	if err != nil {
		return nil, "", err
	}
	// Whoever gets an error gets no undo.
	defer func() {
		if err != nil {
			err = errors.Join(err, done())
		}
	}()
	if _, err := podman("pull", "-q", "--creds", registry.User+":"+registry.Password, ref); err != nil {
		return nil, "", err
	}
	if root, err = podman("image", "mount", ref); err != nil {
		return nil, "", err
	}
	return func() error {
		_, err := podman("image", "umount", "--all", "--force")
		return errors.Join(err, done())
	}, root, nil
}

// skopeo copies ref to where to names, such as oci:DIR:TAG.
func (b *bench) skopeo(ctx context.Context, ref, to string) error {
	cmd := exec.CommandContext(ctx, "skopeo", "copy", "--quiet", "--insecure-policy",
		"--src-creds", registry.User+":"+registry.Password, "docker://"+ref, to)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+b.auth.CA())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("skopeo: %w\n%s", err, out)
	}
	return nil
}

func (b *bench) umoci(ctx context.Context, dir, ref string) error {
	layout := filepath.Join(dir, "layout")
	if err := b.skopeo(ctx, ref, "oci:"+layout+":image"); err != nil {
		return err
	}
	return command(ctx, "umoci", "unpack", "--image", layout+":image", filepath.Join(dir, "bundle"))
}
