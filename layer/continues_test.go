package layer_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/laminafs/lamina/layer"
)

// filesTar is a tar of these files, of so many bytes each.
func filesTar(t testing.TB, names []string, size func(i int) int) []byte {
	t.Helper()
	rnd := rand.New(rand.NewPCG(8, 8))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, name := range names {
		p := content(rnd, size(i))
		check(t, w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(p))}))
		_, err := w.Write(p)
		check(t, err)
	}
	check(t, w.Close())
	return b.Bytes()
}

// TestContinues: tables of contents tell which chunks are of one file, and
// which files of one folder and kind; other formats do not, and still know where to
// start decoding.
func TestContinues(t *testing.T) {
	names := []string{"a/x.py", "a/y.py", "a/z.txt", "b/x.py", "b/libx.so.1", "bin/tool"}
	groups := []int{1, 1, 2, 3, 0, 0} // same number, same group; 0 is none
	b := filesTar(t, names, func(i int) int { return 40_000 + 150_000*(i%3) })
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			src := f.pack(t, b)
			s, _ := open(t, src, f.lazy)
			table := kept(t, s)
			check(t, table.Check())
			decodeAll(t, src, table, rand.New(rand.NewPCG(1, 2)))
			if !f.lazy {
				for i := range table.Len() {
					if c := table.Chunk(i); c.Continues || c.Group != 0 {
						t.Fatalf("chunk %d: %+v", i, c)
					}
				}
				return
			}
			checkFiles(t, s, table, names, groups)
		})
	}
}

// checkFiles compares Continues and Group of the table with the tree of s.
func checkFiles(t *testing.T, s *layer.Scanned, table *layer.Table, names []string, groups []int) {
	t.Helper()
	ids := make(map[int]layer.Group)
	seen := 0
	for n, name := range names {
		node := s.Tree.Root.Child(name[:bytes.IndexByte([]byte(name), '/')]).Child(name[bytes.IndexByte([]byte(name), '/')+1:])
		off := node.Extents[0].Off
		for i := range table.Len() {
			c := table.Chunk(i)
			if c.Off < off || c.Off >= off+node.Size {
				continue
			}
			seen++
			if c.Continues != (c.Off > off) {
				t.Errorf("%s: chunk at %d of it continues: %v", name, c.Off-off, c.Continues)
			}
			id, ok := ids[groups[n]]
			if !ok {
				ids[groups[n]] = c.Group
			} else if id != c.Group {
				t.Errorf("%s: group %#x, not %#x", name, c.Group, id)
			}
		}
	}
	different := make(map[layer.Group]bool)
	for _, id := range ids {
		different[id] = true
	}
	if ids[0] != 0 || len(different) != len(ids) || seen != table.Len() {
		t.Error(fmt.Sprint("groups ", ids, ", ", seen, " chunks of ", table.Len()))
	}
}
