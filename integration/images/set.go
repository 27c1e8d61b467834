package images

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// What is embedded here determines the images, and so the key of a Set.
//
//go:embed recipe.go rootfs.go diff.go blob.go layout.go set.go
var sources embed.FS

// Set is every image in every format, in a directory. It is read-only.
type Set struct {
	Dir string
}

// LayoutDir returns the OCI layout that holds all images in all formats.
func (s *Set) LayoutDir() string { return filepath.Join(s.Dir, "oci") }

// Tag returns the name under which the layout holds an image in a format.
func Tag(name string, f Format) string { return name + "-" + string(f) }

// Ref returns the image as an oci: reference.
func (s *Set) Ref(name string, f Format) string {
	return "oci:" + s.LayoutDir() + ":" + Tag(name, f)
}

// DockerArchive returns the image as docker save writes it.
func (s *Set) DockerArchive(name string) string {
	return filepath.Join(s.Dir, "docker-archive", name+".tar")
}

// OCIArchive returns the base as a tar of an OCI layout, with gzip layers.
func (s *Set) OCIArchive() string {
	return filepath.Join(s.Dir, "oci-archive.tar")
}

// Tree returns the image unpacked by umoci: the truth that mounts are held to.
func (s *Set) Tree(name string) string {
	return filepath.Join(s.Dir, "tree", name, "rootfs")
}

func (s *Set) zstdchunked() string { return filepath.Join(s.Dir, "zstdchunked") }

// Encode writes the tar in the file tarPath to w as a layer in a format. It
// returns the layer's descriptor, without digest and size, and its diff ID.
func (s *Set) Encode(ctx context.Context, w io.Writer, tarPath string, f Format) (ocispec.Descriptor, digest.Digest, error) {
	l, err := encoder{zstdchunked: s.zstdchunked()}.encode(ctx, w, tarPath, f)
	return l.desc, l.diffID, err
}

// CacheDir returns the directory that keeps what tests make once:
// LAMINA_TEST_CACHE, or /var/cache/lamina-test.
func CacheDir() string {
	if d := os.Getenv("LAMINA_TEST_CACHE"); d != "" {
		return d
	}
	return "/var/cache/lamina-test"
}

// Build returns the Set, made now if the cache does not have it.
func Build(ctx context.Context, log *slog.Logger) (*Set, error) {
	key, err := key()
	if err != nil {
		return nil, err
	}
	cache := CacheDir()
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	set := &Set{Dir: filepath.Join(cache, key)}
	if _, err := os.Stat(set.Dir); err == nil {
		return set, nil
	}
	tmp := set.Dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return nil, err
	}
	b := &builder{log: log, tmp: tmp, out: filepath.Join(tmp, "set")}
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	if err := os.Rename(b.out, set.Dir); err != nil {
		return nil, err
	}
	return set, os.RemoveAll(tmp)
}

func key() (string, error) {
	h := sha256.New()
	files, err := sources.ReadDir(".")
	if err != nil {
		return "", err
	}
	for _, f := range files {
		b, err := sources.ReadFile(f.Name())
		if err != nil {
			return "", err
		}
		_, _ = h.Write(b)
	}
	return "images-" + hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// builder makes a Set in a directory of its own.
type builder struct {
	log         *slog.Logger
	tmp, out    string
	proxies     []string
	zstdchunked string
}

func (b *builder) build(ctx context.Context) error {
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	var err error
	if b.proxies, err = aptProxies(ctx); err != nil {
		return err
	}
	if err := b.buildTool(ctx); err != nil {
		return err
	}
	if err := b.step("layers", func() error { return b.layers(ctx) }); err != nil {
		return err
	}
	if err := b.step("formats", func() error { return b.formats(ctx) }); err != nil {
		return err
	}
	return b.step("archives and trees", func() error { return b.derive(ctx) })
}

func (b *builder) step(name string, f func() error) error {
	began := time.Now()
	err := f()
	b.log.Info("images: "+name, "took", time.Since(began).Round(time.Millisecond*100))
	return err
}

// buildTool builds the zstdchunked command from the module beside this package.
func (b *builder) buildTool(ctx context.Context) error {
	_, self, _, ok := runtime.Caller(0)
	if !ok {
		return fmt.Errorf("images: cannot find the source directory")
	}
	b.zstdchunked = (&Set{Dir: b.out}).zstdchunked()
	dir := filepath.Join(filepath.Dir(self), "..", "zstdchunked")
	return b.run(ctx, []string{"CGO_ENABLED=0"}, "go", "build", "-C", dir, "-o", b.zstdchunked, ".")
}

func (b *builder) tar(name string) string { return filepath.Join(b.tmp, name+".tar") }

// layers makes the tar of every recipe's own layer.
func (b *builder) layers(ctx context.Context) error {
	root := filepath.Join(b.tmp, "base")
	if err := b.bootstrap(ctx, root); err != nil {
		return err
	}
	for _, r := range recipes() {
		dir := root
		if r.name != base {
			var err error
			if dir, err = b.install(ctx, filepath.Join(b.tmp, "install-"+r.name), root, r.packages); err != nil {
				return err
			}
		}
		f, err := os.Create(b.tar(r.name))
		if err != nil {
			return err
		}
		if err := WriteDiff(f, dir); err != nil {
			_ = f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// encoded says which layer, in which format.
type encoded struct {
	name   string
	format Format
}

// formats writes the layout: every layer in every format, then the images.
func (b *builder) formats(ctx context.Context) error {
	out, err := NewLayout((&Set{Dir: b.out}).LayoutDir())
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards layers
	layers := map[encoded]layer{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.NumCPU()))
	for _, r := range recipes() {
		for _, f := range []Format{Gzip, Zstd, EStargz, Podman, Stargz, Tar} {
			g.Go(func() error {
				l, err := b.encode(gctx, out, r, f)
				mu.Lock()
				defer mu.Unlock()
				layers[encoded{r.name, f}] = l
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, r := range recipes() {
		for _, f := range append(Formats(), Tar) {
			under, own := f, f
			if f == Mixed {
				under, own = EStargz, Gzip
			}
			stack := []layer{layers[encoded{base, under}]}
			if r.name != base {
				stack = append(stack, layers[encoded{r.name, own}])
			}
			if err := b.image(out, r, f, stack); err != nil {
				return err
			}
		}
	}
	return out.Close()
}

// encode stores r's own layer in a format. The layout's blobs may be added
// concurrently.
func (b *builder) encode(ctx context.Context, out *Layout, r recipe, f Format) (l layer, err error) {
	e := encoder{zstdchunked: b.zstdchunked, first: r.first}
	dgst, size, err := out.AddBlob(func(w io.Writer) error {
		l, err = e.encode(ctx, w, b.tar(r.name), f)
		return err
	})
	l.desc.Digest, l.desc.Size = dgst, size
	return l, err
}

func (b *builder) image(out *Layout, r recipe, f Format, stack []layer) error {
	var descs []ocispec.Descriptor
	var diffs []digest.Digest
	for _, l := range stack {
		descs, diffs = append(descs, l.desc), append(diffs, l.diffID)
	}
	desc, err := out.AddImage(r.config, hostPlatform(), descs, diffs)
	if err != nil {
		return err
	}
	p := hostPlatform()
	desc.Platform = &p
	out.Tag(desc, Tag(r.name, f))
	return nil
}

func hostPlatform() ocispec.Platform {
	return ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// derive makes what other programs make of the images.
func (b *builder) derive(ctx context.Context) error {
	set := &Set{Dir: b.out}
	for _, d := range []string{"docker-archive", "tree"} {
		if err := os.MkdirAll(filepath.Join(b.out, d), 0o755); err != nil {
			return err
		}
	}
	skopeo := func(args ...string) error {
		return b.run(ctx, nil, "skopeo", append([]string{"copy", "--quiet", "--insecure-policy"}, args...)...)
	}
	// skopeo writes the layout's index here: nothing may read it meanwhile.
	if err := skopeo("--dest-compress", "--dest-compress-format", "zstd:chunked", set.Ref(base, Gzip), set.Ref(base, Skopeo)); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(2, runtime.NumCPU()))
	for _, n := range Names() {
		g.Go(func() error {
			return b.run(ctx, nil, "umoci", "unpack", "--image", set.LayoutDir()+":"+Tag(n, Gzip), filepath.Dir(set.Tree(n)))
		})
		g.Go(func() error {
			return skopeo(set.Ref(n, Tar), "docker-archive:"+set.DockerArchive(n)+":lamina.test/"+n+":latest")
		})
	}
	g.Go(func() error {
		return skopeo(set.Ref(base, Gzip), "oci-archive:"+set.OCIArchive()+":"+base)
	})
	return g.Wait()
}
