package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/lamina"
	"github.com/laminafs/lamina/integration/registry"
)

// bench is one run: what all measurements share.
type bench struct {
	out     io.Writer
	log     *slog.Logger
	runs    int
	dir     string // scratch, on the file system of the images
	set     *images.Set
	program lamina.Program
	auth    *registry.Authority
	reg     *registry.Registry

	cleanups []func() // run last first
	failed   error    // the first clean-up that failed
}

func main() {
	runs := flag.Int("runs", 3, "repeat every measurement `N` times and print medians")
	only := flag.String("only", "tree,large,first,plain,keep,commit,million,write", "measure these `PARTS`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, os.Stdout, *runs, strings.Split(*only, ","))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, runs int, parts []string) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("mounting needs root")
	}
	b := &bench{out: out, log: slog.New(slog.NewTextHandler(os.Stderr, nil)), runs: max(1, runs)}
	defer func() {
		for i := len(b.cleanups) - 1; i >= 0; i-- {
			b.cleanups[i]()
		}
		if err == nil {
			err = b.failed
		}
	}()
	if err := b.setUp(ctx); err != nil {
		return err
	}
	b.machine()
	all := map[string]func(context.Context) error{
		"tree": b.trees, "large": b.large, "first": b.first, "plain": b.plain, "keep": b.keep, "commit": b.commits, "million": b.million,
		"write": b.writing,
	}
	for _, p := range parts {
		measure := all[p]
		if measure == nil {
			return fmt.Errorf("no part %q", p)
		}
		b.log.Info("bench: " + p)
		if err := measure(ctx); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) setUp(ctx context.Context) (err error) {
	if b.set, err = images.Build(ctx, b.log); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(images.CacheDir(), "bench-"); err != nil {
		return err
	}
	b.later(func() error { return os.RemoveAll(b.dir) })
	if b.program, err = lamina.Build(b.dir); err != nil {
		return err
	}
	ca := b.path("ca")
	if err := os.Mkdir(ca, 0o700); err != nil {
		return err
	}
	if b.auth, err = registry.NewAuthority(ca); err != nil {
		return err
	}
	if b.reg, err = registry.Start(ctx, b.path("registry"), b.auth); err != nil {
		return err
	}
	b.later(b.reg.Stop)
	return b.reg.AddLayout(b.set.LayoutDir(), registry.SetTags)
}

// later has f run in the end.
func (b *bench) later(f func() error) {
	b.cleanups = append(b.cleanups, func() {
		if err := f(); err != nil {
			b.log.Error("clean up", "error", err)
			if b.failed == nil {
				b.failed = err
			}
		}
	})
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// newDir makes a fresh directory for something.
func (b *bench) newDir(what string) (string, error) {
	return os.MkdirTemp(b.dir, what+"-")
}

// newStore makes a user with an empty store.
func (b *bench) newStore(hosts ...string) (*lamina.Store, error) {
	dir, err := b.newDir("store")
	if err != nil {
		return nil, err
	}
	s, err := b.program.NewStore(filepath.Join(dir, "root"), dir, b.auth, registry.Password, hosts...)
	if err == nil {
		b.later(s.Close)
	}
	return s, err
}

func (b *bench) printf(format string, args ...any) { _, _ = fmt.Fprintf(b.out, format, args...) }

func (b *bench) machine() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	version, _ := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	b.printf("lamina %s, Linux %s, %d cores, %s, median of %d runs\n",
		strings.TrimSpace(string(version)), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(),
		time.Now().Format(time.DateOnly), b.runs)
}

// dropCaches makes the kernel forget what it can.
func dropCaches() error {
	unix.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}
