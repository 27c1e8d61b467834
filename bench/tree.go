package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/laminafs/lamina/bench/walk"
	"github.com/laminafs/lamina/integration/images"
)

// tarAll has tar read a whole tree. GNU tar does not read what goes to
// /dev/null, so it goes through a pipe.
func tarAll(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, "tar", "c", "-C", dir, ".")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{out}, make([]byte, 1<<20)); err != nil {
		return err
	}
	return cmd.Wait()
}

// trees compares what programs do with a tree of many files.
func (b *bench) trees(ctx context.Context) error {
	subjects, err := b.subjects(ctx, b.set.LayoutDir(), "python", images.Gzip, images.EStargz)
	if err != nil {
		return err
	}
	list, err := walk.NewList(subjects[0].dir)
	if err != nil {
		return err
	}
	ops := []struct {
		name string
		do   func(dir string) error
	}{
		{"walk", list.Walk},
		{"lstat", list.Lstat},
		{fmt.Sprintf("open+read+close, <= %d KiB", walk.Small>>10), list.ReadSmall},
		{"tar c", func(dir string) error { return tarAll(ctx, dir) }},
	}
	var g grid
	for range b.runs {
		for _, op := range ops {
			for _, s := range subjects {
				if err := dropCaches(); err != nil {
					return err
				}
				// The second pass is warm; a third one shows whether it was.
				for _, heat := range []string{"cold", "", "warm"} {
					began := time.Now()
					if err := op.do(s.dir); err != nil {
						return fmt.Errorf("%s of %s: %w", op.name, s.name, err)
					}
					if heat != "" {
						g.add(op.name+", "+heat, s.name, time.Since(began))
					}
				}
			}
		}
	}
	b.printf("\n### A tree of %d entries, %d small files (python image)\n\nMilliseconds for the whole tree; in brackets as times of overlayfs's.\n\n%s",
		list.Len(), list.Files(), g.markdown(overlayfs))
	return nil
}
