package layer

import (
	"errors"
	"fmt"
	"strings"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer/tarscan"
)

const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh."
	opaqueMarker   = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"

	modeDir  = 0o040000
	modeReg  = 0o100000
	modeLnk  = 0o120000
	modeChr  = 0o020000
	modeBlk  = 0o060000
	modeFifo = 0o010000
	modeFmt  = 0o170000

	maxName    = 255
	maxPath    = 4095 // PATH_MAX without the NUL: no unpacker could make a longer one
	maxXattr   = 65535
	maxLinks   = 40       // symlinks followed in one path, as Linux
	maxEntries = 8 << 20  // of one layer, directories nobody named included
	maxText    = 1 << 30  // bytes of names, targets and xattrs of one layer
	maxXattrs  = 64 << 10 // bytes of xattrs of one entry
)

// entry is one thing a layer says, from a tar or from a table of contents.
type entry struct {
	name, link   string
	typ          byte // of tarscan
	mode         int64
	uid, gid     int64
	mtime        int64
	nsec         uint32
	major, minor int64
	size         int64
	xattrs       []index.Xattr
	extents      []index.Extent
}

// spot is a name in a directory.
type spot struct {
	dir  *index.Node
	name string
}

// lateLink is a hard link whose target was not there when it came.
type lateLink struct {
	spot
	node *index.Node
}

// builder makes the tree of one layer from its entries, in their order.
type builder struct {
	root      *index.Node
	whiteouts map[spot]struct{}
	opaque    map[*index.Node]struct{}
	// late is kept when hard links may come before their targets.
	late     []lateLink
	keepLate bool
	entries  int
	text     int
	// The directory of the entry before: most entries are its neighbours.
	// Nil after anything that could make the path lead elsewhere.
	lastPath string
	lastDir  *index.Node
}

func newBuilder() *builder {
	return &builder{
		root:      &index.Node{Mode: modeDir | 0o755, Flags: index.Implicit},
		whiteouts: make(map[spot]struct{}),
		opaque:    make(map[*index.Node]struct{}),
	}
}

var errOutside = errors.New("path leads outside the layer")

// add takes the next entry. It returns the regular file it made, if it made
// one. Errors name the entry; the caller adds where it stands.
func (b *builder) add(e *entry) (*index.Node, error) {
	n, err := b.addEntry(e)
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", short(e.name), err)
	}
	return n, nil
}

// short quotes a name, and cuts one that would not fit a line.
func short(name string) string {
	if len(name) > 200 {
		return fmt.Sprintf("%q...", name[:200])
	}
	return fmt.Sprintf("%q", name)
}

func (b *builder) addEntry(e *entry) (*index.Node, error) {
	if err := b.account(e); err != nil {
		return nil, err
	}
	path, err := clean(e.name)
	if err != nil {
		return nil, err
	}
	if path == "" {
		if e.typ != tarscan.TypeDir {
			return nil, errors.New("the root is not a directory")
		}
		return nil, b.setAttr(b.root, e)
	}
	if aufs(path) {
		return nil, nil
	}
	parent, base := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		parent, base = path[:i], path[i+1:]
	}
	dir, err := b.mkdirs(parent)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return nil, b.whiteout(dir, base)
	}
	if e.typ == tarscan.TypeLink {
		return nil, b.link(dir, base, e)
	}
	return b.make(dir, base, e)
}

// account keeps the memory that entries take within bounds.
func (b *builder) account(e *entry) error {
	b.entries++
	n := len(e.name) + len(e.link)
	for _, x := range e.xattrs {
		n += len(x.Name) + len(x.Value)
	}
	b.text += n
	if b.entries > maxEntries || b.text > maxText {
		return fmt.Errorf("more than %d entries or %d bytes of names and attributes", maxEntries, maxText)
	}
	return nil
}

// clean makes a path relative to the root: no leading or doubled slash, no "."
// and "..". It is "" for the root itself.
func clean(name string) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("path of %d bytes, at most %d are possible", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("NUL in path")
	}
	name = strings.TrimPrefix(name, "./")
	name = strings.TrimSuffix(name, "/")
	if plain(name) {
		return name, nil
	}
	var parts []string
	for _, p := range strings.Split(name, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			if len(parts) == 0 {
				return "", errOutside
			}
			parts = parts[:len(parts)-1]
		case len(p) > maxName:
			return "", fmt.Errorf("name of %d bytes, at most %d are possible", len(p), maxName)
		default:
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/"), nil
}

// plain reports whether a path is clean already.
func plain(name string) bool {
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		switch p := name[start:i]; {
		case p == "", p == ".", p == "..", len(p) > maxName:
			return false
		}
		start = i + 1
	}
	return true
}

// aufs reports whether a path belongs to the bookkeeping of aufs, which leaked
// into old images and means nothing.
func aufs(path string) bool {
	i := strings.Index(path, aufsPrefix)
	if i < 0 || i > 0 && path[i-1] != '/' {
		return false
	}
	return path[i:] != opaqueMarker
}

// mkdirs returns the directory of a clean path, and makes what is missing.
// Symlinks of this layer are followed within the root, as unpackers do.
func (b *builder) mkdirs(path string) (*index.Node, error) {
	if b.lastDir != nil && path == b.lastPath {
		return b.lastDir, nil
	}
	dir, err := b.walk(path, true)
	b.lastPath, b.lastDir = path, dir
	return dir, err
}

// put makes n the entry name of dir.
func (b *builder) put(dir *index.Node, name string, n *index.Node) {
	if old := dir.Child(name); old != nil && old.Mode&modeFmt != modeReg {
		b.lastDir = nil // what was reached through it is reached no more
	}
	dir.SetChild(name, n)
}

// walk follows path from the root. With create it makes missing directories;
// without it returns nil for a path that is not there.
func (b *builder) walk(path string, create bool) (*index.Node, error) {
	stack := []*index.Node{b.root}
	links := 0
	for path != "" {
		name, rest, _ := strings.Cut(path, "/")
		path = rest
		dir := stack[len(stack)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) == 1 {
				return nil, errOutside
			}
			stack = stack[:len(stack)-1]
			continue
		}
		child := dir.Child(name)
		switch {
		case child == nil && !create:
			return nil, nil
		case child == nil:
			if strings.HasPrefix(name, whiteoutPrefix) {
				return nil, fmt.Errorf("%q is a directory", name)
			}
			if len(name) > maxName {
				return nil, fmt.Errorf("name of %d bytes, at most %d are possible", len(name), maxName)
			}
			if b.entries++; b.entries > maxEntries {
				return nil, fmt.Errorf("more than %d entries", maxEntries)
			}
			child = &index.Node{Mode: modeDir | 0o755, Flags: index.Implicit}
			dir.SetChild(name, child)
		case child.Mode&modeFmt == modeLnk:
			if links++; links > maxLinks {
				return nil, errors.New("too many levels of symbolic links")
			}
			target := string(child.Target)
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
			}
			path = target + "/" + path
			continue
		case !child.IsDir():
			if !create {
				return nil, nil
			}
			return nil, fmt.Errorf("%q above it is not a directory", name)
		}
		stack = append(stack, child)
	}
	return stack[len(stack)-1], nil
}

// whiteout notes a marker file.
func (b *builder) whiteout(dir *index.Node, base string) error {
	if base == opaqueMarker {
		b.opaque[dir] = struct{}{}
		return nil
	}
	switch name := base[len(whiteoutPrefix):]; name {
	case "", ".", "..":
		return errors.New("whiteout of nothing")
	default:
		b.whiteouts[spot{dir, name}] = struct{}{}
		return nil
	}
}

// link makes a hard link. Its target is another name of this layer or, if that
// is not there, something in lower layers.
func (b *builder) link(dir *index.Node, base string, e *entry) error {
	target, err := clean(e.link)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", short(e.link), err)
	}
	if target == "" {
		return fmt.Errorf("hard link to %s: not a file", short(e.link))
	}
	n, err := b.find(target)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", short(e.link), err)
	}
	if n != nil {
		if n.IsDir() {
			return fmt.Errorf("hard link to %s: it is a directory", short(e.link))
		}
		b.put(dir, base, n)
		return nil
	}
	n = &index.Node{Mode: modeReg, Flags: index.HardLink, Target: []byte(target)}
	if err := b.setAttr(n, e); err != nil {
		return err
	}
	b.put(dir, base, n)
	if b.keepLate {
		b.late = append(b.late, lateLink{spot{dir, base}, n})
	}
	return nil
}

// find returns the node at a clean path of this layer, nil if there is none.
// A symlink at its end is not followed.
func (b *builder) find(path string) (*index.Node, error) {
	parent, base := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		parent, base = path[:i], path[i+1:]
	}
	dir, err := b.walk(parent, false)
	if err != nil || dir == nil {
		return nil, err
	}
	return dir.Child(base), nil
}

// make puts a new node, or new attributes of a directory, under a name.
func (b *builder) make(dir *index.Node, base string, e *entry) (*index.Node, error) {
	old := dir.Child(base)
	n := &index.Node{}
	switch e.typ {
	case tarscan.TypeDir:
		n.Mode = modeDir
		if old != nil && old.IsDir() {
			n = old // the last attributes win, the entries stay
		}
	case tarscan.TypeReg:
		n.Mode = modeReg
		if e.size < 0 {
			return nil, fmt.Errorf("size of %d", e.size)
		}
		n.Size, n.Extents = e.size, e.extents
	case tarscan.TypeSymlink:
		n.Mode = modeLnk
		if e.link == "" || len(e.link) > maxPath || strings.IndexByte(e.link, 0) >= 0 {
			return nil, fmt.Errorf("symlink to %s", short(e.link))
		}
		n.Target = []byte(e.link)
	case tarscan.TypeChar, tarscan.TypeBlock:
		n.Mode = modeChr
		if e.typ == tarscan.TypeBlock {
			n.Mode = modeBlk
		}
		if e.major < 0 || e.major >= 1<<12 || e.minor < 0 || e.minor >= 1<<20 {
			return nil, fmt.Errorf("device number %d:%d", e.major, e.minor)
		}
		n.Rdev = index.Makedev(uint32(e.major), uint32(e.minor))
	case tarscan.TypeFifo:
		n.Mode = modeFifo
	default:
		return nil, fmt.Errorf("unknown type %q", e.typ)
	}
	if err := b.setAttr(n, e); err != nil {
		return nil, err
	}
	if n != old {
		b.put(dir, base, n)
	}
	if e.typ != tarscan.TypeReg {
		return nil, nil
	}
	return n, nil
}

// setAttr gives n the attributes of e.
func (b *builder) setAttr(n *index.Node, e *entry) error {
	if e.uid < 0 || e.uid >= 1<<32 || e.gid < 0 || e.gid >= 1<<32 {
		return fmt.Errorf("owner %d:%d", e.uid, e.gid)
	}
	n.Mode = n.Mode&modeFmt | uint32(e.mode&0o7777)
	if n.Mode&modeFmt == modeLnk {
		n.Mode = modeLnk | 0o777 // Linux knows no other
	}
	n.UID, n.GID = uint32(e.uid), uint32(e.gid)
	n.Mtime, n.MtimeNsec = e.mtime, e.nsec
	n.Flags &^= index.Implicit
	xattrs, err := keepXattrs(e.xattrs)
	n.Xattrs = xattrs
	return err
}

// keepXattrs drops what must not or cannot be shown: overlayfs's own marks,
// which would make a lower layer lie about what is under it, and name spaces
// that Linux does not have.
func keepXattrs(in []index.Xattr) ([]index.Xattr, error) {
	var out []index.Xattr
	total := 0
	for _, x := range in {
		switch {
		case strings.HasPrefix(x.Name, "trusted.overlay."):
			continue
		case x.Name == "system.posix_acl_access", x.Name == "system.posix_acl_default":
		case !namespaced(x.Name, "user.", "trusted.", "security."):
			continue
		}
		total += len(x.Name) + len(x.Value)
		if len(x.Name) > maxName || strings.IndexByte(x.Name, 0) >= 0 || len(x.Value) > maxXattr || total > maxXattrs {
			return nil, fmt.Errorf("xattr %s of %d bytes", short(x.Name), len(x.Value))
		}
		out = append(out, x)
	}
	return out, nil
}

func namespaced(name string, spaces ...string) bool {
	for _, s := range spaces {
		if len(name) > len(s) && strings.HasPrefix(name, s) {
			return true
		}
	}
	return false
}

// finish resolves what could not be said before the last entry was seen, and
// returns the root.
func (b *builder) finish() (*index.Node, error) {
	for _, l := range b.late {
		if l.dir.Child(l.name) != l.node {
			continue // replaced since
		}
		n, err := b.find(string(l.node.Target))
		switch {
		case err != nil || n == nil || n.Flags&index.HardLink != 0:
			continue // in a lower layer
		case n.IsDir():
			return nil, fmt.Errorf("entry %s: hard link to %s: it is a directory", short(l.name), short(string(l.node.Target)))
		}
		l.dir.SetChild(l.name, n)
	}
	for w := range b.whiteouts {
		n := w.dir.Child(w.name)
		switch {
		case n == nil:
			w.dir.SetChild(w.name, &index.Node{Mode: modeChr})
		case n.IsDir():
			// What the layer itself has stays. But the lower directory is
			// deleted, not merged with this one.
			b.opaque[n] = struct{}{}
			n.Flags &^= index.Implicit
		}
	}
	for n := range b.opaque {
		n.Xattrs = append(n.Xattrs, index.Xattr{Name: opaqueXattr, Value: []byte("y")})
	}
	return b.root, nil
}
