package encode_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/encode"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var formats = []layer.Format{layer.Gzip, layer.Zstd, layer.EStargz, layer.ZstdChunked}

func lazy(f layer.Format) bool { return f == layer.EStargz || f == layer.ZstdChunked }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// encoded returns the blob of a tar, written in pieces of step bytes.
func encoded(t testing.TB, f layer.Format, b []byte, step int) ([]byte, encode.Result) {
	t.Helper()
	var out bytes.Buffer
	w, err := encode.NewWriter(&out, f)
	check(t, err)
	defer w.Abort()
	for p := b; len(p) > 0; {
		n, err := w.Write(p[:min(step, len(p))])
		check(t, err)
		p = p[n:]
	}
	check(t, w.Close())
	return out.Bytes(), w.Result()
}

// memBlob is a blob in memory.
type memBlob []byte

func (m memBlob) Digest() digest.Digest { return digest.FromBytes(m) }
func (m memBlob) Size() int64           { return int64(len(m)) }

func (m memBlob) ReadRange(_ context.Context, off, n int64) (fetch.Stream, error) {
	return memStream{bytes.NewReader(m[off : off+n])}, nil
}

type memStream struct{ io.Reader }

func (memStream) Close() error { return nil }
func (memStream) Reject(error) {}

// tarWriter writes entries of any kind.
type tarWriter struct {
	t   testing.TB
	rnd *rand.Rand
	out bytes.Buffer
	w   *tar.Writer
}

func newTar(t testing.TB) *tarWriter {
	w := &tarWriter{t: t, rnd: rand.New(rand.NewPCG(1, 2))}
	w.w = tar.NewWriter(&w.out)
	return w
}

func (w *tarWriter) add(h tar.Header, data []byte) {
	w.t.Helper()
	h.Size = int64(len(data))
	if h.Format == tar.FormatUnknown {
		h.Format = tar.FormatPAX
	}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	if h.Mode == 0 {
		h.Mode = 0o4751
	}
	if h.ModTime.IsZero() {
		h.ModTime = time.Unix(1_700_000_000+w.rnd.Int64N(1e6), w.rnd.Int64N(1e9))
	}
	if h.Format == tar.FormatGNU {
		h.ModTime = h.ModTime.Truncate(time.Second)
	}
	h.Uid, h.Gid, h.Uname, h.Gname = w.rnd.IntN(3_000_000), w.rnd.IntN(100_000), "user", "gröup"
	check(w.t, w.w.WriteHeader(&h))
	_, err := w.w.Write(data)
	check(w.t, err)
}

func (w *tarWriter) bytes() []byte {
	check(w.t, w.w.Close())
	return w.out.Bytes()
}

// content returns n bytes, of which about half compress.
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

// everything has each kind of entry, and a file of big bytes.
func everything(t testing.TB, big int) *tarWriter {
	w := newTar(t)
	w.add(tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	w.add(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1750}, nil)
	w.add(tar.Header{Name: "d/empty"}, nil)
	w.add(tar.Header{Name: "d/small"}, content(w.rnd, 700))
	w.add(tar.Header{Name: "d/" + strings.Repeat("n", 255)}, content(w.rnd, 511))
	w.add(tar.Header{Name: strings.Repeat(strings.Repeat("p", 200)+"/", 15) + "ü"}, content(w.rnd, 512))
	w.add(tar.Header{Name: "d/xattrs", PAXRecords: map[string]string{
		"SCHILY.xattr.user.k":              "v",
		"SCHILY.xattr.user.bytes":          "\x80\xff=\n",
		"SCHILY.xattr.user.empty":          "",
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20",
	}}, content(w.rnd, 513))
	w.add(tar.Header{Name: "d/hard", Typeflag: tar.TypeLink, Linkname: "d/xattrs"}, nil)
	w.add(tar.Header{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "../" + strings.Repeat("t", 300)}, nil)
	w.add(tar.Header{Name: "d/char", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 300}, nil)
	w.add(tar.Header{Name: "d/block", Typeflag: tar.TypeBlock, Devmajor: 259, Devminor: 2}, nil)
	w.add(tar.Header{Name: "d/fifo", Typeflag: tar.TypeFifo}, nil)
	w.add(tar.Header{Name: "d/.wh.x"}, nil)
	w.add(tar.Header{Name: "e/.wh..wh..opq"}, nil)
	w.add(tar.Header{Name: "d/old", ModTime: time.Unix(-1_000_000, 250_000_000)}, content(w.rnd, 3))
	w.add(tar.Header{Name: "d/epoch", ModTime: time.Unix(0, 0)}, content(w.rnd, 3))
	w.add(tar.Header{Name: "gnu/" + strings.Repeat("g", 150), Format: tar.FormatGNU}, content(w.rnd, 100))
	w.add(tar.Header{Name: "zeros"}, make([]byte, 2<<20))
	w.add(tar.Header{Name: "chunk"}, content(w.rnd, 1<<20)) // exactly one
	w.add(tar.Header{Name: "big"}, content(w.rnd, big))
	return w
}

// lower adds a hard link to another layer, which stargz-snapshotter refuses.
func (w *tarWriter) lower() {
	w.add(tar.Header{Name: "d/lower", Typeflag: tar.TypeLink, Linkname: "lib/in/another/layer"}, nil)
}

// strange adds names that JSON cannot hold.
func (w *tarWriter) strange() {
	w.add(tar.Header{Name: "s/\xff\xfe", Format: tar.FormatGNU}, content(w.rnd, 1000))
	w.add(tar.Header{Name: "s/pax\x80" + strings.Repeat("\x81", 200)}, content(w.rnd, 1000))
	w.add(tar.Header{Name: "s/link", Typeflag: tar.TypeSymlink, Linkname: "\xc3", Format: tar.FormatGNU}, nil)
}

// manyFiles has a table of contents of several blocks, and entries without data
// that are more than a job.
func manyFiles(t testing.TB, files, links int) []byte {
	w := newTar(t)
	for i := range files {
		w.add(tar.Header{Name: fmt.Sprintf("usr/lib/python3/dist-packages/p%d/module_%d.pyc", i/12, i)}, content(w.rnd, w.rnd.IntN(3000)))
	}
	for i := range links {
		w.add(tar.Header{Name: fmt.Sprintf("l%d", i), Typeflag: tar.TypeSymlink, Linkname: "x"}, nil)
	}
	w.add(tar.Header{Name: "end"}, content(w.rnd, 100))
	return w.bytes()
}

// read returns all of a layer by streaming it: its tree and its data.
func read(t testing.TB, src layer.Source) (*layer.Scanned, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "data"))
	check(t, err)
	defer func() { _ = f.Close() }()
	r, err := src.Blob.ReadRange(context.Background(), 0, src.Blob.Size())
	check(t, err)
	s, err := layer.Stream(context.Background(), src, r, f)
	check(t, err)
	data := make([]byte, s.Table.DataSize())
	if _, err := f.ReadAt(data, 0); err != io.EOF { // the last entry may be padded
		check(t, err)
	}
	return s, data
}

// decoded returns all data of a layer, each chunk from a ranged read of its own.
func decoded(t testing.TB, blob memBlob, table *layer.Table) []byte {
	t.Helper()
	data := make([]byte, table.DataSize())
	for i := range table.Len() {
		off, n := table.Span(i, i+1)
		check(t, table.Decode(bytes.NewReader(blob[off:off+n]), i, i+1, func(i int, p []byte) error {
			copy(data[table.Chunk(i).Off:], p)
			return table.Verify(i, p)
		}))
	}
	return data
}

// dump describes a tree, a line for each name, contents by digest. Times are in
// whole seconds with lossy.
func dump(t testing.TB, tree *index.Tree, data []byte, lossy bool) []string {
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
			sec, nsec = time.Unix(sec, int64(nsec)).Round(time.Second).Unix(), 0
		}
		l := fmt.Sprintf("%q #%d %o %d:%d %d.%09d rdev %x flags %d -> %q", path, id, n.Mode, n.UID, n.GID, sec, nsec, n.Rdev, n.Flags, n.Target)
		xattrs := slices.Clone(n.Xattrs)
		slices.SortFunc(xattrs, func(a, b index.Xattr) int { return strings.Compare(a.Name, b.Name) })
		for _, x := range xattrs {
			l += fmt.Sprintf(" %s=%q", x.Name, x.Value)
		}
		if n.Mode&0o170000 == 0o100000 {
			p := make([]byte, n.Size)
			for _, e := range n.Extents {
				copy(p[e.FileOff:e.FileOff+e.Len], data[e.Off:e.Off+e.Len])
			}
			l += fmt.Sprintf(" %d bytes %x", n.Size, sha256.Sum256(p))
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

// want describes the tree of a plain tar.
func want(t testing.TB, b []byte, lossy bool) []string {
	t.Helper()
	s, data := read(t, layer.Source{
		Desc:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))},
		DiffID: digest.FromBytes(b), Blob: memBlob(b),
	})
	return dump(t, s.Tree, data, lossy)
}

func diff(t testing.TB, got, want []string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("entry %d\n got %.400s\nwant %.400s", i, got[i], want[i])
		}
	}
}
