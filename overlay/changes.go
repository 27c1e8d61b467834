package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// Changes calls fn for every path at which the union of u over lower differs
// from lower, a directory before what is beneath it, names in bytewise order. It
// looks at what u has, and of lower at what that replaces: the cost grows with
// what changed. Files that were changed back are left out; to know, those of the
// same size and time are read, in lower as well.
//
// fn must not keep the Change. Errors: fn's, as they are; ErrUpper; those of
// reading u and lower. What is written to u meanwhile may or may not be seen.
func Changes(ctx context.Context, u Upper, lower *Tree, fn func(*Change) error) error {
	if err := changes(ctx, u, lower, false, fn); err != nil {
		return within("changes of "+u.Dir, err)
	}
	return nil
}

// Everything is Changes against an empty tree: it calls fn for all that the union
// of u over lower has, as Added, and reads all names of both. If u has no directory,
// that is all of lower.
func Everything(ctx context.Context, u Upper, lower *Tree, fn func(*Change) error) error {
	if err := changes(ctx, u, lower, true, fn); err != nil {
		return within("union of "+u.Dir, err)
	}
	return nil
}

func changes(ctx context.Context, u Upper, lower *Tree, all bool, fn func(*Change) error) error {
	w := &changeWalk{ctx: ctx, upper: u, lower: lower, fn: fn, inodes: make(map[inode]string)}
	return w.run(all)
}

// within adds what was done to err, unless it comes from the function that was
// given.
func within(what string, err error) error {
	var from *fnError
	if errors.As(err, &from) {
		return from.err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// fnError is an error of the function that Changes was given.
type fnError struct{ err error }

func (e *fnError) Error() string { return e.err.Error() }

// inode names a file with several names: in the upper directory, or, dev 0, in
// the lower tree.
type inode struct{ dev, ino uint64 }

type changeWalk struct {
	ctx    context.Context
	upper  Upper
	lower  *Tree
	fn     func(*Change) error
	inodes map[inode]string // the path that was told of first
	// keepSame says that what was changed back is told of, too.
	keepSame bool
	// coarse says that the lower tree may have times in whole seconds.
	coarse bool
}

// run walks the union, with all as if the lower tree were what was added too.
func (w *changeWalk) run(all bool) error {
	if all && w.upper.Dir == "" {
		root := w.lower.Root()
		c := &Change{Path: ".", Kind: Added}
		if err := w.describe(c, root); err != nil {
			return err
		}
		return w.enter(&place{path: ".", source: root}, c)
	}
	dir, err := os.OpenFile(w.upper.Dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	return w.root(dir, all)
}

// place is a directory of the union.
type place struct {
	path string
	// upper is the directory of the upper, nil if it has none.
	upper *os.File
	lazy  bool
	// base is the lower tree's directory at this path, and source the one that is
	// merged into the union here; 0 if there is none. They differ where a
	// directory was renamed, or removed and made again.
	base, source index.NID
	// hidden says that nothing of base is left: a directory above is Opaque.
	hidden bool
}

func (p *place) join(name string) string {
	if p.path == "." {
		return name
	}
	return p.path + "/" + name
}

// root begins the walk.
func (w *changeWalk) root(dir *os.File, all bool) error {
	e, err := w.upper.entry(dir, ".", false)
	if err != nil {
		return err
	}
	root := w.lower.Root()
	p := &place{path: ".", upper: dir, lazy: e.lazy, base: root, source: root}
	if e.opaque {
		p.source = 0
	}
	c := &Change{Path: ".", Kind: Modified, Attr: e.attr(), Xattrs: e.xattrs}
	if all {
		p.base, c.Kind = 0, Added
	}
	return w.enter(p, c)
}

func (w *changeWalk) tell(c *Change) error {
	if err := w.fn(c); err != nil {
		return &fnError{err}
	}
	return nil
}

// walk tells of what is in p.
func (w *changeWalk) walk(p *place) error {
	var entries []upperEntry
	if p.upper != nil {
		var err error
		if entries, err = w.upper.readUpper(p.upper, p.lazy); err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
	}
	if p.base == p.source && !p.hidden {
		for i := range entries {
			if err := w.name(p, entries[i].name, &entries[i]); err != nil {
				return err
			}
		}
		return nil
	}
	// The lower trees' names matter too.
	names := make(map[string]*upperEntry)
	for _, dir := range []index.NID{p.base, p.source} {
		if dir == 0 {
			continue
		}
		err := w.lower.ReadDir(dir, 0, func(d *index.Dirent) bool {
			if name := string(d.Name); name != "." && name != ".." {
				names[name] = nil
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
	}
	for i := range entries {
		names[entries[i].name] = &entries[i]
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := w.name(p, name, names[name]); err != nil {
			return err
		}
	}
	return nil
}

// name tells of one name in p; e is nil if the upper does not have it.
func (w *changeWalk) name(p *place, name string, e *upperEntry) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	base, err := w.child(p.base, name)
	if err != nil {
		return err
	}
	source, err := w.child(p.source, name)
	if err != nil {
		return err
	}
	switch {
	case e != nil && !e.whiteout:
		err = w.present(p, e, base, source)
	case e == nil && source != 0:
		err = w.carried(p, name, base, source)
	case base != 0:
		err = w.deleted(p, name, base)
	}
	return err
}

// child returns the node of name in dir, 0 if there is none.
func (w *changeWalk) child(dir index.NID, name string) (index.NID, error) {
	if dir == 0 {
		return 0, nil
	}
	nid, err := w.lower.Lookup(dir, name)
	if errors.Is(err, index.ErrNotExist) {
		return 0, nil
	}
	return nid, err
}

func (w *changeWalk) deleted(p *place, name string, base index.NID) error {
	c := &Change{Path: p.join(name), Kind: Deleted, Covered: p.hidden}
	if err := w.describe(c, base); err != nil {
		return err
	}
	return w.tell(c)
}

// kind is that of what is present where the lower tree has base.
func kind(base index.NID) ChangeKind {
	if base == 0 {
		return Added
	}
	return Modified
}

// present tells of an entry of the upper, and of what is beneath it.
func (w *changeWalk) present(p *place, e *upperEntry, base, source index.NID) error {
	c := &Change{Path: p.join(e.name), Kind: kind(base), Attr: e.attr(), Target: e.target, Xattrs: e.xattrs}
	if e.is(unix.S_IFDIR) {
		return w.directory(p, e, c, base, source)
	}
	if e.is(unix.S_IFREG) {
		if err := w.content(p, e, c, source); err != nil {
			return err
		}
	}
	if e.stat.Nlink > 1 {
		c.Link = w.link(inode{e.stat.Dev, e.stat.Ino}, c.Path)
	} else if !w.keepSame && !p.hidden && base != 0 && base == source {
		if same, err := w.same(c, base, e.metacopy && e.redirect == ""); err != nil || same {
			return err
		}
	}
	return w.tell(c)
}

// link returns the path that was told of before for a file with several names.
func (w *changeWalk) link(id inode, path string) string {
	first, ok := w.inodes[id]
	if !ok {
		w.inodes[id] = path
	}
	return first
}

// content makes c readable: its data is in the upper, or, after a metadata only
// copy-up, in the lower tree.
func (w *changeWalk) content(p *place, e *upperEntry, c *Change, source index.NID) error {
	if !e.metacopy && w.upper.Data != "" {
		path, size := filepath.Join(w.upper.Data, strconv.FormatUint(e.stat.Ino, 10)), e.stat.Size
		c.open = func(context.Context) (io.ReadCloser, error) { return openFrozen(path, size) }
		return nil
	}
	if !e.metacopy {
		c.open = func(context.Context) (io.ReadCloser, error) { return e.openIn(p.upper, unix.O_RDONLY) }
		return nil
	}
	if e.redirect != "" {
		var err error
		if source, err = w.redirected(p, e.redirect); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	var a index.Attr
	if source != 0 {
		if err := w.lower.Attr(source, &a); err != nil {
			return err
		}
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%s: %w: its data is not in the image", c.Path, ErrUpper)
	}
	c.open = w.opener(source)
	return nil
}

func (w *changeWalk) opener(nid index.NID) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) {
		return &lowerFile{ctx: ctx, tree: w.lower, nid: nid}, nil
	}
}

// redirected follows a redirect from an entry of p: a path from the root of the
// lower tree, or a name in the lower directory that is merged into p.
func (w *changeWalk) redirected(p *place, redirect string) (index.NID, error) {
	at, rest := p.source, redirect
	if strings.HasPrefix(redirect, "/") {
		at = w.lower.Root()
	} else if strings.Contains(redirect, "/") {
		return 0, fmt.Errorf("%w: redirect to %q", ErrUpper, redirect)
	}
	for _, name := range strings.Split(strings.Trim(rest, "/"), "/") {
		nid, err := w.child(at, name)
		if err != nil && !errors.Is(err, index.ErrNotDir) {
			return 0, err
		}
		if at = nid; at == 0 || name == ".." || name == "." {
			return 0, fmt.Errorf("%w: redirect to %q, which the image does not have", ErrUpper, redirect)
		}
	}
	return at, nil
}

// directory tells of a directory of the upper and of what is beneath it.
func (w *changeWalk) directory(p *place, e *upperEntry, c *Change, base, source index.NID) (err error) {
	switch {
	case e.opaque:
		source = 0
	case e.redirect != "":
		if source, err = w.redirected(p, e.redirect); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	inner := &place{path: c.Path, lazy: e.lazy, hidden: p.hidden}
	if inner.base, err = w.ifDir(base); err != nil {
		return err
	}
	if inner.source, err = w.ifDir(source); err != nil {
		return err
	}
	if inner.upper, err = e.openIn(p.upper, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
		return err
	}
	defer func() { _ = inner.upper.Close() }()
	return w.enter(inner, c)
}

// enter tells of the directory c and of what is beneath it.
func (w *changeWalk) enter(inner *place, c *Change) (err error) {
	if inner.base != 0 && !inner.hidden {
		if inner.base != inner.source {
			c.Opaque, inner.hidden = true, true
		} else if c.Unchanged, err = w.sameAttributes(c, inner.base); err != nil {
			return err
		}
	}
	if err := w.tell(c); err != nil {
		return err
	}
	return w.walk(inner)
}

// ifDir returns nid if it is a directory, else 0.
func (w *changeWalk) ifDir(nid index.NID) (index.NID, error) {
	if nid == 0 {
		return 0, nil
	}
	var a index.Attr
	if err := w.lower.Attr(nid, &a); err != nil {
		return 0, err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, nil
	}
	return nid, nil
}

// carried tells of what came to p from elsewhere in the lower tree.
func (w *changeWalk) carried(p *place, name string, base, source index.NID) (err error) {
	c := &Change{Path: p.join(name), Kind: kind(base)}
	if err := w.describe(c, source); err != nil {
		return err
	}
	if c.Attr.Mode&unix.S_IFMT != unix.S_IFDIR {
		if c.Attr.Nlink > 1 {
			c.Link = w.link(inode{0, uint64(source)}, c.Path)
		}
		return w.tell(c)
	}
	inner := &place{path: c.Path, source: source, hidden: p.hidden}
	if inner.base, err = w.ifDir(base); err != nil {
		return err
	}
	return w.enter(inner, c)
}

// describe fills c with what the lower tree says of nid.
func (w *changeWalk) describe(c *Change, nid index.NID) error {
	if err := w.lower.Attr(nid, &c.Attr); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	c.Attr.Ino = 0
	switch c.Attr.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		c.Attr.Size, c.Attr.Nlink = 0, 0
	case unix.S_IFLNK:
		target, err := w.lower.Readlink(nid)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
		c.Target, c.Attr.Size = string(target), 0
	case unix.S_IFREG:
		c.open = w.opener(nid)
	default:
		c.Attr.Size = 0
	}
	var err error
	c.Xattrs, err = w.xattrs(nid)
	return err
}

func (w *changeWalk) xattrs(nid index.NID) (list []index.Xattr, err error) {
	err = w.lower.Xattrs(nid, func(name string, value []byte) bool {
		list = append(list, index.Xattr{Name: name, Value: bytes.Clone(value)})
		return true
	})
	sortXattrs(list)
	return list, err
}

// sameAttributes tells whether c has the type, attributes, target and xattrs of
// the lower nid.
func (w *changeWalk) sameAttributes(c *Change, nid index.NID) (bool, error) {
	was := &Change{Path: c.Path}
	if err := w.describe(was, nid); err != nil {
		return false, err
	}
	a, b := c.Attr, was.Attr
	a.Nlink, b.Nlink = 0, 0
	if w.coarse && b.MtimeNsec == 0 && a.MtimeNsec != 0 {
		up := int64(a.MtimeNsec / 500_000_000) // rounded, half up
		if b.Mtime == a.Mtime || b.Mtime == a.Mtime+up {
			a.Mtime, a.MtimeNsec = b.Mtime, 0
		}
	}
	return a == b && c.Target == was.Target && slices.EqualFunc(c.Xattrs, was.Xattrs, func(x, y index.Xattr) bool {
		return x.Name == y.Name && bytes.Equal(x.Value, y.Value)
	}), nil
}

// same tells whether c is what the lower nid is, contents included; shared says
// that these are the lower ones. A lower file with several names that was copied
// up has left the others.
func (w *changeWalk) same(c *Change, nid index.NID, shared bool) (bool, error) {
	var was index.Attr
	if err := w.lower.Attr(nid, &was); err != nil {
		return false, err
	}
	if same, err := w.sameAttributes(c, nid); err != nil || !same || was.Nlink > 1 {
		return false, err
	}
	if c.open == nil || shared {
		return true, nil
	}
	return w.sameContents(c, nid)
}

const compareSize = 128 << 10

func (w *changeWalk) sameContents(c *Change, nid index.NID) (bool, error) {
	f, err := c.Open(w.ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	p, q := make([]byte, compareSize), make([]byte, compareSize)
	for off := int64(0); ; {
		n, err := io.ReadFull(f, p)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return false, fmt.Errorf("read %s: %w", path.Join(w.upper.Dir, c.Path), err)
		}
		m, err := w.lower.Read(w.ctx, nid, q, off)
		if err != nil {
			return false, fmt.Errorf("read %s of the image: %w", c.Path, err)
		}
		if !bytes.Equal(p[:n], q[:m]) {
			return false, nil
		}
		if end {
			return true, nil
		}
		off += int64(n)
	}
}
