package union

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// ID names a file of a union, and is its inode number.
type ID uint64

// errStale is for a file that is no more: overlayfs and NFS say the same.
var errStale = unix.ESTALE

const (
	// ownDir is this package's directory inside the work directory.
	ownDir = "lamina"
	// orphanDir, beneath it, has what was unlinked while it may be open, each by
	// its inode number in hex.
	orphanDir = "orphans"
	// tempPrefix begins the names of what is in the making there.
	tempPrefix = "t-"
	nameMax    = 255

	defaultTimeout = 60 * time.Second
)

// Union is an upper directory over a tree.
type Union struct {
	lower   *overlay.Tree
	upper   overlay.Upper
	base    ID
	timeout time.Duration
	top     int    // descriptor of the upper directory
	work    int    // and of ownDir
	own     string // its path
	// touched has a bit for each nid that is not just what the lower tree says.
	touched bitmap
	names   sync.RWMutex
	copying [64]sync.Mutex // by nid: one copy-up at a time
	frozen  sync.RWMutex   // read-locked by whatever changes something
	picture atomic.Pointer[Picture]
	files   fileCache
	serial  atomic.Uint64
	links   linkTable
	whites  whiteouts
	notes   []string // of the last exchanges; guarded by names
	loaded  bool     // load has read everything; guarded by names
	// whitened has the lower files at whiteouts that load has found.
	whitened []index.NID

	table sync.Mutex
	nodes map[ID]*node
	byIno map[uint64]*node
	root  *node
}

// Orphans is overlay.Upper.Orphans of a union with the work directory work.
func Orphans(work string) string { return filepath.Join(work, ownDir, orphanDir) }

// Options says how to open a union.
type Options struct {
	// Lower is the tree beneath. The caller closes it after the Union.
	Lower *overlay.Tree
	// Upper is the directory that changes go to. Nobody else may change it.
	Upper overlay.Upper
	// Work is a directory on the same filesystem that overlayfs may use as its own.
	Work string
	// ReadTimeout bounds each read of the lower tree, of a megabyte at the most,
	// when data is copied up; 0 means 60 s.
	ReadTimeout time.Duration
	// Resume says that files which an earlier process had open, or knew the ID of,
	// may be asked for: all that is in Upper is read, and what was unlinked kept.
	Resume bool
}

// Open opens a union. overlay.ErrFilesystem: that of Upper cannot keep xattrs or make
// whiteouts, or Work is on another one.
func Open(o Options) (*Union, error) {
	u := &Union{
		lower: o.Lower, upper: o.Upper, timeout: o.ReadTimeout, top: -1, work: -1,
		base:    1 << bits.Len64(uint64(o.Lower.Len())/32),
		touched: newBitmap(o.Lower.Len()/32 + 1),
		nodes:   make(map[ID]*node), byIno: make(map[uint64]*node),
	}
	if u.timeout <= 0 {
		u.timeout = defaultTimeout
	}
	if err := u.open(o); err != nil {
		return nil, errors.Join(fmt.Errorf("open union over %s: %w", o.Upper.Dir, err), u.Close())
	}
	return u, nil
}

func (u *Union) open(o Options) (err error) {
	if u.top, err = unix.Open(o.Upper.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	own := filepath.Join(o.Work, ownDir)
	u.own = own
	if err := errors.Join(u.finishCuts(own), u.takeBackAll(own)); err != nil {
		return err
	}
	if !o.Resume {
		if err := os.RemoveAll(own); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(own, orphanDir), 0o700); err != nil {
		return err
	}
	if u.work, err = unix.Open(own, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	u.files.init()
	if err := u.sweepTemps(); err != nil {
		return err
	}
	if err := o.Upper.Probe(own); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(u.top, &st); err != nil {
		return err
	}
	root := u.lower.Root()
	u.root = &node{id: ID(root), ino: st.Ino, typ: unix.S_IFDIR, lower: root, pinned: true}
	u.nodes[u.root.id], u.byIno[st.Ino] = u.root, u.root
	u.touched.set(uint64(root))
	if o.Resume {
		return u.load()
	}
	return nil
}

// sweepTemps removes what an earlier process had in the making: their names are given
// again.
func (u *Union) sweepTemps() error {
	for _, dir := range []string{".", plainDir} {
		if err := u.sweepTempsIn(dir); err != nil {
			return err
		}
	}
	return nil
}

func (u *Union) sweepTempsIn(dir string) error {
	fd, err := unix.Openat(u.work, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	own := os.NewFile(uintptr(fd), dir)
	defer func() { _ = own.Close() }()
	names, err := own.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			if err := u.removeTemp(dir + "/" + name); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeTemp removes what is called name in ownDir and all that is in it.
func (u *Union) removeTemp(name string) error { return os.RemoveAll(xpath(u.work, name)) }

// Close closes what the union has open. No method may be running, or called later.
func (u *Union) Close() error {
	u.files.closeAll()
	var errs []error
	if p := u.picture.Load(); p != nil {
		errs = append(errs, p.drop())
	}
	for _, fd := range []int{u.top, u.work} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	u.top, u.work = -1, -1
	return errors.Join(errs...)
}

// Root returns the ID of the root directory.
func (u *Union) Root() ID { return u.root.id }

// Base is above all IDs of the lower tree's files.
func (u *Union) Base() ID { return u.base }

// StatFS is that of the upper directory's filesystem.
func (u *Union) StatFS(st *unix.Statfs_t) error { return unix.Fstatfs(u.top, st) }

// nid returns the lower file that id is, or was before its copy-up.
func (u *Union) nid(id ID) index.NID { return index.NID(id) }

// bitmap is a set of nids that is read without a lock. Inodes take at least 32
// bytes, so a nid is a number of its own in it.
type bitmap []atomic.Uint64

func newBitmap(n int64) bitmap { return make(bitmap, n/64+1) }

func (b bitmap) has(i uint64) bool {
	return i/64 < uint64(len(b)) && b[i/64].Load()&(1<<(i%64)) != 0
}

func (b bitmap) set(i uint64) {
	if i/64 < uint64(len(b)) {
		b[i/64].Or(1 << (i % 64))
	}
}
