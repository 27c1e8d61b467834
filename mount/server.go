package mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/image"
	"github.com/laminafs/lamina/lookahead"
	"github.com/laminafs/lamina/store"
)

// ServeCommand is the server of a new mount called name. It tells the command
// that started it, through events, how far it is, and goes on until the tree is
// unmounted. When that command ends before the tree is usable, so does the
// server, and nothing is left mounted.
func ServeCommand(ctx context.Context, name string, o Options, events *os.File) error {
	log := newLogger(os.Stderr)
	calm := hurry()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	talk := &talker{enc: json.NewEncoder(events), gone: cancel}
	srv := &server{log: log, hold: true, calm: calm}
	err := srv.run(ctx, name, o, talk, func(s *State) {
		talk.send(event{Ready: s})
		_ = events.Close()
	})
	if err != nil {
		log.Error("mount failed", "mount", name, "error", err)
		talk.send(event{Error: err.Error()})
	}
	return err
}

// Until the tree is usable garbage is collected more rarely than Go would: the
// tables of contents of an ordinary image fit into hurryLimit bytes, and
// somebody waits. Beyond that many it is collected as often as it takes to stay
// below. That must not go on: who serves a tree with more than that in use would
// do little else.
const (
	hurryGC    = 800 // percent
	hurryLimit = 256 << 20
)

// hurry begins that, and calm ends it, with what was set before.
func hurry() (calm func()) {
	percent, limit := debug.SetGCPercent(hurryGC), debug.SetMemoryLimit(hurryLimit)
	return func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	}
}

// watchPause is how often a mount in front that the kernel serves alone is
// looked at.
const watchPause = 500 * time.Millisecond

// Foreground mounts as Mount does but serves in the calling process, until ctx
// ends or the tree is unmounted. ready is called once the tree can be used.
func Foreground(ctx context.Context, o Options, p Progress, ready func(*State)) error {
	if err := prepare(ctx, &o); err != nil {
		return err
	}
	srv := &server{log: newLogger(os.Stderr)}
	err := srv.run(ctx, o.name(), o, p, ready)
	if err == nil && srv.session == nil {
		return srv.state.watch(ctx)
	}
	return err
}

// watch waits for the end of a mount that needs no server, and ends it when
// ctx ends.
func (s *State) watch(ctx context.Context) error {
	for {
		e, err := find(s.Options.Root, s.Name)
		if isNotMounted(err) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return Unmount(context.WithoutCancel(ctx), e.Options.Root, e.Name, true)
		case <-time.After(watchPause):
		}
	}
}

func newLogger(f *os.File) *slog.Logger {
	return slog.New(slog.NewTextHandler(f, nil))
}

// talker sends progress to the command that waits. Losing it cancels the
// mount while it is being made.
type talker struct {
	mu   sync.Mutex // guards what follows
	enc  *json.Encoder
	done bool
	last map[int]int64
	gone context.CancelFunc
}

func (t *talker) send(e event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.done {
		return
	}
	t.done = e.Ready != nil || e.Error != ""
	if err := t.enc.Encode(e); err != nil {
		t.gone()
	}
}

// Layer implements Progress; steps of less than a hundredth are left out.
func (t *talker) Layer(i int, digest string, done, total int64) {
	t.mu.Lock()
	if t.last == nil {
		t.last = map[int]int64{}
	}
	if done < total && done-t.last[i] < total/100 {
		t.mu.Unlock()
		return
	}
	t.last[i] = done
	t.mu.Unlock()
	t.send(event{Layer: i, Digest: digest, Done: done, Total: total})
}

// server is one process serving one mount.
type server struct {
	log   *slog.Logger
	hold  bool   // start a holder
	ready bool   // the tree was usable
	calm  func() // ends the hurry of the start; may be nil

	store   *store.Store
	ahead   *lookahead.Watcher
	tree    *tree
	state   *State
	session *session
}

// run makes the mount and serves it to its end.
func (s *server) run(ctx context.Context, name string, o Options, p Progress, ready func(*State)) (err error) {
	engine, reason, err := chooseEngine(o)
	if err != nil {
		return err
	}
	s.ahead = lookahead.New()
	if s.store, err = openStore(o, s.log, s.ahead); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	if err = s.assemble(ctx, o, p); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tree.Close()) }()
	s.state = s.tree.state(name, o)
	s.state.Engine, s.state.Reason = engine, reason
	if err = s.state.prepareUpper(s.tree.Overlay()); err != nil {
		s.state.unlockUpper()
		return err
	}
	alone := false // the mount goes on without a server
	defer func() {
		if !alone {
			err = errors.Join(err, s.state.end())
		}
	}()
	if engine == Kernel {
		if alone, err = s.withoutServer(ready); alone || err != nil {
			return err
		}
	}
	err = s.serve(ctx, false, ready)
	if err != nil && o.Engine == Auto && engine == Kernel && !s.ready && !o.RW {
		s.log.Warn("kernel engine failed, going on with fuse", "error", err)
		s.state.Engine, s.state.Reason = FUSE, err.Error()
		s.state.clearKernel()
		err = s.serve(ctx, false, ready)
	}
	return err
}

// withoutServer mounts what the kernel can show with no process of ours and
// reports whether it could.
func (s *server) withoutServer(ready func(*State)) (bool, error) {
	if s.state.Options.Fill && !s.tree.Complete() {
		return false, nil
	}
	ok, err := s.tree.cloneChain(s.state)
	if err != nil {
		return false, err
	}
	if !ok && s.tree.Complete() {
		if err := s.tree.mountComplete(s.state); err != nil {
			// The caller goes on with a server, which reports what stays wrong.
			s.log.Warn("mount of complete layers failed", "error", err)
			return false, nil
		}
		ok = true
	}
	if ok {
		s.ready = true
		ready(s.state)
	}
	return ok, nil
}

// serve serves the session of s.state: a new one, or with takeover the one
// whose descriptor s.session holds. It returns when the session has ended.
func (s *server) serve(ctx context.Context, takeover bool, ready func(*State)) (err error) {
	if !takeover {
		if s.session, err = newSession(s.state, s.tree, s.log, false); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, s.session.close()) }()
	s.session.opts.Takeover = takeover
	s.state.Server = self()
	// The tree outlives ctx: it is ended by an unmount, in the kernel's order.
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan error, 1)
	started := false
	serving := func() {
		started = true
		go func() { ended <- s.session.serve(sctx) }()
	}
	// abandon waits for the handlers, which read the tree that is closed after this.
	abandon := func(err error) error {
		if cancel(); started {
			s.log.Debug("serving was given up", "error", <-ended)
		}
		return err
	}
	defer func() {
		if s.session.dev != nil {
			_ = s.session.dev.Close()
		}
	}()
	if takeover {
		serving()
	} else if err := s.session.mount(s.state, s.tree, serving); err != nil {
		return abandon(err)
	}
	if s.hold && !takeover {
		h, err := startHolder(s.state, s.session.dev)
		if err != nil {
			s.log.Warn("no holder: the mount ends with this server", "error", err)
		}
		s.state.Holder = h
	}
	if !takeover && s.state.Options.RW {
		s.state.Kept = true
	}
	s.state.Maker = Process{}
	if err := s.state.save(); err != nil {
		_ = fs.Unmount(sctx, s.state.Options.Dir, true)
		return abandon(err)
	}
	s.state.unlockUpper()
	control, err := s.listen()
	if err != nil {
		s.log.Warn("no statistics", "error", err)
	} else {
		defer control.Close()
	}
	s.ready = true
	ready(s.state)
	stop := s.work(sctx)
	defer stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			s.log.Info("asked to end", "mount", s.state.Name)
			if err := fs.Unmount(sctx, s.state.Options.Dir, true); err != nil {
				s.log.Warn("unmount", "error", err)
			}
			ctx = sctx
		}
	}
}

// work starts what goes on beside the readers: prefetch of what the image
// asks for and the background fill. The function it returns ends and awaits it.
func (s *server) work(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	for _, l := range s.tree.Layers {
		l.Prefetch()
	}
	var wg sync.WaitGroup
	// Indexes that were just built leave a heap that serving never needs again.
	if s.calm != nil {
		s.calm()
	}
	wg.Go(func() {
		debug.FreeOSMemory() // empties the pools
		debug.FreeOSMemory() // frees what was in them
	})
	wg.Go(func() {
		if !s.state.Options.Fill {
			return
		}
		if err := s.store.Cache.Fill(ctx, s.tree.Layers); err != nil && ctx.Err() == nil {
			s.log.Warn("background fill", "error", err)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// TakeoverCommand is the server that goes on with the session dev of the mount
// called name after its server died. It returns when the tree is unmounted.
func TakeoverCommand(ctx context.Context, root, name string, dev *os.File) (err error) {
	log := newLogger(os.Stderr)
	m, err := Load(root, name)
	if err != nil {
		return err
	}
	s := &server{log: log, state: m}
	o := m.Options
	o.Pull = image.PullNever.String()
	s.ahead = lookahead.New()
	if s.store, err = openStore(o, log, s.ahead); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.store.Close()) }()
	if err = s.reopen(ctx, m); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tree.Close()) }()
	defer func() { err = errors.Join(err, m.end()) }()
	if s.session, err = newSession(m, s.tree, log, true); err != nil {
		return err
	}
	s.session.dev = dev
	log.Info("took over", "mount", name, "image", m.Image, "layers", len(m.Layers))
	if err = s.serve(ctx, true, func(*State) {}); err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace(name), err)
	}
	return nil
}
