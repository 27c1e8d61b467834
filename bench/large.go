package main

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/bench/walk"
	"github.com/laminafs/lamina/integration/images"
)

const (
	largeSize   = 1 << 30
	randomReads = 20_000
)

// synthetic makes a layout with an image of one layer, in each format, tagged
// name-format. write writes the layer's entries.
func (b *bench) synthetic(ctx context.Context, name string, formats []images.Format, write func(*tar.Writer) error) (string, error) {
	dir, err := b.newDir(name)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "tar")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	tw := tar.NewWriter(f)
	err = write(tw)
	if err == nil {
		err = tw.Close()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", err
	}
	out, err := images.NewLayout(filepath.Join(dir, "layout"))
	if err != nil {
		return "", err
	}
	for _, format := range formats {
		var desc ocispec.Descriptor
		var diff digest.Digest
		dgst, size, err := out.AddBlob(func(w io.Writer) (err error) {
			desc, diff, err = b.set.Encode(ctx, w, path, format)
			return err
		})
		if err != nil {
			return "", err
		}
		desc.Digest, desc.Size = dgst, size
		m, err := out.AddImage(ocispec.ImageConfig{}, ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
			[]ocispec.Descriptor{desc}, []digest.Digest{diff})
		if err != nil {
			return "", err
		}
		out.Tag(m, images.Tag(name, format))
	}
	if err := os.Remove(path); err != nil {
		return "", err
	}
	return filepath.Join(dir, "layout"), out.Close()
}

// large compares reads of one large file.
func (b *bench) large(ctx context.Context) error {
	layout, err := b.synthetic(ctx, "large", []images.Format{images.Tar, images.Zstd, images.Stargz}, func(tw *tar.Writer) error {
		if err := tw.WriteHeader(&tar.Header{Name: "large", Mode: 0o644, Size: largeSize, ModTime: time.Unix(1_600_000_000, 0)}); err != nil {
			return err
		}
		// Not to be compressed away: what is measured is reading.
		_, err := io.CopyN(tw, rand.NewChaCha8([32]byte{}), largeSize)
		return err
	})
	if err != nil {
		return err
	}
	subjects, err := b.subjects(ctx, layout, "large", images.Zstd, images.Stargz)
	if err != nil {
		return err
	}
	var g grid
	for range b.runs {
		for _, s := range subjects {
			file := filepath.Join(s.dir, "large")
			for _, op := range []struct {
				name string
				do   func() error
			}{
				{"1 GiB in order", func() error { _, err := walk.Sequential(file); return err }},
				{fmt.Sprintf("%d x 4 KiB at random", randomReads), func() error { return walk.Random(file, randomReads) }},
			} {
				if err := dropCaches(); err != nil {
					return err
				}
				for _, heat := range []string{"cold", "", "warm"} {
					began := time.Now()
					if err := op.do(); err != nil {
						return fmt.Errorf("%s of %s: %w", op.name, s.name, err)
					}
					if heat != "" {
						g.add(op.name+", "+heat, s.name, time.Since(began))
					}
				}
			}
		}
	}
	b.printf("\n### One file of 1 GiB\n\n1000 ms for it are 1.07 GB/s.\n\n%s", g.markdown(overlayfs))
	return nil
}
