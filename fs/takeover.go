package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Messages of the server's own: drop what is kept of a node's data, and send again
// what is unanswered.
const (
	notifyInvalidate = 2
	notifyResend     = 7
)

// Offsets in fuse_init_out, after the reply header.
const (
	initReadAhead = outHeaderSize + 8
	initMaxWrite  = outHeaderSize + 20
	initMaxPages  = outHeaderSize + 28
	initEnd       = outHeaderSize + 32
)

// keepInit stores the kernel's INIT request, which is sent once per session, for
// the servers to come. It must be there before INIT is answered. No fsync: a
// session does not outlive the machine.
func (s *session) keepInit(in []byte) {
	if s.o.InitFile == "" {
		return
	}
	if err := replaceFile(s.o.InitFile, in); err != nil {
		s.log.Error("session cannot be taken over", "err", err)
	}
}

func replaceFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".init-*")
	if err != nil {
		return fmt.Errorf("keep INIT request: %w", err)
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep INIT request: %w", err), os.Remove(f.Name()))
	}
	return nil
}

// takeOver continues a session whose server died: go-fuse learns the kernel's
// settings from the kept INIT, and the kernel sends again what was unanswered.
// Without a kept INIT the first server died before answering it, so INIT is
// among that.
func (s *session) takeOver() error {
	b, err := os.ReadFile(s.o.InitFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return fmt.Errorf("take over: %w", err)
	case len(b) < inHeaderSize || binary.NativeEndian.Uint32(b[offOpcode:]) != opInit:
		return fmt.Errorf("take over: %s is not an INIT request", s.o.InitFile)
	default:
		out := make([]byte, smallReply)
		n, status := s.ps.HandleRequest([][]byte{b}, [][]byte{out})
		if n < outHeaderSize || !status.Ok() || int32(binary.NativeEndian.Uint32(out[4:])) != 0 {
			return fmt.Errorf("take over: replay of %s failed", s.o.InitFile)
		}
		s.inited = true
	}
	switch err := s.resend(); err {
	case nil:
		return nil
	case unix.EINVAL:
		return fmt.Errorf("take over: %w", ErrNoResend)
	case unix.ENODEV, unix.ENOTCONN, unix.EPERM:
		// Unmounted meanwhile (EPERM: never mounted); the first read tells.
		return nil
	default:
		return fmt.Errorf("take over: ask for unanswered requests: %w", err)
	}
}

// resend has the kernel queue every unanswered request again. Those that somebody
// is working on are then answered twice, and the kernel ignores one answer.
func (s *session) resend() error {
	var msg [outHeaderSize]byte
	binary.NativeEndian.PutUint32(msg[0:], outHeaderSize)
	binary.NativeEndian.PutUint32(msg[4:], notifyResend)
	_, err := unix.Write(s.fd, msg[:])
	return err
}

// flush has the kernel write the data of a node that it keeps, and forget it. The
// writes come while this waits.
func (s *session) flush(node uint64) error {
	var msg [outHeaderSize + 24]byte
	binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], notifyInvalidate)
	binary.NativeEndian.PutUint64(msg[outHeaderSize:], node)
	_, err := unix.Write(s.fd, msg[:]) // from 0 to the end
	if err == unix.ENOENT {
		return nil // it keeps nothing
	}
	if err != nil {
		return fmt.Errorf("have node %d written: %w", node, err)
	}
	return nil
}

// handBack is for the request that a stopped server's last read took: the next
// server, which may be at work already, would never see it.
func (s *session) handBack() {
	if err := s.resend(); err != nil {
		s.log.Debug("request taken by a stopped server is lost", "err", err)
	}
}

// widenInit corrects go-fuse's answer to INIT. Its one knob ties the sizes of
// reads and writes together, where a read-only tree wants large reads and small
// request buffers; and it grants no more read-ahead than the mount began with,
// though SetReadAhead may have raised that since.
func (s *session) widenInit(out []byte) {
	if len(out) < initEnd {
		return
	}
	binary.NativeEndian.PutUint32(out[initReadAhead:], maxRequest)
	binary.NativeEndian.PutUint32(out[initMaxWrite:], uint32(s.maxWrite()))
	binary.NativeEndian.PutUint16(out[initMaxPages:], uint16(maxRequest/os.Getpagesize()))
}
