package overlay

import "github.com/laminafs/lamina/index"

// Find is find for tests: ok is false if nothing is at p.
func (b *Base) Find(p string) (a index.Attr, ok bool, err error) {
	at, err := b.find(p)
	if err != nil || at.tree == nil {
		return a, false, err
	}
	return a, true, at.tree.Attr(at.nid, &a)
}
