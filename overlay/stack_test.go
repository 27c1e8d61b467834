package overlay_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// randomLayer makes a layer of files, directories, whiteouts and what hides all that is
// beneath it, under few names. Its times tell it from others.
func randomLayer(rng *rand.Rand, time int64) *index.Node {
	var dir func(depth int) *index.Node
	dir = func(depth int) *index.Node {
		n := &index.Node{Mode: unix.S_IFDIR | 0o755, Mtime: time}
		named := 0
		for _, name := range strings.Split("abc", "") {
			switch k := rng.IntN(10); {
			case k < 3 && depth < 3:
				n.SetChild(name, dir(depth+1))
				named++
			case k < 5:
				n.SetChild(name, &index.Node{Mode: unix.S_IFREG | 0o644, Mtime: time})
				named++
			case k < 7:
				n.SetChild(name, &index.Node{Mode: unix.S_IFCHR})
			}
		}
		switch k := rng.IntN(6); {
		case k == 0 && depth > 0:
			n.Xattrs = []index.Xattr{{Name: "trusted.overlay.opaque", Value: []byte("y")}}
		case k < 3 && named > 0:
			n.Flags, n.Mode, n.Mtime = index.Implicit, unix.S_IFDIR|0o700, 0
		}
		return n
	}
	return dir(0)
}

// TestFindIsMerge: what is found in layers one by one is what is in the merged tree.
func TestFindIsMerge(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var layers []*index.Index
		for i := range 2 + rng.IntN(3) {
			b, err := (&index.Tree{Root: randomLayer(rng, int64(i+1)), Devices: []index.Device{{Size: 512}}}).Encode()
			if err != nil {
				t.Fatal(err)
			}
			x, err := index.New(b)
			if err != nil {
				t.Fatal(err)
			}
			layers = append(layers, x)
		}
		tree := func(layers []*index.Index) *overlay.Tree {
			m, err := index.Merge(layers)
			if err != nil {
				t.Fatal(err)
			}
			b, err := m.Encode()
			if err != nil {
				t.Fatal(err)
			}
			x, err := index.New(b)
			if err != nil {
				t.Fatal(err)
			}
			return overlay.New(x, make([]overlay.Data, len(layers)))
		}
		beneath := 1 + rng.IntN(len(layers)-1)
		base := overlay.Base{Lower: tree(layers[:beneath])}
		for _, x := range layers[beneath:] {
			base.Layers = append(base.Layers, overlay.New(x, make([]overlay.Data, 1)))
		}
		all := tree(layers)
		var compare func(p string, depth int)
		compare = func(p string, depth int) {
			var want index.Attr
			nid, err := all.Resolve("/" + p)
			if err == nil {
				if err := all.Attr(nid, &want); err != nil {
					t.Fatal(err)
				}
			}
			got, ok, ferr := base.Find(p)
			if ferr != nil || ok != (err == nil) || got.Mode != want.Mode || got.Mtime != want.Mtime {
				t.Errorf("seed %d, %s: found %v, mode %o of layer %d, %v; merged is mode %o of layer %d, %v",
					seed, p, ok, got.Mode, got.Mtime, ferr, want.Mode, want.Mtime, err)
			}
			if depth == 4 {
				return
			}
			for _, name := range strings.Split("abc", "") {
				compare(strings.TrimPrefix(p+"/"+name, "./"), depth+1)
			}
		}
		compare(".", 0)
		if t.Failed() {
			return
		}
	}
}
