package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fs"
	"github.com/laminafs/lamina/lookahead"
)

// chooseEngine returns the engine for what was asked, and why it is not the
// kernel's when it is not.
func chooseEngine(o Options) (Engine, string, error) {
	asked := o.Engine
	if asked == FUSE && o.RW {
		return "", "", errors.New("the fuse engine cannot write yet: use --engine kernel, or auto")
	}
	if asked == FUSE {
		return FUSE, "", nil
	}
	err := fs.KernelSupport()
	if err != nil && o.RW {
		return "", "", fmt.Errorf("mount writable: %w", err)
	}
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
}

func newSession(m *State, t *tree, log *slog.Logger) *session {
	stats := new(fs.Stats)
	s := &session{stats: stats, opts: fs.SessionOptions{
		InitFile: filepath.Join(m.dir(), "init"), Stats: stats, Trim: t.trim, Log: log,
	}}
	watched := make([]lookahead.Layer, len(t.Layers))
	for i, l := range t.Layers {
		watched[i] = l
	}
	union := t.Overlay()
	t.ahead.Watch(union, watched)
	o := fs.TreeOptions{ReadDeadline: m.Options.Deadline, Stats: stats}
	if m.Engine == Kernel {
		files := make([]fs.LayerData, len(t.Layers))
		for i, l := range t.Layers {
			files[i] = fs.LayerData{Data: l, Size: l.Size()}
		}
		s.raw = fs.NewData(files, o)
		return s
	}
	s.raw = fs.NewTree(union, o)
	return s
}

func (s *session) serve(ctx context.Context) error {
	return fs.Serve(ctx, s.dev, s.raw, s.opts)
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
		if s.dev, err = fs.Mount(m.Options.Dir, fs.MountOptions{Source: m.Image}); err == nil {
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
	return m.keep()
}
