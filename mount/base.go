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

	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
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
	if err := replaceFile(filepath.Join(s.dir(), baseName), append(b, '\n')); err != nil {
		return fmt.Errorf("workspace %s: %w", s.Name, err)
	}
	return nil
}

// replaceFile puts b at path, durably.
func replaceFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Workspace is an opened workspace.
type Workspace struct {
	Upper overlay.Upper
	// Lower is the tree that the upper directory is over.
	Lower *store.Tree
	// Image is what a commit adds a layer to: what was committed last, or what
	// Lower is the tree of.
	Image *image.Image

	committed *store.Tree
	layers    []*index.Index
}

// OpenWorkspace opens the workspace of e, mounted or not, with what st has and its
// registries. ErrWorkspace: e is mounted read-only, or an image that it needs is not
// what it was.
func (e *Entry) OpenWorkspace(ctx context.Context, st *store.Store) (*Workspace, error) {
	if !e.Options.RW {
		return nil, fmt.Errorf("%w: %s is mounted read-only", ErrWorkspace, e.Name)
	}
	w := &Workspace{Upper: overlay.Upper{Dir: e.Upper()}}
	if err := e.flush(); err != nil {
		return nil, fmt.Errorf("open workspace %s: %w", e.Name, err)
	}
	if err := w.open(ctx, e, st); err != nil {
		return nil, errors.Join(fmt.Errorf("open workspace %s: %w", e.Name, err), w.Close())
	}
	return w, nil
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
		return w.openCommitted(ctx, st, last)
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

func (w *Workspace) openCommitted(ctx context.Context, st *store.Store, last *Committed) (err error) {
	name, err := image.ParseName(last.Image)
	if err != nil {
		return err
	}
	ref := store.Ref{Name: name.Ref.Name() + "@" + last.Digest.String(), Pull: image.PullNever}
	if w.committed, err = st.Open(ctx, ref, nil); err != nil {
		return fmt.Errorf("%s, which was committed last: %w", last.Image, err)
	}
	w.Image = w.committed.Image
	for i, l := range w.committed.Layers {
		if i < len(w.Lower.Layers) && l.Key() == w.Lower.Layers[i].Key() {
			continue
		}
		w.layers = append(w.layers, l.Index())
	}
	return nil
}

// Since is what the changes of the next commit are against; nil if that is the lower
// tree.
func (w *Workspace) Since() *overlay.Base {
	if w.committed == nil {
		return nil
	}
	return &overlay.Base{Tree: w.committed.Overlay(), Layers: w.layers}
}

// Close closes the trees. Nothing of them may be in use.
func (w *Workspace) Close() error {
	var errs []error
	for _, t := range []*store.Tree{w.Lower, w.committed} {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	return errors.Join(errs...)
}
