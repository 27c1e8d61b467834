package store_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/store"
)

// layerOf makes a gzip layer of one file that does not compress.
func layerOf(t *testing.T, path string, size int) v1.Layer {
	t.Helper()
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", path)))).Read(data)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1e9, 0)}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve starts a registry with the images app/one:1 and app/two:1, which share
// their lower layer of some 100 kB, and returns its host.
func serve(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true)))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	base := layerOf(t, "base", 100_000)
	for _, n := range []string{"one", "two"} {
		img, err := mutate.AppendLayers(empty.Image, base, layerOf(t, n, 50_000))
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config.OS, config.Architecture = "linux", "amd64"
		config.Created = v1.Time{Time: time.Now().Add(-time.Hour)}
		if img, err = mutate.ConfigFile(img, config); err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(host + "/app/" + n + ":1")
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
	}
	return host
}

func open(t *testing.T, root string) *store.Store {
	t.Helper()
	s, err := store.New(store.Options{Root: root, HostsDirs: []string{t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func pull(t *testing.T, s *store.Store, ref string) store.Pulled {
	t.Helper()
	p, err := s.Pull(t.Context(), store.PullOptions{Name: ref, Platform: "linux/amd64", Policy: image.PullAlways}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p[0]
}

func nothing() store.Mounted { return store.Mounted{} }

// TestUsage: what two images share is stored once, and what it saves is said.
func TestUsage(t *testing.T) {
	host, s := serve(t), open(t, t.TempDir())
	one := pull(t, s, host+"/app/one:1")
	two := pull(t, s, host+"/app/two:1")
	base := one.Image.Layers[0].Desc
	if want := two.Image.Layers[1].Desc.Size; two.Fetched != want {
		t.Errorf("the second pull fetched %d bytes, want %d", two.Fetched, want)
	}
	u, err := s.Usage(t.Context(), store.Mounted{Images: map[digest.Digest]bool{one.Image.Digest: true}})
	if err != nil {
		t.Fatal(err)
	}
	if u.Saved != base.Size || u.Unused != 0 || len(u.Images) != 2 {
		t.Errorf("%+v, want %d saved", u, base.Size)
	}
	for _, im := range u.Images {
		if im.Shared != base.Size || im.Here != im.Size || im.Unique != im.Size-base.Size || im.Mounted != (im.Digest == one.Image.Digest) {
			t.Errorf("%+v", im)
		}
	}
}

// TestRemove: an image that is mounted stays, and of another goes what nobody
// shares.
func TestRemove(t *testing.T) {
	host, s := serve(t), open(t, t.TempDir())
	one, two := pull(t, s, host+"/app/one:1").Image, pull(t, s, host+"/app/two:1").Image
	m := store.Mounted{Images: map[digest.Digest]bool{one.Digest: true}, Blobs: map[digest.Digest]bool{one.Layers[1].Desc.Digest: true}}
	if _, err := s.Remove(t.Context(), one.Name, store.RemoveOptions{Mounted: m}); !errors.Is(err, store.ErrMounted) {
		t.Errorf("mounted: %v", err)
	}
	if _, err := s.Remove(t.Context(), one.Name, store.RemoveOptions{Mounted: m, Force: true}); err != nil {
		t.Error(err)
	}
	if !s.Images.HasBlob(one.Layers[1].Desc) {
		t.Error("a blob that a mount reads is gone")
	}
	if _, err := s.Remove(t.Context(), two.Name, store.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := s.Remove(t.Context(), two.Name, store.RemoveOptions{}); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("again: %v", err)
	}
}

// TestPrune: what is left by a look goes when its image goes, not before, and a
// dry run tells it.
func TestPrune(t *testing.T) {
	host, s := serve(t), open(t, t.TempDir())
	tree, err := s.Open(t.Context(), store.Ref{Name: host + "/app/one:1", Platform: "linux/amd64"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	prune := func(o store.PruneOptions) (kinds map[string]int) {
		t.Helper()
		removed, err := s.Prune(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		kinds = map[string]int{}
		for _, r := range removed {
			kinds[r.Kind]++
		}
		return kinds
	}
	if got := prune(store.PruneOptions{Mounted: nothing()}); len(got) != 0 {
		t.Errorf("removed of an image that is kept: %v", got)
	}
	if got := prune(store.PruneOptions{All: true, Until: time.Now().Add(-2 * time.Hour)}); got["image"] != 0 {
		t.Errorf("removed what is younger: %v", got)
	}
	if got := prune(store.PruneOptions{All: true, DryRun: true}); got["image"] != 1 || got["layer"] != 2 || got["chain"] != 1 {
		t.Errorf("a dry run would remove %v", got)
	}
	if got := prune(store.PruneOptions{All: true}); got["image"] != 1 || got["layer"] != 0 || got["chain"] != 0 {
		t.Errorf("removed while it is open: %v", got)
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if got := prune(store.PruneOptions{}); got["layer"] != 2 || got["chain"] != 1 {
		t.Errorf("removed at last: %v", got)
	}
	u, err := s.Usage(t.Context(), nothing())
	if err != nil || u.Disk != 0 {
		t.Errorf("left: %+v, %v", u, err)
	}
}

// TestCheck: a blob with wrong bytes is found and dropped.
func TestCheck(t *testing.T) {
	root := t.TempDir()
	host, s := serve(t), open(t, root)
	one := pull(t, s, host+"/app/one:1").Image
	if p, err := s.Check(t.Context(), false); err != nil || len(p) != 0 {
		t.Errorf("in order: %+v, %v", p, err)
	}
	d := one.Layers[0].Desc
	blob := filepath.Join("images", "blobs", "sha256", d.Digest.Encoded())
	if err := os.WriteFile(filepath.Join(root, blob), make([]byte, d.Size), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := s.Check(t.Context(), false); err != nil || len(p) != 1 || p[0].Object != blob || p[0].Repaired {
		t.Errorf("damaged: %+v, %v", p, err)
	}
	if p, err := s.Check(t.Context(), true); err != nil || len(p) != 1 || !p[0].Repaired {
		t.Errorf("repaired: %+v, %v", p, err)
	}
	if got := pull(t, s, one.Name).Fetched; got != d.Size {
		t.Errorf("%d bytes fetched again, want %d", got, d.Size)
	}
}

// TestIndexes: an image is mounted by the index that another store published.
func TestIndexes(t *testing.T) {
	host := serve(t)
	ref := store.Ref{Name: host + "/app/one:1", Platform: "linux/amd64", Index: store.IndexRequire}
	if _, err := open(t, t.TempDir()).Open(t.Context(), ref, nil); !errors.Is(err, store.ErrNoIndex) {
		t.Errorf("none is published: %v", err)
	}
	one := open(t, t.TempDir())
	never := ref
	never.Index = store.IndexNever
	tree, err := one.Open(t.Context(), never, nil)
	if err != nil {
		t.Fatal(err)
	}
	made, err := one.PackIndexes(t.Context(), tree, true)
	if err != nil || len(made.Layers) != 2 || made.Artifact == "" {
		t.Errorf("%+v, %v", made, err)
	}
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	two := open(t, t.TempDir())
	tree, err = two.Open(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := two.Client.Stats().Bytes; got > 50_000 {
		t.Errorf("%d bytes fetched to open it", got)
	}
	o := tree.Overlay()
	nid, err := o.Resolve("/one")
	if err != nil {
		t.Fatal(err)
	}
	got, want := make([]byte, 50_000), make([]byte, 50_000)
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", "one")))).Read(want)
	if n, err := o.Read(t.Context(), nid, got, 0); err != nil || n != len(want) || !bytes.Equal(got, want) {
		t.Errorf("read: %d bytes, %v", n, err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
	// Who wants none does not get what was opened by one before.
	tree, err = two.Open(t.Context(), never, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range tree.Layers {
		if strings.HasPrefix(l.Key(), "idx-") {
			t.Errorf("opened as %s", l.Key())
		}
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
}
