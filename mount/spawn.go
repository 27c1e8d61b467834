package mount

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// The hidden commands that cmd/lamina answers by calling ServeCommand and
// HoldCommand. They are part of the protocol between versions of the program
// that share a running mount, so they do not change.
const (
	ServeVerb = "serve"
	HoldVerb  = "hold"
)

// background returns a command of this program that outlives its parent and
// is not reached by the terminal's signals. Its output goes to log.
func background(log *os.File, files []*os.File, args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// A binary that was replaced while it ran: the old one is still there.
	if strings.HasSuffix(exe, " (deleted)") {
		exe = "/proc/self/exe"
	}
	c := exec.Command(exe, args...)
	c.Stdout, c.Stderr = log, log
	c.ExtraFiles = files
	c.Dir = "/"
	c.Env = rootsEnv(os.Environ())
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c, nil
}

// openLog opens the log file of the mount called name.
func openLog(root, name string) (*os.File, error) {
	dir := directory(root, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}

// startServer starts the server of a new mount called name and waits until
// its tree is usable. When ctx ends first, the server gives up and so do we.
func startServer(ctx context.Context, name string, o Options, p Progress) (*State, error) {
	log, err := openLog(o.Root, name)
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	defer func() { _ = log.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	defer func() { _ = r.Close() }()
	words, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	c, err := background(log, []*os.File{w}, ServeVerb, name)
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	// A pipe's worth of options at the most: written before the server reads.
	c.Stdin = bytes.NewReader(words)
	err = c.Start()
	_ = w.Close()
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	type outcome struct {
		s   *State
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		s, err := receive(r, p)
		done <- outcome{s, err}
	}()
	var out outcome
	select {
	case out = <-done:
	case <-ctx.Done():
		_ = c.Process.Signal(syscall.SIGTERM)
		out = <-done
		out.s, out.err = nil, ctx.Err()
	}
	if out.err == nil {
		return out.s, c.Process.Release()
	}
	_ = c.Wait()
	if errors.Is(out.err, errServerGone) {
		// It may have died between mounting and saying so: its holder goes on.
		if e, err := find(o.Root, name); err == nil && (e.Status == Serving || e.Status == Recovering) {
			return &e.State, nil
		}
		out.err = fmt.Errorf("%w: %s", out.err, lastWords(o.Root, name))
	}
	forget(o.Root, name)
	return nil, out.err
}

// lastWords returns the end of a log, for a server that died without a word.
func lastWords(root, name string) string {
	b, err := os.ReadFile(filepath.Join(directory(root, name), "log"))
	if err != nil || len(b) == 0 {
		return "its log is empty"
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	// A Go crash says why in its first line and where in the others.
	for _, l := range lines {
		if strings.HasPrefix(l, "panic:") || strings.HasPrefix(l, "fatal error:") {
			return l
		}
	}
	return lines[len(lines)-1]
}

// startHolder starts the process that keeps dev for the mount s.
func startHolder(s *State, dev *os.File) (Process, error) {
	log, err := openLog(s.Options.Root, s.Name)
	if err != nil {
		return Process{}, fmt.Errorf("start holder: %w", err)
	}
	defer func() { _ = log.Close() }()
	c, err := background(log, []*os.File{dev}, HoldVerb, s.Options.Root, s.Name)
	if err != nil {
		return Process{}, fmt.Errorf("start holder: %w", err)
	}
	// The holder needs no threads and little memory.
	c.Env = append(c.Env, "GOMAXPROCS=1", "GOGC=20")
	if err := c.Start(); err != nil {
		return Process{}, fmt.Errorf("start holder: %w", err)
	}
	p := processOf(c.Process.Pid)
	// The server is the holder's parent and must not leave a zombie.
	go func() { _ = c.Wait() }()
	return p, nil
}

// startSuccessor starts the server that goes on with the session dev.
func startSuccessor(root, name string, dev *os.File) (*exec.Cmd, error) {
	log, err := openLog(root, name)
	if err != nil {
		return nil, fmt.Errorf("start successor: %w", err)
	}
	defer func() { _ = log.Close() }()
	c, err := background(log, []*os.File{dev}, ServeVerb, "--takeover", root, name)
	if err != nil {
		return nil, fmt.Errorf("start successor: %w", err)
	}
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("start successor: %w", err)
	}
	return c, nil
}
