package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// treeDirs directories of treeFiles files each are what is extracted.
const treeDirs, treeFiles = 400, 50

// repoDirs directories of repoFiles files each are in the repository.
const repoDirs, repoFiles = 250, 20

// debs names the packages that are installed: 3,200 files, and no dependencies that
// the image does not fulfil.
func debs() []string { return []string{"linux-libc-dev", "vim-common", "vim-runtime", "xxd"} }

// materials makes what the workloads write.
func (w *writes) materials(ctx context.Context) error {
	w.tree, w.debs, w.repo = w.path("small.tar"), w.path("debs"), w.path("repo")
	if err := writeTree(w.tree); err != nil {
		return fmt.Errorf("write %s: %w", w.tree, err)
	}
	if err := download(ctx, w.debs); err != nil {
		return err
	}
	return makeRepo(ctx, w.repo)
}

// writeTree writes a tar of files of 0.5 to 8 KiB.
func writeTree(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tw := tar.NewWriter(f)
	random := rand.New(rand.NewPCG(1, 2))
	content := rand.NewChaCha8([32]byte{})
	at := time.Unix(1_600_000_000, 0)
	for d := range treeDirs {
		dir := fmt.Sprintf("dir%02d/sub%02d/", d/20, d%20)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: at}); err != nil {
			return err
		}
		for i := range treeFiles {
			h := &tar.Header{Name: fmt.Sprintf("%sfile%02d", dir, i), Mode: 0o644, Size: 512 + random.Int64N(7680), ModTime: at}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			if _, err := io.CopyN(tw, content, h.Size); err != nil {
				return err
			}
		}
	}
	return tw.Close()
}

// download has apt fetch the packages into dir, from the machine's own sources,
// which are those of the images.
func download(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	fetch := append([]string{"-C", dir, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download"}, debs()...)
	err := grouped(ctx, nil, "env", fetch...)
	if err == nil {
		return nil
	}
	if uerr := grouped(ctx, nil, "apt-get", "-q", "update"); uerr != nil {
		return errors.Join(err, uerr)
	}
	return grouped(ctx, nil, "env", fetch...)
}

// git runs git in dir, away from anybody's configuration.
func git(ctx context.Context, dir string, words ...string) (string, error) {
	env := []string{"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null"}
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		env = append(env, "GIT_"+who+"_NAME=bench", "GIT_"+who+"_EMAIL=bench@example.com", "GIT_"+who+"_DATE=1600000000 +0000")
	}
	return groupedOutput(ctx, env, "git", append([]string{"-C", dir}, words...)...)
}

// makeRepo makes a repository with the commits one and two; one is checked out.
// Of one's files, two has changed three of ten and removed one of ten, has others
// instead of them, and another name for one of ten directories.
func makeRepo(ctx context.Context, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if _, err := git(ctx, dir, "init", "-q"); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(3, 4))
	commit := func(name string, file func(dir, file int) error) error {
		for d := range repoDirs {
			for f := range repoFiles {
				if err := file(d, f); err != nil {
					return err
				}
			}
		}
		for _, words := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", name}, {"tag", name}} {
			if _, err := git(ctx, dir, words...); err != nil {
				return err
			}
		}
		return nil
	}
	sub := func(d int) string {
		return filepath.Join(dir, fmt.Sprintf("part%02d", d/10), fmt.Sprintf("dir%d", d%10))
	}
	write := func(d int, name string) error {
		if err := os.MkdirAll(sub(d), 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(sub(d), name), text(random), 0o644)
	}
	err := commit("one", func(d, f int) error { return write(d, fmt.Sprintf("file%02d", f)) })
	if err != nil {
		return err
	}
	err = commit("two", func(d, f int) error {
		name := fmt.Sprintf("file%02d", f)
		switch {
		case f%10 < 3:
			return write(d, name)
		case f%10 == 3:
			return errors.Join(os.Remove(filepath.Join(sub(d), name)), write(d, "new"+name))
		case f == repoFiles-1 && d%10 == 0:
			return os.Rename(sub(d), sub(d)+"moved")
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = git(ctx, dir, "checkout", "-q", "one")
	return err
}

// text returns some lines, 4 KiB on average.
func text(random *rand.Rand) []byte {
	var b bytes.Buffer
	for range 1 + random.IntN(200) {
		_, _ = fmt.Fprintf(&b, "%016x is a number and %04x is another\n", random.Uint64(), random.Uint32N(1<<16))
	}
	return b.Bytes()
}

// grouped runs a command like [command], with more in its environment. The end of
// the context is also the end of what the command started.
func grouped(ctx context.Context, env []string, name string, args ...string) error {
	_, err := groupedOutput(ctx, env, name, args...)
	return err
}

// groupedOutput is grouped and returns the standard output.
func groupedOutput(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		tail := strings.TrimSpace(out.String() + stderr.String())
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail[max(0, len(tail)-4000):])
	}
	return strings.TrimSpace(out.String()), nil
}
