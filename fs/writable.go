package fs

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// overlayType is the type of the kernel's union filesystem in mountinfo.
const overlayType = "overlay"

// Writable makes a mount writable: what is written goes to Upper, by the kernel's
// overlayfs. Its options are those of the union of package overlay.
type Writable struct {
	// Upper and Work are directories of one filesystem, which no other overlayfs
	// uses. The kernel keeps what it needs in Work.
	Upper, Work string
	// Source is what mountinfo shows as the device.
	Source string
}

// ErrUpper: the kernel's overlayfs does not take the upper directory, for what its
// filesystem lacks, or because another mount uses it.
var ErrUpper = errors.New("upper directory cannot be used")

// cover puts w over what is mounted on dir. The mount beneath is then reached by w
// alone and ends with it.
func (w *Writable) cover(dir string) error {
	c, err := openFilesystem(overlayType)
	if err != nil {
		return fmt.Errorf("mount overlayfs on %s: %w", dir, err)
	}
	defer c.close()
	c.setString("source", w.Source)
	// Not by its descriptor: kernels before 6.15 take no mount as a layer that is
	// nowhere attached.
	c.setString("lowerdir+", dir)
	c.setString("upperdir", w.Upper)
	c.setString("workdir", w.Work)
	for _, o := range [][2]string{
		{"redirect_dir", "on"},
		{"metacopy", "on"},
		{"xino", "on"},
		// Of a file with several names the others keep what they had, as with
		// docker: an index is bound to one lower filesystem, and the next mount
		// has another.
		{"index", "off"},
	} {
		c.setString(o[0], o[1])
	}
	mount, err := c.mount(0)
	if err != nil {
		return fmt.Errorf("mount overlayfs on %s: %w: %w", dir, ErrUpper, err)
	}
	defer func() { _ = unix.Close(mount) }()
	if err := Unmount(context.Background(), dir, true); err != nil {
		return err
	}
	return attach(mount, dir)
}
