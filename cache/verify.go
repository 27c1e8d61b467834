package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

// verifyIndexed compares the data of a layer that was opened by an index, and is
// whole, with its diff ID, and then the index with the headers in the data. The
// index is refused if either differs.
func (l *Layer) verifyIndexed(ctx context.Context) error {
	if l.diffID == "" {
		return nil
	}
	end := int64(0) // of the tar: what is behind it repeats parts of it
	for i := l.table.Len() - 1; i >= 0 && end == 0; i-- {
		if c := l.table.Chunk(i); c.Kind != layer.Copied {
			end = c.Off + c.Len
		}
	}
	v := l.diffID.Verifier()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < end; off += int64(len(buf)) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), end-off)]
		if err := readZeros(l.data, p, off); err != nil {
			return err
		}
		_, _ = v.Write(p) // a hash cannot fail
	}
	// What fills a tar up behind its end may not be in the index.
	padding := 0
	for ; padding < maxPadding && !v.Verified(); padding += blockLen {
		_, _ = v.Write(make([]byte, blockLen))
	}
	if !v.Verified() {
		return l.refuse(fmt.Errorf("the data that the index of blob %s leads to is not %s", l.table.BlobDigest(), l.diffID))
	}
	err := l.verifyTree(ctx, end, padding)
	if errors.Is(err, errOtherTree) || errors.Is(err, layer.ErrFormat) {
		return l.refuse(fmt.Errorf("the index of blob %s: %w", l.table.BlobDigest(), err))
	}
	return err
}

// readZeros fills p with the bytes of r from off on, and with zeros behind its end.
func readZeros(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}

// maxPadding bounds the zeros that a tar may end with besides those in its index:
// tar writes records of 10 KiB.
const maxPadding = 64 << 10

// errOtherTree: an index shows another tree than its layer has.
var errOtherTree = errors.New("other tree than the layer has")

// verifyTree compares the layer's index with what the headers of its tar say. That
// is the first end bytes of the data, which are verified, and padding zeros.
func (l *Layer) verifyTree(ctx context.Context, end int64, padding int) error {
	src := layer.Source{
		Desc:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.diffID, Size: end},
		DiffID: l.diffID, Blob: fetch.OpenFile(l.path, 0, end, l.diffID),
	}
	back := &repeats{tar: l.data, dir: l.store.layerPath(l.key, ""), base: (end + int64(padding) + blockLen - 1) / blockLen * blockLen}
	defer back.close()
	sc, err := layer.ScanTar(ctx, src)
	if errors.Is(err, layer.ErrNoTOC) { // it has sparse files
		tar := io.MultiReader(io.NewSectionReader(l.data, 0, end), bytes.NewReader(make([]byte, padding)))
		sc, err = l.store.stream(ctx, src, tar, back)
	}
	if err != nil {
		return fmt.Errorf("scan the data: %w", err)
	}
	if d := l.index.Devices(); len(d) == 1 {
		sc.Tree.Devices[0].Tag = d[0].Tag
	}
	image, err := sc.Tree.Encode()
	if err != nil {
		return err
	}
	// The same tree gives the same image, but other makers may have filled in
	// what does not matter in another way.
	if stored, err := os.ReadFile(l.store.layerPath(l.key, indexName)); err == nil && l.size <= back.base && bytes.Equal(image, stored) {
		return nil
	}
	x, err := index.New(image)
	if err != nil {
		return err
	}
	want, err := x.Tree()
	if err != nil {
		return err
	}
	defer l.index.Release() // all of it is looked at now, and little later
	got, err := l.index.Tree()
	if err != nil {
		return fmt.Errorf("%w: %w", errOtherTree, err)
	}
	t := &treeCheck{ctx: ctx, got: l.data, want: back}
	return t.compare(got.Root, want.Root)
}

// blockLen is what the data of files and the tar are aligned to.
const blockLen = 512

// repeats is a tar, and what Stream stores again behind it.
type repeats struct {
	tar  io.ReaderAt
	base int64 // where the tar ends
	dir  string
	f    *os.File // what is behind it; nil while there is nothing
}

// WriteAt implements io.WriterAt. What the tar has it has already.
func (r *repeats) WriteAt(p []byte, off int64) (int, error) {
	if off < r.base {
		return len(p), nil
	}
	if r.f == nil {
		f, err := os.CreateTemp(r.dir, refusing+"*")
		if err != nil {
			return 0, err
		}
		r.f = f
		_ = os.Remove(f.Name())
	}
	return r.f.WriteAt(p, off-r.base)
}

// ReadAt implements io.ReaderAt.
func (r *repeats) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < r.base:
		return r.tar.ReadAt(p, off)
	case r.f == nil:
		return 0, io.EOF
	}
	return r.f.ReadAt(p, off-r.base)
}

func (r *repeats) close() {
	if r.f != nil {
		_ = r.f.Close()
	}
}

// treeCheck compares two trees: one that is to be verified, and one that is right.
type treeCheck struct {
	ctx  context.Context
	got  io.ReaderAt // its data
	want *repeats
	a, b [64 << 10]byte
}

// compare returns nil if all that matters of the trees is the same. Fractions of
// seconds in times do not.
func (t *treeCheck) compare(got, want *index.Node) error {
	type pair struct {
		path      string
		got, want *index.Node
	}
	todo := []pair{{"", got, want}}
	for len(todo) > 0 {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := t.node(dir.got, dir.want); err != nil {
			return fmt.Errorf("%s/: %w", dir.path, err)
		}
		if dir.got.Len() != dir.want.Len() {
			return fmt.Errorf("%s/: %w: %d entries, not %d", dir.path, errOtherTree, dir.got.Len(), dir.want.Len())
		}
		for name, want := range dir.want.Children() {
			path := dir.path + "/" + name
			got := dir.got.Child(name)
			if got == nil {
				return fmt.Errorf("%q: %w: it is missing", path, errOtherTree)
			}
			if want.IsDir() {
				todo = append(todo, pair{path, got, want})
				continue
			}
			if err := t.node(got, want); err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
		}
	}
	return nil
}

// node compares two nodes, but for what is in them if they are directories.
func (t *treeCheck) node(got, want *index.Node) error {
	switch {
	case got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID || got.Rdev != want.Rdev || got.Flags != want.Flags:
		return fmt.Errorf("%w: type, mode or owner", errOtherTree)
	case got.Mtime != want.Mtime:
		return fmt.Errorf("%w: time", errOtherTree)
	case !bytes.Equal(got.Target, want.Target):
		return fmt.Errorf("%w: target", errOtherTree)
	case got.Size != want.Size:
		return fmt.Errorf("%w: size", errOtherTree)
	case !sameXattrs(got.Xattrs, want.Xattrs):
		return fmt.Errorf("%w: extended attributes", errOtherTree)
	}
	return t.content(got, want)
}

// sameXattrs compares what decoded nodes have: each name once.
func sameXattrs(a, b []index.Xattr) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		if !slices.ContainsFunc(b, func(y index.Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }) {
			return false
		}
	}
	return true
}

// content compares the content of files.
func (t *treeCheck) content(got, want *index.Node) error {
	base := t.want.base
	inTar := func(e index.Extent) bool { return e.Off+e.Len <= base }
	if slices.Equal(got.Extents, want.Extents) && !slices.ContainsFunc(got.Extents, func(e index.Extent) bool { return !inTar(e) }) {
		return nil
	}
	// It lies elsewhere, or is a copy. Where neither has an extent both are zeros.
	for _, e := range slices.Concat(got.Extents, want.Extents) {
		end := min(e.FileOff+e.Len, want.Size)
		for off := e.FileOff; off < end; off += int64(len(t.a)) {
			if err := context.Cause(t.ctx); err != nil {
				return err
			}
			n := min(int64(len(t.a)), end-off)
			if err := errors.Join(readFile(t.got, got, t.a[:n], off), readFile(t.want, want, t.b[:n], off)); err != nil {
				return err
			}
			if !bytes.Equal(t.a[:n], t.b[:n]) {
				return fmt.Errorf("%w: content at %d", errOtherTree, off)
			}
		}
	}
	return nil
}

// readFile fills p with the content of n from off on, whose extents are in data.
func readFile(data io.ReaderAt, n *index.Node, p []byte, off int64) error {
	clear(p)
	end := off + int64(len(p))
	i, _ := slices.BinarySearchFunc(n.Extents, off, func(e index.Extent, off int64) int {
		if e.FileOff+e.Len <= off {
			return -1
		}
		return 1
	})
	for _, e := range n.Extents[i:] {
		if e.FileOff >= end {
			break
		}
		from, to := max(off, e.FileOff), min(end, e.FileOff+e.Len)
		if err := readZeros(data, p[from-off:to-off], e.Off+from-e.FileOff); err != nil {
			return err
		}
	}
	return nil
}
