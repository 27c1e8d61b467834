package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
)

// subject is a mounted tree that is measured.
type subject struct {
	name string
	dir  string
}

const overlayfs = "overlayfs"

// subjects shows the image tagged name in layout, stored there in the formats
// Tar, Gzip or Zstd (full) and lazy, through every file system.
func (b *bench) subjects(ctx context.Context, layout, name string, full, lazy images.Format) ([]subject, error) {
	lowers, err := b.unpack(ctx, layout, images.Tag(name, images.Tar))
	if err != nil {
		return nil, err
	}
	flat, err := b.newDir("ext4")
	if err != nil {
		return nil, err
	}
	all := []subject{{"ext4", flat}}
	// overlayfs takes the topmost layer first; a single one needs company.
	var top []string
	for _, l := range lowers {
		top = append([]string{l}, top...)
	}
	if len(top) == 1 {
		empty, err := b.newDir("empty")
		if err != nil {
			return nil, err
		}
		top = append(top, empty)
	}
	opts := "lowerdir=" + strings.Join(top, ":")
	for _, kind := range []string{overlayfs, "fuse-overlayfs"} {
		dir, err := b.newDir(kind)
		if err != nil {
			return nil, err
		}
		if kind == overlayfs {
			err = unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, opts)
		} else {
			err = command(ctx, "fuse-overlayfs", "-o", opts, dir)
		}
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", kind, err)
		}
		b.later(func() error { return unix.Unmount(dir, unix.MNT_DETACH) })
		if kind == overlayfs {
			if err := command(ctx, "cp", "-a", dir+"/.", flat); err != nil {
				return nil, err
			}
		}
		all = append(all, subject{kind, dir})
	}
	for _, l := range []struct {
		name, engine string
		format       images.Format
	}{{"lamina fuse", "fuse", full}, {"lamina kernel", "kernel", full}, {"lamina kernel, FUSE-served", "kernel", lazy}} {
		s, err := b.newStore()
		if err != nil {
			return nil, err
		}
		dir, err := b.newDir("lamina")
		if err != nil {
			return nil, err
		}
		if err := s.Mount(dir, "oci:"+layout+":"+images.Tag(name, l.format), "--engine", l.engine); err != nil {
			return nil, err
		}
		// What is measured is the file system: its cache on disk is full.
		if err := command(ctx, "sh", "-c", `tar c -C "$1" . | cat >/dev/null`, "tar", dir); err != nil {
			return nil, err
		}
		all = append(all, subject{l.name, dir})
	}
	return all, nil
}

// unpack extracts the plain tar layers of an image, each into a directory of its
// own, bottom first, as lower layers of overlayfs.
func (b *bench) unpack(ctx context.Context, layout, tag string) (dirs []string, err error) {
	m, err := images.Manifest(layout, tag)
	if err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		dir, err := b.newDir("lower")
		if err != nil {
			return nil, err
		}
		if err := command(ctx, "tar", "x", "-C", dir, "-f", images.BlobFile(layout, l), "--xattrs", "--xattrs-include=*", "--numeric-owner", "-p"); err != nil {
			return nil, err
		}
		if err := whiteouts(dir); err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// whiteouts turns OCI's whiteouts into overlayfs's.
func whiteouts(dir string) error {
	const prefix, opaque = ".wh.", ".wh..wh..opq"
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasPrefix(d.Name(), prefix) {
			return err
		}
		if err := os.Remove(p); err != nil {
			return err
		}
		parent := filepath.Dir(p)
		if d.Name() == opaque {
			return unix.Setxattr(parent, "trusted.overlay.opaque", []byte("y"), 0)
		}
		return unix.Mknod(filepath.Join(parent, strings.TrimPrefix(d.Name(), prefix)), unix.S_IFCHR, 0)
	})
}

// command runs a command; its error carries its output.
func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
