package main

import (
	"archive/tar"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/bench/walk"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
)

// millionDirs directories of millionFiles files each are the image of a million, and
// fewDirs of them the one that it is compared with.
const millionDirs, millionFiles, fewDirs = 1000, 1000, 10

// writeMillion writes the tar of the files of a million's first directories.
func writeMillion(tw *tar.Writer, dirs int) error {
	at := time.Unix(1_600_000_000, 0)
	for d := range dirs {
		name := fmt.Sprintf("dir%03d/", d)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: at}); err != nil {
			return err
		}
		for f := range millionFiles {
			content := fmt.Sprintf("%d of %d\n", f, d)
			h := &tar.Header{Name: fmt.Sprintf("%sfile%03d.txt", name, f), Mode: 0o644, Size: int64(len(content)), ModTime: at}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			if _, err := tw.Write([]byte(content)); err != nil {
				return err
			}
		}
	}
	return nil
}

// million measures an image of 1,000,000 small files.
func (b *bench) million(ctx context.Context) error {
	s, err := b.newStore()
	if err != nil {
		return err
	}
	ref, err := b.filesImage(ctx, "million", millionDirs)
	if err != nil {
		return err
	}
	few, err := b.filesImage(ctx, "few", fewDirs)
	if err != nil {
		return err
	}
	dir, err := b.newDir("million")
	if err != nil {
		return err
	}
	began := time.Now()
	if err := s.Mount(dir, ref, "--engine", "fuse"); err != nil {
		return err
	}
	first := time.Since(began)
	list, err := walk.NewList(dir)
	if err != nil {
		return err
	}
	walk := func() (took time.Duration, rss string, err error) {
		if err := list.Lstat(dir); err != nil {
			return 0, "", err
		}
		began := time.Now()
		if err := list.Walk(dir); err != nil {
			return 0, "", err
		}
		took = time.Since(began)
		rss, err = memory(s)
		return took, rss, err
	}
	_, rssFirst, err := walk()
	if err != nil {
		return err
	}
	if _, err := s.Run("umount", dir); err != nil {
		return err
	}
	if err := s.Mount(dir, ref, "--engine", "fuse"); err != nil {
		return err
	}
	walked, rss, err := walk()
	if err != nil {
		return err
	}
	if _, err := s.Run("umount", dir); err != nil {
		return err
	}
	took, err := b.warmMounts(s, ref)
	if err != nil {
		return err
	}
	commitMany, err := b.commitIn(s, ref)
	if err != nil {
		return err
	}
	commitFew, err := b.commitIn(s, few)
	if err != nil {
		return err
	}
	b.printf("\n### An image of %d files\n\n%s", millionDirs*millionFiles, markdown([][]string{
		{"", "measured", "promised"},
		{"first mount (zstd, local), s", fmt.Sprintf("%.1f", first.Seconds()), ""},
		{"warm mount, kernel engine, ms", ms(took["kernel"]), "30"},
		{"warm mount, fuse engine, ms", ms(took["fuse"]), "30"},
		{"walk of all names, ms", ms(walked), ""},
		{"resident after walk and lstat of all, second mount: server and holder, MB", rss, "40"},
		{"the same, first mount", rssFirst, ""},
		{"commit of a changed file, fuse engine, ms", ms(commitMany), "as the next"},
		{fmt.Sprintf("the same in an image of %d files", fewDirs*millionFiles), ms(commitFew), ""},
	}))
	return nil
}

// filesImage makes the image called name of that many of a million's directories.
func (b *bench) filesImage(ctx context.Context, name string, dirs int) (ref string, err error) {
	layout, err := b.synthetic(ctx, name, []images.Format{images.Zstd}, func(tw *tar.Writer) error { return writeMillion(tw, dirs) })
	return "oci:" + layout + ":" + images.Tag(name, images.Zstd), err
}

// commitIn returns the median time that it takes to commit one changed file of a
// writable mount of ref.
func (b *bench) commitIn(s *lamina.Store, ref string) (time.Duration, error) {
	const name = "million"
	dir, err := b.newDir(name)
	if err != nil {
		return 0, err
	}
	if err := s.Mount(dir, ref, "-q", "--rw", "--name", name, "--engine", "fuse"); err != nil {
		return 0, err
	}
	var all samples
	for i := range 11 {
		if err := os.WriteFile(filepath.Join(dir, "dir000/file000.txt"), []byte(fmt.Sprint("change ", i)), 0o600); err != nil {
			return 0, err
		}
		unix.Sync()
		began := time.Now()
		if _, err := s.Run("commit", "-q", name, fmt.Sprintf("example.com/%s:%d", name, i)); err != nil {
			return 0, err
		}
		all = append(all, time.Since(began))
	}
	_, err = s.Run("umount", "--rm", name)
	return all.median(), err
}

// memory returns the resident memory of the server and the holder of the only
// mount, in that order, in MB.
func memory(s *lamina.Store) (string, error) {
	procs, err := s.Processes()
	if err != nil {
		return "", err
	}
	var all []string
	// The words of the two begin alike, up to serve and hold.
	pids := slices.SortedFunc(maps.Keys(procs), func(a, b int) int { return strings.Compare(procs[b], procs[a]) })
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return "", err
		}
		for l := range strings.Lines(string(b)) {
			var kb int64
			if n, _ := fmt.Sscanf(l, "VmRSS: %d kB", &kb); n == 1 {
				all = append(all, fmt.Sprintf("%.1f", float64(kb)/1e3))
			}
		}
	}
	return strings.Join(all, " and "), nil
}
