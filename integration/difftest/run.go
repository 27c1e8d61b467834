package difftest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Target is a directory to test. The first of several is the reference.
type Target struct {
	Name  string // for reports
	Dir   string
	Rules []Rule // in what it may differ from the reference
}

// Config says what to run.
type Config struct {
	// Targets are at least two directories that show the same tree.
	Targets []Target
	// Seed and the reference determine the sequence.
	Seed uint64
	// Ops is how many operations to run, by all workers together.
	Ops int
	// Workers, if more than 1, is how many sequences run at once. Each has one of
	// the tree's top directories to itself, and reads the one called Shared, which
	// stays as it is; so results do not depend on who comes first.
	Workers int
	// CheckEvery is how many operations a worker runs between comparisons of whole
	// trees, which are its own; 0 means 2000. There is always one at the end.
	CheckEvery int
	// Without names kinds of operations to leave out.
	Without []Kind
	// Log, unless nil, gets every operation before it is run, one a line and with
	// the number of its worker in a comment if there are several: for finding what
	// made a kernel or a server crash.
	Log io.Writer
}

// Shared is the name of the top directory that all workers read.
const Shared = "shared"

// Report says what was run.
type Report struct {
	// Ops is how many operations were run, and Succeeded how many of them gave no
	// error in the reference.
	Ops, Succeeded int
	// Kinds has the same two numbers for each kind.
	Kinds map[Kind][2]int
	// Explained counts differences, by the name of their target and rule.
	Explained map[string]int
	// Difference is the first one that no rule explains, nil if there is none.
	Difference *Difference
}

// Difference is what a target did unlike the reference.
type Difference struct {
	// Target is the name of the one that differs.
	Target string
	// Op is the operation, without a kind if it is the trees that differ.
	Op Op
	// Deltas are all that no rule explains, the first of them if there are very
	// many.
	Deltas []Delta
	// Want and Got are the results of the operation.
	Want, Got Result
	// Sequence is all that was run, Op last, in the top directory Dir; to be
	// replayed there.
	Sequence []Op
	// Dir is the worker's directory; "" means the whole tree.
	Dir string
}

// String describes the difference, without the sequence.
func (d *Difference) String() string {
	var b strings.Builder
	what := "the trees differ"
	if d.Op.Kind != "" {
		what = d.Op.String()
	}
	fmt.Fprintf(&b, "%s, after %d operations", d.Target, len(d.Sequence))
	if d.Dir != "" {
		fmt.Fprintf(&b, " in %s", d.Dir)
	}
	fmt.Fprintf(&b, ": %s", what)
	for _, x := range d.Deltas {
		fmt.Fprintf(&b, "\n\t%v", x)
	}
	return b.String()
}

func (r *Report) add(o Report) {
	r.Ops += o.Ops
	r.Succeeded += o.Succeeded
	for k, n := range o.Kinds {
		m := r.Kinds[k]
		r.Kinds[k] = [2]int{m[0] + n[0], m[1] + n[1]}
	}
	for k, n := range o.Explained {
		r.Explained[k] += n
	}
	if r.Difference == nil {
		r.Difference = o.Difference
	}
}

func newReport() Report {
	return Report{Kinds: map[Kind][2]int{}, Explained: map[string]int{}}
}

// Run runs a random sequence in all targets. It stops at the first unexplained
// difference, which is no error but in the report, or when ctx is done, which is
// none either. An error means that the test could not be made.
func Run(ctx context.Context, c Config) (Report, error) {
	if len(c.Targets) < 2 {
		return newReport(), errors.New("run: fewer than two targets")
	}
	if c.Workers < 2 {
		return runWorker(ctx, c, "", c.Seed, c.Ops)
	}
	dirs, err := workerDirs(c.Targets[0].Dir, c.Workers)
	if err != nil {
		return newReport(), err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.Log != nil {
		c.Log = &locked{w: c.Log}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	total, errs := newReport(), []error(nil)
	for i, dir := range dirs {
		wg.Go(func() {
			rep, err := runWorker(ctx, c, dir, c.Seed+uint64(i)<<32, c.Ops/c.Workers)
			mu.Lock()
			defer mu.Unlock()
			total.add(rep)
			if err != nil || rep.Difference != nil {
				cancel()
			}
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return total, errors.Join(errs...)
}

// locked is a writer for several.
type locked struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// workerDirs returns the first top directories but the shared one.
func workerDirs(dir string, n int) ([]string, error) {
	all, _, err := list(unix.AT_FDCWD, dir, 0)
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	var dirs []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if all[name].kind == unix.DT_DIR && name != Shared {
			dirs = append(dirs, name)
		}
	}
	if len(dirs) < n {
		return nil, fmt.Errorf("run: %s has directories for %d workers, not %d", dir, len(dirs), n)
	}
	return dirs[:n], nil
}

// Replay runs a sequence, such as a Difference has, in all targets. c.Ops, Seed
// and Workers mean nothing. dir is the Difference's Dir.
func Replay(ctx context.Context, c Config, dir string, ops []Op) (Report, error) {
	s, err := newSession(c, dir)
	if err != nil {
		return newReport(), err
	}
	defer s.close()
	for _, op := range ops {
		if ctx.Err() != nil {
			return s.report, ctx.Err()
		}
		s.step(op)
		if s.report.Difference != nil {
			return s.report, nil
		}
	}
	s.check()
	return s.report, nil
}

// session runs operations in the targets and compares.
type session struct {
	c     Config
	dir   string
	roots []*Root
	// inodes has, for each root, the inode numbers of what the reference's handles
	// stand for.
	inodes []map[string]uint64
	done   []Op
	report Report
}

func newSession(c Config, dir string) (*session, error) {
	s := &session{c: c, dir: dir, report: newReport()}
	for _, t := range c.Targets {
		shared := ""
		if dir != "" {
			shared = filepath.Join(t.Dir, Shared)
		}
		r, err := openRoot(t.Name, filepath.Join(t.Dir, dir), shared)
		if err != nil {
			s.close()
			return nil, err
		}
		s.roots = append(s.roots, r)
		s.inodes = append(s.inodes, map[string]uint64{})
	}
	s.roots[0].handles = true
	return s, nil
}

func (s *session) close() {
	for _, r := range s.roots {
		r.Close()
	}
}

// runWorker runs the sequence of one worker.
func runWorker(ctx context.Context, c Config, dir string, seed uint64, ops int) (Report, error) {
	s, err := newSession(c, dir)
	if err != nil {
		return newReport(), err
	}
	defer s.close()
	every := c.CheckEvery
	if every == 0 {
		every = 2000
	}
	g := newGenerator(seed, c.Without)
	if dir != "" {
		if err := g.readShared(filepath.Join(c.Targets[0].Dir, Shared)); err != nil {
			return s.report, err
		}
	}
	for i := range ops {
		if i%every == 0 {
			if g.reset(s.check()); s.report.Difference != nil {
				return s.report, nil
			}
		}
		if ctx.Err() != nil {
			break
		}
		op := g.next()
		g.learn(op, s.step(op).Errno == 0)
		if s.report.Difference != nil {
			return s.report, nil
		}
	}
	s.check()
	return s.report, nil
}

// step runs an operation in all roots and returns the reference's result.
func (s *session) step(op Op) Result {
	if s.c.Log != nil {
		line := op.String() + "\n"
		if s.dir != "" {
			line = "# " + s.dir + "\n" + line
		}
		_, _ = io.WriteString(s.c.Log, line)
	}
	s.done = append(s.done, op)
	results := make([]Result, len(s.roots))
	var wg sync.WaitGroup
	for i, r := range s.roots[1:] {
		wg.Go(func() { results[i+1] = Exec(r, op) })
	}
	results[0] = Exec(s.roots[0], op)
	wg.Wait()
	s.count(op, results[0].Errno == 0)
	parted := false
	if b := results[0].Broken; len(b) > 0 {
		s.differ(0, op, []Delta{{Field: "broken", Got: b[0]}}, Result{}, results[0])
	}
	for i := 1; i < len(results); i++ {
		d := deltas(results[0], results[i])
		if results[i].Errno == results[0].Errno { // otherwise names may stand for different files
			d = append(d, s.identities(i, results[0].Stats, results[i].Stats)...)
		}
		parted = s.differ(i, op, d, results[0], results[i]) || parted
	}
	if parted {
		s.removeAll(op)
	}
	return results[0]
}

func (s *session) count(op Op, ok bool) {
	n := s.report.Kinds[op.Kind]
	n[0]++
	s.report.Ops++
	if ok {
		n[1]++
		s.report.Succeeded++
	}
	s.report.Kinds[op.Kind] = n
}

// identities sees that what is one file in the reference keeps one inode number.
func (s *session) identities(i int, want, got []Stat) []Delta {
	var all []Delta
	for j := range min(len(want), len(got)) {
		w, g := want[j], got[j]
		if w.handle == "" || w.Errno != 0 || g.Errno != 0 {
			continue
		}
		if before, ok := s.inodes[i][w.handle]; ok && before != g.Ino {
			all = append(all, Delta{
				Field: "identity",
				Want:  fmt.Sprintf("%s with the inode number it had, %d", w.What, before),
				Got:   fmt.Sprint(g.Ino),
			})
		}
		s.inodes[i][w.handle] = g.Ino
	}
	return all
}

// differ takes out what is explained, and keeps the rest if it is the first. It
// returns whether what is explained leaves unlike trees.
func (s *session) differ(i int, op Op, all []Delta, want, got Result) (parted bool) {
	var left []Delta
	for _, d := range all {
		r := explain(s.c.Targets[i].Rules, op, d)
		if r == nil {
			left = append(left, d)
			continue
		}
		s.report.Explained[s.c.Targets[i].Name+": "+r.Name]++
		parted = parted || r.Parts
	}
	if parted || len(left) == 0 || s.report.Difference != nil {
		return parted
	}
	s.report.Difference = &Difference{
		Target: s.c.Targets[i].Name,
		Op:     op, Deltas: left[:min(len(left), 20)],
		Want: want, Got: got,
		Sequence: slices.Clone(s.done), Dir: s.dir,
	}
	return false
}

// removeAll removes what an operation names from all roots, so that they are
// alike again. The generator is not told: it finds out.
func (s *session) removeAll(op Op) {
	for _, r := range s.roots {
		r.call(func() {
			for _, p := range []string{op.Path, op.Path2} {
				if p != "" {
					r.remove(p)
				}
			}
			// Other descriptors may be of the same file.
			for n := range r.slots {
				if op.Slot != 0 {
					r.drop(int64(n))
				}
			}
		})
	}
}

// check compares the whole trees and returns the reference's.
func (s *session) check() map[string]*entry {
	trees := make([]map[string]*entry, len(s.roots))
	results := make([]Result, len(s.roots))
	var wg sync.WaitGroup
	for i, r := range s.roots {
		wg.Go(func() { trees[i], results[i] = r.snapshot() })
	}
	wg.Wait()
	for i := range s.roots {
		var d []Delta
		for _, b := range results[i].Broken {
			d = append(d, Delta{Field: "broken", Got: b})
		}
		if i > 0 {
			d = append(d, treeDeltas(trees[0], trees[i])...)
		}
		s.differ(i, Op{}, d, Result{}, Result{})
	}
	return trees[0]
}

// newRand is the generator's source of chance.
func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x6c616d696e61)) }
