package mount

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// restartPause is the least time between two starts of a server; one that
	// dies at once is not started in a tight loop.
	restartPause = 200 * time.Millisecond
	// giveUp is the number of successors in a row that may die young.
	giveUp = 10
	// young is the age under which a server's death counts towards giveUp.
	young = 10 * time.Second
)

// HoldCommand is the holder of the mount called name: it keeps dev, the FUSE
// session, until the tree is unmounted, and starts a new server whenever there
// is none. It returns when the session has ended, or when giveUp servers in a
// row died young.
func HoldCommand(root, name string, dev *os.File) error {
	log := newLogger(os.Stderr)
	s, err := Load(root, name)
	if err != nil {
		return err
	}
	server, deaths := s.Server, 0
	for {
		born := time.Now()
		gone, err := waitEnd(server, dev)
		if err != nil || gone {
			return err
		}
		if time.Since(born) > young {
			deaths = 0
		}
		if deaths++; deaths > giveUp {
			return fmt.Errorf("hold %s: %d servers in a row died at once: given up", name, giveUp)
		}
		log.Warn("server died, starting another", "mount", name, "pid", server.PID)
		time.Sleep(restartPause)
		c, err := startSuccessor(root, name, dev)
		if err != nil {
			return err
		}
		server = processOf(c.Process.Pid)
		go func() { _ = c.Wait() }()
	}
}

// waitEnd waits until server has ended, which it does with the session; gone reports
// whether the session has. Meanwhile it does not poll the descriptor: whoever does is
// woken by every request, which made tar x take a fifth longer. The kernel
// marks that of an unmounted session with an error condition, which poll reports
// without being asked.
func waitEnd(server Process, dev *os.File) (gone bool, err error) {
	if server.Alive() {
		if pidfd, err := unix.PidfdOpen(server.PID, 0); err == nil {
			_, err := poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, -1)
			if err := errors.Join(err, unix.Close(pidfd)); err != nil {
				return false, err
			}
		}
	}
	fds := []unix.PollFd{{Fd: int32(dev.Fd())}}
	// When it died because of an unmount, the session ends at the same time.
	_, err = poll(fds, 100)
	return fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0, err
}

func poll(fds []unix.PollFd, ms int) (int, error) {
	for {
		n, err := unix.Poll(fds, ms)
		if err != unix.EINTR {
			return n, err
		}
	}
}
