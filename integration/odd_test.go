//go:build integration

package integration_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/tree"
)

// oddCase is an image of handmade layers, bottom first.
type oddCase struct {
	name   string
	layers []func(*testing.T) []byte // each a tar
	// anyMtime are directories that no layer describes.
	anyMtime []string
	// tarOnly: tables of contents cannot say this.
	tarOnly bool
	// notPodman: its writer refuses such a layer.
	notPodman bool
	// gnu: umoci cannot read the one layer; GNU tar says what is right.
	gnu bool
}

var when = time.Unix(1_600_000_000, 0)

// w writes tar entries; every one starts as a good one of its kind.
type w struct {
	*tar.Writer
	t *testing.T
}

// layerOf returns a layer that f writes.
func layerOf(f func(w)) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		var b bytes.Buffer
		tw := w{tar.NewWriter(&b), t}
		f(tw)
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
}

func (w w) put(h tar.Header, content string) {
	w.t.Helper()
	if h.ModTime.IsZero() {
		h.ModTime = when
	}
	if h.Mode == 0 {
		h.Mode = 0o644
	}
	h.Size = int64(len(content))
	if err := w.WriteHeader(&h); err != nil {
		w.t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		w.t.Fatal(err)
	}
}

func (w w) file(name, content string) { w.put(tar.Header{Name: name}, content) }
func (w w) dir(name string) {
	w.put(tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, "")
}

func (w w) symlink(name, target string) {
	w.put(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, "")
}

func (w w) link(name, target string) {
	w.put(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, "")
}

// gnuTar has GNU tar archive what a shell script makes in an empty directory.
func gnuTar(script string, options ...string) func(*testing.T) []byte {
	return func(t *testing.T) []byte {
		t.Helper()
		dir := t.TempDir()
		cmd := exec.Command("sh", "-euc", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		args := append([]string{"c", "-C", dir, "--sort=name", "--numeric-owner"}, options...)
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			args = append(args, n.Name())
		}
		out, err := exec.Command("tar", args...).Output()
		if err != nil {
			t.Fatalf("tar: %v", err)
		}
		return out
	}
}

// sparse makes files with holes that begin and end anywhere.
const sparse = `
truncate -s 3000000 holes
printf start | dd of=holes conv=notrunc status=none
dd if=/dev/urandom of=holes bs=1 seek=1000001 count=70001 conv=notrunc status=none
printf end | dd of=holes bs=1 seek=2999997 conv=notrunc status=none
truncate -s 1048576 allhole
truncate -s 5000000 tail && printf x | dd of=tail conv=notrunc status=none
head -c 4097 /dev/urandom >dense
`

func oddCases() []oddCase {
	one := func(fs ...func(*testing.T) []byte) []func(*testing.T) []byte { return fs }
	cases := []oddCase{
		{name: "whiteouts", layers: one(
			layerOf(func(w w) {
				for _, d := range []string{"a", "c", "c/sub", "k"} {
					w.dir(d)
				}
				for _, f := range []string{"a/x", "a/y", "b", "c/old", "c/sub/old", "k/keep"} {
					w.file(f, f)
				}
			}),
			layerOf(func(w w) {
				w.dir("a")
				w.file("a/.wh.x", "")
				w.file(".wh.b", "")
				w.file("c/new-before", "1")
				w.file("c/.wh..wh..opq", "")
				w.file("c/new-after", "2")
				w.file(".wh.nothing", "")
			}),
			layerOf(func(w w) { w.file("b", "again"); w.dir("a"); w.file("a/x", "again") }),
		), anyMtime: []string{"c"}},
		{name: "kinds replace each other", layers: one(
			layerOf(func(w w) {
				w.dir("d")
				w.dir("d/sub")
				w.file("d/sub/f", "1")
				w.file("f", "2")
				w.symlink("s", "f")
				w.dir("e")
				w.file("e/f", "3")
			}),
			layerOf(func(w w) {
				w.file("d", "now a file")
				w.dir("f")
				w.file("f/inside", "now a directory")
				w.file("s", "now a file")
				w.symlink("e", "f")
			}),
		)},
		{name: "hard links", layers: one(
			layerOf(func(w w) {
				w.dir("d1")
				w.dir("d2")
				w.file("d1/f", "linked")
				w.link("d2/g", "d1/f")
				w.link("h", "d2/g")
				w.symlink("s", "h")
				w.link("t", "s")
				w.file("alone", "x")
			}),
			layerOf(func(w w) { w.file(".wh.h", ""); w.file("alone", "rewritten") }),
		)},
		{name: "duplicates", layers: one(layerOf(func(w w) {
			w.file("f", "first")
			w.file("f", "second")
			w.dir("d")
			w.put(tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o700, Uid: 7}, "")
			w.file("g", "a file")
			w.symlink("g", "f")
		})), notPodman: true},
		{name: "missing parents", layers: one(
			layerOf(func(w w) {
				w.file("a/b/c", "deep")
				w.put(tar.Header{Typeflag: tar.TypeDir, Name: "x/", Mode: 0o711, Gid: 5}, "")
			}),
			layerOf(func(w w) { w.file("x/y/z", "deep") }),
		), anyMtime: []string{"a", "a/b", "x/y", "x"}},
		{name: "modes, owners, times", layers: one(layerOf(func(w w) {
			for i, m := range []int64{0o4755, 0o2755, 0o1777, 0o6711, 0o1} {
				w.put(tar.Header{Name: fmt.Sprintf("m%d", i), Mode: m, Uid: i, Gid: 1000 + i}, "x")
			}
			w.put(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, "")
			w.put(tar.Header{Name: "bigids", Uid: 3_000_000_000, Gid: 4_000_000_000}, "")
			w.put(tar.Header{Name: "before1970", ModTime: time.Unix(-1000, 0)}, "")
			w.put(tar.Header{Name: "after2038", ModTime: time.Unix(5_000_000_000, 0)}, "")
			w.put(tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: strings.Repeat("long/", 150) + "x", Mode: 0o777, Uid: 3}, "")
		}))},
		{name: "nanoseconds", layers: one(layerOf(func(w w) {
			at := time.Unix(1_600_000_000, 123_456_789)
			w.put(tar.Header{Name: "f", ModTime: at, Format: tar.FormatPAX}, "x")
			w.put(tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, ModTime: at, Format: tar.FormatPAX}, "")
		})), tarOnly: true},
		{name: "xattrs", layers: one(layerOf(func(w w) {
			x := func(name string, mode int64, kv ...string) {
				h := tar.Header{Name: name, Mode: mode, PAXRecords: map[string]string{}, Format: tar.FormatPAX}
				if strings.HasSuffix(name, "/") {
					h.Typeflag = tar.TypeDir
				}
				for i := 0; i < len(kv); i += 2 {
					h.PAXRecords["SCHILY.xattr."+kv[i]] = kv[i+1]
				}
				w.put(h, "")
			}
			acl := string(sampleACL())
			x("caps", 0o755, "security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
			x("user", 0o644, "user.a", "1", "user.binary", "a\x00\xff", "user.long", strings.Repeat("v", 2000))
			x("acl", 0o674, "system.posix_acl_access", acl)
			x("dir/", 0o674, "system.posix_acl_access", acl, "system.posix_acl_default", acl, "trusted.t", "1")
			x("shared1", 0o644, "user.same", "value")
			x("shared2", 0o644, "user.same", "value")
		}))},
		{name: "long names", layers: one(
			layerOf(func(w w) {
				n := strings.Repeat("n", 255)
				w.put(tar.Header{Name: n, Format: tar.FormatPAX}, "pax")
				w.put(tar.Header{Typeflag: tar.TypeDir, Name: n[:254] + "/", Mode: 0o755, Format: tar.FormatGNU}, "")
				w.put(tar.Header{Name: n[:254] + "/" + n, Format: tar.FormatGNU}, "gnu")
				w.put(tar.Header{Typeflag: tar.TypeLink, Name: n[:253], Linkname: n[:254] + "/" + n, Format: tar.FormatGNU}, "")
				w.put(tar.Header{Name: "unicode-é-世界", Format: tar.FormatPAX}, "u")
			}),
		)},
		{name: "names that are not UTF-8", layers: one(layerOf(func(w w) {
			w.put(tar.Header{Name: "latin-\xe9\xff", Format: tar.FormatGNU}, "x")
			w.put(tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "\xfe", Mode: 0o777, Format: tar.FormatGNU}, "")
		})), tarOnly: true},
		{name: "devices", layers: one(layerOf(func(w w) {
			dev := func(name string, kind byte, major, minor int64) {
				w.put(tar.Header{Typeflag: kind, Name: name, Devmajor: major, Devminor: minor, Mode: 0o600}, "")
			}
			dev("null", tar.TypeChar, 1, 3)
			dev("loop", tar.TypeBlock, 7, 0)
			dev("large", tar.TypeChar, 511, 70000)
			dev("fifo", tar.TypeFifo, 0, 0)
		}))},
		{name: "large files", layers: one(layerOf(func(w w) {
			r := rand.New(rand.NewPCG(1, 1))
			for _, n := range []int{0, 1, 511, 512, 513, 4096, 1 << 20, 9_000_001} {
				b := make([]byte, n)
				for i := range b {
					b[i] = byte(r.Uint32() >> (i % 7)) // neither random nor constant
				}
				w.file(fmt.Sprintf("size%d", n), string(b))
			}
		}))},
		{name: "many entries", layers: one(layerOf(func(w w) {
			for d := range 20 {
				w.dir(fmt.Sprintf("d%02d", d))
				for f := range 500 {
					w.file(fmt.Sprintf("d%02d/file-%d", d, f), fmt.Sprint(d, f))
				}
			}
		}))},
	}
	for _, o := range [][]string{
		{"--format=gnu"},
		{"--format=posix", "--sparse-version=0.0"},
		{"--format=posix", "--sparse-version=0.1"},
		{"--format=posix", "--sparse-version=1.0"},
	} {
		cases = append(cases, oddCase{
			name:   "sparse, " + strings.Join(o, " "),
			layers: one(gnuTar(sparse, append(o, "--sparse", "--mtime=@1600000000")...)), tarOnly: true,
			gnu: o[0] == "--format=gnu",
		})
	}
	return cases
}

// sampleACL is u::rw,u:7:rwx,g::r,m::rwx,o::r as the kernel stores it.
func sampleACL() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, ^uint32(0)}, {2, 7, 7}, {4, 4, ^uint32(0)}, {16, 7, ^uint32(0)}, {32, 4, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// pack stores the layers as one image, tagged "odd", in a layout.
func pack(t *testing.T, dir string, tars [][]byte, f images.Format) {
	t.Helper()
	out, err := images.NewLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	var descs []ocispec.Descriptor
	var diffs []digest.Digest
	for i, b := range tars {
		path := filepath.Join(t.TempDir(), fmt.Sprint(i))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var desc ocispec.Descriptor
		var diff digest.Digest
		dgst, size, err := out.AddBlob(func(w io.Writer) (err error) {
			desc, diff, err = shared.set.Encode(context.Background(), w, path, f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		desc.Digest, desc.Size = dgst, size
		descs, diffs = append(descs, desc), append(diffs, diff)
	}
	desc, err := out.AddImage(ocispec.ImageConfig{}, ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}, descs, diffs)
	if err != nil {
		t.Fatal(err)
	}
	out.Tag(desc, "odd")
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// unpack returns what the layers are.
func (c oddCase) unpack(t *testing.T, tars [][]byte) tree.Tree {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "bundle", "rootfs")
	cmd := exec.Command("umoci", "unpack", "--image", filepath.Join(dir, "layout")+":odd", filepath.Join(dir, "bundle"))
	if c.gnu {
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command("tar", "x", "-p", "--numeric-owner", "-C", root)
		cmd.Stdin = bytes.NewReader(tars[0])
	} else {
		pack(t, filepath.Join(dir, "layout"), tars, images.Gzip)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	want, err := tree.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return want
}

// TestOddLayers holds handmade layers, in every format that can say them,
// against umoci.
func TestOddLayers(t *testing.T) {
	for _, c := range oddCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var tars [][]byte
			for _, l := range c.layers {
				tars = append(tars, l(t))
			}
			want := c.unpack(t, tars)
			formats := []images.Format{images.Gzip, images.Tar, images.Zstd}
			if !c.tarOnly {
				formats = append(formats, images.EStargz, images.Stargz)
				if !c.notPodman {
					formats = append(formats, images.Podman)
				}
			}
			for _, f := range formats {
				dir := filepath.Join(t.TempDir(), string(f))
				pack(t, dir, tars, f)
				for _, e := range engines() {
					t.Run(string(f)+"/"+e, func(t *testing.T) {
						mnt := newStore(t).mount(t, "oci:"+dir+":odd", "--engine", e)
						got, err := tree.Read(mnt)
						if err != nil {
							t.Fatal(err)
						}
						report(t, tree.Diff(want, got, tree.Options{AnyMtime: c.anyMtime, Rounded: wholeSeconds(f)}))
					})
				}
			}
		})
	}
}

// TestHostileLayers: whatever a layer says, nothing outside the tree changes,
// and the mount is either refused in a line or can be walked.
func TestHostileLayers(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	for name, layer := range map[string]func(w){
		"dot-dot":            func(w w) { w.file(up+secret+"-made", "x") },
		"dot-dot inside":     func(w w) { w.dir("a"); w.file("a/../../../b", "x") },
		"absolute":           func(w w) { w.file(secret+"-made", "x") },
		"link to outside":    func(w w) { w.link("l", up+secret) },
		"link to absolute":   func(w w) { w.link("l", secret) },
		"link to directory":  func(w w) { w.dir("d"); w.link("l", "d") },
		"link to itself":     func(w w) { w.link("l", "l") },
		"link to nothing":    func(w w) { w.link("l", "nothing") },
		"through a symlink":  func(w w) { w.symlink("s", outside); w.file("s/made", "x") },
		"below a file":       func(w w) { w.file("f", "x"); w.file("f/g", "x") },
		"bare whiteout":      func(w w) { w.file(".wh.", "") },
		"whiteout of dot":    func(w w) { w.file(".wh..", "") },
		"whiteout of up":     func(w w) { w.file(".wh...", "") },
		"whiteout of root":   func(w w) { w.file(".wh..wh..opq", "") },
		"whiteout of itself": func(w w) { w.file("f", "x"); w.file(".wh.f", "") },
		"root is a file":     func(w w) { w.file(".", "x") },
		"name too long":      func(w w) { w.put(tar.Header{Name: strings.Repeat("n", 256), Format: tar.FormatPAX}, "x") },
		"overlay's xattrs": func(w w) {
			w.put(tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755, Format: tar.FormatPAX, PAXRecords: map[string]string{
				"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.redirect": "/etc",
			}}, "")
		},
		"whiteout device": func(w w) { w.put(tar.Header{Typeflag: tar.TypeChar, Name: "c"}, "") },
		"pax bomb": func(w w) {
			w.put(tar.Header{Name: "f", Format: tar.FormatPAX, PAXRecords: map[string]string{"LAMINA.x": strings.Repeat("x", 900_000)}}, "")
		},
	} {
		for _, f := range []images.Format{images.Gzip, images.Tar} {
			for _, e := range engines() {
				t.Run(name+"/"+string(f)+"/"+e, func(t *testing.T) {
					t.Parallel()
					layout := filepath.Join(t.TempDir(), "layout")
					base := layerOf(func(w w) { w.dir("etc"); w.file("etc/f", "x"); w.file("f", "lower") })
					pack(t, layout, [][]byte{base(t), layerOf(layer)(t)}, f)
					s := newStore(t)
					dir := t.TempDir()
					if err := s.Mount(dir, "oci:"+layout+":odd", "--engine", e, "--quiet"); err != nil {
						if n := strings.Count(strings.TrimSpace(err.Error()), "\n"); n > 0 || strings.Contains(err.Error(), "panic") {
							t.Errorf("refused in %d lines: %v", n+1, err)
						}
					} else {
						walkHostile(t, dir)
						s.umount(t, dir)
					}
					left, err := os.ReadDir(outside)
					if err != nil || len(left) != 1 {
						t.Errorf("outside the tree: %v, %v", left, err)
					}
				})
			}
		}
	}
}

// walkHostile reads everything; overlayfs's private attributes must not be seen.
func walkHostile(t *testing.T, dir string) {
	t.Helper()
	got, err := tree.Read(dir)
	if err != nil {
		t.Error(err)
	}
	for name, e := range got {
		for x := range e.Xattrs {
			if strings.HasPrefix(x, "trusted.overlay.") {
				t.Errorf("%q has %s", name, x)
			}
		}
		if e.Mode&unix.S_IFMT == unix.S_IFCHR && e.Rdev == 0 {
			t.Errorf("%q is a whiteout device", name)
		}
		if slices.Contains(strings.Split(name, "/"), "..") {
			t.Errorf("a name %q", name)
		}
	}
}
