//go:build integration

package integration_test

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/tree"
)

// The crash tests change a writable mount and break something meanwhile. What they
// change is made of actors, each of which goes from one version of something in the
// tree to the next, so that a tree which is found later can be asked which version it
// has. LAMINA_CRASH_SEED repeats a run, as far as the moments of the crashes can be
// repeated; LAMINA_CRASH_ROUNDS lets the tests run longer.

func crashSeed(t *testing.T) uint64 {
	t.Helper()
	seed := number(t, "LAMINA_CRASH_SEED", uint64(time.Now().UnixNano()>>10))
	t.Logf("LAMINA_CRASH_SEED=%d", seed)
	return seed
}

func crashRounds(t *testing.T, otherwise int) int {
	t.Helper()
	return int(number(t, "LAMINA_CRASH_ROUNDS", uint64(otherwise)))
}

// kind is how actors of one kind behave. All they have is in one directory, dir.
type kind struct {
	name string
	// lower makes version 0, which the image has.
	lower func(dir string) error
	// step makes the next version.
	step func(s *step) error
	// check says what is wrong with what is in dir.
	check func(dir string, b bounds) error
	// most is the last version; 0: there is none.
	most int
}

// bounds are the versions that a tree may have. If nothing crashed, they are one, and
// what was written and not synced must be there as well.
type bounds struct {
	least, most int
	exact       bool
}

// actor is one of a kind.
type actor struct {
	kind
	dir string // in the tree

	mu sync.Mutex
	// begun is the version that was begun last. The one that was there when kept was
	// set survives the death of processes, and what it was for synced that of the
	// machine.
	begun, kept, synced int
}

// step is an actor's way to version v.
type step struct {
	a   *actor
	dir string
	v   int
	rng *rand.Rand
}

func (s *step) path(name string) string { return filepath.Join(s.dir, name) }

// kept notes that no process is needed any more to keep this version.
func (s *step) kept() {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	s.a.kept = s.v
}

// synced notes that this version is on the disk.
func (s *step) synced() {
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	s.a.kept, s.a.synced = s.v, s.v
}

// sync syncs what has that name, in one of four cases, and then notes it.
func (s *step) sync(names ...string) error {
	s.kept()
	if s.rng.IntN(4) > 0 {
		return nil
	}
	for _, n := range names {
		if err := syncPath(s.path(n)); err != nil {
			return err
		}
	}
	s.synced()
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// next takes the actor to its next version, in the tree at root, and may look at it.
func (a *actor) next(root string, rng *rand.Rand, look bool) error {
	a.mu.Lock()
	if a.most > 0 && a.begun >= a.most {
		a.mu.Unlock()
		return nil
	}
	a.begun++
	s := &step{a: a, dir: filepath.Join(root, a.dir), v: a.begun, rng: rng}
	a.mu.Unlock()
	err := a.step(s)
	if err == nil && look && a.most == 0 { // the others have too much to look at
		err = a.check(s.dir, bounds{s.v, s.v, true})
	}
	if err != nil {
		return fmt.Errorf("%s: to version %d: %w", a.dir, s.v, err)
	}
	return nil
}

// workload is a set of actors and who moves them.
type workload struct {
	actors []*actor
	look   bool // after each step
	steps  atomic.Int64
	stop   atomic.Bool
	wg     sync.WaitGroup

	mu     sync.Mutex
	failed []error
}

func newWorkload(each int) *workload {
	w := &workload{}
	for i := range each {
		for _, k := range kinds() {
			w.actors = append(w.actors, &actor{kind: k, dir: fmt.Sprintf("%s %d", k.name, i)})
		}
	}
	return w
}

// makeLower makes in dir what the image has of the actors.
func (w *workload) makeLower(t *testing.T, dir string) {
	t.Helper()
	for _, a := range w.actors {
		fatal(t, os.MkdirAll(filepath.Join(dir, a.dir), 0o755))
		fatal(t, a.lower(filepath.Join(dir, a.dir)))
	}
}

// start has a few workers take steps in the tree at root, until end or an error.
func (w *workload) start(root string, seed uint64) {
	const workers = 4
	w.stop.Store(false)
	for i := range workers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		w.wg.Go(func() {
			for !w.stop.Load() {
				a := w.actors[rng.IntN((len(w.actors)+workers-1-i)/workers)*workers+i]
				if err := a.next(root, rng, w.look); err != nil {
					w.mu.Lock()
					w.failed = append(w.failed, err)
					w.mu.Unlock()
					return
				}
				w.steps.Add(1)
			}
		})
	}
}

// end stops the workers and returns what failed.
func (w *workload) end() []error {
	w.stop.Store(true)
	w.wg.Wait()
	return w.errors()
}

func (w *workload) errors() []error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// each asks all actors for a version.
func (w *workload) each(of func(a *actor) int) []int {
	all := make([]int, len(w.actors))
	for i, a := range w.actors {
		a.mu.Lock()
		all[i] = of(a)
		a.mu.Unlock()
	}
	return all
}

func begun(a *actor) int  { return a.begun }
func kept(a *actor) int   { return a.kept }
func synced(a *actor) int { return a.synced }

// check checks what the tree at root has of all actors; exact says that there was no
// crash.
func (w *workload) check(t *testing.T, what, root string, least, most []int, exact bool) {
	t.Helper()
	for i, a := range w.actors {
		if err := a.check(filepath.Join(root, a.dir), bounds{least[i], most[i], exact}); err != nil {
			t.Errorf("%s: %s: versions %d to %d would be right: %v", what, a.dir, least[i], most[i], err)
		}
	}
}

// versions makes a check of a look at what is there, which says whether it is a
// version.
func versions(look func(dir string) func(v int) error) func(string, bounds) error {
	return func(dir string, b bounds) error {
		is := look(dir)
		var errs []error
		for v := b.most; v >= b.least; v-- {
			err := is(v)
			if err == nil {
				return nil
			}
			errs = append(errs, fmt.Errorf("not version %d: %w", v, err))
		}
		for v := b.least - 1; v >= max(0, b.least-20); v-- {
			if is(v) == nil {
				errs = append(errs, fmt.Errorf("it is version %d", v))
				break
			}
		}
		return errors.Join(errs[max(0, len(errs)-4):]...)
	}
}

// crashed is a workspace that a workload works in.
type crashed struct {
	*workload
	s     store
	plain string // what the image was made of
	image string
	dir   string // where it is mounted
}

func newCrashed(t *testing.T, each int) *crashed {
	t.Helper()
	plain := filepath.Join(t.TempDir(), "plain")
	fatal(t, os.Mkdir(plain, 0o755))
	c := &crashed{workload: newWorkload(each), s: newStore(t), plain: plain, dir: t.TempDir()}
	c.makeLower(t, plain)
	c.image = gzipImage(t, plain)
	return c
}

// gzipImage makes an image of one compressed layer, of the tree in dir, and returns its
// name.
func gzipImage(t *testing.T, dir string) string {
	t.Helper()
	layout := filepath.Join(t.TempDir(), "layout")
	l, err := images.NewLayout(layout)
	fatal(t, err)
	diffID := digest.SHA256.Digester()
	d, size, err := l.AddBlob(func(w io.Writer) error {
		z := gzip.NewWriter(w)
		return errors.Join(images.WriteDiff(io.MultiWriter(z, diffID.Hash()), dir), z.Close())
	})
	fatal(t, err)
	m, err := l.AddImage(ocispec.ImageConfig{}, ocispec.Platform{Architecture: "amd64", OS: "linux"},
		[]ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: d, Size: size}}, []digest.Digest{diffID.Digest()})
	fatal(t, err)
	l.Tag(m, "tree")
	fatal(t, l.Close())
	return "oci:" + layout + ":tree"
}

func (c *crashed) mount(t *testing.T, s store, dir string, options ...string) {
	t.Helper()
	words := append([]string{"mount", "-q", "--rw", "--engine", "fuse"}, options...)
	s.run(t, append(words, c.image, dir)...)
	t.Cleanup(func() { _, _ = s.Run("umount", "--lazy", dir) })
}

// byKernel reads the union as the kernel's own overlayfs shows it.
func (c *crashed) byKernel(t *testing.T, upper string) tree.Tree {
	t.Helper()
	work, dir := upper+".kernel", t.TempDir()
	fatal(t, os.MkdirAll(work, 0o700))
	opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,redirect_dir=on,metacopy=on,xino=on,index=off", c.plain, upper, work)
	fatal(t, unix.Mount("overlay", dir, "overlay", 0, opts))
	defer unmountSoon(t, dir)
	return readUnion(t, dir)
}

// unmountSoon unmounts dir, which somebody who looks at all mounts may hold for a
// moment.
func unmountSoon(t *testing.T, dir string) {
	t.Helper()
	err := unix.Unmount(dir, 0)
	for end := time.Now().Add(5 * time.Second); err == unix.EBUSY && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		err = unix.Unmount(dir, 0)
	}
	fatal(t, err)
}

// committed makes an image of the workspace at dir, which shows want, and looks at it.
func committed(t *testing.T, s store, dir string, want tree.Tree) {
	t.Helper()
	s.run(t, "diff", dir)
	s.run(t, "commit", "-q", dir, "example.com/crashed:1")
	ro := t.TempDir()
	s.run(t, "mount", "-q", "--engine", "fuse", "example.com/crashed:1", ro)
	got := readUnion(t, ro)
	s.run(t, "umount", ro)
	sameUnion(t, "image of the workspace", want, got)
}
