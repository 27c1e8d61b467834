package cache

import (
	"context"
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

// ErrInUse: some process has the layer or chain open, makes it right now, or has
// given its data file to the kernel.
var ErrInUse = errors.New("in use")

// Who opens a layer or chain holds a shared lock until he closes it, taken before
// the first file is opened; who removes it takes that lock alone. So nothing is
// removed under anybody, or between the opening of two of its files. It would be
// safe for files that are open, but not for what is opened again by its path: the
// data file that Layer.DataFile names could be that of another, younger layer.
//
// The files of these locks, and of all others, are left when what they guard is
// removed. Another process may have opened the file and be about to lock it: it
// would lock a file without a name while a third makes a new one, and both would
// believe to be alone. An empty file costs less than to look after each lock
// whether it is still the one of that name.
const (
	openLayerLock = "open"
	openChainLock = "openchain"
)

// lockOpen takes the lock of who opens the layer or chain called name, and notes
// the time. It waits for a removal, which has the lock for a moment only.
func (s *Store) lockOpen(kind, name string) (*flock, error) {
	path := s.lockPath(kind, name)
	for pause := time.Millisecond; ; pause = min(2*pause, maxPause) {
		f, err := tryFlock(path, true)
		if err == nil {
			// What cannot be noted only looks older than it is.
			_ = os.Chtimes(path, time.Time{}, s.opts.clock())
			return f, nil
		}
		if !errors.Is(err, errLocked) {
			return nil, err
		}
		if err := sleep(s.ctx, pause); err != nil {
			return nil, err
		}
	}
}

// lockAlone takes the lock that nobody has who has the layer or chain called name
// open. ErrInUse: somebody has.
func (s *Store) lockAlone(kind, name string) (*flock, error) {
	f, err := tryFlock(s.lockPath(kind, name), false)
	if errors.Is(err, errLocked) {
		return nil, ErrInUse
	}
	return f, err
}

// opened is when lockOpen was called last; zero if that is not known.
func (s *Store) opened(kind, name string) time.Time {
	fi, err := os.Stat(s.lockPath(kind, name))
	if err != nil {
		return time.Time{}
	}
	return fi.ModTime()
}

// RemoveLayer removes the layer called key, or what an interrupted download left
// of it, and returns how many bytes that freed on the disk. Other processes may
// use the store meanwhile; whoever needs the layer later makes it anew. A kill at
// any instant leaves the layer as it was, or none. A layer that is not there is
// no error. ErrInUse: a process has it open, or makes it, or Options.Held names it.
func (s *Store) RemoveLayer(ctx context.Context, key string) (freed int64, err error) {
	if !isKey(key) {
		return 0, fmt.Errorf("remove layer %q: %w", key, fs.ErrInvalid)
	}
	lock, err := s.lockLayer(ctx, key)
	if err == nil {
		freed, err = s.removeLayer(key)
		lock.unlock()
	}
	if err == nil {
		err = s.sweepRemoved("layers")
	}
	if err != nil {
		return freed, fmt.Errorf("remove layer %s: %w", key, err)
	}
	return freed, nil
}

// DropData makes a hole of the data that is kept of the layer called key, for a
// layer whose blob is at hand, and returns how many bytes that freed on the disk.
// Index and table stay, so that chunks are decoded again when they are read, and
// those that are being fetched. What would have to be read as a whole for one chunk
// is kept, and so is what Options.Held names. ErrInUse: a process has the layer open,
// makes or evicts it right now, or has given its data file to the kernel.
func (s *Store) DropData(ctx context.Context, key string) (freed int64, err error) {
	if !isKey(key) {
		return 0, fmt.Errorf("drop data of layer %q: %w", key, fs.ErrInvalid)
	}
	if freed, err = s.dropData(ctx, key); err != nil {
		return freed, fmt.Errorf("drop data of layer %s: %w", key, err)
	}
	return freed, nil
}

func (s *Store) dropData(ctx context.Context, key string) (int64, error) {
	lock, err := s.lockLayer(ctx, key)
	if err != nil {
		return 0, err
	}
	lock.unlock() // it is there; candidate takes the lock with the others
	// Who has it open may have opened it for another blob with the same content, from
	// which its chunks cannot be had again.
	alone, err := s.lockAlone(openLayerLock, key)
	if err != nil {
		return 0, err
	}
	defer alone.unlock()
	c, busy, err := s.candidate(key)
	if err != nil {
		return 0, err
	}
	if c == nil {
		if busy || exists(s.layerPath(key, dataName)) {
			return 0, ErrInUse
		}
		return 0, nil // in place
	}
	defer c.close()
	if held, err := s.isHeld(key); held || err != nil {
		return 0, err
	}
	if c.blocks == 0 || !c.table.Seekable() {
		return 0, nil
	}
	before := fileBlocks(c.data)
	if _, err := c.drop(0, c.table.Len()); err != nil {
		return 0, err
	}
	return max(0, before-fileBlocks(c.data)), nil
}

// lockLayer waits for the lock under which the layer called key is made, evicted
// and removed. ErrInUse: it is being made, which may take long.
func (s *Store) lockLayer(ctx context.Context, key string) (*flock, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return waitFlock(ctx, s.lockPath("layer", key), func() {
		if !s.Has(key) {
			cancel(ErrInUse)
		}
	})
}

// removeLayer is RemoveLayer under the layer's lock.
func (s *Store) removeLayer(key string) (int64, error) {
	alone, err := s.lockAlone(openLayerLock, key)
	if err != nil {
		return 0, err
	}
	defer alone.unlock()
	// Not before: who had it open may just have left it to the kernel.
	held, err := s.isHeld(key)
	if err != nil {
		return 0, err
	}
	if held {
		return 0, fmt.Errorf("%w by the kernel", ErrInUse)
	}
	return s.discard("layers", key)
}

// isHeld tells whether Options.Held names the layer called key.
func (s *Store) isHeld(key string) (bool, error) {
	held, err := s.held()
	return held[key], err
}

// held returns what Options.Held names. It must be asked when the lock is taken that a
// process has which gives data to the kernel, and not before: whoever had it a moment
// ago has told of his mount before he gave it back, and whoever comes now waits.
func (s *Store) held() (map[string]bool, error) {
	if s.opts.Held == nil {
		return nil, nil
	}
	held, err := s.opts.Held()
	if err != nil {
		return nil, fmt.Errorf("list held layers: %w", err)
	}
	return held, nil
}

// RemoveChain removes the chain called id, as RemoveLayer does with a layer.
// Which chains the kernel has mounted is for the caller to know: such a mount goes
// on, but the disk gets the room only when it ends.
func (s *Store) RemoveChain(ctx context.Context, id string) (freed int64, err error) {
	if !isKey(id) {
		return 0, fmt.Errorf("remove chain %q: %w", id, fs.ErrInvalid)
	}
	lock, err := waitFlock(ctx, s.lockPath("chain", id), nil)
	if err == nil {
		freed, err = s.removeChain(id)
		lock.unlock()
	}
	if err == nil {
		err = s.sweepRemoved("chains")
	}
	if err != nil {
		return freed, fmt.Errorf("remove chain %s: %w", id, err)
	}
	return freed, nil
}

// removeChain is RemoveChain under the lock of the chain's making.
func (s *Store) removeChain(id string) (int64, error) {
	alone, err := s.lockAlone(openChainLock, id)
	if err != nil {
		return 0, err
	}
	defer alone.unlock()
	return s.discard("chains", id)
}

// removedPrefix begins the name that a directory gets before its files are
// deleted. It is no key.
const removedPrefix = ".removed-"

// discard deletes the directory kind/name of the store. The lock of its making is
// held, and that of lockAlone. First it gets another name, so that nobody ever finds
// half of it. That this is on the disk before the files go is not waited for: all
// that a crash of the machine could bring back is a layer without some of its files,
// which is found when it is opened.
func (s *Store) discard(kind, name string) (freed int64, err error) {
	dir := filepath.Join(s.root, kind, name)
	// Who has this lock deletes: sweepRemoved leaves the directory to us.
	lock, err := lockDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer func() { _ = lock.Close() }()
	before, _, err := diskUsage(dir)
	if err != nil {
		return 0, err
	}
	trash := filepath.Join(s.root, kind, fmt.Sprintf("%s%016x", removedPrefix, rand.Uint64()))
	if err := os.Rename(dir, trash); err != nil {
		return 0, err
	}
	if err := os.RemoveAll(trash); err != nil {
		left, _, _ := diskUsage(trash)
		return before - left, err
	}
	return before, nil
}

// lockDir takes the exclusive lock of a directory: errLocked if others have it.
func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errLocked
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// removed returns the paths of directories of kind whose deletion was begun.
func (s *Store) removed(kind string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, kind))
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, d := range entries {
		if strings.HasPrefix(d.Name(), removedPrefix) {
			paths = append(paths, filepath.Join(s.root, kind, d.Name()))
		}
	}
	return paths, nil
}

// sweepRemoved deletes what removals that were killed left behind.
func (s *Store) sweepRemoved(kind string) error {
	paths, err := s.removed(kind)
	if err != nil {
		return err
	}
	for _, path := range paths {
		lock, err := lockDir(path)
		if err != nil {
			continue // at work, or done
		}
		err = os.RemoveAll(path)
		_ = lock.Close()
		if err != nil {
			return err
		}
	}
	return nil
}
