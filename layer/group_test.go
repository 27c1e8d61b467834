package layer

import (
	"math"
	"path/filepath"
	"testing"
)

func TestGroupOf(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"usr/lib/python3/os.py", "usr/lib/python3/abc.py", true},
		{"usr/lib/python3/os.py", "usr/lib/python3/os.pyi", false},
		{"usr/lib/python3/os.py", "usr/lib/python/os.py", false},
		{"a/x.tar.gz", "a/y.gz", true}, // the last suffix counts
		{"a/b.c/x", "a/b.d/x", false},
		{"top.py", "other.py", true},
		{"top.py", "/other.py", false},
		{"usr/lib/libx.so", "usr/lib/liby.so", true},
		{"etc/hosts", "etc/passwd", true},
		{"etc/hosts", "etc/hosts.allow", false},
		{"usr/cabin/key", "usr/cabin/hut", true},   // no bin
		{"usr/bin/data/a", "usr/bin/data/b", true}, // nor here
		{"usr/bin/a.sh", "usr/bin/b.sh", true},     // no programs
		{"usr/lib/mod/x.abi3.so", "usr/lib/mod/y.so", true},
		{"usr/lib/mod/x.py", "usr/lib/mod/x.so", false},
	} {
		a, b := groupOf(c.a), groupOf(c.b)
		if a == 0 || b == 0 || (a == b) != c.same {
			t.Errorf("%s: %#x, %s: %#x; want same: %v", c.a, a, c.b, b, c.same)
		}
	}
	for _, name := range []string{
		"usr/lib/libc.so.6", "lib/libz.so.1.3.1", "usr/bin/env", "sbin/init", "bin/sh",
		"usr/lib/python3/__pycache__/os.cpython-311.pyc", "os.pyc",
		"lib-dynload/_json.cpython-311-x86_64-linux-gnu.so", "usr/sbin/cron", "/bin/cat", "./bin/ls",
	} {
		if g := groupOf(name); g != 0 {
			t.Errorf("%s is in group %#x", name, g)
		}
	}
}

// TestTableGroup: of one field of the record, tables of contents make a group
// and the others the point to start from; the rest is not touched.
func TestTableGroup(t *testing.T) {
	for f, toc := range map[Format]bool{Tar: false, Gzip: false, Zstd: false, EStargz: true, ZstdChunked: true} {
		var want []Chunk
		for i, c := range []Chunk{
			{Len: MaxChunk, Kind: Data},
			{Len: 1, Kind: Data, Continues: true},
			{Len: MaxChunk, Kind: Zeros, Continues: true},
			{Len: 512, Kind: Copied},
			{Len: MaxChunk, Kind: Copied, Continues: true},
			{Len: 7, Kind: Zeros},
		} {
			c.Off = int64(i) * MaxChunk
			c.point = -1
			if !toc {
				c.point = []int{-1, 0, 1, math.MaxInt32}[i%4]
			} else {
				c.Group = []Group{0, 1, math.MaxInt32, 1 << 31, noPoint - 1}[i%5]
			}
			if c.Kind == Data {
				c.BlobOff, c.BlobLen, c.Digest[0] = int64(i)*1000, 1000, byte(i)
			}
			want = append(want, c)
		}
		b := newTable(f, "", 1<<40)
		for i := range want {
			b.add(want[i])
			if got := b.kind(i); got != want[i].Kind {
				t.Errorf("%v: chunk %d is of kind %d", f, i, got)
			}
		}
		b.dataSize = int64(len(want)) * MaxChunk
		made := b.table()
		path := filepath.Join(t.TempDir(), "chunks")
		if err := made.Write(path); err != nil {
			t.Fatal(err)
		}
		opened, err := OpenTable(path)
		if err != nil {
			t.Fatal(err)
		}
		for name, table := range map[string]*Table{"made": made, "opened": opened} {
			for i := range want {
				if got := table.Chunk(i); got != want[i] {
					t.Errorf("%v, %s: chunk %d is %+v, want %+v", f, name, i, got, want[i])
				}
			}
		}
		if toc {
			if err := opened.Check(); err != nil {
				t.Errorf("%v: %v", f, err)
			}
		}
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	}
}
