package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

// CheckOptions are what Store.Check needs to know.
type CheckOptions struct {
	// Repair drops what is wrong, so that it is made or fetched again.
	Repair bool
	// Progress, if not nil, is told how many bytes of data were read, of how
	// many, by one goroutine at a time.
	Progress func(done, total int64)
	// Unverified, if not nil, is told the path of the data, from the store's
	// directory, of each layer whose chunk table has no digests of it: only what
	// no chunk covers was looked at.
	Unverified func(object string)
}

// A Problem is something wrong in the store.
type Problem struct {
	// Object is the path of what is wrong, from the store's directory.
	Object string
	// What says what is wrong with it.
	What string
	// Repaired: it was dropped, and nobody will be served it any more. Pages that
	// the kernel keeps of a data file it was given may live as long as the mount.
	Repaired bool
	// Err is why it was not, if that was tried. ErrInUse: it can be when those who
	// have the layer or chain open have closed it.
	Err error
}

// Check reads all layers and chains of the store and returns what is wrong with
// them: indexes and chunk tables that are not sound, bitmaps that do not belong to
// their table, data that differs from its digest, and files that do not belong
// there. Chunks that will be verified before they are used, as all of an incomplete
// layer are after a restart of the machine, are not read, nor are local tars that
// are read in place, nor data without digests (CheckOptions.Unverified).
//
// Other processes may use the store meanwhile, and nothing that they do looks like
// a problem. With Repair, wrong chunks are dropped even from layers that others
// read, who fetch them again; a layer whose index or table is damaged, or that lost
// its data file, is removed, and so is a damaged chain, unless somebody has it open.
// What lamina did not make is left alone.
//
// The error is that of ctx, or of a store that cannot be listed; what was found
// before is returned with it.
func (s *Store) Check(ctx context.Context, o CheckOptions) ([]Problem, error) {
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	c := &checker{store: s, opts: o}
	if err := c.run(ctx); err != nil {
		return c.found, fmt.Errorf("check store %s: %w", s.root, err)
	}
	return c.found, nil
}

// checker is one Check.
type checker struct {
	store *Store
	opts  CheckOptions
	found []Problem
	done  int64 // bytes of data read, or passed by
	total int64
	buf   []byte
}

func (c *checker) run(ctx context.Context) error {
	layers, err := c.store.Layers()
	if err != nil {
		return err
	}
	chains, err := c.store.Chains()
	if err != nil {
		return err
	}
	for _, l := range layers {
		c.total += toRead(&l)
	}
	c.opts.Progress(0, c.total)
	until := int64(0)
	for _, l := range layers {
		until += toRead(&l)
		if err := c.layer(ctx, l.Key, until); err != nil {
			return err
		}
		c.done = until
		c.opts.Progress(c.done, c.total)
	}
	for _, ch := range chains {
		if err := c.chain(ctx, ch.ID); err != nil {
			return err
		}
	}
	for _, kind := range []string{"layers", "chains"} {
		if err := c.strays(ctx, kind); err != nil {
			return err
		}
	}
	return nil
}

// toRead is how many bytes of data will be read of a layer, about.
func toRead(l *LayerInfo) int64 {
	if l.InPlace {
		return 0
	}
	return l.Present
}

// report adds a problem. repair, if not nil, is called if it shall be repaired.
func (c *checker) report(object, what string, repair func() error) {
	p := Problem{Object: object, What: what}
	if c.opts.Repair && repair != nil {
		p.Err = repair()
		p.Repaired = p.Err == nil
	}
	c.found = append(c.found, p)
}

// flaws are what is wrong with a layer.
type flaws struct {
	index, table, data error // with any of them the layer is of no use
	bitmap             error
	chunks             []int      // present, and not what they should be; ascending
	gaps               [][2]int64 // data that no chunk covers, and that is not zeros
}

func (f *flaws) none() bool {
	return f.index == nil && f.table == nil && f.data == nil && f.bitmap == nil && len(f.chunks)+len(f.gaps) == 0
}

// layer checks the layer called key. The first look is without a lock and may be
// mistaken, when the layer is removed, made or evicted from meanwhile. What it
// finds is looked at again under the lock of all of those.
func (c *checker) layer(ctx context.Context, key string, until int64) error {
	f, err := c.examine(ctx, key, nil, func(n int64) {
		c.done = min(c.done+n, until)
		c.opts.Progress(c.done, c.total)
	})
	if err != nil || f.none() {
		return err
	}
	lock, err := c.store.lockLayer(ctx, key)
	if errors.Is(err, ErrInUse) {
		return nil // it is made anew right now
	}
	if err != nil {
		return err
	}
	defer lock.unlock()
	f, err = c.examine(ctx, key, f, func(int64) {})
	if err != nil || f.none() {
		return err
	}
	c.reportLayer(ctx, key, f)
	return nil
}

// examine looks for what is wrong with the layer called key. If last is not nil,
// it reads no data but what was wrong then. read is told the bytes of chunks read.
func (c *checker) examine(ctx context.Context, key string, last *flaws, read func(n int64)) (*flaws, error) {
	f := &flaws{}
	v := c.store.look(key)
	defer v.close()
	if v == nil {
		return f, nil
	}
	f.index, f.table, f.bitmap = v.indexErr, v.tableErr, v.bitmapErr
	size := int64(-1)
	if f.table == nil {
		if f.table = v.table.Check(); f.table == nil {
			size = v.table.DataSize()
		}
	}
	if f.index == nil {
		f.index = checkIndex(c.store.layerPath(key, indexName), size)
	}
	if f.table == nil && f.bitmap == nil && !v.inPlace {
		data, err := os.Open(c.store.layerPath(key, dataName))
		if err != nil {
			f.data = err
		} else {
			defer func() { _ = data.Close() }()
			if last == nil && !v.table.Comparable() && c.opts.Unverified != nil {
				c.opts.Unverified(filepath.Join("layers", key, dataName))
			}
			if err := c.readData(ctx, v, data, f, last, read); err != nil {
				return nil, err
			}
		}
	}
	if !c.store.Has(key) {
		return &flaws{}, nil // removed meanwhile
	}
	return f, nil
}

// readData adds what is wrong with the data of v to f: with all, or with what was
// wrong last.
func (c *checker) readData(ctx context.Context, v *view, data *os.File, f, last *flaws, read func(n int64)) error {
	whole := v.bm.whole()
	chunk := func(i int) {
		if ch := v.table.Chunk(i); whole || v.bm.has(i, &ch.Digest) {
			if v.table.Comparable() && !c.isRight(v.table, i, &ch, data) {
				f.chunks = append(f.chunks, i)
			}
			read(ch.Len)
		}
	}
	if last != nil {
		for _, i := range last.chunks {
			if i < v.table.Len() { // else it is another table by now
				chunk(i)
			}
		}
		for _, g := range last.gaps {
			if !c.isZero(data, g[0], g[1]) {
				f.gaps = append(f.gaps, g)
			}
		}
		return context.Cause(ctx)
	}
	end := int64(0)
	for i := range v.table.Len() {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		ch := v.table.Chunk(i)
		if !c.isZero(data, end, ch.Off) {
			f.gaps = append(f.gaps, [2]int64{end, ch.Off})
		}
		end = ch.Off + ch.Len
		chunk(i)
	}
	if size := v.table.DataSize(); !c.isZero(data, end, size) {
		f.gaps = append(f.gaps, [2]int64{end, size})
	}
	return nil
}

// isRight tells whether chunk i of t, which ch is, has the bytes that it should.
// What cannot be read has not.
func (c *checker) isRight(t *layer.Table, i int, ch *layer.Chunk, data *os.File) bool {
	if int64(len(c.buf)) < ch.Len {
		c.buf = make([]byte, ch.Len)
	}
	p := c.buf[:ch.Len]
	_, err := data.ReadAt(p, ch.Off)
	return err == nil && t.Verify(i, p) == nil
}

// isZero tells whether data [off, end) is zeros, or not there. Holes cost nothing:
// they may be as large as a number can be.
func (c *checker) isZero(data *os.File, off, end int64) bool {
	var buf [4096]byte
	for off < end {
		if end-off > int64(len(buf)) {
			next, err := unix.Seek(int(data.Fd()), off, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) || err == nil && next >= end {
				return true
			}
			if err == nil {
				off = next
			}
		}
		n, err := data.ReadAt(buf[:min(int64(len(buf)), end-off)], off)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return false
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		off += int64(n)
	}
	return true
}

// checkIndex reads the whole index at path, and checks that every file's data is
// where there is data: within the devices, of which size, unless negative, is that
// of the only one.
func checkIndex(path string, size int64) error {
	if err := index.CheckSum(path); err != nil {
		return err
	}
	x, err := index.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = x.Close() }()
	tree, err := x.Tree()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if size >= 0 && (len(tree.Devices) != 1 || tree.Devices[0].Size != size) {
		return fmt.Errorf("%s: %w: not the index of %d bytes of data", path, index.ErrCorrupt, size)
	}
	if err := tree.CheckExtents(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// isDamage reports whether err is a verdict on a file, and not one on this process
// or its rights, for which nothing must be thrown away.
func isDamage(err error) bool {
	return errors.Is(err, index.ErrCorrupt) || errors.Is(err, layer.ErrTable) ||
		errors.Is(err, errBitmap) || errors.Is(err, fs.ErrNotExist)
}

// reportLayer reports f of the layer called key, and repairs it. The layer's lock
// is held.
func (c *checker) reportLayer(ctx context.Context, key string, f *flaws) {
	dir := filepath.Join("layers", key)
	removed := false
	var rerr error
	for _, x := range []struct {
		name string
		err  error
	}{{indexName, f.index}, {tableName, f.table}, {dataName, f.data}} {
		if x.err == nil {
			continue
		}
		c.report(filepath.Join(dir, x.name), x.err.Error(), func() error {
			if !isDamage(x.err) {
				return x.err
			}
			if !removed {
				removed = true
				_, rerr = c.store.removeLayer(key)
			}
			return rerr
		})
	}
	if removed && rerr == nil {
		return
	}
	if f.bitmap != nil {
		c.report(filepath.Join(dir, bitmapName), f.bitmap.Error(), func() error { return c.store.renewBitmap(key, f.bitmap) })
	}
	for i, j := 0, 0; i < len(f.chunks); i = j {
		for j = i + 1; j < len(f.chunks) && f.chunks[j] == f.chunks[j-1]+1; j++ {
		}
		first, last := f.chunks[i], f.chunks[j-1]
		c.report(filepath.Join(dir, dataName), fmt.Sprintf("wrong bytes in %d chunks from %d on", last+1-first, first), func() error {
			return c.store.dropWrong(ctx, key, first, last+1)
		})
	}
	if len(f.gaps) > 0 {
		c.report(filepath.Join(dir, dataName), fmt.Sprintf("bytes that are in no file and should be zeros, at %d", f.gaps[0][0]), func() error {
			return c.store.punchGaps(key, f.gaps)
		})
	}
}

// chain checks the chain called id.
func (c *checker) chain(ctx context.Context, id string) error {
	path := filepath.Join(c.store.root, "chains", id, mergedName)
	wrong := func() error {
		err := checkIndex(path, -1)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // not made yet, or removed
		}
		return err
	}
	if wrong() == nil {
		return nil
	}
	lock, err := waitFlock(ctx, c.store.lockPath("chain", id), nil)
	if err != nil {
		return err
	}
	defer lock.unlock()
	if err := wrong(); err != nil {
		c.report(filepath.Join("chains", id, mergedName), err.Error(), func() error {
			if !isDamage(err) {
				return err
			}
			_, err := c.store.removeChain(id)
			return err
		})
	}
	return context.Cause(ctx)
}

// belongs tells whether the directories of kind may have a file called name.
func belongs(kind, name string) bool {
	if kind == "chains" {
		return name == mergedName
	}
	switch name {
	case indexName, tableName, bitmapName, dataName, prefetchName, partialName, refusedName, doubtedName:
		return true
	}
	return false
}

// errNotOurs: there is something in the store that lamina did not make.
var errNotOurs = errors.New("not made by lamina: left alone")

// strays reports what does not belong into the store's directory kind.
func (c *checker) strays(ctx context.Context, kind string) error {
	entries, err := os.ReadDir(filepath.Join(c.store.root, kind))
	if err != nil {
		return err
	}
	for _, d := range entries {
		name := d.Name()
		object := filepath.Join(kind, name)
		switch {
		case strings.HasPrefix(name, removedPrefix):
			c.removed(object)
		case !d.IsDir() || !isKey(name):
			c.report(object, "does not belong here", func() error { return errNotOurs })
		default:
			if err := c.straysIn(ctx, kind, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// removed reports the directory object, whose deletion was begun, unless somebody
// is at it.
func (c *checker) removed(object string) {
	path := filepath.Join(c.store.root, object)
	lock, err := lockDir(path)
	if err != nil {
		return // at work, or done
	}
	defer func() { _ = lock.Close() }()
	if !exists(path) {
		return
	}
	c.report(object, "left by a removal that was interrupted", func() error { return os.RemoveAll(path) })
}

// straysIn reports what does not belong into the directory kind/name.
func (c *checker) straysIn(ctx context.Context, kind, name string) error {
	dir := filepath.Join(kind, name)
	entries, err := os.ReadDir(filepath.Join(c.store.root, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range entries {
		object := filepath.Join(dir, d.Name())
		switch {
		case belongs(kind, d.Name()):
		case isTemporary(d.Name()):
			if err := c.temporary(ctx, kind, name, object); err != nil {
				return err
			}
		default:
			c.report(object, "does not belong here", func() error { return errNotOurs })
		}
	}
	return nil
}

// isTemporary tells whether name is that of a file before it is whole.
func isTemporary(name string) bool {
	return strings.HasPrefix(name, ".index-") || strings.HasPrefix(name, ".chunks-") || strings.HasPrefix(name, refusing)
}

// temporary reports object, a file in the directory kind/name, unless it is being
// written: that is done under the lock of the directory's making.
func (c *checker) temporary(ctx context.Context, kind, name, object string) error {
	var lock *flock
	var err error
	if kind == "layers" {
		lock, err = c.store.lockLayer(ctx, name)
	} else {
		lock, err = waitFlock(ctx, c.store.lockPath("chain", name), nil)
	}
	if errors.Is(err, ErrInUse) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.unlock()
	if path := filepath.Join(c.store.root, object); exists(path) {
		c.report(object, "left by a process that was killed", func() error { return os.Remove(path) })
	}
	return nil
}
