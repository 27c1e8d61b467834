//go:build integration

package difftest_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/difftest"
)

// number reads a number from the environment.
func number(t *testing.T, key string, otherwise uint64) uint64 {
	s := os.Getenv(key)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fresh makes a plain copy of the tree and an overlayfs over another one.
func fresh(dir string, seed uint64) ([]difftest.Target, func(), error) {
	sub := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"plain", "lower", "upper", "work", "overlay"} {
		if err := os.Mkdir(sub(name), 0o777); err != nil {
			return nil, nil, err
		}
	}
	done := func() {
		_ = unix.Unmount(sub("overlay"), 0)
		_ = os.RemoveAll(dir)
	}
	for _, name := range []string{"plain", "lower"} {
		if err := difftest.MakeTree(sub(name), seed); err != nil {
			return nil, done, err
		}
	}
	// The merged root's attributes are the upper directory's.
	if err := likeIt(sub("lower"), sub("upper")); err != nil {
		return nil, done, err
	}
	opts := "lowerdir=" + sub("lower") + ",upperdir=" + sub("upper") + ",workdir=" + sub("work") +
		",redirect_dir=on,index=on,metacopy=on,xino=on"
	if err := unix.Mount("overlay", sub("overlay"), "overlay", 0, opts); err != nil {
		return nil, done, err
	}
	return []difftest.Target{
		{Name: "ext4", Dir: sub("plain")},
		{Name: "overlayfs", Dir: sub("overlay"), Rules: difftest.OverlayfsRules()},
	}, done, nil
}

func likeIt(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNano(to, []unix.Timespec{st.Atim, st.Mtim})
}

// run runs a configuration in fresh directories, and shrinks what differs.
func run(t *testing.T, c difftest.Config) {
	base := t.TempDir()
	n := 0
	again := func() ([]difftest.Target, func(), error) {
		n++
		dir := filepath.Join(base, strconv.Itoa(n))
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, nil, err
		}
		return fresh(dir, c.Seed)
	}
	targets, done, err := again()
	if done != nil {
		defer done()
	}
	if err != nil {
		t.Fatal(err)
	}
	c.Targets = targets
	start := time.Now()
	rep, err := difftest.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("%d operations, %d%% succeeded, %.0f a second, explained: %v",
		rep.Ops, rep.Succeeded*100/max(1, rep.Ops), float64(rep.Ops)/took.Seconds(), rep.Explained)
	for _, k := range difftest.Kinds() {
		t.Logf("%-10s %6d, %6d succeeded", k, rep.Kinds[k][0], rep.Kinds[k][1])
	}
	if rep.Difference == nil {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	short, err := difftest.Shrink(ctx, c, rep.Difference, again)
	if err != nil {
		t.Error(err)
	}
	t.Errorf("seed %d: %v\nshrunk: %v", c.Seed, rep.Difference, short)
	keep(t, short)
}

// keep writes a failing sequence to a file that outlives the test, and logs it if
// it is short.
func keep(t *testing.T, d *difftest.Difference) {
	path, err := d.Save()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the sequence is in %s", path)
	if len(d.Sequence) <= 50 {
		for _, op := range d.Sequence {
			t.Log(op)
		}
	}
}

// TestOverlayfs holds the kernel's overlayfs against a plain copy: as both are
// right, it is the tester that is tested, and what it takes for explained.
// LAMINA_DIFF_OPS and LAMINA_DIFF_SEED make it run longer, or otherwise.
func TestOverlayfs(t *testing.T) {
	c := difftest.Config{
		Seed: number(t, "LAMINA_DIFF_SEED", 1),
		Ops:  int(number(t, "LAMINA_DIFF_OPS", 30000)),
	}
	t.Run("one", func(t *testing.T) { run(t, c) })
	t.Run("workers", func(t *testing.T) {
		c.Workers = 4
		run(t, c)
	})
}

// TestReplay runs the sequence in the file that LAMINA_DIFF_REPLAY names, in the
// top directory LAMINA_DIFF_DIR, and logs what each operation gave. Without a file
// it lists the tree.
func TestReplay(t *testing.T) {
	ops := []difftest.Op{{Kind: difftest.List, Path: "."}}
	if p := os.Getenv("LAMINA_DIFF_REPLAY"); p != "" {
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		ops, err = difftest.ReadOps(f)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	targets, done, err := fresh(t.TempDir(), number(t, "LAMINA_DIFF_SEED", 1))
	if done != nil {
		defer done()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range targets {
		r, err := difftest.OpenRoot(target.Name, filepath.Join(target.Dir, os.Getenv("LAMINA_DIFF_DIR")))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for i, op := range ops {
			t.Logf("%s %d: %v: %+v", target.Name, i, op, difftest.Exec(r, op))
		}
	}
}
