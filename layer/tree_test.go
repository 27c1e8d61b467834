package layer_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/index"
)

// Lengths of the one big file of a randomTar. Streams of more than 2 MiB are
// entered in their middle too; where that does not matter it takes time only.
const (
	twoSpans = 3_000_000
	oneSpan  = 200_000
)

// randomTar returns a tar with a bit of everything that all formats can hold,
// and one file of big bytes.
func randomTar(t testing.TB, seed uint64, files, big int) []byte {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	add := func(h *tar.Header, data []byte) {
		h.Size = int64(len(data))
		h.Format = tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000+rnd.Int64N(1e6), rnd.Int64N(1e9))
		}
		if h.Mode == 0 {
			h.Mode = 0o644 | int64(rnd.IntN(8))<<9
		}
		h.Uid, h.Gid = rnd.IntN(100_000), rnd.IntN(100_000)
		check(t, w.WriteHeader(h))
		_, err := w.Write(data)
		check(t, err)
	}
	add(&tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	var names []string
	for i := range files {
		dir := fmt.Sprintf("d%d/", rnd.IntN(files/4+1))
		if rnd.IntN(4) == 0 {
			dir += strings.Repeat("deep/", rnd.IntN(20))
		}
		name := fmt.Sprintf("%sfile-%d-ü", dir, i)
		switch rnd.IntN(14) {
		case 0:
			add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o750}, nil)
		case 1:
			add(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "../" + strings.Repeat("t", rnd.IntN(300)+1)}, nil)
		case 2:
			add(&tar.Header{Name: name, Typeflag: tar.TypeFifo}, nil)
		case 3:
			add(&tar.Header{Name: name, Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 300}, nil)
		case 4:
			if len(names) > 0 {
				add(&tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: names[rnd.IntN(len(names))]}, nil)
			}
		case 5:
			add(&tar.Header{Name: dir + ".wh.gone" + fmt.Sprint(i), Typeflag: tar.TypeReg}, nil)
		case 6:
			add(&tar.Header{Name: dir + ".wh..wh..opq", Typeflag: tar.TypeReg}, nil)
		case 7:
			add(&tar.Header{Name: name, Typeflag: tar.TypeReg, PAXRecords: map[string]string{
				"SCHILY.xattr.user.k":                 fmt.Sprint("v", rnd.IntN(3)),
				"SCHILY.xattr.security.capability":    "\x01\x00\x00\x02\x00\x20",
				"SCHILY.xattr.trusted.overlay.opaque": "y",
			}}, content(rnd, rnd.IntN(5000)))
			names = append(names, name)
		case 8:
			if len(names) > 0 { // a duplicate: the last wins
				add(&tar.Header{Name: names[rnd.IntN(len(names))], Typeflag: tar.TypeReg}, content(rnd, rnd.IntN(3000)))
			}
		case 9:
			add(&tar.Header{Name: name, Typeflag: tar.TypeReg}, content(rnd, 100_000+rnd.IntN(200_000)))
			names = append(names, name)
		default:
			add(&tar.Header{Name: name, Typeflag: tar.TypeReg}, content(rnd, rnd.IntN(20_000)))
			names = append(names, name)
		}
	}
	add(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg}, make([]byte, 300_000))
	add(&tar.Header{Name: "big", Typeflag: tar.TypeReg}, content(rnd, big))
	add(&tar.Header{Name: "to-lower", Typeflag: tar.TypeLink, Linkname: "lib/in/another/layer"}, nil)
	check(t, w.Close())
	return out.Bytes()
}

// content returns n bytes, some of which compress.
func content(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; {
		run := min(1+rnd.IntN(3000), n-i)
		switch rnd.IntN(3) {
		case 0:
			for k := range run {
				p[i+k] = byte(rnd.Uint32())
			}
		case 1:
			for k := range run {
				p[i+k] = "the quick brown fox\n"[k%20]
			}
		default: // zeros, or what came 20000 before
			if i > 20_000 {
				copy(p[i:i+run], p[i-20_000:])
			}
		}
		i += run
	}
	return p
}

// readFunc fills p from a data offset.
type readFunc func(p []byte, off int64) error

// dump describes a tree, a line for each name, contents by digest. Times are in
// whole seconds with lossy.
func dump(t testing.TB, tree *index.Tree, read readFunc, lossy bool) []string {
	t.Helper()
	var out []string
	ids := make(map[*index.Node]int)
	var walk func(path string, n *index.Node)
	walk = func(path string, n *index.Node) {
		id, seen := ids[n]
		if !seen {
			id = len(ids)
			ids[n] = id
		}
		sec, nsec := n.Mtime, n.MtimeNsec
		if lossy {
			r := time.Unix(sec, int64(nsec)).Round(time.Second)
			sec, nsec = r.Unix(), 0
		}
		l := fmt.Sprintf("%s #%d %o %d:%d %d.%09d rdev %x flags %d -> %q", path, id, n.Mode, n.UID, n.GID, sec, nsec, n.Rdev, n.Flags, n.Target)
		xattrs := slices.Clone(n.Xattrs)
		slices.SortFunc(xattrs, func(a, b index.Xattr) int { return strings.Compare(a.Name, b.Name) })
		for _, x := range xattrs {
			l += fmt.Sprintf(" %s=%q", x.Name, x.Value)
		}
		if n.Mode&0o170000 == 0o100000 {
			l += fmt.Sprintf(" %d bytes %x", n.Size, sha256.Sum256(fileData(t, n, read)))
		}
		out = append(out, l)
		if n.IsDir() {
			for name, child := range n.Children() {
				walk(path+"/"+name, child)
			}
		}
	}
	walk("", tree.Root)
	return out
}

func fileData(t testing.TB, n *index.Node, read readFunc) []byte {
	t.Helper()
	p := make([]byte, n.Size)
	for _, e := range n.Extents {
		if err := read(p[e.FileOff:e.FileOff+e.Len], e.Off); err != nil {
			t.Fatalf("read %+v: %v", e, err)
		}
	}
	return p
}

func diff(t testing.TB, what string, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d entries, want %d", what, len(got), len(want))
	}
	bad := 0
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("%s: entry %d\n got %s\nwant %s", what, i, got[i], want[i])
			if bad++; bad == 5 {
				return
			}
		}
	}
}

// inTar reads from a tar in memory, with zeros past its end.
func inTar(b []byte) readFunc {
	return func(p []byte, off int64) error {
		_, err := bytes.NewReader(b).ReadAt(p, off)
		if err == io.EOF {
			err = nil
		}
		return err
	}
}
