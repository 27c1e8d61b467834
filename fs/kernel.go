package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// KernelMount describes an EROFS mount whose missing data FUSE serves.
type KernelMount struct {
	// Meta is the path of the merged index.
	Meta string
	// Devices are the data files by device slot, bottom layer first. An empty
	// path is a layer to be served: by the file NewData names after its
	// position in this list.
	Devices []string
	// Serve starts serving dev, with NewData of all layers, and returns while
	// that goes on: the kernel opens the files before MountKernel returns. It
	// is not called when no path is empty. dev is closed afterwards; who serves
	// it in another goroutine or process needs a duplicate.
	Serve func(dev *os.File) error
	// Options are those of the EROFS mount.
	Options ErofsOptions
	// Writable, if not nil, covers it.
	Writable *Writable
}

// MountKernel mounts k on dir. The FUSE superblock for missing data is attached
// nowhere and held by the EROFS mount alone: when that goes, Serve returns nil.
// On error nothing stays mounted.
func MountKernel(dir string, k KernelMount) error {
	if err := k.mount(dir); err != nil || k.Writable == nil {
		return err
	}
	err := k.Writable.cover(dir)
	if err != nil {
		err = errors.Join(err, Unmount(context.Background(), dir, true))
	}
	return err
}

func (k *KernelMount) mount(dir string) error {
	served := false
	for _, d := range k.Devices {
		served = served || d == ""
	}
	if !served {
		return MountErofs(dir, k.Meta, k.Devices, k.Options)
	}
	dev, root, err := mountDetached(k.Meta)
	if err != nil {
		return fmt.Errorf("mount layer data of %s: %w", k.Meta, err)
	}
	defer func() { _ = unix.Close(root) }()
	err = k.Serve(dev)
	_ = dev.Close() // now the server's alone: if it dies, opening below fails
	if err != nil {
		return fmt.Errorf("serve layer data of %s: %w", k.Meta, err)
	}
	devices := make([]string, len(k.Devices))
	var files []*os.File
	defer func() { dropFiles(files) }()
	for i, path := range k.Devices {
		if path == "" {
			fd, err := unix.Openat(root, strconv.Itoa(i), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open served data of layer %d of %s: %w", i, k.Meta, err)
			}
			files = append(files, os.NewFile(uintptr(fd), "layer "+strconv.Itoa(i)))
			path = "/proc/self/fd/" + strconv.Itoa(fd)
		}
		devices[i] = path
	}
	return MountErofs(dir, k.Meta, devices, k.Options)
}

// mountDetached makes a FUSE superblock with a mount that is in no namespace, and
// returns the session's descriptor and that of the mount's root.
func mountDetached(source string) (dev *os.File, root int, err error) {
	dev, err = openDevice()
	if err != nil {
		return nil, -1, err
	}
	defer func() {
		if err != nil {
			_ = dev.Close()
		}
	}()
	c, err := openFilesystem("fuse")
	if err != nil {
		return nil, -1, err
	}
	defer c.close()
	c.setString("source", source)
	c.setString("subtype", fsSubtype)
	c.setString("fd", strconv.Itoa(int(dev.Fd())))
	c.setString("rootmode", "40000")
	c.setString("user_id", strconv.Itoa(os.Geteuid()))
	c.setString("group_id", strconv.Itoa(os.Getegid()))
	c.setString("max_read", strconv.Itoa(maxRequest))
	c.setFlag("default_permissions")
	c.setFlag("ro")
	root, err = c.mount(unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC)
	return dev, root, err
}
