package main

import (
	"archive/tar"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/laminafs/lamina/bench/walk"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
)

// millionDirs directories of millionFiles files each are the image of a million.
const millionDirs, millionFiles = 1000, 1000

// writeMillion writes the files' tar.
func writeMillion(tw *tar.Writer) error {
	at := time.Unix(1_600_000_000, 0)
	for d := range millionDirs {
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
	layout, err := b.synthetic(ctx, "million", []images.Format{images.Zstd}, writeMillion)
	if err != nil {
		return err
	}
	s, err := b.newStore()
	if err != nil {
		return err
	}
	ref := "oci:" + layout + ":" + images.Tag("million", images.Zstd)
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
	b.printf("\n### An image of %d files\n\n%s", millionDirs*millionFiles, markdown([][]string{
		{"", "measured", "promised"},
		{"first mount (zstd, local), s", fmt.Sprintf("%.1f", first.Seconds()), ""},
		{"warm mount, kernel engine, ms", ms(took["kernel"]), "30"},
		{"warm mount, fuse engine, ms", ms(took["fuse"]), "30"},
		{"walk of all names, ms", ms(walked), ""},
		{"resident after walk and lstat of all, second mount: server and holder, MB", rss, "40"},
		{"the same, first mount", rssFirst, ""},
	}))
	return nil
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
