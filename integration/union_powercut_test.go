//go:build integration

package integration_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// cutDisk is a small ext4 whose power can be cut: what it is on is a file.
type cutDisk struct{ file, dir string }

func newCutDisk(t *testing.T, size string) *cutDisk {
	t.Helper()
	d := &cutDisk{file: filepath.Join(t.TempDir(), "disk"), dir: t.TempDir()}
	execute(t, "truncate", "-s", size, d.file)
	execute(t, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", d.file)
	d.plug(t)
	return d
}

func (d *cutDisk) plug(t *testing.T) {
	t.Helper()
	execute(t, "mount", "-o", "loop", d.file, d.dir)
	t.Cleanup(func() { _ = unix.Unmount(d.dir, unix.MNT_DETACH) })
}

func (d *cutDisk) unplug(t *testing.T) {
	t.Helper()
	unmountSoon(t, d.dir)
}

// writes says what has been written to the disk, and what is being.
func (d *cutDisk) writes(t *testing.T) string {
	t.Helper()
	var st unix.Stat_t
	fatal(t, unix.Stat(d.dir, &st))
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	fatal(t, err)
	// Reads take from no copy its being of one instant, but those in flight count
	// with writes.
	fields := strings.Fields(string(b))
	if len(fields) < 17 {
		t.Fatalf("statistics of a disk: %q", b)
	}
	return fmt.Sprintf("%s writes, %s flushes, %s in flight", fields[4], fields[15], fields[8])
}

// cut copies what is on the disk at one instant: if something was written meanwhile,
// it does it again. What ext4 and the kernel have in memory is not in the copy, as it
// would not be when the power fails.
func (d *cutDisk) cut(t *testing.T) *cutDisk {
	t.Helper()
	c := &cutDisk{file: filepath.Join(t.TempDir(), "disk"), dir: t.TempDir()}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		before := d.writes(t)
		if !strings.HasSuffix(before, " 0 in flight") {
			continue
		}
		fatal(t, copySparse(c.file, d.file))
		if d.writes(t) == before {
			return c
		}
		if time.Now().After(end) {
			t.Fatal("the disk is never quiet")
		}
	}
}

// copySparse copies what of a file is no hole.
func copySparse(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	err = dst.Truncate(info.Size())
	for off := int64(0); err == nil; {
		var end int64
		if off, err = src.Seek(off, unix.SEEK_DATA); err != nil {
			break
		}
		if end, err = src.Seek(off, unix.SEEK_HOLE); err != nil {
			break
		}
		_, err = io.Copy(io.NewOffsetWriter(dst, off), io.NewSectionReader(src, off, end-off))
		off = end
	}
	if errors.Is(err, unix.ENXIO) { // there are only holes from there on
		err = nil
	}
	return errors.Join(err, dst.Close())
}

// powerCut is what a disk had at one instant, and what the workload had then been
// promised, and begun.
type powerCut struct {
	disk        *cutDisk
	least, most []int
}

// cutPower has the world stand still while the disk is copied.
func (c *crashed) cutPower(t *testing.T, d *cutDisk) powerCut {
	t.Helper()
	server := c.s.at(t, c.dir).Server.PID
	fatal(t, unix.Kill(server, unix.SIGSTOP))
	defer func() { fatal(t, unix.Kill(server, unix.SIGCONT)) }()
	p := powerCut{least: c.each(synced)}
	p.disk = d.cut(t)
	p.most = c.each(begun)
	return p
}

// TestUnionPowerCut cuts the power of the disk that an upper directory is on, at
// random moments. What had been synced is there; of the rest, each change is there in
// whole or not at all; and the kernel's overlayfs sees what lamina sees.
func TestUnionPowerCut(t *testing.T) {
	t.Parallel()
	seed := crashSeed(t)
	rng := rand.New(rand.NewPCG(seed, 5))
	const perRun = 8
	for left := crashRounds(t, 5); left > 0; left -= perRun {
		c, d := newCrashed(t, 2), newCutDisk(t, "96M")
		c.mount(t, c.s, c.dir, "--name", "work", "--upper", filepath.Join(d.dir, "upper"))
		c.start(c.dir, rng.Uint64())
		var cuts []powerCut
		for range min(left, perRun) {
			time.Sleep(time.Duration(rng.Int64N(int64(500 * time.Millisecond))))
			cuts = append(cuts, c.cutPower(t, d))
		}
		for _, err := range c.end() {
			t.Error(err)
		}
		t.Logf("%d steps", c.steps.Load())
		c.s.run(t, "umount", c.dir)
		d.unplug(t)
		other := newStore(t)
		for i, p := range cuts {
			t.Run(fmt.Sprintf("cut %d", i), func(t *testing.T) { c.afterCut(t, other, i, p) })
		}
	}
}

// afterCut checks what a power cut has left.
func (c *crashed) afterCut(t *testing.T, s store, i int, p powerCut) {
	p.disk.plug(t) // which plays the journal back
	name, dir, upper := fmt.Sprintf("cut%d", i), t.TempDir(), filepath.Join(p.disk.dir, "upper")
	c.mount(t, s, dir, "--name", name, "--upper", upper)
	c.after(t, s, dir, upper, p.least, p.most, i%4 == 0)
	s.run(t, "umount", "--rm", name)
	p.disk.unplug(t)
	if out, err := exec.Command("e2fsck", "-fn", p.disk.file).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}
