package union

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// node is a file that the upper directory has, or that is gone.
type node struct {
	id  ID
	typ uint32 // S_IFMT
	// ino is that in the upper directory; 0 of a lower file that was unlinked
	// and never copied up. Written under table.
	ino uint64
	// lower is the lower directory whose entries merge into a directory, or the
	// lower file that has the data of a file while meta is set; 0 if there is none.
	lower index.NID
	// meta: its data is still the lower file's. data is locked by who copies it up.
	meta atomic.Bool
	data sync.Mutex
	// times is locked by who sets times, or puts one back that a change would have left
	// alone: see keeping.
	times sync.Mutex
	// caps is capsNone of a file that is known to have no capabilities.
	caps atomic.Int32

	// What follows is guarded by names, and changes under table as well.

	// at is where it is in the upper directory. A file has other places that are
	// not known here; if at is empty, orphan or dead is set, or it is the root.
	at place
	// orphan: its one name that is known is that in the orphans' directory, which
	// counts as a link.
	orphan bool
	// dead: it is nowhere any more; last is what stat shows of it. A directory that
	// the upper directory had is held open, so that no other file gets its number and
	// it can be changed.
	dead bool
	last *Attr
	held int
	// impure: the directory has the mark.
	impure bool
	acl    atomic.Int32 // an aclState

	// Guarded by table.

	lookups uint64
	// pinned: the kernel may know more of it than was counted, as it knew the
	// lower file before. It stays.
	pinned bool
	places int // how many nodes have it in at
}

// place is a name in a directory of the upper directory.
type place struct {
	dir  *node
	name string
}

func (n *node) isDir() bool { return n.typ == unix.S_IFDIR }

// isLower says that n is a lower file that was unlinked and never copied up.
func (n *node) isLower() bool { return n.dead && n.ino == 0 && !n.isDir() }

const (
	capsUnknown int32 = iota
	capsNone
	capsSome
)

// aclState is whether a directory has a default ACL.
type aclState = int32

const (
	aclUnknown aclState = iota
	aclNone
	aclSome
)

// get returns the node of id; nil if it is an untouched file of the lower tree.
func (u *Union) get(id ID) (*node, error) {
	if id < u.base && !u.touched.has(uint64(id)) {
		return nil, nil
	}
	u.table.Lock()
	defer u.table.Unlock()
	n := u.nodes[id]
	if n == nil {
		return nil, errStale
	}
	return n, nil
}

// add puts n into the table and its place, with names locked.
func (u *Union) add(n *node, at place) {
	u.table.Lock()
	defer u.table.Unlock()
	u.addLocked(n, at)
}

func (u *Union) addLocked(n *node, at place) {
	u.nodes[n.id] = n
	if n.ino != 0 {
		u.byIno[n.ino] = n
	}
	if n.id < u.base {
		n.pinned = true
	}
	u.moveLocked(n, at)
	if n.id < u.base {
		u.touched.set(uint64(n.id)) // last: who sees the bit finds the node
	}
}

// move notes that n is at another place, with names locked.
func (u *Union) move(n *node, at place) {
	u.table.Lock()
	defer u.table.Unlock()
	u.moveLocked(n, at)
}

func (u *Union) moveLocked(n *node, at place) {
	was := n.at.dir
	n.at = at
	if at.dir != nil {
		at.dir.places++
	}
	if was != nil {
		was.places--
		u.dropLocked(was)
	}
}

// Forget takes back count of the answers that told of id. What was unlinked goes
// with the last of them.
func (u *Union) Forget(id ID, count uint64) {
	if id < u.base && !u.touched.has(uint64(id)) {
		return
	}
	u.names.RLock()
	defer u.names.RUnlock()
	u.table.Lock()
	n := u.nodes[id]
	if n == nil {
		u.table.Unlock()
		return
	}
	n.lookups -= min(count, n.lookups)
	// An unlinked file gets no more lookups, so all that were not counted, from
	// before its copy-up, are among these.
	gone := n.orphan || n.dead
	if n.lookups > 0 || n.pinned && !gone {
		u.table.Unlock()
		return
	}
	n.pinned = false
	orphan := n.orphan && n.places == 0
	u.dropLocked(n)
	u.table.Unlock()
	if orphan {
		u.files.drop(n)
		_ = unix.Unlinkat(u.work, orphanName(n.ino), 0)
	}
}

// dropLocked removes n from the tables once nobody needs it.
func (u *Union) dropLocked(n *node) {
	for n != nil && n != u.root && n.lookups == 0 && !n.pinned && n.places == 0 && u.nodes[n.id] == n {
		delete(u.nodes, n.id)
		if u.byIno[n.ino] == n {
			delete(u.byIno, n.ino)
		}
		u.files.drop(n)
		if n.held > 0 {
			_ = unix.Close(n.held)
			n.held = 0
		}
		parent := n.at.dir
		n.at = place{}
		if parent != nil {
			parent.places--
		}
		n = parent
	}
}

func orphanName(ino uint64) string { return orphanDir + "/" + overlay.OrphanName(ino) }

// pathMax is how long a path may get before it is walked in steps.
const pathMax = 3900

// where is a path from an open directory.
type where struct {
	fd   int
	path string
	own  bool // fd is to be closed
}

func (w where) close() {
	if w.own {
		_ = unix.Close(w.fd)
	}
}

// x is w for system calls that know no directory descriptors.
func (w where) x() string { return xpath(w.fd, w.path) }

func xpath(fd int, path string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + path
}

// find returns where n is, with names locked for reading at least. ESTALE: nowhere.
func (u *Union) find(n *node) (where, error) {
	if n == u.root {
		return where{fd: u.top, path: "."}, nil
	}
	if n.at.dir == nil {
		switch {
		case n.orphan:
			return where{fd: u.work, path: orphanName(n.ino)}, nil
		case n.dead && n.held > 0:
			return where{fd: n.held, path: "."}, nil
		}
		return where{}, errStale
	}
	var names []string
	size := 0
	for ; n != u.root; n = n.at.dir {
		if n.at.dir == nil {
			return where{}, errStale
		}
		names = append(names, n.at.name)
		size += len(n.at.name) + 1
	}
	if size > pathMax {
		return u.walk(names)
	}
	return where{fd: u.top, path: join(names)}, nil
}

// join makes a path of names, the last first.
func join(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	var b strings.Builder
	for i := len(names) - 1; i > 0; i-- {
		b.WriteString(names[i])
		b.WriteByte('/')
	}
	b.WriteString(names[0])
	return b.String()
}

// walk opens directories on the way along names, the last first, until the rest is
// short enough.
func (u *Union) walk(names []string) (where, error) {
	w := where{fd: u.top}
	for len(names) > 12 {
		part := names[len(names)-12:]
		fd, err := unix.Openat(w.fd, join(part), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		w.close()
		if err != nil {
			return where{}, err
		}
		w = where{fd: fd, own: true}
		names = names[:len(names)-12]
	}
	w.path = join(names)
	return w, nil
}

// findIn returns where name in the directory d is.
func (u *Union) findIn(d *node, name string) (where, error) {
	if len(name) > nameMax {
		return where{}, unix.ENAMETOOLONG
	}
	w, err := u.find(d)
	if err != nil {
		return w, err
	}
	if d == u.root {
		w.path = name
	} else {
		w.path += "/" + name
	}
	return w, nil
}

// temp is a name in ownDir that nobody has.
func (u *Union) temp() string { return tempPrefix + strconv.FormatUint(u.serial.Add(1), 36) }

// discard removes what is called name in ownDir, if there is something.
func (u *Union) discard(name string) {
	if unix.Unlinkat(u.work, name, 0) == unix.EISDIR {
		_ = unix.Unlinkat(u.work, name, unix.AT_REMOVEDIR)
	}
}
