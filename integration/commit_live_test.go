//go:build integration

package integration_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
)

const (
	liveSteps  = 8
	liveBlocks = 512
	liveBlock  = 64 << 10
)

// capNetRaw is the xattr of a program that has CAP_NET_RAW.
var capNetRaw = []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

// TestCommitIsOneInstant commits a mount in which programs keep promises to each
// other all the time: the image must keep them too.
func TestCommitIsOneInstant(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	m := t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--engine", "fuse", "--name", "live", shared.set.Ref("debian", images.Gzip), m)
	dir := filepath.Join(m, "live")
	fatal(t, os.Mkdir(dir, 0o755))
	fatal(t, os.WriteFile(filepath.Join(m, "capable"), []byte("#!/bin/sh\n"), 0o755))
	fatal(t, unix.Setxattr(filepath.Join(m, "capable"), "security.capability", capNetRaw, 0))
	writeBlocks(t, dir, 0)
	writers := startWriters(t, dir)
	for round := range 4 {
		image := fmt.Sprintf("example.com/live:%d", round)
		s.run(t, "commit", "--format", []string{"gzip", "zstd"}[round%2], "live", image)
		out := t.TempDir()
		s.run(t, "mount", "-q", image, out)
		checkInstant(t, filepath.Join(out, "live"))
		b := make([]byte, 64)
		if n, err := unix.Getxattr(filepath.Join(out, "capable"), "security.capability", b); err != nil || !bytes.Equal(b[:n], capNetRaw) {
			t.Errorf("capabilities are %q, %v", b[:max(n, 0)], err)
		}
		s.run(t, "umount", out)
	}
	writers()
	s.run(t, "umount", m)
	left, err := filepath.Glob(filepath.Join(s.Root, "mounts", "live", "work", "lamina", "t-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the work directory: %v, %v", left, err)
	}
	s.run(t, "umount", "--rm", "live")
}

// startWriters starts programs that change things in dir until the function it
// returns is called.
func startWriters(t *testing.T, dir string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	start := func(what string, step func(n int) error) {
		wg.Go(func() {
			for n := 1; ctx.Err() == nil; n++ {
				if err := step(n); err != nil {
					t.Errorf("%s: %v", what, err)
					return
				}
			}
		})
	}
	start("steps", func(n int) error { return writeSteps(dir, n) })
	start("blocks", func(n int) error { writeBlocks(t, dir, n); return nil })
	start("replace", func(n int) error { return replaceBoth(dir, n) })
	start("modes", func(n int) error { return setModes(dir, n) })
	return func() { cancel(); wg.Wait() }
}

// writeSteps writes n to file after file, each synced before the next.
func writeSteps(dir string, n int) error {
	for i := range liveSteps {
		f, err := os.OpenFile(filepath.Join(dir, "step"+strconv.Itoa(i)), os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(f, "%09d", n)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(f.Name(), &st); err != nil || st.Nlink != 1 {
			return fmt.Errorf("%s has %d links: %w", f.Name(), st.Nlink, err)
		}
	}
	return nil
}

// writeBlocks writes n to block after block of a large file, each synced before the
// next.
func writeBlocks(t *testing.T, dir string, n int) {
	f, err := os.OpenFile(filepath.Join(dir, "blocks"), os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Error(err)
		return
	}
	block := make([]byte, liveBlock)
	for i := range liveBlocks {
		binary.LittleEndian.PutUint64(block, uint64(n))
		binary.LittleEndian.PutUint64(block[liveBlock-8:], uint64(n))
		if _, err = f.WriteAt(block, int64(i)*liveBlock); err == nil && (n > 0 || i == liveBlocks-1) {
			err = unix.Fdatasync(int(f.Fd()))
		}
		if err != nil {
			break
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Error(err)
	}
}

// replaceBoth replaces the file "second" and then "first" by ones that have n in
// them: first is never ahead.
func replaceBoth(dir string, n int) error {
	for _, name := range []string{"second", "first"} {
		p := filepath.Join(dir, name)
		f, err := os.Create(p + ".new")
		if err != nil {
			return err
		}
		_, err = fmt.Fprint(f, n)
		if err := errors.Join(err, f.Sync(), f.Close(), os.Rename(p+".new", p)); err != nil {
			return err
		}
	}
	return nil
}

// setModes gives the two files that hardly ever change one mode after the other.
func setModes(dir string, n int) error {
	for _, name := range []string{"mode0", "mode1"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Chmod(os.FileMode(n%512)), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func numberIn(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	n, notNumber := strconv.Atoi(string(bytes.TrimLeft(b, "0")))
	if err := errors.Join(err, notNumber); err != nil {
		t.Errorf("%s: %v", path, err)
	}
	return n
}

// checkInstant checks that what the writers promise each other holds.
func checkInstant(t *testing.T, dir string) {
	t.Helper()
	var steps []int
	for i := range liveSteps {
		p := filepath.Join(dir, "step"+strconv.Itoa(i))
		if fi, err := os.Stat(p); err == nil && fi.Size() == 0 { // made for the first time, and not written yet
			steps = append(steps, 0)
			continue
		}
		steps = append(steps, numberIn(t, p))
	}
	checkOrder(t, "files", steps)
	b, err := os.ReadFile(filepath.Join(dir, "blocks"))
	if err != nil || len(b) != liveBlocks*liveBlock {
		t.Fatalf("blocks: %d bytes, %v", len(b), err)
	}
	var blocks []int
	for i := range liveBlocks {
		block := b[i*liveBlock:][:liveBlock]
		n := binary.LittleEndian.Uint64(block)
		if end := binary.LittleEndian.Uint64(block[liveBlock-8:]); end != n {
			t.Errorf("block %d begins with %d and ends with %d", i, n, end)
		}
		blocks = append(blocks, int(n))
	}
	checkOrder(t, "blocks", blocks)
	first, second := numberIn(t, filepath.Join(dir, "first")), numberIn(t, filepath.Join(dir, "second"))
	if second < first || second > first+1 {
		t.Errorf("first is %d and second is %d", first, second)
	}
	modes := [2]int{}
	for i := range modes {
		if fi, err := os.Stat(filepath.Join(dir, "mode"+strconv.Itoa(i))); err == nil {
			modes[i] = int(fi.Mode().Perm())
		}
	}
	if d := (modes[0] - modes[1] + 512) % 512; d > 1 {
		t.Errorf("modes are %#o and %#o", modes[0], modes[1])
	}
	t.Logf("at %d, %d, %d, %#o", steps[0], blocks[0], first, modes[0])
}

// checkOrder: who writes n to one after the other has n in some, and n-1 in those
// behind.
func checkOrder(t *testing.T, what string, n []int) {
	t.Helper()
	for i := 1; i < len(n); i++ {
		if n[i] > n[i-1] || n[i] < n[0]-1 {
			t.Errorf("%s are not of one instant: %v", what, n)
			return
		}
	}
}

// TestCommitTwiceInPlace commits a workspace over a layer that is read where it lies,
// and not from the store, again and again: the base stays.
func TestCommitTwiceInPlace(t *testing.T) {
	t.Parallel()
	s, m := newStore(t), t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--name", "w", smallImage(t), m)
	for round := range 3 {
		fatal(t, os.WriteFile(filepath.Join(m, "round"+strconv.Itoa(round)), []byte("x"), 0o644))
		image := fmt.Sprintf("example.com/twice:%d", round)
		s.run(t, "commit", m, image)
		dir := s.mount(t, image)
		sameUnion(t, image, readUnion(t, m), readUnion(t, dir))
		s.umount(t, dir)
	}
	s.run(t, "umount", m)
}

// TestCommitLostName commits a file whose first name was removed, and which the server
// therefore keeps a link to: nothing is said to be changed afterwards, while it is
// mounted or not.
func TestCommitLostName(t *testing.T) {
	t.Parallel()
	s, m := newStore(t), t.TempDir()
	s.run(t, "mount", "-q", "--rw", "--name", "w", "--engine", "fuse", smallImage(t), m)
	a, b := filepath.Join(m, "a"), filepath.Join(m, "b")
	fatal(t, os.WriteFile(a, []byte("x"), 0o644))
	fatal(t, os.Link(a, b))
	fatal(t, os.Remove(a))
	s.run(t, "commit", m, "example.com/lost:1")
	unchanged(t, s, m, readUnion(t, m))
	s.run(t, "umount", m)
	var list []struct{ Kind, Path string }
	s.parse(t, &list, "diff", "--json", "w")
	for _, l := range list {
		if l.Path == "/b" {
			t.Errorf("unmounted, and said to be changed: %+v", l)
		}
	}
}
