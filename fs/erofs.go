package fs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// ErrNoKernelEngine is the root of KernelSupport's errors.
var ErrNoKernelEngine = errors.New("kernel engine is not available")

const erofsType = "erofs"

// erofsFromFile is the first kernel that mounts EROFS straight from a file.
const erofsMajor, erofsMinor = 6, 12

// KernelSupport says why MountErofs and MountKernel cannot work here: not root,
// kernel too old or without EROFS. Nil is no promise: the store's filesystem must
// be able to back a mount too, which tmpfs is not.
func KernelSupport() error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("%w: uname: %w", ErrNoKernelEngine, err)
	}
	release := unix.ByteSliceToString(uts.Release[:])
	if !atLeast(release, erofsMajor, erofsMinor) {
		return fmt.Errorf("%w: Linux %d.%d or later is needed, this is %s", ErrNoKernelEngine, erofsMajor, erofsMinor, release)
	}
	fd, err := unix.Fsopen(erofsType, unix.FSOPEN_CLOEXEC) // loads the module
	switch err {
	case nil:
		return unix.Close(fd)
	case unix.EPERM:
		return fmt.Errorf("%w: root (CAP_SYS_ADMIN) is needed", ErrNoKernelEngine)
	case unix.ENODEV:
		return fmt.Errorf("%w: the kernel has no erofs", ErrNoKernelEngine)
	}
	return fmt.Errorf("%w: fsopen erofs: %w", ErrNoKernelEngine, err)
}

// atLeast compares the first two numbers of a kernel release.
func atLeast(release string, major, minor int) bool {
	first, rest, _ := strings.Cut(release, ".")
	digits := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(rest)
	}
	a, errA := strconv.Atoi(first)
	b, errB := strconv.Atoi(rest[:digits])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// ErofsOptions describes an EROFS mount.
type ErofsOptions struct {
	NoSuid, NoDev bool // as in MountOptions
}

func (o ErofsOptions) attr() int {
	attr := unix.MOUNT_ATTR_RDONLY
	if o.NoSuid {
		attr |= unix.MOUNT_ATTR_NOSUID
	}
	if o.NoDev {
		attr |= unix.MOUNT_ATTR_NODEV
	}
	return attr
}

// MountErofs mounts the index at path meta on dir. devices are the paths of the
// files that hold the data, one for each device slot of the index, in order; the
// kernel opens them itself and keeps them open. mountinfo shows meta as the
// source. The index must be one we wrote: the kernel trusts its metadata.
func MountErofs(dir, meta string, devices []string, o ErofsOptions) error {
	dir, err := mountPoint(dir)
	if err != nil {
		return err
	}
	if err := checkDevices(meta, devices); err != nil {
		return fmt.Errorf("mount %s on %s: %w", meta, dir, err)
	}
	c, err := openFilesystem(erofsType)
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", meta, dir, err)
	}
	defer c.close()
	c.setString("source", meta)
	for _, d := range devices {
		c.setString("device", d)
	}
	c.setFlag("ro")
	mount, err := c.mount(o.attr())
	if errors.Is(err, unix.ENOTBLK) {
		return fmt.Errorf("mount %s on %s: %w: the kernel mounts no file on %s", meta, dir, ErrNoKernelEngine, filesystemOf(meta))
	}
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", meta, dir, err)
	}
	defer func() { _ = unix.Close(mount) }()
	return attach(mount, dir)
}

// filesystemOf names the kind of filesystem that path is on, as far as
// mountinfo tells.
func filesystemOf(path string) string {
	kind, at := "its filesystem", -1
	mounts, err := Mounts()
	if err != nil {
		return kind
	}
	for _, m := range mounts {
		dir := strings.TrimSuffix(m.MountPoint, "/") + "/"
		if strings.HasPrefix(path, dir) && len(dir) >= at {
			kind, at = m.FSType, len(dir)
		}
	}
	return kind
}

// checkDevices finds what the kernel would only call an invalid argument.
func checkDevices(meta string, devices []string) error {
	x, err := index.Open(meta)
	if err != nil {
		return err
	}
	defer func() { _ = x.Close() }()
	if n := len(x.Devices()); n != len(devices) {
		return fmt.Errorf("index of %d layers with data of %d: %w", n, len(devices), unix.EINVAL)
	}
	for i, d := range devices {
		if _, err := os.Stat(d); err != nil {
			return fmt.Errorf("data of layer %d: %w", i, err)
		}
	}
	return nil
}

// CloneMount makes what is mounted on from, by the kernel engine or through FUSE,
// appear on to as well: the same superblock, so the same page cache. Each is
// unmounted by itself. ESTALE when from is no mount of either kind any more.
func CloneMount(from, to string) error {
	to, err := mountPoint(to)
	if err != nil {
		return err
	}
	mount, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount %s: %w", from, err)
	}
	defer func() { _ = unix.Close(mount) }()
	// It may have been unmounted just now: then this is a clone of what was beneath.
	var st unix.Statfs_t
	if err := unix.Fstatfs(mount, &st); err != nil {
		return fmt.Errorf("clone mount %s: %w", from, err)
	}
	if st.Type != unix.EROFS_SUPER_MAGIC_V1 && st.Type != unix.FUSE_SUPER_MAGIC {
		return fmt.Errorf("clone mount %s: %w: it is not mounted any more", from, unix.ESTALE)
	}
	return attach(mount, to)
}

// attach puts a detached mount on dir.
func attach(mount int, dir string) error {
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach mount on %s: %w", dir, err)
	}
	return nil
}

// filesystem is a superblock under construction, by fsopen(2). The first error
// sticks and comes out of mount.
type filesystem struct {
	fd  int
	err error
}

func openFilesystem(kind string) (*filesystem, error) {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	return &filesystem{fd: fd}, nil
}

func (c *filesystem) close() { _ = unix.Close(c.fd) }

func (c *filesystem) setString(key, value string) {
	if c.err == nil {
		if err := unix.FsconfigSetString(c.fd, key, value); err != nil {
			c.err = c.explain(key+"="+value, err)
		}
	}
}

func (c *filesystem) setFlag(key string) {
	if c.err == nil {
		if err := unix.FsconfigSetFlag(c.fd, key); err != nil {
			c.err = c.explain(key, err)
		}
	}
}

// mount creates the superblock and a detached mount of it, which exists until its
// descriptor is closed or it is attached.
func (c *filesystem) mount(attr int) (int, error) {
	if c.err != nil {
		return -1, c.err
	}
	if err := unix.FsconfigCreate(c.fd); err != nil {
		return -1, c.explain("create", err)
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", c.explain("mount", err))
	}
	return fd, nil
}

// explain adds the messages the kernel left for us: they name the device or the
// field that an errno alone does not.
func (c *filesystem) explain(step string, err error) error {
	var said []string
	buf := make([]byte, 4096)
	for {
		n, rerr := unix.Read(c.fd, buf)
		if rerr == unix.EINTR {
			continue
		}
		if rerr != nil || n <= 0 {
			break // ENODATA: no more
		}
		said = append(said, strings.TrimSpace(string(buf[:n])))
	}
	if len(said) == 0 {
		return fmt.Errorf("fsconfig %s: %w", step, err)
	}
	return fmt.Errorf("fsconfig %s: %w (%s)", step, err, strings.Join(said, "; "))
}

// dropFiles closes files whose only purpose was to be opened again by the kernel.
func dropFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
