package index_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/laminafs/lamina/index"
)

// FuzzIndex reads any bytes in every way there is. The superblock's checksum is
// made right, or nothing behind it would ever be reached.
func FuzzIndex(f *testing.F) {
	for seed := range uint64(12) {
		g := newGen(seed)
		g.layer = seed%2 == 0
		b, err := g.tree(2 + g.IntN(12)).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(seed*977), uint64(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint32, with uint64) {
		b = bytes.Clone(b)
		if len(b) >= 1536 {
			// Besides what the fuzzer does, put a number somewhere.
			if i := int(at) % (len(b) - 8); with != 0 {
				binary.LittleEndian.PutUint64(b[i:], with)
			}
			clear(b[1028:1032])
			sum := ^crc32.Checksum(b[1024:1536], crc32.MakeTable(crc32.Castagnoli))
			binary.LittleEndian.PutUint32(b[1028:], sum)
		}
		x, err := index.New(b)
		if err != nil {
			if !errors.Is(err, index.ErrCorrupt) && !errors.Is(err, index.ErrNotDir) {
				t.Fatal(err)
			}
			return
		}
		for nid := range index.NID(len(b)/32 + 2) {
			readAll(t, x, nid)
		}
		readAll(t, x, 1<<59-1)
		readAll(t, x, 1<<64-1)
		tree, err := x.Tree()
		if err != nil {
			if !errors.Is(err, index.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		// What decodes can be encoded, and comes back the same.
		if len(tree.Devices) <= 1 {
			if _, err := index.Merge([]*index.Index{x, x}); err != nil {
				t.Fatal(err)
			}
		}
		again, err := tree.Encode()
		if err != nil {
			return // such as a size that needs too many chunks
		}
		y, err := index.New(again)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := y.Tree(); err != nil {
			t.Fatal(err)
		}
	})
}

// readAll calls every reader on nid; at most so often, since in a foreign image
// everything can lead everywhere.
func readAll(t *testing.T, x *index.Index, nid index.NID) {
	bad := func(err error) {
		switch {
		case err == nil, errors.Is(err, index.ErrCorrupt), err == index.ErrNotDir, err == index.ErrNotExist, err == index.ErrNoXattr:
		default:
			t.Fatal(err)
		}
	}
	var a index.Attr
	bad(x.Attr(nid, &a))
	_, err := x.Flags(nid)
	bad(err)
	_, err = x.Readlink(nid)
	bad(err)
	_, err = x.Xattr(nid, "user.a")
	bad(err)
	calls := 0
	bad(x.Xattrs(nid, func(name string, value []byte) bool {
		_, err := x.Xattr(nid, name)
		bad(err)
		calls++
		return calls < 20
	}))
	bad(x.Extents(nid, 3, 1<<62, func(e index.Extent) bool {
		if e.Len <= 0 || e.FileOff < 3 || e.Off < 0 || e.Device == 0 {
			t.Fatalf("extent %+v", e)
		}
		return true
	}))
	_, err = x.Lookup(nid, "usr")
	bad(err)
	calls = 0
	bad(x.ReadDir(nid, 0, func(d *index.Dirent) bool {
		_, err := x.Lookup(nid, string(d.Name))
		bad(err)
		calls++
		return calls < 50
	}))
	bad(x.ReadDir(nid, uint64(nid)*0x9E3779B97F4A7C15, func(*index.Dirent) bool { return false }))
}
