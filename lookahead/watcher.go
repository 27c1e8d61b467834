package lookahead

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// gather is how long wishes are gathered, for neighbours to come in one request.
const gather = time.Millisecond

const (
	// mostHeld bounds the bytes of files that are in memory while they are looked
	// at: more wait for their turn.
	mostHeld = 64 << 20
	// leastHeld is what is counted of a file besides its content.
	leastHeld = 128 << 10
)

// A Layer is what a Watcher needs of a layer; a *cache.Layer is one.
type Layer interface {
	overlay.Data
	// Key tells layers apart.
	Key() string
	// Peek fills p with the data from off on, if all of it is here.
	Peek(p []byte, off int64) bool
	// Want begins to fetch what is wished for.
	Want(wishes ...cache.Wish)
}

// A Watcher looks ahead of the programs that run from one tree.
type Watcher struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup      // Add only under mu with !closed
	held   *semaphore.Weighted // of mostHeld

	mu      sync.Mutex // guards what follows
	scene   *scene     // nil until there is a tree
	pending map[int][]cache.Wish
	elfs    map[string][]*namer // those that still may name files, by their layer's key
	closed  bool
}

// scene is the tree and its layers, the bottom one first.
type scene struct {
	tree   *overlay.Tree
	layers []Layer
	python python
}

// New returns a Watcher that does nothing yet.
func New() *Watcher {
	w := &Watcher{
		pending: make(map[int][]cache.Wish), elfs: make(map[string][]*namer),
		held: semaphore.NewWeighted(mostHeld),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Watch gives w the tree in which what files name is looked for, and its layers,
// the bottom one first. Both must stay open until Close has returned.
func (w *Watcher) Watch(t *overlay.Tree, layers []Layer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.scene = &scene{tree: t, layers: layers}
}

// Began is for cache.Options.Began. It returns at once.
func (w *Watcher) Began(l *cache.Layer, b cache.Begun) { w.began(l.Key(), b) }

func (w *Watcher) began(key string, b cache.Begun) {
	var look func(context.Context, *scene, file) ([]wish, error)
	switch {
	case isELF(b.Head):
		look = libraries
	case isCompiled(b.Head):
		look = imports
	default:
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.scene == nil || w.closed {
		return
	}
	s := w.scene
	for i, l := range s.layers {
		if l.Key() != key {
			continue
		}
		if isELF(b.Head) {
			w.listen(key, b)
		}
		held := int64(leastHeld)
		if isCompiled(b.Head) {
			held += min(b.Len, maxModule)
		}
		w.wg.Go(func() {
			if w.held.Acquire(w.ctx, held) != nil {
				return
			}
			defer w.held.Release(held)
			// A file that cannot be understood costs its reader nothing.
			wishes, _ := look(w.ctx, s, file{layer: i, off: b.Off, len: b.Len, sure: b.Sure})
			w.wish(wishes)
		})
		return
	}
}

// file is a file that was begun.
type file struct {
	layer    int
	off, len int64 // its data
	sure     bool
}

// wish is a part of the tree's data that may be read soon.
type wish struct {
	extents []index.Extent // Device i is layer i-1
	ends    bool
	sure    bool
	alone   bool // nothing is looked for in it before it is read
}

// wish has what is wished for fetched soon.
func (w *Watcher) wish(wishes []wish) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(wishes) == 0 {
		return
	}
	if len(w.pending) == 0 {
		w.wg.Go(w.flush)
	}
	for _, v := range wishes {
		for _, e := range v.extents {
			i := int(e.Device) - 1
			w.pending[i] = append(w.pending[i], cache.Wish{Off: e.Off, Len: e.Len, Ends: v.ends, Sure: v.sure, Alone: v.alone})
		}
	}
}

// flush passes on what was wished for lately.
func (w *Watcher) flush() {
	select {
	case <-time.After(gather):
	case <-w.ctx.Done():
	}
	w.mu.Lock()
	pending, s := w.pending, w.scene
	w.pending = make(map[int][]cache.Wish)
	w.mu.Unlock()
	for i, wishes := range pending {
		s.layers[i].Want(wishes...)
	}
}

// Close ends what is under way and waits for it.
func (w *Watcher) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cancel()
	w.wg.Wait()
}

// begins tells whether f begins with e. An image may have a layer twice.
func (s *scene) begins(f file, e index.Extent) bool {
	return e.Off == f.off && s.layers[e.Device-1].Key() == s.layers[f.layer].Key()
}

// reader reads a file by its place in the data of its layer. Of one that is only
// a guess it reads what is here: nothing is fetched for it before what is sure.
func (s *scene) reader(ctx context.Context, f file) io.ReaderAt {
	return dataReader{ctx, s.layers[f.layer], f}
}

type dataReader struct {
	ctx  context.Context
	data Layer
	file file
}

// errNotHere: a guess leads to data that has not come.
var errNotHere = errors.New("not here yet")

func (r dataReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off >= r.file.len {
		return 0, io.ErrUnexpectedEOF
	}
	if left := r.file.len - off; int64(len(p)) > left {
		p, err = p[:left], io.EOF
	}
	if !r.file.sure {
		if !r.data.Peek(p, r.file.off+off) {
			return 0, errNotHere
		}
		return len(p), err
	}
	if err := r.data.ReadAt(r.ctx, p, r.file.off+off); err != nil {
		return 0, err
	}
	return len(p), err
}
