package mount

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/laminafs/lamina/fs"
)

// Status says how a mount fares.
type Status string

// Statuses. Busy mounts that were detached lazily are Detached until their
// last user is gone; the tree of a Dead one answers ENOTCONN, as its server
// and holder are gone, until it is unmounted or mounted over.
const (
	Serving    Status = "serving"
	NoServer   Status = "complete" // the kernel has all; no process is needed
	Recovering Status = "recovering"
	Detached   Status = "detached"
	Dead       Status = "dead"
	Unmounted  Status = "unmounted" // a workspace
)

// Entry is one line of a list of mounts.
type Entry struct {
	State
	Status Status `json:"status"`
}

// grace is how long a record may be without a mount and a process: its server has just
// ended and is about to remove it.
const grace = 5 * time.Second

// survey is what there is of a store's mounts.
type survey struct {
	entries []Entry
	// gone are records of which no mount is left, workspaces among them.
	gone []*State
	// damaged says which records could not be read.
	damaged error
}

// look finds out how the mounts of the store at root fare, and changes nothing.
func look(root string) (*survey, error) {
	all, damaged, err := records(root)
	if err != nil {
		return nil, err
	}
	v, err := newView()
	if err != nil {
		return nil, err
	}
	byName := map[string]*State{}
	for _, s := range all {
		byName[s.Name] = s
	}
	found := &survey{damaged: damaged}
	for _, s := range all {
		m, ok := v.at(s)
		status := s.status(byName, ok && s.owns(m))
		if status == "" {
			found.gone = append(found.gone, s)
			if !s.Kept {
				continue
			}
			status = Unmounted
		}
		found.entries = append(found.entries, Entry{State: *s, Status: status})
	}
	return found, nil
}

// List returns the mounts of the store at root, ordered by name. Records that
// a crash or a reboot left behind are removed on the way; such as cannot be read are
// left out.
func List(root string) ([]Entry, error) {
	found, err := look(root)
	if err != nil {
		return nil, err
	}
	for _, s := range found.gone {
		s.tidy()
	}
	serves := map[string]bool{}
	for _, e := range found.entries {
		serves[e.ServedBy] = true
	}
	// A mount that has ended, but for its server, which others live on.
	return slices.DeleteFunc(found.entries, func(e Entry) bool { return e.Status == Detached && serves[e.Name] }), nil
}

// InUse is List for who is about to take something away that mounts use: it changes
// nothing, and a record that cannot be read is an error, as nobody knows what it says.
func InUse(root string) ([]Entry, error) {
	found, err := look(root)
	if err != nil {
		return nil, err
	}
	if found.damaged != nil {
		return nil, fmt.Errorf("what is in use is unknown: %w", found.damaged)
	}
	return found.entries, nil
}

// owns reports whether m is the mount that s records.
func (s *State) owns(m fs.MountInfo) bool {
	if s.Engine == Kernel && s.Options.RW {
		return m.FSType == "overlay" && m.Source == s.source()
	}
	if s.Engine == Kernel {
		// The store may be reached by another path than when it was mounted.
		return m.FSType == "erofs" && (m.Source == s.chainPath() || sameFile(m.Source, s.chainPath()))
	}
	return m.FSType == "fuse.lamina"
}

func (s *State) chainPath() string {
	return filepath.Join(s.Options.Root, "chains", s.Chain, "merged.erofs")
}

// status derives how s fares; empty means that nothing is left of it.
func (s *State) status(byName map[string]*State, mounted bool) Status {
	server, holder := s.Server, s.Holder
	if by := byName[s.ServedBy]; by != nil {
		server, holder = by.Server, by.Holder
	}
	served := server.PID != 0 || s.ServedBy != ""
	switch {
	case mounted && !served:
		return NoServer
	case mounted && server.Alive():
		return Serving
	case mounted && holder.Alive():
		return Recovering
	case mounted:
		return Dead
	case s.Server.Alive() || s.Holder.Alive() || s.Maker.Alive():
		return Detached
	case !s.Kept && time.Since(s.Created) < grace:
		return Detached
	}
	return ""
}

// Find returns the mount or workspace of the store at root that target, a
// mountpoint or a name, means; a *NotMountedError if there is none.
func Find(root, target string) (*Entry, error) { return find(root, target) }

// find returns the mount that target, a mountpoint or a name, means.
func find(root, target string) (*Entry, error) {
	all, err := List(root)
	if err != nil {
		return nil, err
	}
	dir, err := ResolveDir(target)
	if err != nil {
		dir = ""
	}
	var named, there *Entry
	for i, e := range all {
		if e.Name == target {
			named = &all[i]
		}
		// A detached mount has left its place to others, and so has a workspace.
		if e.Options.Dir == dir && e.Status != Detached && (e.Status != Unmounted || there == nil) {
			there = &all[i]
		}
	}
	switch {
	case named == nil && there == nil:
		return nil, &NotMountedError{Target: target}
	case named == nil:
		return there, nil
	case there != nil && there != named && there.Status != Unmounted:
		return nil, fmt.Errorf("%s is the name of the mount at %s and the mountpoint of %s: write ./%s, or %s",
			target, named.Options.Dir, there.Name, target, named.Options.Dir)
	}
	return named, nil
}

// NotMountedError says that Target is no mount of the store.
type NotMountedError struct{ Target string }

func (e *NotMountedError) Error() string {
	return e.Target + " is not a mount of this store; 'lamina mounts' lists them"
}

// Held returns the keys of the layers whose data files the kernel reads with no
// process of ours in between. They must not be evicted.
func Held(root string) (map[string]bool, error) {
	all, err := InUse(root)
	if err != nil {
		return nil, err
	}
	keys := map[string]bool{}
	for _, e := range all {
		for _, l := range e.Layers {
			if l.Direct {
				keys[l.Key] = true
			}
		}
	}
	return keys, nil
}

func isNotMounted(err error) bool {
	var e *NotMountedError
	return errors.As(err, &e)
}
