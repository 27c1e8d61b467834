package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
)

var fixedTime = time.Unix(1_600_000_000, 0)

// tarOf writes headers; regular files get their name as contents.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(h.Name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if h.Mode == 0 {
			h.Mode = 0o700
		}
		check(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(h.Name))
			check(t, err)
		}
	}
	check(t, w.Close())
	return out.Bytes()
}

func streamTree(t testing.TB, b []byte) (*index.Tree, error) {
	t.Helper()
	src := packTar(t, b)
	r, err := src.Blob.ReadRange(context.Background(), 0, int64(len(b)))
	check(t, err)
	s, err := layer.Stream(context.Background(), src, r, discard{})
	if err != nil {
		return nil, err
	}
	return s.Tree, nil
}

// list gives paths with a letter for what they are.
func list(n *index.Node, path string, out []string) []string {
	for name, c := range n.Children() {
		l := path + name
		switch {
		case c.IsDir():
			l += "/"
			if c.Flags&index.Implicit != 0 {
				l += " implicit"
			}
			for _, x := range c.Xattrs {
				l += " " + x.Name + "=" + string(x.Value)
			}
		case c.Flags&index.HardLink != 0:
			l += " link " + string(c.Target)
		case c.Mode&0o170000 == 0o020000 && c.Rdev == 0:
			l += " whiteout"
		case c.Mode&0o170000 == 0o120000:
			l += " -> " + string(c.Target)
		}
		out = append(out, l)
		out = list(c, path+name+"/", out)
	}
	return out
}

type th = tar.Header

func link(name, to string) th { return th{Name: name, Typeflag: tar.TypeLink, Linkname: to} }
func sym(name, to string) th  { return th{Name: name, Typeflag: tar.TypeSymlink, Linkname: to} }

func TestRules(t *testing.T) {
	long := strings.Repeat("n", 255)
	const opq = " trusted.overlay.opaque=y"
	tests := []struct {
		name string
		in   []th
		want []string
	}{
		{"missing parents", []th{{Name: "a/b/c"}}, []string{"a/ implicit", "a/b/ implicit", "a/b/c"}},
		{"parent named later", []th{{Name: "a/b"}, {Name: "a/"}}, []string{"a/", "a/b"}},
		{"odd paths", []th{{Name: "/a"}, {Name: "./b"}, {Name: "c//d/./e"}, {Name: "x/../f"}}, []string{"a", "b", "c/ implicit", "c/d/ implicit", "c/d/e", "f"}},
		{"file over directory", []th{{Name: "a/"}, {Name: "a/b"}, {Name: "a"}}, []string{"a"}},
		{"directory over file", []th{{Name: "a"}, {Name: "a/"}, {Name: "a/b"}}, []string{"a/", "a/b"}},
		{"directory over directory", []th{{Name: "a/"}, {Name: "a/b"}, {Name: "a/"}}, []string{"a/", "a/b"}},
		{"long name", []th{{Name: long}}, []string{long}},
		{"not UTF-8", []th{{Name: "\xff\xfe", Format: tar.FormatGNU}}, []string{"\xff\xfe"}},
		{"whiteout", []th{{Name: "d/.wh.x"}}, []string{"d/ implicit", "d/x whiteout"}},
		{"whiteout spares its layer", []th{{Name: "x"}, {Name: ".wh.x"}}, []string{"x"}},
		{"whiteout before the file", []th{{Name: ".wh.x"}, {Name: "x"}}, []string{"x"}},
		{"whiteout of own directory", []th{{Name: "x/y"}, {Name: ".wh.x"}}, []string{"x/" + opq, "x/y"}},
		{"opaque", []th{{Name: "d/"}, {Name: "d/.wh..wh..opq"}, {Name: "d/f"}}, []string{"d/" + opq, "d/f"}},
		{"opaque, then attributes", []th{{Name: "d/.wh..wh..opq"}, {Name: "d/"}}, []string{"d/" + opq}},
		{"aufs", []th{{Name: ".wh..wh.plnk/"}, {Name: ".wh..wh.plnk/12"}, {Name: ".wh..wh.aufs"}, {Name: "a"}}, []string{"a"}},
		{"link to lower", []th{link("a", "./usr/b")}, []string{"a link usr/b"}},
		{"link before file", []th{link("a", "b"), {Name: "b"}}, []string{"a link b", "b"}},
		{"link replaced", []th{{Name: "b"}, link("a", "b"), {Name: "a"}}, []string{"a", "b"}},
		{
			"through a symlink",
			[]th{{Name: "usr/lib/"}, sym("lib", "usr/lib"), {Name: "lib/x"}, sym("abs", "/usr"), {Name: "abs/y"}},
			[]string{"abs -> /usr", "lib -> usr/lib", "usr/ implicit", "usr/lib/", "usr/lib/x", "usr/y"},
		},
		{"symlinks go anywhere", []th{sym("a", "../../../etc"), sym("b", "/")}, []string{"a -> ../../../etc", "b -> /"}},
		{
			"overlay's xattrs",
			[]th{{Name: "a/", PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.a": "b", "SCHILY.xattr.com.apple.x": "z"}}},
			[]string{"a/ user.a=b"},
		},
	}
	for _, tt := range tests {
		tree, err := streamTree(t, tarOf(t, tt.in...))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if got := list(tree.Root, "", nil); !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
		if _, err := tree.Encode(); err != nil {
			t.Errorf("%s: encode: %v", tt.name, err)
		}
	}
}

// TestRefused: hostile entries are errors of one line that name entry and place.
func TestRefused(t *testing.T) {
	tests := map[string][]th{
		"outside":              {{Name: "../x"}},
		"outside deep":         {{Name: "a/../../x"}},
		"outside by symlink":   {sym("a", ".."), {Name: "a/x"}},
		"symlink loop":         {sym("a", "b"), sym("b", "a"), {Name: "a/x"}},
		"long name":            {{Name: strings.Repeat("n", 256)}},
		"long path":            {{Name: strings.Repeat("abcdefg/", 600)}},
		"bare whiteout":        {{Name: ".wh."}},
		"whiteout of dot":      {{Name: ".wh.."}},
		"whiteout of dotdot":   {{Name: "d/.wh..."}},
		"under a whiteout":     {{Name: ".wh.a/b"}},
		"under a file":         {{Name: "a"}, {Name: "a/b"}},
		"root is a file":       {{Name: "./.", Typeflag: tar.TypeSymlink, Linkname: "x"}},
		"link to a directory":  {{Name: "d/"}, link("a", "d")},
		"link outside":         {link("a", "../b")},
		"link to the root":     {link("a", ".")},
		"device number":        {{Name: "a", Typeflag: tar.TypeChar, Devmajor: 5000}},
		"negative owner":       {{Name: "a", Uid: -1, Format: tar.FormatGNU}},
		"unknown type":         {{Name: "a", Typeflag: 'Z'}},
		"large xattr":          {{Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 70_000)}}},
		"symlink to a NUL":     {sym("a", strings.Repeat("x", 5000))},
		"symlink to nothing  ": {sym("a", "")},
	}
	for name, in := range tests {
		_, err := streamTree(t, tarOf(t, in...))
		if !errors.Is(err, layer.ErrFormat) || errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s := err.Error(); strings.Contains(s, "\n") || !strings.Contains(s, "offset ") || !strings.Contains(s, "entry ") || len(s) > 600 {
			t.Errorf("%s: message %q", name, s)
		}
	}
}

func TestHardLinksShareANode(t *testing.T) {
	tree, err := streamTree(t, tarOf(t, th{Name: "d/a"}, link("b", "d/a"), link("d/c", "b"), sym("s", "x"), link("s2", "s")))
	check(t, err)
	d := tree.Root.Child("d")
	if a := d.Child("a"); a != tree.Root.Child("b") || a != d.Child("c") || tree.Root.Child("s") != tree.Root.Child("s2") {
		t.Error("names of one inode are different nodes")
	}
}

// TestKey covers media types and annotations.
func TestKey(t *testing.T) {
	const (
		cs  = "io.github.containers.zstd-chunked.manifest-checksum"
		cp  = "io.github.containers.zstd-chunked.manifest-position"
		ss  = "io.containers.zstd-chunked.manifest-checksum"
		toc = estargz.TOCJSONDigestAnnotation
	)
	sum := digest.FromString("x").String()
	tests := []struct {
		media string
		notes map[string]string
		want  layer.Format
	}{
		{"application/vnd.oci.image.layer.v1.tar", nil, layer.Tar},
		{"application/vnd.oci.image.layer.v1.tar+gzip", nil, layer.Gzip},
		{"application/vnd.oci.image.layer.v1.tar+zstd", nil, layer.Zstd},
		{"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", nil, layer.Zstd},
		{"application/vnd.docker.image.rootfs.diff.tar.gzip", nil, layer.Gzip},
		{"application/vnd.docker.image.rootfs.diff.tar.zstd", nil, layer.Zstd},
		{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", nil, layer.Gzip},
		{"application/vnd.docker.image.rootfs.diff.tar", nil, layer.Tar},
		{mediaGzip, map[string]string{toc: sum}, layer.EStargz},
		{mediaGzip, map[string]string{toc: "sha256:short"}, layer.Gzip},
		{mediaTar, map[string]string{toc: sum}, layer.Tar},
		{mediaZstd, map[string]string{toc: sum}, layer.ZstdChunked},
		{mediaZstd, map[string]string{ss: sum}, layer.ZstdChunked},
		{mediaZstd, map[string]string{cs: sum, cp: "9:1:1:1"}, layer.ZstdChunked},
		{mediaZstd, map[string]string{cs: sum, cp: "9:1:1:2"}, layer.Zstd},
		{mediaZstd, map[string]string{cs: sum, cp: "-9:1:1:1"}, layer.Zstd},
		{mediaZstd, map[string]string{cs: sum}, layer.Zstd},
		{mediaGzip, map[string]string{cs: sum, cp: "9:1:1:1"}, layer.Gzip},
		{mediaZstd, map[string]string{cs: sum, cp: "9:1:1:1", toc: sum}, layer.Zstd},
		{mediaZstd, map[string]string{cs: sum, cp: "9:1:1:1", ss: sum}, layer.Zstd},
	}
	for _, tt := range tests {
		src := source([]byte("blob"), []byte("tar"), tt.media, tt.notes)
		key, f, lazy := layer.Key(src)
		if f != tt.want || lazy != (f == layer.EStargz || f == layer.ZstdChunked) {
			t.Errorf("%s %v: %v, lazy %v", tt.media, tt.notes, f, lazy)
		}
		if lazy != strings.HasPrefix(key, "toc-") || !lazy && key != src.DiffID.Encoded() {
			t.Errorf("%s %v: key %s", tt.media, tt.notes, key)
		}
		if !lazy {
			if _, err := layer.LoadTOC(context.Background(), src); !errors.Is(err, layer.ErrNoTOC) {
				t.Errorf("%s %v: LoadTOC: %v", tt.media, tt.notes, err)
			}
		}
	}
}
