//go:build integration

package integration_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/difftest"
	"github.com/laminafs/lamina/integration/images"
)

// number reads a number from the environment.
func number(t *testing.T, key string, otherwise uint64) uint64 {
	t.Helper()
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

// treeImage makes an image of one layer, of the tree in dir, and returns its name.
func treeImage(t *testing.T, dir string) string {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "layout")
	l, err := images.NewLayout(layout)
	if err != nil {
		t.Fatal(err)
	}
	d, size, err := l.AddBlob(func(w io.Writer) error { return images.WriteDiff(w, dir) })
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.AddImage(ocispec.ImageConfig{}, ocispec.Platform{Architecture: "amd64", OS: "linux"},
		[]ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: size}}, []digest.Digest{d})
	if err != nil {
		t.Fatal(err)
	}
	l.Tag(m, "tree")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return "oci:" + layout + ":tree"
}

// union is a plain directory and a writable mount that show the same tree.
type union struct {
	s     store
	plain string
	dir   string
	image string
}

func newUnion(t *testing.T, seed uint64) *union {
	t.Helper()
	u := &union{s: newStore(t), plain: filepath.Join(t.TempDir(), "plain"), dir: t.TempDir()}
	if err := os.Mkdir(u.plain, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := difftest.MakeTree(u.plain, seed); err != nil {
		t.Fatal(err)
	}
	u.image = treeImage(t, u.plain)
	u.s.run(t, "mount", "-q", "--rw", "--name", "work", "--engine", "fuse", u.image, u.dir)
	t.Cleanup(func() { _, _ = u.s.Run("umount", "--lazy", u.dir) })
	// The root of a layer is in no tar: its attributes are nobody's.
	var st unix.Stat_t
	if err := unix.Stat(u.plain, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(u.dir, st.Mode&0o7777); err != nil {
		t.Fatal(err)
	}
	if err := unix.UtimesNano(u.dir, []unix.Timespec{st.Atim, st.Mtim}); err != nil {
		t.Fatal(err)
	}
	return u
}

func (u *union) targets() []difftest.Target {
	return []difftest.Target{{Name: "ext4", Dir: u.plain}, {Name: "lamina", Dir: u.dir, Rules: unionRules()}}
}

// unionRules are the differences of lamina's union from ext4 that are explained.
func unionRules() []difftest.Rule {
	return []difftest.Rule{{
		Name: "no access times",
		Reason: "The kernel reads what it keeps of a FUSE file without asking, and does not note that " +
			"it was read: as on a filesystem mounted with noatime.",
		Match: func(_ difftest.Op, d difftest.Delta) bool {
			return strings.HasSuffix(d.Field, ".atime") && d.Want == "from the clock"
		},
	}, {
		Name: "fifo mtime",
		Reason: "What is written to a fifo does not pass through the filesystem, and the kernel's FUSE " +
			"client sets times of regular files alone; overlayfs does not set it either.",
		Match: func(_ difftest.Op, d difftest.Delta) bool {
			return strings.HasSuffix(d.Field, ".mtime") && d.Mode&unix.S_IFMT == unix.S_IFIFO
		},
	}}
}

// TestUnion holds the writable mount against ext4, operation by operation.
// LAMINA_DIFF_OPS and LAMINA_DIFF_SEED make it run longer, or otherwise: who changes
// the union runs it with other seeds, and CI with one that says what a change did.
func TestUnion(t *testing.T) {
	c := difftest.Config{
		Seed: number(t, "LAMINA_DIFF_SEED", 1),
		Ops:  int(number(t, "LAMINA_DIFF_OPS", 30000)),
	}
	t.Run("one", func(t *testing.T) { compareUnion(t, c) })
	t.Run("workers", func(t *testing.T) {
		c.Workers = 4
		compareUnion(t, c)
	})
}

func compareUnion(t *testing.T, c difftest.Config) {
	u := newUnion(t, c.Seed)
	c.Targets = u.targets()
	start := time.Now()
	rep, err := difftest.Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d: %d operations, %d%% succeeded, %.0f a second, explained: %v", c.Seed,
		rep.Ops, rep.Succeeded*100/max(1, rep.Ops), float64(rep.Ops)/time.Since(start).Seconds(), rep.Explained)
	if rep.Difference == nil {
		return
	}
	t.Errorf("seed %d: %v", c.Seed, rep.Difference)
	path, err := rep.Difference.Save()
	fatal(t, err)
	t.Logf("the sequence is in %s", path)
	u.shrink(t, c, rep.Difference)
}

// shrink logs the fewest operations that make a difference.
func (u *union) shrink(t *testing.T, c difftest.Config, d *difftest.Difference) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	short, err := difftest.Shrink(ctx, c, d, func() ([]difftest.Target, func(), error) {
		fresh := newUnion(t, c.Seed)
		return fresh.targets(), func() { _, _ = fresh.s.Run("umount", "--lazy", fresh.dir) }, nil
	})
	if err != nil {
		t.Error(err)
	}
	t.Logf("shrunk: %v", short)
	for _, op := range short.Sequence[max(0, len(short.Sequence)-60):] {
		t.Log(op)
	}
}
