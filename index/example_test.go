package index_test

import (
	"fmt"

	"github.com/laminafs/lamina/index"
)

// Two layers: the upper one hides a file of the lower one and adds another.
func ExampleMerge() {
	lower := &index.Tree{
		Root:    &index.Node{Mode: 0o040755},
		Devices: []index.Device{{Tag: "lower", Size: 4096}},
	}
	for i, name := range []string{"passwd", "shadow"} {
		lower.Root.SetChild(name, &index.Node{
			Mode: 0o100644, Size: 1000,
			Extents: []index.Extent{{Len: 1000, Off: int64(i) * 2048, Device: 1}},
		})
	}
	upper := &index.Tree{
		Root:    &index.Node{Mode: 0o040755, Flags: index.Implicit},
		Devices: []index.Device{{Tag: "upper", Size: 1024}},
	}
	upper.Root.SetChild("shadow", &index.Node{Mode: 0o020000}) // a whiteout
	upper.Root.SetChild("group", &index.Node{
		Mode: 0o100644, Size: 10,
		Extents: []index.Extent{{Len: 10, Off: 512, Device: 1}},
	})

	var layers []*index.Index
	for _, tree := range []*index.Tree{lower, upper} {
		image, err := tree.Encode()
		if err != nil {
			panic(err)
		}
		x, err := index.New(image)
		if err != nil {
			panic(err)
		}
		layers = append(layers, x)
	}
	merged, err := index.Merge(layers)
	if err != nil {
		panic(err)
	}
	for name, n := range merged.Root.Children() {
		fmt.Println(name, n.Size, n.Extents)
	}
	// Output:
	// group 10 [{0 10 512 2}]
	// passwd 1000 [{0 1000 0 1}]
}
