package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"time"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/registry"
)

// keep measures what people do around a mount: a look at one file, a first mount
// by a published index, and pulls.
func (b *bench) keep(ctx context.Context) error {
	p, err := b.slow()
	if err != nil {
		return err
	}
	if err := b.look(ctx, p); err != nil {
		return err
	}
	if err := b.indexes(ctx, p); err != nil {
		return err
	}
	return b.pulls(ctx)
}

// look compares `lamina cat` of a small file with a copy of the image and tar.
func (b *bench) look(ctx context.Context, p *faultproxy.Proxy) error {
	const file = "etc/os-release"
	ref := p.Host() + "/lamina/python:" + string(images.EStargz)
	rows := [][]string{{"one small file of the python image, eStargz", "ms", "requests", "MB"}}
	for _, w := range []struct {
		name string
		do   func(dir string, s *lamina.Store) error
	}{
		{"lamina cat", func(_ string, s *lamina.Store) error {
			_, err := s.Run("cat", "-q", ref, "/"+file)
			return err
		}},
		{"skopeo copy, tar x", func(dir string, _ *lamina.Store) error {
			if err := b.skopeo(ctx, ref, "dir:"+dir); err != nil {
				return err
			}
			// The lowest layer has it.
			m, err := images.Manifest(b.set.LayoutDir(), images.Tag("python", images.EStargz))
			if err != nil {
				return err
			}
			return command(ctx, "tar", "xzOf", filepath.Join(dir, m.Layers[0].Digest.Encoded()), "usr/lib/os-release")
		}},
	} {
		var runs []firstMount
		for range b.runs {
			s, err := b.newStore(p.Host())
			if err != nil {
				return err
			}
			dir, err := b.newDir("look")
			if err != nil {
				return err
			}
			if err := dropCaches(); err != nil {
				return err
			}
			p.Reset()
			began := time.Now()
			if err := w.do(dir, s); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			took := time.Since(began)
			sum := faultproxy.Sum(p.Exchanges(), "/v2/")
			runs = append(runs, firstMount{took: took, bytes: sum.Bytes, requests: sum.Requests})
		}
		m := medianRun(runs)
		rows = append(rows, []string{w.name, ms(m.took), fmt.Sprint(m.requests), mb(m.bytes)})
	}
	b.printf("\n### A look at one file, at 20 ms and 200 Mbit/s\n\n%s", markdown(rows))
	return nil
}

// indexes compares first mounts of the unmodified image with and without a
// published index.
func (b *bench) indexes(ctx context.Context, p *faultproxy.Proxy) error {
	err := b.reg.AddLayout(b.set.LayoutDir(), func(tag string) (repo, version string) {
		repo, version = registry.SetTags(tag)
		return "indexed/" + path.Base(repo), version
	})
	if err != nil {
		return err
	}
	sizes := [][]string{{"image", "MB", "index, MB", "share"}}
	for _, n := range images.Names() {
		s, err := b.newStore(b.reg.Host())
		if err != nil {
			return err
		}
		out, err := s.Command("index", "-q", "--push", "--json", b.reg.Host()+"/indexed/"+n+":"+string(images.Gzip)).Output()
		if err != nil {
			return fmt.Errorf("index %s: %w", n, err)
		}
		var made struct {
			Layers []struct{ Size, Packed int64 }
		}
		if err := json.Unmarshal(out, &made); err != nil {
			return fmt.Errorf("index %s: %w", n, err)
		}
		var size, packed int64
		for _, l := range made.Layers {
			size += l.Size
			packed += l.Packed
		}
		sizes = append(sizes, []string{n, mb(size), mb(packed), fmt.Sprintf("%.2f%%", 100*float64(packed)/float64(size))})
	}
	prog := programs()[1]
	size, err := imageSize(b.set.LayoutDir(), images.Tag(prog.image, images.Gzip))
	if err != nil {
		return err
	}
	rows := [][]string{{"python, first line", "ms", "MB", "of the gzip image"}}
	for _, w := range []struct {
		name, repo string
		f          images.Format
	}{
		{"gzip with a published index", "indexed", images.Gzip}, {"gzip, streamed", "lamina", images.Gzip}, {"eStargz", "lamina", images.EStargz},
	} {
		var runs []firstMount
		for range b.runs {
			m, err := b.firstMountOf(ctx, p, prog, p.Host()+"/"+w.repo+"/"+prog.image+":"+string(w.f), "kernel")
			if err != nil {
				return err
			}
			runs = append(runs, m)
		}
		m := medianRun(runs)
		rows = append(rows, []string{w.name, ms(m.took), mb(m.bytes), fmt.Sprintf("%.0f%%", 100*float64(m.bytes)/float64(size))})
	}
	var runs []firstMount
	for range b.runs {
		m, err := b.containerdFirst(ctx, p, prog, p.Host()+"/lamina/"+prog.image+":"+string(images.Gzip))
		if err != nil {
			return fmt.Errorf("containerd: %w", err)
		}
		runs = append(runs, m)
	}
	m := medianRun(runs)
	rows = append(rows, []string{"gzip, containerd's overlayfs", ms(m.took), mb(m.bytes), fmt.Sprintf("%.0f%%", 100*float64(m.bytes)/float64(size))})
	b.printf("\n### Published indexes of gzip images\n\n%s\n%s", markdown(sizes), markdown(rows))
	return nil
}

// pulls compares full local copies of all test images, from the registry itself.
func (b *bench) pulls(ctx context.Context) error {
	ref := func(n string) string { return b.reg.Host() + "/lamina/" + n + ":" + string(images.Gzip) }
	var g grid
	for range b.runs {
		for _, w := range []struct {
			name string
			do   func(dir string, s *lamina.Store) error
		}{
			{"lamina pull", func(_ string, s *lamina.Store) error {
				for _, n := range images.Names() {
					if _, err := s.Run("pull", "-q", ref(n)); err != nil {
						return err
					}
				}
				return nil
			}},
			{"skopeo copy", func(dir string, _ *lamina.Store) error {
				for _, n := range images.Names() {
					if err := b.skopeo(ctx, ref(n), "oci:"+dir+":"+n); err != nil {
						return err
					}
				}
				return nil
			}},
			{"podman pull", func(dir string, _ *lamina.Store) (err error) {
				podman, done, err := b.podmanIn(ctx, dir)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, done()) }()
				for _, n := range images.Names() {
					if _, err := podman("pull", "-q", "--creds", registry.User+":"+registry.Password, ref(n)); err != nil {
						return err
					}
				}
				return nil
			}},
		} {
			s, err := b.newStore(b.reg.Host())
			if err != nil {
				return err
			}
			dir, err := b.newDir("pull")
			if err != nil {
				return err
			}
			if err := dropCaches(); err != nil {
				return err
			}
			began := time.Now()
			if err := w.do(dir, s); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			g.add("all test images, gzip", w.name, time.Since(began))
		}
	}
	b.printf("\n### Pulls from the registry itself\n\n%s", g.markdown("lamina pull"))
	return nil
}
