package layer_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/laminafs/lamina/layer"
)

// TestContainersStorage opens a blob that containers/storage's own writer made
// (integration/zstdchunked), with data, zeros, and both in one file. Its table
// must agree with its tar.
func TestContainersStorage(t *testing.T) {
	blob := readFile(t, "testdata/containers-storage.tar.zst")
	var notes map[string]string
	check(t, json.Unmarshal(readFile(t, "testdata/containers-storage.json"), &notes))
	z, err := zstd.NewReader(bytes.NewReader(blob))
	check(t, err)
	defer z.Close()
	tarBytes, err := io.ReadAll(z)
	check(t, err)
	src := source(blob, tarBytes, mediaZstd, notes)
	if _, f, lazy := layer.Key(src); f != layer.ZstdChunked || !lazy {
		t.Fatalf("recognised as %v, lazy %v", f, lazy)
	}
	streamed, _ := open(t, src, false)
	want := dump(t, streamed.Tree, inTar(tarBytes), false)
	s, err := loadTOC(src)
	check(t, err)
	table := kept(t, s)
	data := decodeAll(t, src, table, rand.New(rand.NewPCG(1, 1)))
	diff(t, "table of contents", dump(t, s.Tree, inTar(data), false), want)
	kinds := map[layer.Kind]int{}
	for i := range table.Len() {
		kinds[table.Chunk(i).Kind]++
	}
	if kinds[layer.Zeros] == 0 || kinds[layer.Data] < 6 {
		t.Errorf("chunks %v", kinds)
	}
	if l := strings.Join(list(s.Tree.Root, "", nil), " "); !strings.Contains(l, "gone whiteout") {
		t.Errorf("tree %s", l)
	}
}
