//go:build integration

package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/difftest"
	"github.com/laminafs/lamina/integration/tree"
)

// killServers kills the server at dir at n random moments, and each time waits until
// its holder has started another. More than ten in ten seconds its holder does not.
func killServers(t *testing.T, s store, dir string, n int, rng *rand.Rand) {
	t.Helper()
	for range n {
		time.Sleep(time.Duration(rng.Int64N(int64(400 * time.Millisecond))))
		killed := s.at(t, dir).Server.PID
		if err := unix.Kill(killed, unix.SIGKILL); err != nil {
			t.Errorf("kill server %d: %v", killed, err)
			return
		}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if pid := s.at(t, dir).Server.PID; pid != killed && pid != 0 {
				break
			}
			if time.Now().After(end) {
				t.Errorf("no server after the death of %d", killed)
				return
			}
		}
	}
}

// TestUnionServerKilled kills servers of a writable mount at random moments. Those who
// work in it do not notice, and nothing of what they did is lost or done twice.
func TestUnionServerKilled(t *testing.T) {
	t.Parallel()
	seed := crashSeed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range crashRounds(t, 1) {
		c := newCrashed(t, 2)
		c.mount(t, c.s, c.dir, "--name", "work")
		c.look = true
		c.start(c.dir, rng.Uint64())
		killServers(t, c.s, c.dir, 6, rng)
		for _, err := range c.end() {
			t.Error(err)
		}
		t.Logf("%d steps", c.steps.Load())
		c.settled(t)
	}
}

// settled checks a workspace in which nothing was lost.
func (c *crashed) settled(t *testing.T) {
	t.Helper()
	last := c.each(begun)
	c.check(t, "after the kills", c.dir, last, last, true)
	want := readUnion(t, c.dir)
	upper := filepath.Join(c.s.Root, "mounts", "work", "upper")
	c.s.run(t, "umount", c.dir)
	c.mount(t, c.s, c.dir, "--name", "work")
	c.check(t, "mounted again", c.dir, last, last, true)
	again := readUnion(t, c.dir)
	sameUnion(t, "mounted again", timeless(want), timeless(again))
	committed(t, c.s, c.dir, again)
	c.s.run(t, "check")
	c.s.run(t, "umount", c.dir)
	sameUnion(t, "by the kernel", again, c.byKernel(t, upper))
}

// timeless is a tree without times: a server that dies after it changed something, and
// before it set the time that this had for the kernel, leaves a later one.
func timeless(all tree.Tree) tree.Tree {
	without := make(tree.Tree, len(all))
	for name, e := range all {
		e.Mtime = 0
		without[name] = e
	}
	return without
}

// TestUnionServerKilledDiff has the server killed while the mount is held against
// ext4, operation by operation: what is open, unlinked, locked and mapped goes on too.
func TestUnionServerKilledDiff(t *testing.T) {
	t.Parallel()
	seed := crashSeed(t)
	for i := range crashRounds(t, 1) {
		c := difftest.Config{Seed: seed + uint64(i), Ops: 1500}
		u := newUnion(t, c.Seed)
		c.Targets = u.targets()
		done := make(chan struct{})
		go func() {
			defer close(done)
			rep, err := difftest.Run(t.Context(), c)
			if err != nil {
				t.Error(err)
				return
			}
			t.Logf("%d operations", rep.Ops)
			if rep.Difference != nil {
				blame(t, c, rep.Difference)
			}
		}()
		killServers(t, u.s, u.dir, 4, rand.New(rand.NewPCG(c.Seed, 2)))
		<-done
		want := readUnion(t, u.dir)
		u.s.run(t, "umount", u.dir)
		u.s.run(t, "mount", "-q", "--rw", "--name", "work", "--engine", "fuse", u.image, u.dir)
		sameUnion(t, "mounted again", timeless(want), timeless(readUnion(t, u.dir)))
	}
}

// blame says whether a difference came of the kills. One that comes without them as
// well is for TestUnion to find.
func blame(t *testing.T, c difftest.Config, d *difftest.Difference) {
	u := newUnion(t, c.Seed)
	c.Targets = u.targets()
	rep, err := difftest.Replay(t.Context(), c, d.Dir, d.Sequence)
	switch {
	case err != nil:
		t.Error(err)
	case rep.Difference == nil:
		t.Errorf("seed %d: %v", c.Seed, d)
	default:
		t.Logf("seed %d: without kills too: %v", c.Seed, rep.Difference)
	}
}

// TestUnionAllKilled kills server and holder: the mount is dead, and what was not
// synced may be lost with it. The next one has all the rest, and each change in whole.
func TestUnionAllKilled(t *testing.T) {
	t.Parallel()
	seed := crashSeed(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	c := newCrashed(t, 2)
	for left := crashRounds(t, 4); left > 0; left-- {
		c := &crashed{workload: newWorkload(2), s: c.s, plain: c.plain, image: c.image, dir: c.dir}
		c.mount(t, c.s, c.dir, "--name", "work")
		c.start(c.dir, rng.Uint64())
		time.Sleep(time.Duration(rng.Int64N(int64(1200 * time.Millisecond))))
		for _, err := range c.errors() {
			t.Error(err)
		}
		c.s.kill(t)
		c.end()
		if _, err := os.Lstat(filepath.Join(c.dir, "x")); !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("the mount is not dead: %v", err)
		}
		c.s.run(t, "umount", "--lazy", c.dir)
		c.mount(t, c.s, c.dir, "--name", "work")
		c.after(t, c.s, c.dir, filepath.Join(c.s.Root, "mounts", "work", "upper"), c.each(kept), c.each(begun), left == 1)
		c.s.run(t, "umount", "--rm", "work")
	}
}

// after checks a workspace of the image that is mounted at dir again after a crash,
// and unmounts it. To make an image of it takes the longest, so that is not always done.
func (c *crashed) after(t *testing.T, s store, dir, upper string, least, most []int, commit bool) {
	t.Helper()
	c.check(t, "after the crash", dir, least, most, false)
	want := readUnion(t, dir)
	s.run(t, "diff", dir)
	if commit {
		committed(t, s, dir, want)
		s.run(t, "check")
	}
	s.run(t, "umount", dir)
	sameUnion(t, "by the kernel", want, c.byKernel(t, upper))
}

// TestCommitKilled kills commits. The image is not there, or it is whole; the
// workspace goes on, and what the dead ones left, prune removes.
func TestCommitKilled(t *testing.T) {
	t.Parallel()
	seed := crashSeed(t)
	rng := rand.New(rand.NewPCG(seed, 4))
	c := newCrashed(t, 1)
	w := &workspace{store: c.s, engine: "fuse", image: c.image, dir: c.dir}
	w.mount(t, w.engine)
	for i := range 20 {
		fatal(t, os.WriteFile(w.path(fmt.Sprintf("new %d", i)), randomBytes(rng, 300_000), 0o644))
	}
	start := time.Now()
	w.run(t, "commit", "-q", w.dir, "example.com/killed:first")
	length := time.Since(start)
	want := readUnion(t, w.dir)
	done := 0
	for i := range crashRounds(t, 6) {
		if w.killedCommit(t, fmt.Sprintf("again %d", i), time.Duration(rng.Int64N(int64(length))), randomBytes(rng, 3_000_000)) {
			done++
		}
	}
	t.Logf("%d were whole", done)
	w.run(t, "check")
	sameUnion(t, "the workspace", want, readUnion(t, w.dir))
	committed(t, w.store, w.dir, want)
	w.run(t, "umount", w.dir)
	w.prunes(t)
}

// killedCommit kills a commit of one more file after some time, and tells whether the
// image is there.
func (w *workspace) killedCommit(t *testing.T, name string, after time.Duration, b []byte) bool {
	t.Helper()
	image := "example.com/killed:" + strings.ReplaceAll(name, " ", "-")
	fatal(t, os.WriteFile(w.path(name), b, 0o644))
	cmd := w.Command("commit", "-q", w.dir, image)
	fatal(t, cmd.Start())
	time.Sleep(after)
	_ = cmd.Process.Kill() // it may have ended
	_ = cmd.Wait()
	fatal(t, os.Remove(w.path(name)))
	var list []struct{ Name string }
	w.parse(t, &list, "images", "--json")
	if !slices.ContainsFunc(list, func(i struct{ Name string }) bool { return i.Name == image }) {
		return false
	}
	out, err := w.Command("cat", "-q", image, "/"+name).Output()
	if err != nil || !bytes.Equal(out, b) {
		t.Errorf("%s is half there: %d of %d bytes, %v", image, len(out), len(b), err)
	}
	return true
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// prunes checks that nothing is left when all has been removed.
func (w *workspace) prunes(t *testing.T) {
	t.Helper()
	w.run(t, "umount", "--rm", "work")
	var list []struct{ Name string }
	w.parse(t, &list, "images", "--json")
	for _, i := range list {
		w.run(t, "rmi", i.Name)
	}
	w.run(t, "prune", "--all")
	known := []string{"images", "images/blobs", "images/blobs/sha256", "images/index.json", "images/oci-layout"}
	err := filepath.WalkDir(w.Root, func(path string, d os.DirEntry, err error) error {
		if err != nil || filepath.Dir(path) == w.Root || path == w.Root {
			return err
		}
		name, err := filepath.Rel(w.Root, path)
		if !slices.Contains(known, name) && filepath.Dir(name) != "locks" {
			t.Errorf("%s is left", name)
		}
		return err
	})
	fatal(t, err)
}
