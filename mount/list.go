package mount

import (
	"errors"
	"path/filepath"
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

// grace is how long a record may be without a mount: who wrote it is about to
// mount or to clone, or its server has just ended and is about to remove it.
const grace = 5 * time.Second

// List returns the mounts of the store at root, ordered by name. Records that
// a crash or a reboot left behind are removed on the way.
func List(root string) ([]Entry, error) {
	all, err := records(root)
	if err != nil {
		return nil, err
	}
	mounted, err := fs.Mounts()
	if err != nil {
		return nil, err
	}
	at := map[string]fs.MountInfo{}
	for _, m := range mounted {
		at[m.MountPoint] = m // the last one at a place is on top
	}
	byName := map[string]*State{}
	for _, s := range all {
		byName[s.Name] = s
	}
	var entries []Entry
	for _, s := range all {
		m, ok := at[s.Options.Dir]
		status := s.status(byName, ok && s.owns(m))
		if status == "" {
			_ = s.end()
			if !s.Kept {
				continue
			}
			status = Unmounted
		}
		entries = append(entries, Entry{State: *s, Status: status})
	}
	return entries, nil
}

// owns reports whether m is the mount that s records.
func (s *State) owns(m fs.MountInfo) bool {
	if s.Engine == Kernel && s.Options.RW {
		return m.FSType == "overlay" && m.Source == s.source()
	}
	if s.Engine == Kernel {
		return m.FSType == "erofs" && m.Source == s.chainPath()
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
	case s.Server.Alive() || s.Holder.Alive():
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
	var found *Entry
	for i, e := range all {
		// A detached mount has left its place to others.
		if e.Name == target || e.Options.Dir == dir && e.Status != Detached && (e.Status != Unmounted || found == nil) {
			found = &all[i]
		}
	}
	if found == nil {
		return nil, &NotMountedError{Target: target}
	}
	return found, nil
}

// NotMountedError says that Target is no mount of the store.
type NotMountedError struct{ Target string }

func (e *NotMountedError) Error() string {
	return e.Target + " is not a mount of this store; 'lamina mounts' lists them"
}

// Held returns the keys of the layers whose data files the kernel reads with no
// process of ours in between. They must not be evicted.
func Held(root string) (map[string]bool, error) {
	all, err := List(root)
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
