package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoFuse is returned when the machine cannot mount FUSE for this user: the
// device or, for users other than root, the helper fusermount3 is missing.
var ErrNoFuse = errors.New("FUSE is not available")

// fsType is the type FUSE mounts show in mountinfo.
const (
	fsSubtype = "lamina"
	fsType    = "fuse." + fsSubtype
)

// readAheadKB is the read-ahead of our mounts, as /sys counts it. The kernel's
// 128 is made for disks; with 1024 sequential reads are nearly three times as fast.
const readAheadKB = 1024

// MountOptions describes a FUSE mount.
type MountOptions struct {
	// Source is what mountinfo and df show as the device: the image's name.
	Source string
	// NoSuid and NoDev make set-id bits and device nodes of the image appear
	// but not work. Mounts of users other than root always have both.
	NoSuid, NoDev bool
	// Writable makes the mount one that takes changes.
	Writable bool
	// AllowOther lets all users in, as far as the tree's own permissions do.
	// Mounts of root always have it; for others /etc/fuse.conf must allow it.
	AllowOther bool
}

// Mount mounts a FUSE filesystem on dir and returns the session's
// descriptor, which the caller passes to Serve (and may pass to other processes)
// and closes. The mount answers nobody until it is served, and is dead
// (see IsStale) once every copy of the descriptor has been closed.
//
// Root calls mount(2); anybody else needs fusermount3 (ErrNoFuse).
func Mount(dir string, o MountOptions) (*os.File, error) {
	dir, err := mountPoint(dir)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		dev, err := mountDirect(dir, o)
		// A root without CAP_SYS_ADMIN is a user like others.
		if err == nil || !errors.Is(err, unix.EPERM) {
			return dev, err
		}
	}
	return mountHelper(dir, o)
}

// mountPoint makes dir absolute and free of symlinks, as mountinfo shows it, and
// checks that it is a directory.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	st, err := os.Stat(abs)
	if err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("mount %s: %w", dir, unix.ENOTDIR)
	}
	return abs, nil
}

// openDevice opens a new, unmounted FUSE connection.
func openDevice() (*os.File, error) {
	// Not os.OpenFile: the descriptor must not become non-blocking.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.ENOENT || err == unix.ENODEV || err == unix.ENXIO:
		return nil, fmt.Errorf("open /dev/fuse: %w (%w); try: modprobe fuse", ErrNoFuse, err)
	case err != nil:
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

func mountDirect(dir string, o MountOptions) (*os.File, error) {
	dev, err := openDevice()
	if err != nil {
		return nil, err
	}
	var flags uintptr
	if !o.Writable {
		flags |= unix.MS_RDONLY
	}
	if o.NoSuid {
		flags |= unix.MS_NOSUID
	}
	if o.NoDev {
		flags |= unix.MS_NODEV
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,max_read=%d,default_permissions,allow_other",
		int(dev.Fd()), os.Geteuid(), os.Getegid(), maxRequest)
	if err := unix.Mount(source(o), dir, fsType, flags, options); err != nil {
		_ = dev.Close()
		if err == unix.ENODEV {
			return nil, fmt.Errorf("mount %s: %w (%w)", dir, ErrNoFuse, err)
		}
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	SetReadAhead(dir)
	return dev, nil
}

func source(o MountOptions) string {
	if o.Source == "" {
		return fsSubtype
	}
	return o.Source
}

// SetReadAhead raises the read-ahead of the FUSE mount on dir to 1 MiB. Only root
// may; who cannot gets slower sequential reads and no error.
func SetReadAhead(dir string) {
	mounts, err := Mounts()
	if err != nil {
		return
	}
	m, ok := topMount(mounts, dir)
	if !ok {
		return
	}
	setReadAhead(m.Device)
}

// setReadAhead takes the device as mountinfo writes it.
func setReadAhead(device string) {
	// The knob is of sysfs, where a write either took effect or failed.
	_ = os.WriteFile("/sys/class/bdi/"+device+"/read_ahead_kb", fmt.Appendf(nil, "%d\n", readAheadKB), 0)
}

// escapeOption protects commas and backslashes in a fusermount3 option.
func escapeOption(v string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(v)
}
