package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrBusy is returned by Unmount when somebody uses the mount.
var ErrBusy = errors.New("mount is in use")

// ErrNotMounted is returned by Unmount when there is no mount on the directory.
var ErrNotMounted = errors.New("not mounted")

// staleWait is how long IsStale waits for a server that may only be slow.
const staleWait = 2 * time.Second

// Who resolves a path through a mount, or clones it, uses it for a moment, and for
// as long as its server takes to be replaced if that has just died: a mount that is
// busy is tried again for a while before anybody is told.
const (
	busyWait  = 2 * time.Second
	busyPause = 20 * time.Millisecond
)

// Unmount removes the topmost mount on dir, FUSE or EROFS. A mount in use is
// tried again for two seconds, or until ctx ends if that is sooner, and then gives
// ErrBusy, with the context's error if it was that; one try is made whatever ctx
// says. With lazy there is nothing to wait for: the mount disappears now and ends
// with its last user. Users other than root can unmount what they mounted, through
// fusermount3.
func Unmount(ctx context.Context, dir string, lazy bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err = retryBusy(ctx, func() error {
		err := unix.Unmount(dir, flags)
		if err == unix.EPERM {
			err = unmountHelper(dir, lazy)
		}
		return err
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY) && ctx.Err() != nil:
		return fmt.Errorf("unmount %s: %w: %w", dir, ErrBusy, ctx.Err())
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: %w: %q or %q shows by whom; --lazy detaches it all the same",
			dir, ErrBusy, "fuser -vm "+dir, "lsof +f -- "+dir)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("unmount %s: %w", dir, ErrNotMounted)
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}

// retryBusy calls unmount until it answers something else than EBUSY, busyWait is
// over or ctx ends.
func retryBusy(ctx context.Context, unmount func() error) error {
	for end := time.Now().Add(busyWait); ; {
		err := unmount()
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(busyPause):
		}
	}
}

func unmountHelper(dir string, lazy bool) error {
	mounts, err := Mounts()
	if err != nil {
		return err
	}
	m, ok := topMount(mounts, dir)
	switch {
	case !ok:
		return unix.EINVAL
	case m.FSType != fsType:
		return fmt.Errorf("%s mount of another user: %w", m.FSType, unix.EPERM)
	}
	helper, err := findHelper()
	if err != nil {
		return err
	}
	args := []string{"-u"}
	if lazy {
		args = append(args, "-z")
	}
	cmd := exec.Command(helper, append(args, "--", dir)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C") // its words are compared
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		if saysBusy(said.String()) {
			return unix.EBUSY
		}
		return fmt.Errorf("%s: %w", helper, helperError(err, &said))
	}
	return nil
}

// saysBusy reports whether the helper's message ends with what the C library calls
// EBUSY. Before that it names the mount point, which may be called anything.
func saysBusy(said string) bool {
	said = strings.TrimSpace(said)
	cause := said[strings.LastIndex(said, ": ")+1:]
	switch strings.ToLower(strings.TrimSpace(cause)) {
	case "device or resource busy", "resource busy": // glibc, musl
		return true
	}
	return false
}

// IsStale says whether dir is a mount point whose server is dead for good: its
// descriptor is closed everywhere. It asks the server, so it takes up to two
// seconds when one exists but does not answer; that one is not stale.
func IsStale(dir string) bool {
	answer := make(chan error, 1)
	// On its own, because nothing ends a system call on a mute server; the
	// goroutine ends with the answer.
	go func() {
		var st unix.Statfs_t // never cached, unlike attributes
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return err == unix.ENOTCONN || err == unix.ECONNABORTED
	case <-time.After(staleWait):
		return false
	}
}

// CleanStale removes dead mounts from dir, and reports whether there was one.
// When ctx ends it stops before the next one.
func CleanStale(ctx context.Context, dir string) (bool, error) {
	found := false
	for IsStale(dir) {
		if err := ctx.Err(); err != nil {
			return found, fmt.Errorf("unmount %s: %w", dir, err)
		}
		if err := Unmount(ctx, dir, true); err != nil {
			return found, err
		}
		found = true
	}
	return found, nil
}
