package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/atomicfile"
	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/overlay"
	"github.com/laminafs/lamina/overlay/union"
	"github.com/laminafs/lamina/store"
)

// baseName is the file beside a workspace's record that says what was committed of
// it last. It is a file of its own because a server may write the record.
const baseName = "base.json"

// Committed is the image that was made of a workspace last. What changes from then
// on goes on top of it.
type Committed struct {
	Image  string        `json:"image"`
	Digest digest.Digest `json:"digest"`
}

// Committed returns what was committed last; nil if nothing was.
func (s *State) Committed() (*Committed, error) {
	b, err := os.ReadFile(filepath.Join(s.dir(), baseName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	c := new(Committed)
	if err := json.Unmarshal(b, c); err != nil || c.Digest.Validate() != nil {
		return nil, fmt.Errorf("workspace %s: %s is damaged; without it the next commit is over %s again: %w", s.Name, baseName, s.Image, errors.Join(err, c.Digest.Validate()))
	}
	return c, nil
}

// SetCommitted notes that c was made of the workspace.
func (s *State) SetCommitted(c Committed) error {
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	path := filepath.Join(s.dir(), baseName)
	if err := atomicfile.WriteBytes(path, path+".", append(b, '\n')); err != nil {
		return fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	return nil
}

// Workspace is an opened workspace.
type Workspace struct {
	Upper overlay.Upper
	// Lower is the tree that the upper directory is over.
	Lower *store.Tree
	// Image is what a commit adds a layer to: what was committed last, or what
	// Lower is the tree of.
	Image *image.Image

	committed *overlay.Base  // nil if nothing was committed
	layers    []*cache.Layer // of committed
	lock      *os.File       // of an upper directory that is not mounted
	picture   *controlConn   // keeps the picture that Upper is
}

// OpenWorkspace opens the workspace of e, mounted or not, with what st has and its
// registries. ErrWorkspace: e is mounted read-only, or an image that it needs is not
// what it was.
func (e *Entry) OpenWorkspace(ctx context.Context, st *store.Store) (*Workspace, error) {
	if !e.Options.RW {
		return nil, fmt.Errorf("%w: %s is mounted read-only", ErrWorkspace, e.Name)
	}
	w := &Workspace{Upper: overlay.Upper{Dir: e.Upper(), Orphans: union.Orphans(e.workDir())}}
	err := w.keepOut(e)
	if err == nil {
		err = e.flush()
	}
	if err == nil {
		err = w.open(ctx, e, st)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open workspace %s: %w", e.Name, err), w.Close())
	}
	return w, nil
}

// keepOut sees to it that nobody mounts e until w is closed, if it is not mounted.
func (w *Workspace) keepOut(e *Entry) (err error) {
	if e.Status != Unmounted {
		return nil
	}
	if w.lock, err = os.Open(e.workDir()); errors.Is(err, os.ErrNotExist) {
		return nil // nobody has mounted it yet
	}
	if err != nil {
		return err
	}
	if err := unix.Flock(int(w.lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%w: another process is mounting it: %w", ErrWorkspace, err)
	}
	if now, err := find(e.Options.Root, e.Name); err != nil || now.Status != Unmounted {
		return errors.Join(fmt.Errorf("%w: it was mounted just now; try again", ErrWorkspace), err)
	}
	return nil
}

// Freeze makes w.Upper what the upper directory is at this instant, until w is
// closed: names, attributes, and the data that had been written when w was opened.
// Of what was written since, what the kernel has not passed on may be missing, as
// after a power cut. By the kernel engine nothing is frozen: what is written
// meanwhile may be in it or not.
func (w *Workspace) Freeze(e *Entry) (err error) {
	if e.Status != Serving || e.Engine != FUSE {
		return nil
	}
	if w.picture, err = dial(e.Options.Root, e.Name); err != nil {
		return fmt.Errorf("freeze workspace %s: its server does not answer: %w", e.Name, err)
	}
	f, err := w.ask(opFreeze)
	if err != nil {
		return fmt.Errorf("freeze workspace %s: %w", e.Name, err)
	}
	if f.Dir != "" {
		w.Upper = overlay.Upper{Dir: f.Dir, Data: f.Data} // of names only
	}
	return nil
}

// Frozen tells whether what was read of w.Upper is what Freeze said it is.
func (w *Workspace) Frozen() error {
	if w.picture == nil || w.Upper.Data == "" {
		return nil
	}
	if _, err := w.ask(opCheck); err != nil {
		return fmt.Errorf("%w: what was frozen is lost, try again: %w", ErrWorkspace, err)
	}
	return nil
}

func (w *Workspace) ask(op string) (f frozen, err error) {
	if err := w.picture.call(question{Op: op}, &f, freezeTime); err != nil {
		return f, err
	}
	if f.Error != "" {
		return f, errors.New(f.Error)
	}
	return f, nil
}

// flush has the kernel pass on what was written to e, if it is mounted.
func (e *Entry) flush() error {
	if e.Status != Serving && e.Status != NoServer {
		return nil
	}
	dir, err := os.Open(e.Options.Dir)
	if err != nil {
		return err
	}
	if err = unix.Syncfs(int(dir.Fd())); err != nil {
		err = &os.PathError{Op: "syncfs", Path: dir.Name(), Err: err}
	}
	return errors.Join(err, dir.Close())
}

func (w *Workspace) open(ctx context.Context, e *Entry, st *store.Store) (err error) {
	if w.Lower, err = e.open(ctx, st); err != nil {
		return err
	}
	last, err := e.Committed()
	if err != nil {
		return err
	}
	if last != nil {
		return w.openCommitted(ctx, st, e, last)
	}
	ref := store.Ref{Name: e.Image, Platform: e.Options.Platform}
	if e.Repository != "" { // a tag may name another image by now
		ref = store.Ref{Name: e.Repository + "@" + e.Digest.String()}
	}
	if w.Image, err = st.Image(ctx, ref); err != nil {
		return err
	}
	if w.Image.Digest != e.Digest {
		return fmt.Errorf("%w: %s has the digest %s now, it was made over %s", ErrWorkspace, e.Image, w.Image.Digest, e.Digest)
	}
	return nil
}

func (w *Workspace) openCommitted(ctx context.Context, st *store.Store, e *Entry, last *Committed) (err error) {
	name, err := image.ParseName(last.Image)
	if err != nil {
		return err
	}
	ref := store.Ref{Name: name.Ref.Name() + "@" + last.Digest.String(), Pull: image.PullNever}
	if w.Image, err = st.Image(ctx, ref); err != nil {
		return fmt.Errorf("%s, which was committed last: %w", last.Image, err)
	}
	// One layer may lie under two keys: in the store, and where it was read in place.
	shared := 0
	for shared < min(len(e.Layers), len(w.Image.Layers)) && w.Image.Layers[shared].DiffID == e.Layers[shared].DiffID {
		shared++
	}
	w.committed = &overlay.Base{Lower: w.Lower.Overlay()}
	if shared < len(e.Layers) { // all of it was made one layer
		w.committed.Lower, shared = nil, 0
	}
	if w.layers, err = st.Layers(ctx, w.Image, shared); err != nil {
		return fmt.Errorf("%s, which was committed last: %w", last.Image, err)
	}
	for _, l := range w.layers {
		w.committed.Layers = append(w.committed.Layers, overlay.New(l.Index(), []overlay.Data{l}))
	}
	return nil
}

// Since is what the changes of the next commit are against; nil if that is the lower
// tree.
func (w *Workspace) Since() *overlay.Base { return w.committed }

// Close closes the trees. Nothing of them may be in use.
func (w *Workspace) Close() error {
	var errs []error
	for _, l := range w.layers {
		errs = append(errs, l.Close())
	}
	if w.Lower != nil {
		errs = append(errs, w.Lower.Close())
	}
	if w.lock != nil {
		errs = append(errs, w.lock.Close())
	}
	if w.picture != nil {
		errs = append(errs, w.picture.Close())
	}
	return errors.Join(errs...)
}
