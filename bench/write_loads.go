package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// workload is something that programs do to a writable mount of an image.
// Everything but what run measures, above all its checks, takes no time.
type workload struct {
	image string
	run   func(ctx context.Context, w *workspace) error
}

func workloads() []workload {
	return []workload{
		{"python", untar},
		{"python", removeLower},
		{"python", copyLower},
		{"python", installDebs},
		{"python", checkout},
		{"python", inserts},
		{"python", sequential},
		{"python", chmodLower},
		{"large", chmodLarge},
		{"python", spool},
		{"python", randomWrites},
		{"python", mappedWrites},
	}
}

// lowerTree is the part of the image that the workloads on lower files change.
const lowerTree = "usr/share"

// untar makes a tree of small files and removes it.
func untar(ctx context.Context, w *workspace) error {
	dir := w.path("opt/tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	err := w.timed(fmt.Sprintf("tar x of %d small files", treeDirs*treeFiles), func() error {
		return grouped(ctx, nil, "tar", "x", "-C", dir, "-f", w.tree)
	})
	if err != nil {
		return err
	}
	if err := grouped(ctx, nil, "tar", "d", "-C", dir, "-f", w.tree); err != nil {
		return err
	}
	return w.remove(ctx, "rm -rf of them", dir)
}

func removeLower(ctx context.Context, w *workspace) error {
	return w.remove(ctx, "rm -rf of the image's /"+lowerTree, w.path(lowerTree))
}

// remove measures the removal of a tree.
func (w *workspace) remove(ctx context.Context, row, dir string) error {
	if err := w.timed(row, func() error { return grouped(ctx, nil, "rm", "-rf", dir) }); err != nil {
		return err
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: still there: %w", row, err)
	}
	return nil
}

func copyLower(ctx context.Context, w *workspace) error {
	from, to := w.path(lowerTree), w.path("opt/copy")
	if err := w.timed("cp -a of the image's /"+lowerTree, func() error { return grouped(ctx, nil, "cp", "-a", from, to) }); err != nil {
		return err
	}
	return grouped(ctx, nil, "diff", "-r", "--no-dereference", from, to)
}

// inChroot has sh run a script in the workspace, with devices, and with another
// directory at /mnt.
const inChroot = `
set -eu
mount --bind /dev "$1/dev"
mount --bind "$2" "$1/mnt"
exec chroot "$1" sh -c "$3"
`

// chroot runs inChroot in a mount namespace that ends with it.
func chroot(ctx context.Context, root, mnt, script string) (string, error) {
	return groupedOutput(ctx, []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		"unshare", "--mount", "--propagation", "private", "sh", "-c", inChroot, "chroot", root, mnt, script)
}

func installDebs(ctx context.Context, w *workspace) error {
	err := w.timed("dpkg -i of "+strings.Join(debs(), ", "), func() error {
		_, err := chroot(ctx, w.root, w.debs, "dpkg -i /mnt/*.deb")
		return err
	})
	if err != nil {
		return err
	}
	bad, err := chroot(ctx, w.root, w.debs, "dpkg --audit; dpkg --verify "+strings.Join(debs(), " "))
	if err == nil && bad != "" {
		err = fmt.Errorf("dpkg finds fault with what it installed: %s", bad)
	}
	return err
}

// checkout has git go to another commit and back.
func checkout(ctx context.Context, w *workspace) error {
	dir := w.path("opt/repo")
	if err := grouped(ctx, nil, "cp", "-a", w.repo, dir); err != nil {
		return err
	}
	clean := func() error {
		changed, err := git(ctx, dir, "status", "--porcelain")
		if err == nil && changed != "" {
			err = fmt.Errorf("git sees changes: %s", changed)
		}
		return err
	}
	if err := clean(); err != nil { // git notes that the files are others now
		return err
	}
	for _, commit := range []string{"two", "one"} {
		err := w.timed(fmt.Sprintf("git checkout in %d files, to commit %s", repoDirs*repoFiles, commit), func() error {
			_, err := git(ctx, dir, "checkout", "-q", commit)
			return err
		})
		if err := errors.Join(err, clean()); err != nil {
			return err
		}
	}
	return nil
}

// insertScript prints how many seconds each way of inserting rows took, closing
// included, and makes sure that they are there.
const insertScript = `
import os, sqlite3, sys, time
def rows(n):
    return (("row %d of the benchmark" % i * 4,) for i in range(n))
def timed(insert):
    os.sync()
    began = time.perf_counter()
    db = sqlite3.connect(sys.argv[1], isolation_level=None)
    assert db.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    insert(db)
    db.close()
    print(time.perf_counter() - began)
def single(db):
    for row in rows(2000):
        db.execute("INSERT INTO t (word) VALUES (?)", row)
def together(db):
    db.execute("BEGIN")
    db.executemany("INSERT INTO t (word) VALUES (?)", rows(100000))
    db.execute("COMMIT")
db = sqlite3.connect(sys.argv[1])
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, word TEXT)")
db.close()
timed(single)
timed(together)
db = sqlite3.connect(sys.argv[1])
assert db.execute("SELECT count(*) FROM t").fetchone() == (102000,)
assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
`

// inserts runs the python of the unpacked image, the same for all systems, over a
// database in the workspace.
func inserts(ctx context.Context, w *workspace) error {
	python := w.set.Tree("python")
	out, err := chroot(ctx, python, w.path("opt"), "exec python3 -IB -c '"+insertScript+"' /mnt/test.db")
	if err != nil {
		return err
	}
	var single, together float64
	if _, err := fmt.Sscan(out, &single, &together); err != nil {
		return fmt.Errorf("inserts: %w: %q", err, out)
	}
	w.times.add("sqlite, WAL, 2000 transactions of a row", w.system, time.Duration(single*float64(time.Second)))
	w.times.add("sqlite, WAL, 100000 rows in a transaction", w.system, time.Duration(together*float64(time.Second)))
	return nil
}

func sequential(ctx context.Context, w *workspace) error {
	file := w.path("opt/file")
	for _, op := range []struct{ row, conv string }{
		{"dd of 1 GiB, conv=fsync", "fsync"},
		{"the same over it, conv=notrunc,fsync", "notrunc,fsync"},
	} {
		err := w.timed(op.row, func() error {
			return grouped(ctx, nil, "dd", "if=/dev/zero", "of="+file, "bs=1M", "count=1024", "conv="+op.conv)
		})
		if err != nil {
			return err
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		if info.Size() != largeSize {
			return fmt.Errorf("%s: now %d bytes", op.row, info.Size())
		}
	}
	return nil
}

func chmodLower(ctx context.Context, w *workspace) error {
	dir := w.path(lowerTree)
	if err := w.timed("chmod -R of the image's /"+lowerTree, func() error { return grouped(ctx, nil, "chmod", "-R", "g+w", dir) }); err != nil {
		return err
	}
	left, err := groupedOutput(ctx, nil, "find", dir, "!", "-type", "l", "!", "-perm", "-g+w")
	if err == nil && left != "" {
		err = fmt.Errorf("chmod left out: %s", left)
	}
	return err
}

func chmodLarge(ctx context.Context, w *workspace) error {
	file := w.path("large")
	if err := w.timed("chmod of the image's 1 GiB", func() error { return grouped(ctx, nil, "chmod", "600", file) }); err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if info.Mode() != 0o600 || info.Size() != largeSize {
		return fmt.Errorf("chmod of %s: now %v, %d bytes", file, info.Mode(), info.Size())
	}
	unix.Sync() // blocks are counted when they are on disk
	w.grown[w.system], err = used(w.upper)
	return err
}

// spool writes files as a mail server does: each is on disk before the next.
func spool(ctx context.Context, w *workspace) error {
	const files = 1000
	dir := w.path("opt")
	content := bytes.Repeat([]byte("mail "), 4096)[:4096]
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("mail%04d", i)) }
	err := w.timed(fmt.Sprintf("%d files: create, write 4 KiB, fsync, close", files), func() error {
		for i := range files {
			if err := errors.Join(ctx.Err(), writeSynced(name(i), content)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range files {
		got, err := os.ReadFile(name(i))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, content) {
			return fmt.Errorf("%s: has %d bytes, not the ones that were written", name(i), len(got))
		}
	}
	return nil
}

func writeSynced(name string, content []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// randomSize is the size of the file that is written to at random, in blocks
// of randomBlock bytes, each once.
const randomSize, randomBlock = 256 << 20, 4 << 10

// zeros makes the file for writes at random.
func (w *workspace) zeros(ctx context.Context) (string, error) {
	file := w.path("opt/file")
	return file, grouped(ctx, nil, "dd", "if=/dev/zero", "of="+file, "bs=1M", fmt.Sprintf("count=%d", randomSize>>20), "conv=fsync")
}

// randomWrites has fio measure itself: it needs a while to start and to end.
func randomWrites(ctx context.Context, w *workspace) error {
	file, err := w.zeros(ctx)
	if err != nil {
		return err
	}
	unix.Sync()
	out, err := groupedOutput(ctx, nil, "fio", "--name=w", "--filename="+file, fmt.Sprintf("--size=%d", randomSize),
		"--rw=randwrite", fmt.Sprintf("--bs=%d", randomBlock), "--ioengine=psync", "--end_fsync=1", "--output-format=json")
	if err != nil {
		return err
	}
	var report struct {
		Jobs []struct {
			Write struct {
				Runtime int64 // ms, fsync included
				Total   int64 `json:"total_ios"`
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		return fmt.Errorf("fio's report: %w\n%s", err, out)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Write.Total != randomSize/randomBlock {
		return fmt.Errorf("fio's report: not of one job that wrote the whole file\n%s", out)
	}
	w.times.add("256 MiB by pwrite of 4 KiB at random, fsync", w.system, time.Duration(report.Jobs[0].Write.Runtime)*time.Millisecond)
	return nil
}

// mappedWrites does the same through a shared mapping.
func mappedWrites(ctx context.Context, w *workspace) error {
	file, err := w.zeros(ctx)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	order := rand.New(rand.NewPCG(1, 2)).Perm(randomSize / randomBlock)
	err = w.timed("256 MiB by mmap, 4 KiB at random, msync", func() error {
		m, err := unix.Mmap(int(f.Fd()), 0, randomSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("mmap %s: %w", file, err)
		}
		for _, n := range order {
			fill(m[n*randomBlock:][:randomBlock], n)
		}
		return errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	})
	if err != nil {
		return err
	}
	want, got := make([]byte, randomBlock), make([]byte, randomBlock)
	for n := range order {
		fill(want, n)
		if _, err := f.ReadAt(got, int64(n)*randomBlock); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s: block %d is not what was written", file, n)
		}
	}
	return f.Close()
}

// fill writes what belongs into the n-th block.
func fill(block []byte, n int) {
	for i := range block {
		block[i] = byte(n + n>>8 + i)
	}
}
