package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/laminafs/lamina/image"
)

const hex64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParseName(t *testing.T) {
	tests := []struct {
		in, want  string
		transport image.Transport
		path, tag string
	}{
		{in: "nginx", want: "docker.io/library/nginx:latest"},
		{in: "nginx:1.27", want: "docker.io/library/nginx:1.27"},
		{in: "me/app", want: "docker.io/me/app:latest"},
		{in: "index.docker.io/nginx", want: "docker.io/library/nginx:latest"},
		{in: "docker://nginx:1.27", want: "docker.io/library/nginx:1.27"},
		{in: "localhost:5000/a/b:c", want: "localhost:5000/a/b:c"},
		{in: "[::1]:5000/a:b", want: "[::1]:5000/a:b"},
		{in: "Registry.example/a", want: "Registry.example/a:latest"},
		{in: "host:5000/repo:tag@sha256:" + hex64, want: "host:5000/repo@sha256:" + hex64},
		{in: "repo@sha256:" + hex64, want: "docker.io/library/repo@sha256:" + hex64},
		{in: "oci:dir", transport: image.Layout, path: "dir"},
		{in: "oci:/a/b:1.27", transport: image.Layout, path: "/a/b", tag: "1.27"},
		{in: "oci:/a/b:docker.io/library/nginx:1.27", transport: image.Layout, path: "/a/b", tag: "docker.io/library/nginx:1.27"},
		{in: "oci:dir:t@sha256:" + hex64, transport: image.Layout, path: "dir", tag: "t"},
		{in: "oci:dir@sha256:" + hex64, transport: image.Layout, path: "dir"},
		{in: "oci:an@odd.dir", transport: image.Layout, path: "an@odd.dir"},
		{in: `oci:/tmp/a\:b/lay:t`, transport: image.Layout, path: "/tmp/a:b/lay", tag: "t"},
		{in: `oci:a\\:t`, transport: image.Layout, path: `a\`, tag: "t"},
		{in: `oci:a\\\:b`, transport: image.Layout, path: `a\:b`},
		{in: `oci:a\b\`, want: `oci:a\\b\\`, transport: image.Layout, path: `a\b\`},
		{in: `oci:d@sha256\:` + hex64, transport: image.Layout, path: "d@sha256:" + hex64},
		{in: "oci-archive:x.tar:t", transport: image.OCIArchive, path: "x.tar", tag: "t"},
		{in: "docker-archive:x.tar", transport: image.DockerArchive, path: "x.tar"},
		{
			in: "docker-archive:x.tar:nginx", want: "docker-archive:x.tar:docker.io/library/nginx:latest",
			transport: image.DockerArchive, path: "x.tar", tag: "docker.io/library/nginx:latest",
		},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			n, err := image.ParseName(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			want := tt.want
			if want == "" {
				want = tt.in
			}
			if n.String() != want || n.Transport != tt.transport || n.Path != tt.path || n.Tag != tt.tag {
				t.Errorf("got %+v, written %s", n, n)
			}
		})
	}
}

func TestParseNameErrors(t *testing.T) {
	tests := []struct{ in, hint string }{
		{"", "empty"},
		{"Nginx:1.27", "write nginx:1.27"},
		{"host:5000/Team/App@sha256:" + hex64, "lower case; write host:5000/team/app@sha256:"},
		{"me/İmage", "write [HOST[:PORT]/]REPOSITORY"},
		{"https://docker.io/nginx", "write it without the scheme: docker.io/nginx"},
		{"containers-storage:nginx", "docker-archive:FILE"},
		{"docker-daemon:nginx:latest", "docker-archive:FILE"},
		{"./layout", "write oci:DIR"},
		{"/tmp/image.tar", "write oci-archive:FILE or docker-archive:FILE"},
		{"a b", "white space"},
		{"nginx:", "no tag"},
		{"nginx@latest", "sha256:"},
		{"nginx@sha256:12", "write"},
		{hex64, "image ID"},
		{"nginx:" + strings.Repeat("a", 129), "128"},
		{"oci:", "write oci:DIR"},
		{"oci:dir:", "no tag after the colon"},
		{"oci::tag", "no path"},
		{"oci:dir@sha256:" + hex64[1:], "digest"},
		{"oci-archive:", "write oci-archive:FILE"},
		{"docker-archive:f@sha256:" + hex64, "docker-archive:FILE:NAME:TAG"},
		{"docker-archive:f:Nginx", "write nginx"},
		{"oci:a\nb", "control"},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			n, err := image.ParseName(tt.in)
			if !errors.Is(err, image.ErrName) {
				t.Fatalf("got %v, error %v", n, err)
			}
			if !strings.Contains(err.Error(), tt.hint) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got the error %q, want one line with %q", err, tt.hint)
			}
		})
	}
}

// FuzzParseName: what is read is written in a form that reads as the same name.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{
		"nginx:1.27", "h:5/r:t@sha256:" + hex64, "oci:d:t@sha256:" + hex64, "oci-archive:f", "docker-archive:f:n:t",
		"docker://A", "İ/A:b", "oci:@sha256:" + hex64, "docker-archive:f:n@sha256:" + hex64,
		`oci:a\:b:t`, `oci:a\\:b\\\:`, `docker-archive:\:\\:n`, `oci:a\`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := image.ParseName(s)
		if err != nil {
			if !errors.Is(err, image.ErrName) {
				t.Fatalf("%q: %v is not ErrName", s, err)
			}
			return
		}
		again, err := image.ParseName(n.String())
		if err != nil || again.String() != n.String() || !reflect.DeepEqual(again, n) {
			t.Fatalf("%q: %+v is read back as %+v, %v", s, n, again, err)
		}
	})
}

// FuzzNameOfPath: whatever path a name is given, as when a relative one is made
// absolute, it is written in a form that reads as the same name.
func FuzzNameOfPath(f *testing.F) {
	for _, path := range []string{"/tmp/a:b/lay", `a\:b`, `a\`, `\\`, ":", "x@sha256:" + hex64, "a\xff:b", "d@sha256"} {
		f.Add(path, "t", false)
		f.Add(path, "", true)
	}
	f.Fuzz(func(t *testing.T, path, tag string, byDigest bool) {
		local, err := image.ParseName("oci:d:" + tag)
		if path == "" || strings.ContainsFunc(path, unicode.IsControl) || err != nil && tag != "" {
			t.Skip()
		}
		for _, n := range []image.Name{
			{Transport: image.Layout, Path: path, Tag: local.Tag},
			{Transport: image.OCIArchive, Path: path, Tag: local.Tag},
			{Transport: image.DockerArchive, Path: path},
			{Transport: image.DockerArchive, Path: path, Tag: "docker.io/library/nginx:latest"},
		} {
			if byDigest && n.Transport != image.DockerArchive {
				n.Digest = "sha256:" + hex64
			}
			if again, err := image.ParseName(n.String()); err != nil || again != n {
				t.Errorf("%+v is written %s and read back as %+v, %v", n, n, again, err)
			}
		}
	})
}

// TestOpenColon: images are found in folders with a colon in their names, by names
// relative and whole.
func TestOpenColon(t *testing.T) {
	img := platformImage(t, host(), true)
	dir := filepath.Join(t.TempDir(), `a:b\c`)
	check(t, os.Rename(newLayout(t, map[string]mutate.Appendable{"t": img}), dir))
	tarred := tarDir(t, dir)
	check(t, os.Rename(tarred, dir+".tar"))
	t.Chdir(dir)
	for _, s := range []string{"oci:.:t", `oci-archive:../a\:b\c.tar:t`} {
		n, err := image.ParseName(s)
		check(t, err)
		n.Path, err = filepath.Abs(n.Path)
		check(t, err)
		t.Chdir("/") // where a server works
		got, err := image.Open(t.Context(), n.String(), image.Options{})
		check(t, err)
		if got.Name != n.String() {
			t.Errorf("%s is called %s", n, got.Name)
		}
		t.Chdir(dir)
	}
	_, err := image.Open(t.Context(), "oci:"+dir+":t", image.Options{})
	oneLine(t, err, image.ErrNotFound, `is written \:`)
	_, err = image.Open(t.Context(), "oci:"+filepath.Dir(dir)+"/none:t", image.Options{})
	if oneLine(t, err, image.ErrNotFound, "no directory"); strings.Contains(err.Error(), `\:`) {
		t.Error(err)
	}
}
