package fs

import (
	"bytes"
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
// busy is tried again for two seconds before anybody is told.
const (
	busyTries = 100
	busyPause = 20 * time.Millisecond
)

// Unmount removes the topmost mount on dir, FUSE or EROFS. A mount in use gives
// ErrBusy, unless lazy: then it disappears now and ends with its last user.
// Users other than root can unmount what they mounted, through fusermount3.
func Unmount(dir string, lazy bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	for tries := busyTries; ; tries-- {
		err = unix.Unmount(dir, flags)
		if err == unix.EPERM {
			err = unmountHelper(dir, lazy)
		}
		if !errors.Is(err, unix.EBUSY) || tries == 0 {
			break
		}
		time.Sleep(busyPause)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: %w: %q or %q shows by whom; --lazy detaches it all the same",
			dir, ErrBusy, "fuser -vm "+dir, "lsof +f -- "+dir)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("unmount %s: %w", dir, ErrNotMounted)
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
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
		if strings.Contains(said.String(), "busy") {
			return unix.EBUSY
		}
		return fmt.Errorf("%s: %w", helper, helperError(err, &said))
	}
	return nil
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
func CleanStale(dir string) (bool, error) {
	found := false
	for IsStale(dir) {
		if err := Unmount(dir, true); err != nil {
			return found, err
		}
		found = true
	}
	return found, nil
}
