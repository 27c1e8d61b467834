// Command demo shows lamina at work with nothing from outside: it makes an image
// out of files of this machine's Debian packages, serves it from a registry of
// its own on loopback, and uses the program given as its argument as a user
// would. It cleans up after itself.
package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/integration/images"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo LAMINA")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, lamina string) (err error) {
	lamina, err = filepath.Abs(lamina)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lamina-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	say("An image of files from Debian packages, as eStargz, in a registry on loopback")
	began := time.Now()
	ref, stop, err := serve(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	say("%s, after %.1f s", ref, time.Since(began).Seconds())

	s := session{lamina: lamina, root: filepath.Join(dir, "root"), dir: filepath.Join(dir, "mnt")}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return err
	}
	return s.show(ctx, ref)
}

// session is one user at work.
type session struct {
	lamina, root, dir string
}

func (s session) show(ctx context.Context, ref string) (err error) {
	if err := s.run(ctx, "lamina", "mount", ref, s.dir); err != nil {
		return err
	}
	mounted := true
	defer func() {
		if mounted {
			// Whatever went wrong, or was interrupted: nothing stays mounted.
			err = errors.Join(err, s.run(context.Background(), "lamina", "umount", "--lazy", s.dir))
		}
	}()
	for _, words := range [][]string{
		{"ls", "-l", s.dir},
		{"cat", filepath.Join(s.dir, "etc/os-release")},
		{filepath.Join(s.dir, "bin/busybox"), "echo", "hello from a program that was fetched just now"},
		{"lamina", "mounts"},
		{"lamina", "stats", s.dir},
	} {
		if err := s.run(ctx, words...); err != nil {
			return err
		}
	}
	mounted = false
	return s.run(ctx, "lamina", "umount", s.dir)
}

// run shows a command, as it would be typed, and what it prints.
func (s session) run(ctx context.Context, words ...string) error {
	fmt.Printf("\n$ %s\n", strings.Join(words, " "))
	program := words[0]
	if program == "lamina" {
		program = s.lamina
	}
	began := time.Now()
	cmd := exec.CommandContext(ctx, program, words[1:]...)
	cmd.Env = append(os.Environ(), "LAMINA_ROOT="+s.root)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(words, " "), err)
	}
	if words[0] == "lamina" {
		fmt.Printf("(%.0f ms)\n", float64(time.Since(began))/float64(time.Millisecond))
	}
	return nil
}

func say(format string, args ...any) { fmt.Printf("# "+format+"\n", args...) }

// serve makes the image below dir and serves it until stop is called.
func serve(ctx context.Context, dir string) (ref string, stop func(), err error) {
	img, err := makeImage(ctx, dir)
	if err != nil {
		return "", nil, err
	}
	blobs := filepath.Join(dir, "registry")
	if err := os.Mkdir(blobs, 0o755); err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	quiet := log.New(io.Discard, "", 0)
	srv := &http.Server{
		Handler:           registry.New(registry.Logger(quiet), registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs))),
		ReadHeaderTimeout: time.Minute, ErrorLog: quiet,
	}
	go func() { _ = srv.Serve(ln) }() // ends with Close
	stop = func() { _ = srv.Close() }
	ref = ln.Addr().String() + "/demo/busybox:latest"
	tag, err := name.NewTag(ref, name.Insecure)
	if err == nil {
		err = remote.Write(tag, img, remote.WithContext(ctx))
	}
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("push the image: %w", err)
	}
	return ref, stop, nil
}

// makeImage writes the image as an OCI layout and opens it.
func makeImage(ctx context.Context, dir string) (v1.Image, error) {
	path := filepath.Join(dir, "layer.tar")
	if err := writeLayer(path); err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	out, err := images.NewLayout(filepath.Join(dir, "layout"))
	if err != nil {
		return nil, err
	}
	var desc ocispec.Descriptor
	var diff digest.Digest
	dgst, size, err := out.AddBlob(func(w io.Writer) (err error) {
		desc, diff, err = new(images.Set).Encode(ctx, w, path, images.EStargz)
		return err
	})
	if err != nil {
		return nil, err
	}
	desc.Digest, desc.Size = dgst, size
	m, err := out.AddImage(ocispec.ImageConfig{Cmd: []string{"/bin/sh"}}, ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		[]ocispec.Descriptor{desc}, []digest.Digest{diff})
	if err != nil {
		return nil, err
	}
	out.Tag(m, "demo")
	if err := errors.Join(out.Close(), os.Remove(path)); err != nil {
		return nil, err
	}
	l, err := layout.FromPath(filepath.Join(dir, "layout"))
	if err != nil {
		return nil, err
	}
	return l.Image(v1.Hash{Algorithm: "sha256", Hex: m.Digest.Encoded()})
}

// enough bounds the files that give the image its weight.
const enough = 32 << 20

// writeLayer writes busybox with its links, and files that nobody will read.
func writeLayer(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tw := tar.NewWriter(f)
	for _, d := range []string{"bin/", "etc/", "proc/", "tmp/", "usr/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755, ModTime: time.Now()}); err != nil {
			return err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	for _, file := range [][2]string{{busybox, "bin/busybox"}, {"/etc/os-release", "etc/os-release"}} {
		if _, err := copyFile(tw, file[0], file[1]); err != nil {
			return err
		}
	}
	for _, applet := range []string{"sh", "ls", "cat", "echo"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + applet, Linkname: "busybox", Mode: 0o777, ModTime: time.Now()}); err != nil {
			return err
		}
	}
	if err := writeBulk(tw); err != nil {
		return err
	}
	return tw.Close()
}

// writeBulk writes files that every Debian has below /usr, until it is enough.
func writeBulk(tw *tar.Writer) error {
	total := int64(0)
	for _, root := range []string{"/usr/share/perl", "/usr/share/zoneinfo", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/share/locale", "/usr/bin"} {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || total > enough {
				return errors.Join(err, fs.SkipAll)
			}
			if !d.Type().IsRegular() {
				return nil
			}
			n, err := copyFile(tw, p, strings.TrimPrefix(p, "/"))
			total += n
			return err
		})
		if err != nil && !errors.Is(err, fs.SkipAll) {
			return err
		}
	}
	return nil
}

func copyFile(tw *tar.Writer, from, to string) (int64, error) {
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrPermission) {
		return 0, nil // a user's demo has what a user may read
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	h := &tar.Header{Name: to, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()}
	if err := tw.WriteHeader(h); err != nil {
		return 0, err
	}
	return io.CopyN(tw, f, info.Size())
}
