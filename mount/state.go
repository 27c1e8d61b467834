package mount

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/atomicfile"
)

// LayerState is what a server that takes over needs to open a layer again.
type LayerState struct {
	Desc   ocispec.Descriptor `json:"descriptor"`
	DiffID digest.Digest      `json:"diffId"`
	// Key is the layer's directory in the store.
	Key string `json:"key"`
	// File and Offset say where a blob of a local layout or archive lies.
	// File is empty for a blob of the registry that State.Repository names.
	File   string `json:"file,omitempty"`
	Offset int64  `json:"offset,omitempty"`
	// Direct says that the kernel reads the layer's data file itself, so that
	// nothing may be taken out of it.
	Direct bool `json:"direct,omitempty"`
}

// State is the record of one mount. It is immutable but for the processes'
// ids, which change when a server takes over.
type State struct {
	// Name is the record's directory below mounts/.
	Name    string  `json:"name"`
	Options Options `json:"options"`
	// Image is the normalised name, Digest that of the manifest.
	Image  string        `json:"image"`
	Digest digest.Digest `json:"digest"`
	// Repository is the registry reference that blobs come from, if any.
	Repository string       `json:"repository,omitempty"`
	Layers     []LayerState `json:"layers"`
	Chain      string       `json:"chain"`
	// Engine is the one that runs; Reason says why it is not the better one.
	Engine Engine `json:"engine"`
	Reason string `json:"reason,omitempty"`
	// ImageSize is the sum of the layers' compressed sizes, in bytes.
	ImageSize int64 `json:"imageSize"`
	// Server and Holder identify the processes; zero values where there is none.
	Server Process `json:"server"`
	Holder Process `json:"holder"`
	// Maker is the process that makes the mount, until it is made.
	Maker Process `json:"maker,omitzero"`
	// ServedBy names another mount whose server serves this one too: the
	// kernel engine mounts a chain once and clones it.
	ServedBy string    `json:"servedBy,omitempty"`
	Created  time.Time `json:"created"`
	// Where says which mount namespace the mount was made in.
	Where namespace `json:"where"`
	// Kept says that the record outlives the mount: it is a workspace that was
	// mounted at least once.
	Kept bool `json:"kept,omitempty"`

	upperLock *os.File // held while a workspace is being mounted, see lockUpper
}

// Process identifies a process for longer than its id is unique.
type Process struct {
	PID int `json:"pid,omitempty"`
	// Start is the start time in clock ticks after boot, from /proc/<pid>/stat.
	Start string `json:"start,omitempty"`
}

// self returns the calling process.
func self() Process { return processOf(os.Getpid()) }

func processOf(pid int) Process {
	start, err := startTime(pid)
	if err != nil {
		return Process{}
	}
	return Process{PID: pid, Start: start}
}

// Alive reports whether the process still runs.
func (p Process) Alive() bool {
	if p.PID == 0 {
		return false
	}
	start, err := startTime(p.PID)
	return err == nil && start == p.Start
}

// startTime reads field 22 of /proc/<pid>/stat, counted after the command's
// name, which may itself hold blanks and brackets. A zombie has ended, once its
// last thread has: until then it holds its files.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 20 || fields[0] == "Z" && fields[17] == "1" {
		return "", fmt.Errorf("read /proc/%d/stat: %w", pid, fs.ErrNotExist)
	}
	return fields[19], nil
}

// stateName is the record's file.
const stateName = "state.json"

func mountsDir(root string) string { return filepath.Join(root, "mounts") }

// directory is where everything about the mount called name is kept.
func directory(root, name string) string { return filepath.Join(mountsDir(root), name) }

func (s *State) dir() string { return directory(s.Options.Root, s.Name) }

// name is what the mount is called.
func (o *Options) name() string {
	if o.Name != "" {
		return o.Name
	}
	return newName(o.Dir)
}

// newName makes a name from the mountpoint, for people, and a random end.
func newName(dir string) string {
	var r [4]byte
	_, _ = rand.Read(r[:]) // never fails, by its documentation
	base := clean(filepath.Base(dir))
	if len(base) > 40 {
		base = base[:40]
	}
	return strings.TrimLeft(base, ".-") + "-" + hex.EncodeToString(r[:])
}

// clean replaces what is not to be in a name.
func clean(name string) string {
	return strings.Map(func(c rune) rune {
		if c == '-' || c == '_' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			return c
		}
		return '_'
	}, name)
}

// save replaces the record. That of a workspace is on the disk then; any other is
// written for other processes, not for the next boot, after which nothing is mounted.
func (s *State) save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("save mount %s: %w", s.Name, err)
	}
	if err := os.MkdirAll(s.dir(), 0o700); err != nil {
		return fmt.Errorf("save mount %s: %w", s.Name, err)
	}
	path := filepath.Join(s.dir(), stateName)
	if s.Kept {
		if err := atomicfile.WriteBytes(path, path+".", append(b, '\n')); err != nil {
			return fmt.Errorf("save workspace %s: %w", s.Name, err)
		}
		return nil
	}
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save mount %s: %w", s.Name, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("save mount %s: %w", s.Name, err)
	}
	return nil
}

// Load returns the record of the mount called name in the store at root; the
// error wraps fs.ErrNotExist when there is none.
func Load(root, name string) (*State, error) {
	b, err := os.ReadFile(filepath.Join(directory(root, name), stateName))
	if err != nil {
		return nil, fmt.Errorf("load mount %s: %w", name, err)
	}
	s := new(State)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("load mount %s: %w", name, err)
	}
	if s.Name != name {
		return nil, fmt.Errorf("load mount %s: the record names %q", name, s.Name)
	}
	// The store may have been moved or be reached by another path.
	s.Options.Root = root
	return s, nil
}

// records returns every record that can be read, ordered by name, and an error that
// tells of those that cannot.
func records(root string) (all []*State, damaged, err error) {
	entries, err := os.ReadDir(mountsDir(root))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list mounts: %w", err)
	}
	for _, e := range entries {
		s, err := Load(root, e.Name())
		switch {
		case err == nil:
			all = append(all, s)
		case !errors.Is(err, fs.ErrNotExist): // one that is being made, or removed
			damaged = errors.Join(damaged, err)
		}
	}
	return all, damaged, nil
}

// clearKernel takes back what a kernel mount that was tried and failed has noted.
func (s *State) clearKernel() {
	s.ServedBy = ""
	for i := range s.Layers {
		s.Layers[i].Direct = false
	}
}

// remove deletes the record and what lies beside it, of a mount that is no
// workspace, or never became one.
func (s *State) remove() error {
	dir := s.dir()
	// Whatever the record says: what somebody wrote goes by Discard alone.
	if written, err := os.ReadDir(filepath.Join(dir, upperName)); err == nil && len(written) > 0 {
		return fmt.Errorf("remove mount %s: %s/%s is not empty", s.Name, dir, upperName)
	}
	return os.RemoveAll(dir)
}
