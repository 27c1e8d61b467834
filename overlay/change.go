package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/laminafs/lamina/index"
)

// ErrUpper: an upper directory is damaged, or was not made over this tree.
var ErrUpper = errors.New("damaged or foreign upper directory")

// ChangeKind is how a path of the union differs from the lower tree, in the
// letters that docker diff prints.
type ChangeKind byte

// The kinds: the lower tree has nothing at the path, something else, or
// something where the union has nothing.
const (
	Added    ChangeKind = 'A'
	Modified ChangeKind = 'C'
	Deleted  ChangeKind = 'D'
)

// Change is one path at which the union differs from the lower tree.
type Change struct {
	// Path has no slash at its beginning; the root's is ".".
	Path string
	Kind ChangeKind
	// Unchanged says of a Modified directory that it is the lower one, attributes
	// and all: it is told of because of what is beneath it.
	Unchanged bool
	// Opaque says of a directory that nothing the lower tree has beneath it is in
	// the union: what is there follows in whole.
	Opaque bool
	// Covered says of a Deleted path that it is beneath an Opaque directory.
	Covered bool

	// Of what is Deleted, what follows is that of the lower entry.

	// Attr has neither Ino nor, of directories, Size and Nlink.
	Attr index.Attr
	// Target is what a symbolic link points to.
	Target string
	// Xattrs are in order of their names. Those of overlayfs are not among them.
	Xattrs []index.Xattr
	// Link is the path of an earlier Change that has the same inode, or empty.
	Link string

	open func(ctx context.Context) (io.ReadCloser, error)
}

// Open returns the contents of a regular file, Attr.Size bytes if nobody writes
// to it meanwhile. It may be called until the function that was given the Change
// returns. What the lower tree has of it is read as ctx allows.
func (c *Change) Open(ctx context.Context) (io.ReadCloser, error) {
	if c.open == nil {
		return nil, fmt.Errorf("open %s: %w", c.Path, os.ErrInvalid)
	}
	return c.open(ctx)
}

// lowerFile reads a regular file of a tree from front to back.
type lowerFile struct {
	ctx  context.Context
	tree *Tree
	nid  index.NID
	off  int64
}

func (f *lowerFile) Read(p []byte) (int, error) {
	n, err := f.tree.Read(f.ctx, f.nid, p, f.off)
	f.off += int64(n)
	if err == nil && n == 0 && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

func (f *lowerFile) Close() error { return nil }
