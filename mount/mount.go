package mount

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/lookahead"
	"github.com/laminafs/lamina/store"
)

// Mount shows the image that o names at o.Dir and returns when the tree can be
// used. A server goes on in the background where one is needed. p may be nil.
func Mount(ctx context.Context, o Options, p Progress) (*State, error) {
	if err := prepare(ctx, &o); err != nil {
		return nil, err
	}
	if engine, _, _ := chooseEngine(o); engine == Kernel && !o.Fill {
		s, err := mountLocal(ctx, o)
		if !errors.Is(err, errNeedsServer) {
			return s, err
		}
	}
	return startServer(ctx, o.name(), o, p)
}

// prepare checks what can be checked before anything is started.
func prepare(ctx context.Context, o *Options) error {
	name, err := image.ParseName(o.Image)
	if err != nil {
		return err
	}
	if name.Transport != image.Registry {
		// The server has another working directory.
		if name.Path, err = filepath.Abs(name.Path); err != nil {
			return err
		}
		o.Image = name.String()
	}
	if err := image.CheckPlatform(o.Platform); err != nil {
		return err
	}
	if o.RW && os.Geteuid() != 0 {
		return fmt.Errorf("%w: writable mounts need root, who may give files to any owner", ErrWorkspace)
	}
	if err := prepareDir(ctx, *o); err != nil {
		return err
	}
	return resume(o)
}

// prepareDir makes sure that o.Dir can be mounted on: it clears away a dead
// server's mount and refuses a place where a mount of ours is alive.
func prepareDir(ctx context.Context, o Options) error {
	if _, err := fs.CleanStale(ctx, o.Dir); err != nil {
		return fmt.Errorf("clear the dead mount at %s: %w", o.Dir, err)
	}
	fi, err := os.Stat(o.Dir)
	if errors.Is(err, iofs.ErrNotExist) {
		return fmt.Errorf("mountpoint %s does not exist: make it with mkdir first", o.Dir)
	}
	if err != nil {
		return fmt.Errorf("mountpoint: %w", err)
	}
	if !fi.IsDir() {
		return fmt.Errorf("mountpoint %s is not a directory", o.Dir)
	}
	e, err := find(o.Root, o.Dir)
	if isNotMounted(err) || err == nil && e.Status == Unmounted {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%s is already mounted at %s: 'lamina umount %s' first", e.Image, o.Dir, o.Dir)
}

// errNeedsServer says that a mount cannot be made without a server.
var errNeedsServer = errors.New("a server is needed")

// mountLocal mounts without starting any process: an image whose layers are
// all complete in the store, or one whose chain is mounted already. It answers
// errNeedsServer, having done nothing, when the way is longer.
func mountLocal(ctx context.Context, o Options) (*State, error) {
	if fs.KernelSupport() != nil || o.Pull == "always" {
		return nil, errNeedsServer
	}
	ahead := lookahead.New()
	st, err := openStore(o, slog.New(slog.DiscardHandler), ahead)
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	img, err := image.Open(ctx, o.Image, image.Options{
		Platform: o.Platform, Pull: image.PullNever, Client: st.Client, Store: st.Images,
	})
	if err != nil {
		return nil, errNeedsServer // which will say what is wrong, if anything is
	}
	index := store.IndexAuto
	if o.Index == string(store.IndexNever) {
		index = store.IndexNever
	}
	for _, l := range img.Layers {
		if key, _, _ := layer.Key(layer.Source(l)); !st.Cache.Has(key) && (index == store.IndexNever || !st.Cache.HasIndexed(layer.Source(l))) {
			return nil, errNeedsServer
		}
	}
	o.Pull = image.PullNever.String()
	opened, err := st.Open(ctx, store.Ref{Name: o.Image, Platform: o.Platform, Pull: image.PullNever, Index: index}, nil)
	if err != nil {
		return nil, errNeedsServer
	}
	t := &tree{opened, ahead}
	defer func() { _ = t.Close() }()
	m := t.state(o.name(), o)
	m.Engine = Kernel
	if ok, err := t.cloneChain(m); ok || err != nil {
		return m, err
	}
	if !t.Complete() {
		return nil, errNeedsServer
	}
	if err := m.prepareUpper(t.Overlay()); err != nil {
		m.unlockUpper()
		return nil, err
	}
	if err := t.mountComplete(m); err != nil {
		_ = m.end()
		return nil, errNeedsServer // which says why, or has another engine
	}
	return m, nil
}

// cloneChain shows m's chain by cloning a kernel mount of the same chain, so
// that both share one superblock and its page cache. It reports whether there
// was one to clone.
func (t *tree) cloneChain(m *State) (bool, error) {
	if m.Options.RW {
		return false, nil // its own overlayfs needs a mount of its own beneath
	}
	all, err := List(m.Options.Root)
	if err != nil {
		return false, err
	}
	for _, e := range all {
		if e.Engine != Kernel || e.Options.RW || e.Chain != m.Chain || e.Status != Serving && e.Status != NoServer {
			continue
		}
		m.ServedBy = e.ServedBy
		if m.ServedBy == "" && e.Status == Serving {
			m.ServedBy = e.Name
		}
		for i := range m.Layers {
			if m.Layers[i].Direct = e.Layers[i].Direct; !m.Layers[i].Direct {
				continue
			}
			// Until t is closed: who asks now what the kernel reads may have seen no
			// record of m, and then no mount of e any more.
			if err := t.Layers[i].Hold(); err != nil {
				return false, err
			}
		}
		if err := m.save(); err != nil {
			return false, err
		}
		err := fs.CloneMount(e.Options.Dir, m.Options.Dir)
		if err == nil {
			err = m.verify()
		}
		if err != nil {
			_ = m.remove()
			// The other may be unmounted at this very moment: make a new one.
			m.clearKernel()
			return false, nil
		}
		return true, m.made()
	}
	return false, nil
}

// verify makes sure that what was just cloned is s's chain, and takes it away if not:
// where another mount was, there may have been a third one when it was cloned.
func (s *State) verify() error {
	v, err := newView()
	if err != nil {
		return err
	}
	if m, ok := v.at(s); ok && s.owns(m) {
		return nil
	}
	return errors.Join(fmt.Errorf("clone %s: %w", s.Name, errOtherLayers), fs.Unmount(context.Background(), s.Options.Dir, true))
}
