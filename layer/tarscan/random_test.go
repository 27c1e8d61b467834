package tarscan_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/layer/tarscan"
)

func randomHeader(rnd *rand.Rand) *tar.Header {
	h := &tar.Header{
		Name:    strings.Repeat("dir/", rnd.IntN(60)) + fmt.Sprintf("f%d", rnd.IntN(1000)),
		Mode:    int64(rnd.IntN(0o10000)),
		Uid:     rnd.IntN(1 << 22),
		Gid:     rnd.IntN(1 << 22),
		ModTime: time.Unix(rnd.Int64N(1<<33)-1<<32, rnd.Int64N(1e9)),
		Format:  tar.FormatPAX,
	}
	if rnd.IntN(3) == 0 {
		h.Format = tar.FormatGNU
		h.ModTime = time.Unix(h.ModTime.Unix(), 0)
		h.Name = "\xff\xfe" + h.Name
	} else if rnd.IntN(2) == 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "x\x00\n=y", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}
	}
	switch rnd.IntN(5) {
	case 0:
		h.Typeflag, h.Linkname = tar.TypeSymlink, strings.Repeat("x", rnd.IntN(300)+1)
	case 1:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	case 2:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(rnd.IntN(4000)), int64(rnd.IntN(1<<20))
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(rnd.IntN(3000))
	}
	return h
}

// record is one PAX record.
func record(k, v string) string {
	n := len(k) + len(v) + 3
	for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
		n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
	}
	return fmt.Sprintf("%d %s=%s\n", n, k, v)
}

// raw builds a header block without any check.
func raw(typ byte, name string, size int) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[257:], "ustar\x0000")
	b[156] = typ
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

func pad(s string) []byte { return append([]byte(s), make([]byte, -len(s)&511)...) }

func entry(typ byte, name, payload string) []byte {
	return append(raw(typ, name, len(payload)), pad(payload)...)
}

func TestLibarchiveXattrs(t *testing.T) {
	records := record("LIBARCHIVE.xattr.user.a%3Db", "AAEC") +
		record("LIBARCHIVE.xattr.user.both", "eA") +
		record("SCHILY.xattr.user.both", "y")
	b := bytes.Join([][]byte{entry('x', "h", records), entry('0', "f", "data")}, nil)
	got, err := scan(b, 512)
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	if !hasXattr(got[0], "user.a=b", "\x00\x01\x02") || !hasXattr(got[0], "user.both", "y") || len(got[0].Xattrs) != 2 {
		t.Errorf("xattrs %q", got[0].Xattrs)
	}
}

// TestMalformed: each of these is an error of one line that names the offset.
func TestMalformed(t *testing.T) {
	file := entry('0', "f", "data")
	sparse := func(records string, stored int) []byte {
		return append(entry('x', "h", records), entry('0', "f", strings.Repeat("x", stored))...)
	}
	tests := map[string][]byte{
		"checksum":           append(append([]byte(nil), file[:10]...), append([]byte{9}, file[11:]...)...),
		"zero block, then":   append(make([]byte, 512), file...),
		"cut data":           file[:514],
		"cut header":         file[:100],
		"huge pax":           raw('x', "h", 2<<20),
		"bad pax":            entry('x', "h", "30 path=abc\n"),
		"negative size":      append(entry('x', "h", record("size", "-1")), file...),
		"huge size":          append(entry('x', "h", record("size", "9223372036854775807")), file...),
		"bad mtime":          append(entry('x', "h", record("mtime", "12.x")), file...),
		"NUL in path":        append(entry('x', "h", record("path", "a\x00b")), file...),
		"bad xattr":          append(entry('x', "h", record("LIBARCHIVE.xattr.a", "!!")), file...),
		"sparse overlap":     sparse(record("GNU.sparse.major", "0")+record("GNU.sparse.minor", "1")+record("GNU.sparse.numblocks", "2")+record("GNU.sparse.size", "4096")+record("GNU.sparse.map", "0,10,5,10"), 20),
		"sparse beyond size": sparse(record("GNU.sparse.numblocks", "1")+record("GNU.sparse.size", "100")+record("GNU.sparse.map", "90,20"), 20),
		"sparse overflow":    sparse(record("GNU.sparse.numblocks", "1")+record("GNU.sparse.size", "100")+record("GNU.sparse.map", "9223372036854775807,20"), 20),
		"sparse unused data": sparse(record("GNU.sparse.numblocks", "1")+record("GNU.sparse.size", "100")+record("GNU.sparse.map", "0,10"), 20),
		"sparse count":       sparse(record("GNU.sparse.numblocks", "2147483647")+record("GNU.sparse.map", "0,10"), 10),
		"sparse 1.0 cut":     sparse(record("GNU.sparse.major", "1")+record("GNU.sparse.minor", "0"), 20),
		"sparse 1.0 count":   sparse(record("GNU.sparse.major", "1")+record("GNU.sparse.minor", "0"), 1024),
	}
	for name, b := range tests {
		_, err := scan(b, 512)
		if !errors.Is(err, tarscan.ErrTar) {
			t.Errorf("%s: error %v", name, err)
			continue
		}
		if s := err.Error(); strings.Contains(s, "\n") || !strings.Contains(s, "offset ") {
			t.Errorf("%s: error %q", name, s)
		}
	}
}

func TestEmitError(t *testing.T) {
	stop := errors.New("stop")
	s := tarscan.New(func(*tarscan.Header) error { return stop })
	if _, err := s.Write(entry('0', "f", "data")); err != stop {
		t.Errorf("error %v", err)
	}
	if _, err := s.Write(make([]byte, 512)); err != stop {
		t.Errorf("second error %v", err)
	}
}

func FuzzScan(f *testing.F) {
	for name, b := range corpus(f) {
		if len(b) < 64<<10 && !strings.Contains(name, "big") {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := scan(b, 1<<30)
		again, err2 := scan(b, 333)
		if (err == nil) != (err2 == nil) || len(got) != len(again) {
			t.Fatalf("whole: %d, %v; in pieces: %d, %v", len(got), err, len(again), err2)
		}
		for _, h := range got {
			if h.Data+h.Stored < h.Data {
				t.Fatalf("overflow in %+v", h)
			}
			for _, s := range h.Segments {
				if s.Off < 0 || s.Len <= 0 || s.Off+s.Len > h.Size || s.Pos < h.Data || s.Pos+s.Len > h.Data+h.Stored {
					t.Fatalf("segment %+v outside %+v", s, h)
				}
			}
		}
		if err != nil {
			return
		}
		if want, err := readReference(b); err == nil {
			compare(t, b, got, want)
		}
	})
}
