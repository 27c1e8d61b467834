package mount

import (
	"context"
	"sync"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/overlay"
)

// linker looks ahead of the dynamic linker: when a program or library is first
// read, what it needs is asked for at once, where the linker would find out one
// library after the other, a round trip each.
type linker struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards what follows
	tree   *overlay.Tree
	layers []*cache.Layer
	closed bool
}

func newLinker() *linker {
	l := new(linker)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// watch gives the linker the tree in which libraries are looked for.
func (l *linker) watch(t *overlay.Tree, layers []*cache.Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tree, l.layers = t, layers
}

// began is cache.Options.Began.
func (l *linker) began(layer *cache.Layer, off int64, head []byte) {
	if !overlay.IsProgram(head) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tree == nil || l.closed {
		return
	}
	tree, layers := l.tree, l.layers
	for i := range layers {
		if layers[i].Key() == layer.Key() {
			l.wg.Go(func() {
				// A file that cannot be understood costs its reader nothing.
				extents, _ := tree.Needed(l.ctx, i, off)
				for _, e := range extents {
					layers[e.Device-1].Want(e.Off, e.Len)
				}
			})
			return
		}
	}
}

// Close ends what is under way.
func (l *linker) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.wg.Wait()
}
