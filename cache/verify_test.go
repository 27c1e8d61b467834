package cache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/checkpoint"
	"github.com/laminafs/lamina/layer/tarscan"
)

// fillAll reads all of l, so that every chunk is there. What comes of it is
// looked at by who calls this.
func fillAll(t *testing.T, l *cache.Layer) {
	t.Helper()
	p := make([]byte, 1<<20)
	for off := int64(0); off < l.Size(); off += int64(len(p)) {
		if err := l.ReadAt(t.Context(), p[:min(int64(len(p)), l.Size()-off)], off); err != nil && !errors.Is(err, cache.ErrIndex) {
			t.Fatal(err)
		}
	}
	waitIdle(t, l)
}

// soon waits until ok is true.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// isRefused tells whether reads of l fail because its index is wrong.
func isRefused(l *cache.Layer) bool {
	return errors.Is(l.ReadAt(context.Background(), make([]byte, 1), 0), cache.ErrIndex)
}

// TestLayerVerified: a layer that was opened by an index is only for who asks for
// any.
func TestLayerVerified(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	s, indexed, err := openIndexed(t, t.TempDir(), f, load)
	if err != nil {
		t.Fatal(err)
	}
	loose, err := s.AnyLayer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	if loose.Key() != indexed.Key() || verified.Key() != layer.DiffKey(f.src) {
		t.Errorf("opened as %s and %s", loose.Key(), verified.Key())
	}
	if err := errors.Join(loose.Close(), verified.Close()); err != nil {
		t.Error(err)
	}
}

// TestIndexedLocked: a layer becomes complete though others had its lock when its
// last chunk came.
func TestIndexedLocked(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	dir := t.TempDir()
	_, l, err := openIndexed(t, dir, f, load)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := cache.WaitFlock(t.Context(), filepath.Join(dir, "locks", "layer-"+l.Key()), nil)
	if err != nil {
		t.Fatal(err)
	}
	fillAll(t, l)
	time.Sleep(2600 * time.Millisecond) // longer than what it was told of the last ones keeps it looking
	unlock()
	soon(t, "it never becomes complete", l.Complete)
}

// TestIndexedElsewhere: what one process finds out of an index holds for all.
func TestIndexedElsewhere(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	dir := t.TempDir()
	_, other, err := openIndexed(t, dir, f, wrongTree(load, func(root *index.Node) { root.Child("dir000").Mode ^= 0o22 }))
	if err != nil {
		t.Fatal(err)
	}
	s, l, err := openIndexed(t, dir, f, load)
	if err != nil {
		t.Fatal(err)
	}
	fillAll(t, l)
	soon(t, "the index is not refused", func() bool { return isRefused(l) })
	soon(t, "another process goes on serving it", func() bool { return isRefused(other) })
	left, err := filepath.Glob(filepath.Join(dir, "layers", l.Key(), ".refused-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%q is left, %v", left, err)
	}
	if p, err := s.Check(t.Context(), cache.CheckOptions{}); err != nil || len(p) > 0 {
		t.Errorf("problems %+v, %v", p, err)
	}
	// Nor is it served when that could not be noted.
	if err := os.Remove(filepath.Join(dir, "layers", l.Key(), "refused")); err != nil {
		t.Fatal(err)
	}
	if s.HasIndexed(f.src) {
		t.Error("it is offered again")
	}
	again, err := s.AnyLayer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.Key() == l.Key() {
		t.Error("it is opened again")
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// wrongTree is load with a tree that was changed.
func wrongTree(load func(context.Context) (*layer.Scanned, error), change func(root *index.Node)) func(context.Context) (*layer.Scanned, error) {
	return func(ctx context.Context) (*layer.Scanned, error) {
		sc, err := load(ctx)
		if err == nil {
			change(sc.Tree.Root)
		}
		return sc, err
	}
}

// TestIndexedTree: an index that leads to the right data but shows it as another
// tree is refused once all is there; what does not matter is let pass.
func TestIndexedTree(t *testing.T) {
	var list named
	for i := range 6 {
		list.add(fmt.Sprintf("dir000/file%d", i), 300_000)
	}
	f := gzipFixture(t, list)
	load := indexOf(t, f)
	child := func(root *index.Node, i int) *index.Node { return root.Child("dir000").Child(fmt.Sprint("file", i)) }
	for name, c := range map[string]struct {
		change func(root *index.Node)
		ok     bool
	}{
		"right":            {func(*index.Node) {}, true},
		"split seconds":    {func(r *index.Node) { child(r, 1).MtimeNsec++ }, true},
		"other time":       {func(r *index.Node) { child(r, 1).Mtime++ }, false},
		"setuid":           {func(r *index.Node) { child(r, 1).Mode |= 0o4000 }, false},
		"owner":            {func(r *index.Node) { child(r, 1).UID = 1 }, false},
		"mode of a folder": {func(r *index.Node) { r.Child("dir000").Mode |= 0o22 }, false},
		"missing":          {func(r *index.Node) { r.Child("dir000").RemoveChild("file3") }, false},
		"one more":         {func(r *index.Node) { r.SetChild("more", &index.Node{Mode: 0o100644}) }, false},
		"renamed": {func(r *index.Node) {
			r.Child("dir000").SetChild("other", child(r, 3))
			r.Child("dir000").RemoveChild("file3")
		}, false},
		"exchanged": {func(r *index.Node) {
			a, b := child(r, 3), child(r, 4)
			a.Extents, b.Extents = b.Extents, a.Extents
		}, false},
		"shorter": {func(r *index.Node) {
			n := child(r, 3)
			n.Size--
			n.Extents[0].Len--
		}, false},
		"a hole": {func(r *index.Node) { child(r, 3).Extents = nil }, false},
		"in two pieces": {func(r *index.Node) {
			n := child(r, 3)
			e := n.Extents[0]
			n.Extents = []index.Extent{{Len: 4096, Off: e.Off, Device: 1}, {FileOff: 4096, Len: e.Len - 4096, Off: e.Off + 4096, Device: 1}}
		}, true},
		"attribute": {func(r *index.Node) {
			child(r, 3).Xattrs = []index.Xattr{{Name: "security.capability", Value: []byte("all")}}
		}, false},
		"whiteout": {func(r *index.Node) { r.SetChild("etc", &index.Node{Mode: 0o020000}) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := f.again()
			s, l, err := openIndexed(t, t.TempDir(), f, wrongTree(load, c.change))
			if err != nil {
				t.Fatal(err)
			}
			fillAll(t, l)
			if c.ok {
				if err := l.Settle(); err != nil || !l.Complete() {
					t.Errorf("complete: %v, %v", l.Complete(), err)
				}
				return
			}
			if err := l.Settle(); !errors.Is(err, cache.ErrIndex) || l.Complete() || !isRefused(l) || s.HasIndexed(f.src) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestIndexedSparse: the same of data that is in the blob once and in the layer
// twice.
func TestIndexedSparse(t *testing.T) {
	p, _ := sparseTar(t)
	f := gzipOf(t, p)
	load := indexOf(t, f)
	for name, change := range map[string]func(*layer.Scanned){
		"right": func(*layer.Scanned) {},
		"wrong": func(sc *layer.Scanned) {
			for _, n := range sc.Tree.Root.Children() {
				if k := len(n.Extents); k > 1 {
					n.Extents[k-1].Off, n.Extents[k-2].Off = n.Extents[k-2].Off, n.Extents[k-1].Off
				}
			}
		},
	} {
		f := f.again()
		_, l, err := openIndexed(t, t.TempDir(), f, func(ctx context.Context) (*layer.Scanned, error) {
			sc, err := load(ctx)
			if err == nil {
				change(sc)
			}
			return sc, err
		})
		if err != nil {
			t.Fatal(err)
		}
		fillAll(t, l)
		if err := l.Settle(); errors.Is(err, cache.ErrIndex) != (name == "wrong") || l.Complete() != (name == "right") {
			t.Errorf("%s: complete: %v, %v", name, l.Complete(), err)
		}
	}
}

// TestIndexedPadded: an index may know nothing of the zeros that fill up a tar.
func TestIndexedPadded(t *testing.T) {
	list := files(73, 1, 100_000)
	p := tarOf(t, list)
	f := gzipOf(t, append(bytes.Clone(p), make([]byte, 8<<10)...))
	for name, mode := range map[string]int64{"right": 0o644, "wrong": 0o666} {
		f := f.again()
		_, l, err := openIndexed(t, t.TempDir(), f, func(context.Context) (*layer.Scanned, error) {
			a, err := layer.NewAssembly(f.src.Desc, int64(len(p)))
			if err != nil {
				return nil, err
			}
			const head = 10 // of gzip
			return second(a.Finish, a.Span(checkpoint.Checkpoint{In: head}, sha256.Sum256(f.blob.data[head:])),
				a.Entry(&tarscan.Header{Name: "dir000", Type: tarscan.TypeDir, Mode: 0o755}),
				a.Entry(&tarscan.Header{Name: list[0].name, Type: tarscan.TypeReg, Mode: mode, Size: int64(len(list[0].data)), Data: 1024}))
		})
		if err != nil {
			t.Fatal(err)
		}
		fillAll(t, l)
		if err := l.Settle(); errors.Is(err, cache.ErrIndex) != (name == "wrong") || l.Complete() != (name == "right") {
			t.Errorf("%s: complete: %v, %v", name, l.Complete(), err)
		}
	}
}

// second calls then unless there was an error.
func second[T any](then func() (T, error), errs ...error) (none T, err error) {
	if err := errors.Join(errs...); err != nil {
		return none, err
	}
	return then()
}

// cutFile is a data file that ends early.
type cutFile struct {
	cache.DataFile
	end int64
}

func (f cutFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.DataFile.ReadAt(p[:max(0, min(int64(len(p)), f.end-off))], off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// TestIndexedTail: where the data file ends before the data, which are zeros then,
// zeros are compared.
func TestIndexedTail(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	zeros := int64(len(f.data) - len(bytes.TrimRight(f.data, "\x00")))
	if zeros == 0 || int64(len(f.data))%(1<<20) < zeros || len(f.data) < 1<<20 {
		t.Fatal("the tar does not end in zeros")
	}
	o := cache.WithData(cache.Options{}, func(d cache.DataFile) cache.DataFile {
		return cutFile{d, int64(len(f.data)) - zeros}
	})
	s := openStore(t, t.TempDir(), o)
	l, err := s.Indexed(t.Context(), f.src, load)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}()
	if err := f.checkAll(t.Context(), l, 1<<20); err == nil {
		// The last read finds the end missing, and may fail for that.
		waitIdle(t, l)
	}
	for off := int64(0); off < l.Size(); off += 1 << 20 {
		_ = l.ReadAt(t.Context(), make([]byte, 1), off)
	}
	waitIdle(t, l)
	if err := l.Settle(); err != nil || !l.Complete() {
		t.Errorf("complete: %v, %v", l.Complete(), err)
	}
}

// TestIndexedCircle: a damaged index in which a folder is in itself does not keep
// the layer from being opened and read.
func TestIndexedCircle(t *testing.T) {
	f := compressed(t)
	load := indexOf(t, f)
	f = f.again()
	dir := t.TempDir()
	_, l, err := openIndexed(t, dir, f, load)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "layers", l.Key(), "index.erofs")
	nid, err := l.Index().Lookup(l.Index().Root(), "dir000")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	b = bytes.ReplaceAll(b, le.AppendUint64(nil, uint64(nid)), le.AppendUint64(nil, uint64(l.Index().Root())))
	if err := os.WriteFile(path+"-new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"-new", path); err != nil {
		t.Fatal(err)
	}
	var begun begun
	s := openStore(t, dir, begun.options())
	again, err := s.AnyLayer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	again.WaitStarts()
	if err := errors.Join(again.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestWishIsNoRead: to wish for a file whose beginning was fetched on speculation
// and is here is not to read it.
func TestWishIsNoRead(t *testing.T) {
	var list named
	for i := range 400 {
		list.add(fmt.Sprintf("dir%03d/file%03d", i/50, i), 20<<10)
	}
	f := gzipFixture(t, list)
	load := indexOf(t, f)
	f = f.again()
	var b begun
	s := openStore(t, t.TempDir(), b.options())
	l, err := s.Indexed(t.Context(), f.src, load)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(l.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}()
	l.WaitStarts()
	s.Overdraw(-100 << 20) // there is room for any wish
	l.Want(f.wish(t, l, 200, false))
	waitIdle(t, l)
	b.expect(t, f, l, 200)
	if st := l.Stats(); st.Speculated == 0 || st.SpeculatedUsed != 0 {
		t.Fatalf("%+v", st)
	}
	before := s.Budget()
	l.Want(f.wish(t, l, 201, false))
	waitIdle(t, l)
	b.expect(t, f, l, 200, 201)
	if st := l.Stats(); st.Used != 0 || st.SpeculatedUsed != 0 || s.Budget() < before {
		t.Errorf("it is booked as read: %+v, budget %d, was %d", st, s.Budget(), before)
	}
}

// TestOpenWhileEvicting: who waits for an eviction of one layer keeps nobody from
// another one.
func TestOpenWhileEvicting(t *testing.T) {
	f := gzipFixture(t, files(71, 10, 10<<10))
	g := gzipFixture(t, files(72, 10, 10<<10))
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := cache.WaitFlock(t.Context(), filepath.Join(dir, "locks", "hold-"+l.Key()), nil)
	if err != nil {
		t.Fatal(err)
	}
	other := f.src // another blob with the same content
	other.Desc.Digest = g.src.Desc.Digest
	waits := make(chan error)
	go func() {
		m, err := s.Layer(t.Context(), other, nil)
		if err == nil {
			err = m.Close()
		}
		waits <- err
	}()
	time.Sleep(100 * time.Millisecond)
	done := make(chan error, 1)
	go func() {
		m, err := s.Layer(t.Context(), g.src, nil)
		if err == nil {
			err = m.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
		done <- nil
	case <-time.After(5 * time.Second):
		t.Error("another layer cannot be opened")
	}
	unlock()
	if err := <-waits; err != nil {
		t.Error(err)
	}
	if err := errors.Join(<-done, l.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}
