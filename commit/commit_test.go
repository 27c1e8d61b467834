package commit_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/commit"
	"github.com/laminafs/lamina/commit/config"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/overlay"
)

const mtime = 1_600_000_000

// lower is a tree with the files dir/a, dir/b and c, of 3 bytes, and the folder d.
func lower(t *testing.T) *overlay.Tree {
	t.Helper()
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	folder := func() *index.Node { return &index.Node{Mode: unix.S_IFDIR | 0o755, UID: uid, GID: gid, Mtime: mtime} }
	file := func() *index.Node {
		return &index.Node{
			Mode: unix.S_IFREG | 0o644, UID: uid, GID: gid, Mtime: mtime, Size: 3,
			Extents: []index.Extent{{Len: 3, Device: 1}},
		}
	}
	root, dir := folder(), folder()
	root.SetChild("dir", dir)
	root.SetChild("c", file())
	root.SetChild("d", folder())
	dir.SetChild("a", file())
	dir.SetChild("b", file())
	b, err := (&index.Tree{Root: root, Devices: []index.Device{{Size: 512}}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return overlay.New(x, []overlay.Data{data("abc")})
}

type data string

func (d data) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	copy(p, d[min(int(off), len(d)):])
	return nil
}

// base is an image of one layer, in a registry that nobody asks.
func base(t *testing.T) *image.Image {
	t.Helper()
	name, err := image.ParseName("127.0.0.1:1/app:1")
	if err != nil {
		t.Fatal(err)
	}
	blob := ocispec.Descriptor{MediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip", Digest: digest.FromString("layer"), Size: 5}
	raw := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["%s"]},"history":[{"created_by":"base"}]}`, digest.FromString("diff"))
	return &image.Image{
		Name: name.String(), Origin: name.Ref, RawConfig: []byte(raw), Digest: digest.FromString("manifest"),
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Manifest: ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Layers: []ocispec.Descriptor{blob}},
		Layers:   []image.Layer{{Desc: blob, DiffID: digest.FromString("diff")}},
	}
}

// upper is an upper directory with one of each kind of change.
func upper(t *testing.T) overlay.Upper {
	t.Helper()
	u := overlay.Upper{Dir: t.TempDir(), UserXattr: true}
	at := func(name string) string { return filepath.Join(u.Dir, name) }
	for _, err := range []error{
		os.Chmod(u.Dir, 0o755),
		os.Mkdir(at("dir"), 0o700),
		os.WriteFile(at("dir/a"), nil, 0o600),
		unix.Setxattr(at("dir"), "user.overlay.opaque", []byte("x"), 0),
		unix.Setxattr(at("dir/a"), "user.overlay.whiteout", []byte("y"), 0),
		os.WriteFile(at("dir/new"), []byte("new content"), 0o640),
		unix.Setxattr(at("dir/new"), "user.k", []byte("v"), 0),
		os.Link(at("dir/new"), at("dir/zlink")),
		os.Symlink("c", at("link")),
		unix.Mkfifo(at("pipe"), 0o600),
		unix.Mknod(at("sock"), unix.S_IFSOCK|0o600, 0),
		os.WriteFile(at("c"), []byte("ABC"), 0o644),
		os.Mkdir(at("d"), 0o755),
		unix.Setxattr(at("d"), "user.overlay.opaque", []byte("y"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	old := []unix.Timespec{{Sec: mtime, Nsec: 5}, {Sec: mtime, Nsec: 5}}
	for _, name := range []string{"dir/new", "link", "pipe", "c", "d", "dir", "."} {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, at(name), old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	return u
}

func newStore(t *testing.T) *image.Store {
	t.Helper()
	s, err := image.OpenStore(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// entries lists the tar of a gzip blob: type, mode, name, link, contents, xattrs.
func entries(t *testing.T, s *image.Store, d ocispec.Descriptor) (list []string) {
	t.Helper()
	f, err := os.Open(filepath.Join(s.Dir(), "blobs", "sha256", d.Digest.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %o %s", h.Typeflag, h.Mode, h.Name)
		if h.Linkname != "" {
			line += " -> " + h.Linkname
		}
		if len(b) > 0 {
			line += fmt.Sprintf(" %q", b)
		}
		if v, ok := h.PAXRecords["SCHILY.xattr.user.k"]; ok {
			line += " user.k=" + v
		}
		if !strings.Contains(h.Name, ".wh.") && h.Typeflag != tar.TypeLink && h.ModTime.UnixNano() != mtime*1e9+5 {
			line += " " + h.ModTime.String()
		}
		list = append(list, line)
	}
}

func TestCommit(t *testing.T) {
	s, u := newStore(t), upper(t)
	o := commit.Options{
		Base: base(t), Lower: lower(t), Upper: u, Name: "app:2", Format: layer.Gzip,
		Edit: config.Edit{Instructions: []string{"ENV A=b"}, CreatedBy: "test", Created: time.Unix(mtime, 0)},
	}
	r, err := commit.Commit(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"5 755 ./", `0 644 c "ABC"`, "5 755 d/", "0 600 d/.wh..wh..opq", "5 700 dir/", "0 600 dir/.wh.a",
		`0 640 dir/new "new content" user.k=v`, "1 640 dir/zlink -> dir/new", "2 777 link -> c", "6 600 pipe",
	}
	if got := entries(t, s, r.Layer); !slices.Equal(got, want) {
		t.Errorf("the layer has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if r.Added != 5 || r.Modified != 4 || r.Deleted != 1 || !slices.Equal(r.Sockets, []string{"sock"}) {
		t.Errorf("%+v", r.Summary)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 || list[0].Name != "docker.io/library/app:2" || list[0].Digest != r.Digest || list[0].Origin != "127.0.0.1:1/app" {
		t.Fatalf("stored is %+v: %v", list, err)
	}
	img, err := s.Load(t.Context(), list[0])
	if err != nil {
		t.Fatal(err)
	}
	m := img.Manifest
	if len(m.Layers) != 2 || m.Layers[0].MediaType != ocispec.MediaTypeImageLayerGzip || m.Layers[1].Digest != r.Layer.Digest ||
		m.MediaType != ocispec.MediaTypeImageManifest || m.Annotations[ocispec.AnnotationBaseImageDigest] != o.Base.Digest.String() {
		t.Errorf("manifest %s", img.RawManifest)
	}
	if c := img.Config; len(c.RootFS.DiffIDs) != 2 || !slices.Equal(c.Config.Env, []string{"PATH=/bin", "A=b"}) || len(c.History) != 2 {
		t.Errorf("config %s", img.RawConfig)
	}

	again, err := commit.Commit(t.Context(), newStore(t), o)
	if err != nil || again.Digest != r.Digest {
		t.Errorf("the same once more gives %+v, %v", again, err)
	}
}

// TestSquash: one layer of everything, and nothing of the base.
func TestSquash(t *testing.T) {
	s := newStore(t)
	r, err := commit.Commit(t.Context(), s, commit.Options{
		Base: base(t), Lower: lower(t), Upper: upper(t), Name: "app:3", Format: layer.Gzip, Squash: true,
		Latest: time.Unix(mtime, 5),
	})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(entries(t, s, r.Layer), "\n")
	for _, name := range []string{" dir/b \"abc\"", " c \"ABC\"", " d/", " dir/new "} {
		if !strings.Contains(got, name) {
			t.Errorf("%q is missing in\n%s", name, got)
		}
	}
	if strings.Contains(got, ".wh.") || strings.Contains(got, "dir/a") {
		t.Errorf("what is not there is told of:\n%s", got)
	}
	var m ocispec.Manifest
	raw, err := os.ReadFile(filepath.Join(s.Dir(), "blobs", "sha256", r.Digest.Encoded()))
	if err := errors.Join(err, json.Unmarshal(raw, &m)); err != nil || len(m.Layers) != 1 {
		t.Errorf("%v: %s", err, raw)
	}
}

func TestCommitFails(t *testing.T) {
	full := errors.New("the lower tree cannot be read")
	for _, c := range []struct {
		name string
		make func(o *commit.Options)
		want error
	}{
		{"a name of no registry", func(o *commit.Options) { o.Name = "oci:x" }, image.ErrName},
		{"whiteout", func(o *commit.Options) {
			if err := os.WriteFile(filepath.Join(o.Upper.Dir, ".wh.c"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, commit.ErrName},
		{"damaged", func(o *commit.Options) {
			if err := unix.Setxattr(filepath.Join(o.Upper.Dir, "d"), "user.overlay.redirect", []byte("/nothing"), 0); err != nil {
				t.Fatal(err)
			}
			if err := unix.Removexattr(filepath.Join(o.Upper.Dir, "d"), "user.overlay.opaque"); err != nil {
				t.Fatal(err)
			}
		}, overlay.ErrUpper},
		{"instruction", func(o *commit.Options) { o.Edit.Instructions = []string{"RUN x"} }, config.ErrInstruction},
		{"lower", func(o *commit.Options) {
			o.Lower = overlay.New(o.Lower.Index, []overlay.Data{broken{full}})
			o.Squash = true
		}, full},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			o := commit.Options{Base: base(t), Lower: lower(t), Upper: upper(t), Name: "app:2", Format: layer.EStargz}
			c.make(&o)
			if _, err := commit.Commit(t.Context(), s, o); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if list, err := s.List(); err != nil || len(list) != 0 {
				t.Errorf("stored is %v: %v", list, err)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(s.Dir()), "partial", "*")); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

type broken struct{ err error }

func (b broken) ReadAt(context.Context, []byte, int64) error { return b.err }

// TestChanging: a file that gets shorter while it is read makes a commit fail, one
// that grows is cut.
func TestChanging(t *testing.T) {
	u := overlay.Upper{Dir: t.TempDir()}
	name := filepath.Join(u.Dir, "log")
	if err := os.WriteFile(name, bytes.Repeat([]byte("line\n"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() { // as a logger does that starts anew
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				_ = os.Truncate(name, int64(i%2)*5000)
			}
		}
	}()
	for range 50 {
		_, err := commit.Commit(t.Context(), newStore(t), commit.Options{Base: base(t), Lower: lower(t), Upper: u, Name: "app:2", Format: layer.Zstd})
		if err != nil && !errors.Is(err, commit.ErrChanging) {
			t.Error(err)
		}
	}
	close(stop)
	<-done
}
