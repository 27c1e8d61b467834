//go:build integration

package integration_test

import (
	"path"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/registry"
)

// TestPublishedIndex: an index that one machine publishes lets another mount the
// unmodified image lazily, with every byte right in the end.
func TestPublishedIndex(t *testing.T) {
	const f = images.Gzip
	p := shared.proxy(t, faultproxy.Config{HTTP2: true})
	// In a repository of its own: other tests mount the image as it is.
	err := shared.registry.AddLayout(shared.set.LayoutDir(), func(tag string) (repo, version string) {
		repo, version = registry.SetTags(tag)
		return "indexed/" + path.Base(repo), version
	})
	if err != nil {
		t.Fatal(err)
	}
	name := p.Host() + "/indexed/python:" + string(f)
	one := newStore(t, p.Host())
	if out, err := newStore(t, p.Host()).Run("ls", "-q", "--index", "require", name, "/"); err == nil || !strings.Contains(err.Error(), "index --push") {
		t.Errorf("required and not there: %v\n%s", err, out)
	}
	var made struct {
		Artifact string
		Layers   []struct{ Size, Packed int64 }
	}
	one.parse(t, &made, "index", "-q", "--push", "--json", name)
	var size, packed int64
	for _, l := range made.Layers {
		size += l.Size
		packed += l.Packed
	}
	t.Logf("index of %d bytes for %d, %.2f%%", packed, size, 100*float64(packed)/float64(size))
	if packed*50 > size || made.Artifact == "" {
		t.Errorf("%+v: more than 2%%, or not published", made)
	}
	for _, e := range engines() {
		two := newStore(t, p.Host())
		p.Reset()
		began := time.Now()
		dir := two.mount(t, name, "--index", "require", "--engine", e)
		prog := programs()[2]
		if out, err := prog.command(dir).CombinedOutput(); err != nil || !strings.Contains(string(out), prog.want) {
			t.Errorf("%v: %v\n%s", prog.words, err, out)
		}
		got := faultproxy.Sum(p.Exchanges(), "/v2/").Bytes
		t.Logf("%s: first line after %v, %d bytes, %.1f%% of the image", e, time.Since(began), got, 100*float64(got)/float64(size))
		if got*5 > size*2 {
			t.Errorf("%d of %d bytes were fetched", got, size)
		}
		two.kill(t) // and the next mount finds the index in the store
		_, _ = two.Run("umount", "--lazy", dir)
		p.Reset()
		dir = two.mount(t, name, "--engine", e)
		for _, x := range p.Exchanges() {
			if strings.Contains(x.Path, "referrers") {
				t.Errorf("asked for referrers again")
			}
		}
		sameTree(t, shared.truth(t, "python"), dir, f)
	}
}

// TestUnseekable: no index is published for what it cannot help to read lazily.
func TestUnseekable(t *testing.T) {
	p := shared.proxy(t, faultproxy.Config{})
	s := newStore(t, p.Host())
	if _, err := s.Run("index", "-q", "--push", p.Host()+"/lamina/debian:zstd"); err == nil || !strings.Contains(err.Error(), "zstd:chunked") {
		t.Errorf("index of zstd in one frame: %v", err)
	}
}
