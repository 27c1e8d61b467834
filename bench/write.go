package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
)

const fuseOverlayfs = "fuse-overlayfs"

// writes is what the workloads that write share.
type writes struct {
	*bench
	images  map[string]writeImage
	systems []writable
	tree    string // a tar of many small files
	debs    string // a directory of Debian packages
	repo    string // a git repository

	times grid
	grown map[string]int64 // bytes in a system's upper directory after the chmod of a large file
}

// writeImage is an image as lamina and as the others want it.
type writeImage struct {
	ref    string
	lowers []string // as overlayfs takes them: the topmost layer first
}

// writable is a file system that can be mounted over an image to write to it.
type writable struct {
	name string
	// mount mounts image, with an empty upper directory inside dir, at the directory
	// root there; end unmounts it.
	mount func(image writeImage, dir string) (upper string, end func() error, err error)
}

// workspace is a fresh writable mount in which one workload runs.
type workspace struct {
	*writes
	system string
	root   string // where it is mounted
	upper  string // where the changes are
}

// path returns where something of the image is in the mount.
func (w *workspace) path(name string) string { return filepath.Join(w.root, name) }

// timed measures do, with nothing left to be written by what was done before.
func (w *workspace) timed(row string, do func() error) error {
	unix.Sync()
	began := time.Now()
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	w.times.add(row, w.system, time.Since(began))
	return nil
}

// writing measures workloads that change a writable mount.
func (b *bench) writing(ctx context.Context) error {
	w := &writes{bench: b, images: map[string]writeImage{}, grown: map[string]int64{}}
	if err := w.prepare(ctx); err != nil {
		return err
	}
	for range b.runs {
		for _, load := range workloads() {
			for _, s := range w.systems {
				if err := w.once(ctx, s, load); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
		}
	}
	b.printf("\n### Writes to a mount of the python image\n\n"+
		"Seconds, in brackets as times of overlayfs's. Every workload starts on a fresh mount of an image that is on the machine;\n"+
		"every upper directory is on a fresh ext4 of its own, in a file on the %s that has overlayfs's and fuse-overlayfs's unpacked layers.\n\n%s", fsType(b.dir), w.table())
	return nil
}

func (w *writes) once(ctx context.Context, s writable, load workload) (err error) {
	dir, undo, err := w.freshDisk(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo()) }()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	upper, end, err := s.mount(w.images[load.image], dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	return load.run(ctx, &workspace{writes: w, system: s.name, root: root, upper: upper})
}

// diskSize is that of a workspace's disk. It takes what is written to it.
const diskSize = 8 << 30

// freshDisk mounts a new ext4 that nobody has written to. On one disk the systems would
// not be measured alike: ext4 gives no inode to a new file that was freed in the last
// minutes, and looks at all of these first; what one system removes made tar x take
// ten times as long on the next. undo unmounts the disk and removes it.
func (w *writes) freshDisk(ctx context.Context) (dir string, undo func() error, err error) {
	if dir, err = w.newDir("disk"); err != nil {
		return "", nil, err
	}
	file := dir + ".img"
	f, err := os.Create(file)
	if err != nil {
		return "", nil, err
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return "", nil, err
	}
	// All of it now: the kernel would go on making the disk while it is measured.
	err = command(ctx, "mkfs.ext4", "-q", "-F", "-N", "262144", "-E", "lazy_itable_init=0,lazy_journal_init=0", file)
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(file))
	}
	loop, err := groupedOutput(ctx, nil, "losetup", "--find", "--show", "--direct-io=on", file)
	if err != nil {
		return "", nil, errors.Join(err, os.Remove(file))
	}
	// Without the context: what was begun is taken back.
	ctx = context.WithoutCancel(ctx)
	detach := func() error { return errors.Join(command(ctx, "losetup", "--detach", loop), os.Remove(file)) }
	if err := unix.Mount(loop, dir, "ext4", 0, ""); err != nil {
		return "", nil, errors.Join(fmt.Errorf("mount %s: %w", loop, err), detach())
	}
	return dir, func() error {
		if err := patiently(func() error { return unix.Unmount(dir, 0) }); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err) // what may still be mounted is not removed
		}
		return errors.Join(detach(), os.Remove(dir))
	}, nil
}

// prepare makes the images, the systems and what the workloads write.
func (w *writes) prepare(ctx context.Context) error {
	if err := w.addImage(ctx, "python", w.set.LayoutDir(), images.Gzip); err != nil {
		return err
	}
	layout, err := w.synthetic(ctx, "large", []images.Format{images.Tar, images.Zstd}, func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Name: "large", Mode: 0o644, Size: largeSize, ModTime: time.Unix(1_600_000_000, 0)}); err != nil {
			return err
		}
		_, err := io.CopyN(tw, rand.NewChaCha8([32]byte{}), largeSize)
		return err
	})
	if err != nil {
		return err
	}
	if err := w.addImage(ctx, "large", layout, images.Zstd); err != nil {
		return err
	}
	w.systems = []writable{
		{overlayfs, func(i writeImage, dir string) (string, func() error, error) {
			return mountUpper(dir, i.lowers, func(root, opts string) error {
				return unix.Mount("overlay", root, "overlay", 0, opts)
			})
		}},
		{fuseOverlayfs, func(i writeImage, dir string) (string, func() error, error) {
			return mountUpper(dir, i.lowers, func(root, opts string) error {
				// Without the context: half a mount could not be cleaned up.
				return grouped(context.WithoutCancel(ctx), nil, fuseOverlayfs, "-o", opts, root)
			})
		}},
	}
	for _, engine := range []string{"fuse", "kernel"} {
		s, err := w.newStore()
		if err != nil {
			return err
		}
		if err := w.warm(ctx, s, engine); err != nil {
			return err
		}
		w.systems = append(w.systems, writable{"lamina " + engine, laminaWritable(s, engine)})
	}
	return w.materials(ctx)
}

// addImage enters the image called name, unpacked from its format Tar.
func (w *writes) addImage(ctx context.Context, name, layout string, f images.Format) error {
	dirs, err := w.unpack(ctx, layout, images.Tag(name, images.Tar))
	if err != nil {
		return err
	}
	i := writeImage{ref: "oci:" + layout + ":" + images.Tag(name, f)}
	for _, d := range dirs {
		i.lowers = append([]string{d}, i.lowers...)
	}
	w.images[name] = i
	return nil
}

// warm brings the images into a store: what is measured needs no fetching.
func (w *writes) warm(ctx context.Context, s *lamina.Store, engine string) error {
	for _, i := range w.images {
		dir, err := w.newDir("warm")
		if err != nil {
			return err
		}
		if err := s.Mount(dir, i.ref, "-q", "--engine", engine); err != nil {
			return err
		}
		if err := tarAll(ctx, dir); err != nil {
			return err
		}
		if _, err := s.Run("umount", dir); err != nil {
			return err
		}
	}
	return nil
}

// laminaWritable mounts with a workspace that is removed in the end.
func laminaWritable(s *lamina.Store, engine string) func(writeImage, string) (string, func() error, error) {
	const name = "w"
	return func(i writeImage, dir string) (string, func() error, error) {
		upper := filepath.Join(dir, "upper")
		if err := s.Mount(filepath.Join(dir, "root"), i.ref, "-q", "--rw", "--name", name, "--upper", upper, "--engine", engine); err != nil {
			return "", nil, err
		}
		end := func() error {
			return patiently(func() error { _, err := s.Run("umount", "--rm", name); return err })
		}
		return upper, end, nil
	}
}

// mountUpper calls mount with overlayfs's options for lowers under an upper
// directory in dir.
func mountUpper(dir string, lowers []string, mount func(root, opts string) error) (string, func() error, error) {
	root, upper, work := filepath.Join(dir, "root"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return "", nil, err
	}
	opts := "lowerdir=" + strings.Join(lowers, ":") + ",upperdir=" + upper + ",workdir=" + work
	if err := mount(root, opts); err != nil {
		return "", nil, fmt.Errorf("mount %s: %w", root, err)
	}
	return upper, func() error {
		err := patiently(func() error { return unix.Unmount(root, 0) })
		if err != nil {
			err = errors.Join(fmt.Errorf("unmount %s: %w", root, err), unix.Unmount(root, unix.MNT_DETACH))
		}
		return err
	}, nil
}

// patiently repeats an unmounting for a while: programs that were killed may not
// have ended yet.
func patiently(unmount func() error) (err error) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if err = unmount(); err == nil || time.Now().After(end) {
			return err
		}
	}
}

// table prints the medians and, below, what they come to.
func (w *writes) table() string {
	rows := [][]string{{"s"}}
	for _, s := range w.systems {
		rows[0] = append(rows[0], s.name)
	}
	sums := map[string]time.Duration{}
	line := func(name string, took func(system string) time.Duration) {
		cells := []string{name}
		for _, s := range w.systems {
			cell := fmt.Sprintf("%.3f", took(s.name).Seconds())
			if s.name != overlayfs {
				cell += fmt.Sprintf(" (%.2f)", float64(took(s.name))/float64(took(overlayfs)))
			}
			cells = append(cells, cell)
		}
		rows = append(rows, cells)
	}
	for _, r := range w.times.rows {
		line(r, func(system string) time.Duration { return w.times.cells[[2]string{r, system}].median() })
		for _, s := range w.systems {
			sums[s.name] += w.times.cells[[2]string{r, s.name}].median()
		}
	}
	line("sum", func(system string) time.Duration { return sums[system] })
	share, grown := []string{"sum as times of fuse-overlayfs's"}, []string{"MB in the upper directory after the chmod of 1 GiB"}
	for _, s := range w.systems {
		share = append(share, fmt.Sprintf("%.2f", float64(sums[s.name])/float64(sums[fuseOverlayfs])))
		grown = append(grown, fmt.Sprintf("%.2f", float64(w.grown[s.name])/1e6))
	}
	return markdown(append(rows, share, grown))
}

// used returns how many bytes of disk a directory takes.
func used(dir string) (n int64, err error) {
	return n, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		n += info.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
}

// fsType names the file system of dir, if it is one that we know.
func fsType(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil {
		switch st.Type {
		case unix.EXT4_SUPER_MAGIC:
			return "ext4"
		case unix.XFS_SUPER_MAGIC:
			return "xfs"
		case unix.BTRFS_SUPER_MAGIC:
			return "btrfs"
		case unix.TMPFS_MAGIC:
			return "tmpfs"
		}
	}
	return "file system"
}
