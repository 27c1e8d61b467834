package mount

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/laminafs/lamina/fs"
)

// namespace names a mount namespace of one boot of a machine. A mount that is not in
// the own one may be in another: that of a container, or of a service with files of
// its own.
type namespace struct {
	Boot string `json:"boot,omitempty"`
	ID   string `json:"id,omitempty"` // as /proc/<pid>/ns/mnt has it
}

// here returns the namespace of the calling process; what the machine does not tell
// is empty.
func here() (n namespace) {
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		n.Boot = strings.TrimSpace(string(b))
	}
	n.ID, _ = os.Readlink("/proc/self/ns/mnt")
	return n
}

// view is what is mounted where, in the own namespace and, if need be, in others.
type view struct {
	own    namespace
	mounts map[namespace]map[string]fs.MountInfo
}

func newView() (*view, error) {
	mounts, err := fs.Mounts()
	if err != nil {
		return nil, err
	}
	v := &view{own: here()}
	v.mounts = map[namespace]map[string]fs.MountInfo{v.own: byPoint(mounts)}
	return v, nil
}

func byPoint(mounts []fs.MountInfo) map[string]fs.MountInfo {
	at := make(map[string]fs.MountInfo, len(mounts))
	for _, m := range mounts {
		at[m.MountPoint] = m // the last one at a place is on top
	}
	return at
}

// at returns what is mounted where s says it is.
func (v *view) at(s *State) (fs.MountInfo, bool) {
	m, ok := v.mounts[v.own][s.Options.Dir]
	if ok && s.owns(m) || s.Where.Boot != v.own.Boot || s.Where.ID == "" || s.Where == v.own {
		return m, ok
	}
	other, known := v.mounts[s.Where]
	if !known {
		other = byPoint(mountsIn(s.Where.ID))
		v.mounts[s.Where] = other
	}
	m, ok = other[s.Options.Dir]
	return m, ok
}

// mountsIn returns what is mounted in the namespace with the given ID, as a process
// in it sees it. Without a process there is no such namespace, as a rule, and nothing
// mounted in it.
func mountsIn(id string) []fs.MountInfo {
	links, err := filepath.Glob("/proc/[0-9]*/ns/mnt")
	if err != nil {
		return nil
	}
	for _, l := range links {
		if got, err := os.Readlink(l); err != nil || got != id {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(l, "/")[2])
		if err != nil {
			continue
		}
		if mounts, err := fs.MountsOf(pid); err == nil {
			return mounts
		}
	}
	return nil
}
