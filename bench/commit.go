package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
)

// commitCounts are how many files are changed before a commit.
var commitCounts = []int{1, 1000}

// committer makes images of changes: prepare returns the root of a writable tree
// of the python image, and what makes an image of what was changed in it.
type committer struct {
	name    string
	prepare func(ctx context.Context, dir string) (root string, commit func() error, end func() error, err error)
}

// commits compares the time that it takes to make an image of changes.
func (b *bench) commits(ctx context.Context) error {
	var g grid
	for range b.runs {
		for _, n := range commitCounts {
			for _, c := range []committer{
				{"lamina commit", b.laminaCommit},
				{"buildah commit", b.buildahCommit(false)},
				{"podman commit", b.podmanCommit},
				{"buildah commit to a layout", b.buildahCommit(true)},
				{"umoci repack", b.umociRepack},
			} {
				took, err := b.commitOnce(ctx, c, n)
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				g.add(fmt.Sprintf("%d changed files", n), c.name, took)
			}
		}
	}
	b.printf("\n### An image of what changed in the python image\n\n"+
		"buildah and podman commit keep the layer uncompressed in their storage; the others compress it.\n\n%s", g.markdown("lamina commit"))
	return nil
}

func (b *bench) commitOnce(ctx context.Context, c committer, n int) (took time.Duration, err error) {
	dir, err := os.MkdirTemp("", "c") // podman wants a short path
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root, commit, end, err := c.prepare(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, end()) }()
	for i := range n {
		sub := filepath.Join(root, "opt", fmt.Sprint(i%50))
		if err := errors.Join(os.MkdirAll(sub, 0o755), os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), []byte(strings.Repeat("some text ", 100)), 0o644)); err != nil {
			return 0, err
		}
	}
	unix.Sync() // the caches stay warm: who commits has just made the change
	began := time.Now()
	err = commit()
	return time.Since(began), err
}

func nothing() error { return nil }

func (b *bench) laminaCommit(_ context.Context, dir string) (string, func() error, func() error, error) {
	s, err := b.newStore(b.reg.Host())
	if err != nil {
		return "", nil, nil, err
	}
	ref := b.reg.Host() + "/lamina/python:" + string(images.Gzip)
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", nil, nil, err
	}
	for _, words := range [][]string{{"pull", "-q", ref}, {"mount", "-q", "--rw", "--name", "w", ref, root}} {
		if _, err := s.Run(words...); err != nil {
			return "", nil, nil, err
		}
	}
	commit := func() error {
		_, err := s.Run("commit", "-q", "w", "example.com/app:1")
		return err
	}
	return root, commit, func() error { _, err := s.Run("umount", "--rm", "w"); return err }, nil
}

// tool returns a function that runs name with the same first words each time.
func tool(ctx context.Context, name string, first ...string) func(words ...string) (string, error) {
	return func(words ...string) (string, error) {
		out, err := exec.CommandContext(ctx, name, append(first, words...)...).Output()
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
			}
			err = fmt.Errorf("%s %s: %w", name, strings.Join(words, " "), err)
		}
		return strings.TrimSpace(string(out)), err
	}
}

func (b *bench) buildahCommit(layout bool) func(context.Context, string) (string, func() error, func() error, error) {
	return func(ctx context.Context, dir string) (string, func() error, func() error, error) {
		buildah := tool(ctx, "buildah", "--root", dir+"/s", "--runroot", dir+"/r")
		id, err := buildah("from", "-q", b.set.Ref("python", images.Gzip))
		if err != nil {
			return "", nil, nil, err
		}
		root, err := buildah("mount", id)
		if err != nil {
			return "", nil, nil, err
		}
		to := "app:1"
		if layout {
			to = "oci:" + dir + "/layout:app"
		}
		commit := func() error { _, err := buildah("commit", "-q", id, to); return err }
		end := func() error {
			_, err1 := buildah("rm", "--all")
			_, err2 := buildah("rmi", "--all", "--force")
			return errors.Join(err1, err2)
		}
		return root, commit, end, nil
	}
}

func (b *bench) podmanCommit(ctx context.Context, dir string) (string, func() error, func() error, error) {
	podman := tool(ctx, "podman", "--root", dir+"/s", "--runroot", dir+"/r")
	image, err := podman("pull", "-q", b.set.Ref("python", images.Gzip))
	if err != nil {
		return "", nil, nil, err
	}
	id, err := podman("create", "--network", "none", image, "true")
	if err != nil {
		return "", nil, nil, err
	}
	root, err := podman("mount", id)
	if err != nil {
		return "", nil, nil, err
	}
	commit := func() error { _, err := podman("commit", "-q", id, "app:1"); return err }
	end := func() error {
		_, err1 := podman("umount", id)
		_, err2 := podman("rm", "--all", "--force")
		_, err3 := podman("rmi", "--all", "--force")
		return errors.Join(err1, err2, err3)
	}
	return root, commit, end, nil
}

func (b *bench) umociRepack(ctx context.Context, dir string) (string, func() error, func() error, error) {
	image := filepath.Join(dir, "layout") + ":app"
	if err := command(ctx, "skopeo", "copy", "-q", b.set.Ref("python", images.Gzip), "oci:"+image); err != nil {
		return "", nil, nil, err
	}
	bundle := filepath.Join(dir, "bundle")
	umoci := tool(ctx, "umoci")
	if _, err := umoci("unpack", "--image", image, bundle); err != nil {
		return "", nil, nil, err
	}
	commit := func() error { _, err := umoci("repack", "--image", image, bundle); return err }
	return filepath.Join(bundle, "rootfs"), commit, nothing, nil
}
