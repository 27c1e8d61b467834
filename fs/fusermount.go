package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// findHelper returns the set-uid helper that mounts and unmounts for users.
func findHelper() (string, error) {
	for _, name := range []string{"fusermount3", "/bin/fusermount3", "/usr/bin/fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: fusermount3 is not installed (package fuse3), and only root can mount without it", ErrNoFuse)
}

// mountHelper mounts through fusermount3, which opens /dev/fuse itself and sends
// the descriptor back over a socket.
func mountHelper(dir string, o MountOptions) (*os.File, error) {
	helper, err := findHelper()
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount %s: socketpair: %w", dir, err)
	}
	local, remote := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer func() { _ = local.Close() }()

	access := "ro"
	if o.Writable {
		access = "rw"
	}
	options := []string{
		access, "nosuid", "nodev", "default_permissions", fmt.Sprintf("max_read=%d", maxRequest),
		"fsname=" + escapeOption(source(o)), "subtype=" + fsSubtype,
	}
	if o.AllowOther {
		options = append(options, "allow_other")
	}
	// A mount point may begin with a dash.
	cmd := exec.Command(helper, "-o", strings.Join(options, ","), "--", dir)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{remote}
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	_ = remote.Close() // or receiving would wait for ever on a helper that sent nothing
	if err != nil {
		return nil, fmt.Errorf("mount %s: %s: %w", dir, helper, helperError(err, &said))
	}
	fd, err := receiveDescriptor(pair[0])
	if err != nil {
		return nil, fmt.Errorf("mount %s: %s sent no descriptor: %w", dir, helper, err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// helperError adds what the helper said, which is more than its exit code.
func helperError(err error, said *bytes.Buffer) error {
	text := strings.TrimSpace(said.String())
	if text == "" {
		return err
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return errors.New(text)
	}
	return fmt.Errorf("%s: %w", text, err)
}

// receiveDescriptor reads the one descriptor sent over a socket.
func receiveDescriptor(sock int) (int, error) {
	var data [4]byte
	control := make([]byte, unix.CmsgSpace(4))
	for {
		_, n, _, _, err := unix.Recvmsg(sock, data[:], control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, err
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil {
			return -1, err
		}
		for i := range messages {
			fds, err := unix.ParseUnixRights(&messages[i])
			if err == nil && len(fds) == 1 {
				return fds[0], nil
			}
		}
		return -1, errors.New("message without a descriptor")
	}
}
