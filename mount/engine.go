package mount

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/lookahead"
	"github.com/laminafs/lamina/overlay"
	"github.com/laminafs/lamina/overlay/union"
)

// chooseEngine returns the engine for what was asked, and why it is not the
// kernel's when it is not.
func chooseEngine(o Options) (Engine, string, error) {
	asked := o.Engine
	if asked == FUSE || asked == Auto && o.RW {
		return FUSE, "", nil
	}
	err := fs.KernelSupport()
	if err == nil {
		return Kernel, "", nil
	}
	if asked == Kernel {
		return "", "", fmt.Errorf("%w (--engine fuse works everywhere)", err)
	}
	return FUSE, err.Error(), nil
}

// session is a FUSE session that serves a mount: the tree itself, or the data
// files of layers for the kernel engine.
type session struct {
	dev   *os.File
	raw   fuse.RawFileSystem
	stats *fs.Stats
	opts  fs.SessionOptions
	union *union.Union // nil of what is not writable here
}

// newSession makes the session of m; with resume an earlier server of it has died.
func newSession(m *State, t *tree, log *slog.Logger, resume bool) (*session, error) {
	stats := new(fs.Stats)
	s := &session{stats: stats, opts: fs.SessionOptions{
		InitFile: filepath.Join(m.dir(), "init"), Stats: stats, Trim: t.trim, Log: log,
	}}
	watched := make([]lookahead.Layer, len(t.Layers))
	for i, l := range t.Layers {
		watched[i] = l
	}
	lower := t.Overlay()
	t.ahead.Watch(lower, watched)
	o := fs.TreeOptions{ReadDeadline: m.Options.Deadline, Stats: stats}
	if m.Engine == Kernel {
		files := make([]fs.LayerData, len(t.Layers))
		for i, l := range t.Layers {
			files[i] = fs.LayerData{Data: l, Size: l.Size()}
		}
		s.raw = fs.NewData(files, o)
		return s, nil
	}
	if !m.Options.RW {
		s.raw = fs.NewTree(lower, o)
		return s, nil
	}
	unix.Umask(0) // who makes a file has one of its own, which comes with the request
	u, err := union.Open(union.Options{
		Lower: lower, Upper: overlay.Upper{Dir: m.Upper()}, Work: m.workDir(),
		ReadTimeout: m.Options.Deadline, Resume: resume,
	})
	if err != nil {
		return nil, err
	}
	s.union, s.raw, s.opts.Writable = u, fs.NewUnion(u, o), true
	return s, nil
}

func (s *session) serve(ctx context.Context) error {
	return fs.Serve(ctx, s.dev, s.raw, s.opts)
}

// close closes what the session has open, after its end.
func (s *session) close() error {
	if s.union == nil {
		return nil
	}
	return s.union.Close()
}

// devices returns the data files of t's layers for the kernel, and notes in m
// which it is given; the place of an incomplete one is empty. m is to be saved
// before the mount is made.
func (t *tree) devices(m *State) []string {
	paths := make([]string, len(t.Layers))
	for i, l := range t.Layers {
		// A tar inside an archive has a path too, but not one to give away: its
		// data does not begin where the file does.
		p, ok := l.DataFile()
		if m.Layers[i].Direct = ok; ok {
			paths[i] = p
		}
	}
	return paths
}

// mount saves m and puts the session's tree at its directory; start starts
// serving it and must not wait.
func (s *session) mount(m *State, t *tree, start func()) (err error) {
	var devices []string
	if m.Engine == Kernel {
		devices = t.devices(m)
	}
	if err := m.save(); err != nil {
		return err
	}
	if m.Engine != Kernel {
		if s.dev, err = fs.Mount(m.Options.Dir, fs.MountOptions{Source: m.Image, Writable: m.Options.RW}); err == nil {
			start()
		}
		return err
	}
	return fs.MountKernel(m.Options.Dir, fs.KernelMount{
		Meta: t.Chain.Path, Devices: devices, Writable: m.writable(),
		Serve: func(dev *os.File) error {
			fd, err := unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				return fmt.Errorf("keep the session: %w", err)
			}
			s.dev = os.NewFile(uintptr(fd), dev.Name())
			start()
			return nil
		},
	})
}

// mountComplete saves m and mounts a tree whose layers are all complete, with no
// session.
func (t *tree) mountComplete(m *State) error {
	devices := t.devices(m)
	if err := m.save(); err != nil {
		return err
	}
	if err := fs.MountKernel(m.Options.Dir, fs.KernelMount{Meta: t.Chain.Path, Devices: devices, Writable: m.writable()}); err != nil {
		return err
	}
	return m.made()
}
