package mount

import (
	"context"
	"fmt"
	"time"

	"github.com/laminafs/lamina/fs"
)

// farewell bounds the wait for a server to end after its tree is gone.
const farewell = time.Minute

// Unmount ends the mount that target, a mountpoint or a name, means, and
// returns when its server has ended. A busy mount is an error that wraps
// [fs.ErrBusy], unless lazy is set: then the tree is detached at once and its
// server ends with the last user. A mount that is busy is tried again for two
// seconds. Its server, which may have data to bring to the disk, is given a minute to
// end, or until ctx ends.
func Unmount(ctx context.Context, root, target string, lazy bool) error {
	e, err := find(root, target)
	if err != nil {
		if dir, rerr := ResolveDir(target); rerr == nil && fs.IsStale(dir) {
			return fs.Unmount(ctx, dir, true)
		}
		return fmt.Errorf("umount: %w", err)
	}
	dir := e.Options.Dir
	if e.Status == Detached {
		return fmt.Errorf("umount %s: already detached; it ends with its last user", target)
	}
	if e.Status == Unmounted {
		return fmt.Errorf("umount: %w", &NotMountedError{Target: target})
	}
	// The users of a dead mount cannot be waited for: they get ENOTCONN anyway.
	lazy = lazy || e.Status == Dead
	if err := fs.Unmount(ctx, dir, lazy); err != nil {
		return err
	}
	if lazy && e.Server.Alive() {
		return nil
	}
	return e.settle(ctx)
}

// settle waits for the processes of an unmounted mount to end and removes
// what they left. A server that serves clones of the mount goes on.
func (e *Entry) settle(ctx context.Context) error {
	end := time.Now().Add(farewell)
	for pause := time.Millisecond; e.Server.Alive() || e.Holder.Alive(); pause = min(2*pause, 50*time.Millisecond) {
		if e.servesOthers() {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("umount %s: its server (process %d) has not ended after %v; see %s/log",
				e.Options.Dir, e.Server.PID, farewell, e.dir())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
	if e.servesOthers() {
		return nil
	}
	return e.end()
}

// servesOthers reports whether other mounts live on this one's server.
func (e *Entry) servesOthers() bool {
	if e.Engine != Kernel {
		return false
	}
	all, err := List(e.Options.Root)
	if err != nil {
		return true
	}
	for _, o := range all {
		if o.ServedBy == e.Name && o.Status != Detached {
			return true
		}
	}
	return false
}
