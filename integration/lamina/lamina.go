// Package lamina drives the lamina program as a user on a machine of his own
// would: with a store, credentials, certificates and nothing else.
//
// A Program is the built binary; a Store is one user's state. Both are for tests
// and benchmarks, which compare what the program does, not what packages do.
package lamina

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/registry"
)

// Program is the path of the built lamina.
type Program string

// Build builds the program from the module that contains the working directory,
// as it is released, or with the race detector if the environment has
// LAMINA_TEST_RACE.
func Build(dir string) (Program, error) {
	bin := filepath.Join(dir, "lamina")
	args, cgo := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", bin}, "0"
	if os.Getenv("LAMINA_TEST_RACE") != "" {
		args, cgo = []string{"build", "-race", "-o", bin}, "1"
	}
	cmd := exec.Command("go", append(args, "github.com/laminafs/lamina/cmd/lamina")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lamina: %w\n%s", err, out)
	}
	return Program(bin), nil
}

// Store is a user's store and what he needs to reach registries.
type Store struct {
	Root    string
	program Program
	certs   string
	env     []string
}

// NewStore returns a user whose store is root and who has the password for the
// hosts. What else he needs is written below dir.
func (p Program) NewStore(root, dir string, a *registry.Authority, password string, hosts ...string) (*Store, error) {
	certs, docker, err := registry.Access(dir, a, password, hosts...)
	if err != nil {
		return nil, err
	}
	return &Store{
		Root: root, program: p, certs: certs,
		env: append(os.Environ(), "LAMINA_ROOT="+root, "DOCKER_CONFIG="+docker, "REGISTRY_AUTH_FILE="),
	}, nil
}

// Command returns a lamina command of this user, not yet started.
func (s *Store) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(string(s.program), args...)
	cmd.Env = s.env
	return cmd
}

// MountCommand returns the command that mounts image at dir.
func (s *Store) MountCommand(dir, image string, options ...string) *exec.Cmd {
	args := append([]string{"mount", "--hosts-dir", s.certs}, options...)
	return s.Command(append(args, image, dir)...)
}

// limit bounds any one command.
const limit = 5 * time.Minute

// Run runs a command of this user and returns its standard output; an error
// carries its standard error. A command that takes five minutes is killed.
func (s *Store) Run(args ...string) (string, error) { return run(s.Command(args...)) }

// Mount mounts image at dir.
func (s *Store) Mount(dir, image string, options ...string) error {
	_, err := run(s.MountCommand(dir, image, options...))
	return err
}

func run(cmd *exec.Cmd) (string, error) {
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		return "", err
	}
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("lamina %s: %w: %s", strings.Join(cmd.Args[1:], " "), err, stderr.String())
	}
	return out.String(), nil
}

// Mount is what tests use of a line of `lamina mounts --json`.
type Mount struct {
	Name    string
	Image   string
	Engine  string
	Status  string
	Options struct{ Dir string }
	Server  struct{ PID int }
	Holder  struct{ PID int }
	Layers  []struct{ Key string }
}

// Mounts returns the user's mounts.
func (s *Store) Mounts() ([]Mount, error) {
	out, err := s.Run("mounts", "--json")
	if err != nil {
		return nil, err
	}
	var all []Mount
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("mounts --json: %w\n%s", err, out)
	}
	return all, nil
}

// At returns the mount at dir.
func (s *Store) At(dir string) (Mount, error) {
	all, err := s.Mounts()
	if err != nil {
		return Mount{}, err
	}
	for _, m := range all {
		if m.Options.Dir == dir {
			return m, nil
		}
	}
	return Mount{}, fmt.Errorf("no mount at %s", dir)
}

// Mounted reports whether something is mounted at dir, dead or alive.
func Mounted(dir string) bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(b), " "+dir+" ")
}

// Processes returns the user's running lamina processes and their words.
func (s *Store) Processes() (map[int]string, error) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	found := map[int]string{}
	for _, p := range procs {
		env, err := os.ReadFile(filepath.Join(p, "environ"))
		if err != nil || !bytes.Contains(env, []byte("LAMINA_ROOT="+s.Root+"\x00")) {
			continue
		}
		exe, err := os.Readlink(filepath.Join(p, "exe"))
		if err != nil || exe != string(s.program) {
			continue
		}
		words, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(p, "/proc/%d", &pid); err == nil {
			found[pid] = string(bytes.ReplaceAll(words, []byte{0}, []byte{' '}))
		}
	}
	return found, nil
}

// Kill kills every process of the user, as an out-of-memory killer would, and
// whichever of them starts another meanwhile, until none is left.
func (s *Store) Kill() error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		left, err := s.Processes()
		if err != nil || len(left) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("kill: still running: %v", left)
		}
		for pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended by itself
		}
	}
}

// Close unmounts what is mounted and waits until no process is left. It says
// what did not go by itself, and makes it go.
func (s *Store) Close() error {
	all, err := s.Mounts()
	if err != nil {
		return err
	}
	var bad []string
	for _, m := range all {
		if m.Status == "detached" {
			continue
		}
		if _, err := s.Run("umount", "--lazy", m.Options.Dir); err != nil {
			bad = append(bad, err.Error())
			_ = unix.Unmount(m.Options.Dir, unix.MNT_DETACH)
		}
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left, err := s.Processes()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(end) {
			bad = append(bad, fmt.Sprintf("left behind: %v", left))
			if err := s.Kill(); err != nil {
				return err
			}
			break
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("clean up %s: %s", s.Root, strings.Join(bad, "; "))
	}
	return nil
}
