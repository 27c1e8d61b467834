package soci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/published"
	"github.com/laminafs/lamina/published/soci"
	"github.com/laminafs/lamina/published/soci/ztoctest"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// span is the length of the spans of tests: small, to have many.
const span = 64 << 10

// fixture is a gzip layer.
type fixture struct {
	tar, blob []byte
	desc      ocispec.Descriptor
}

func (f *fixture) ztoc(t testing.TB) *ztoctest.Ztoc {
	t.Helper()
	z, err := ztoctest.New(f.blob, span)
	check(t, err)
	return z
}

// text is something to compress.
func text(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = "etaoin shrdlu\n"[rnd.IntN(14)]
	}
	return p
}

// entries is a layer with everything that layers have, but for sparse files.
func entries(rnd *rand.Rand) (headers []tar.Header, bodies [][]byte) {
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		headers, bodies = append(headers, h), append(bodies, body)
	}
	when := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)
	add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, ModTime: when, Format: tar.FormatPAX}, nil)
	add(tar.Header{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o1777, Uid: 7, Gid: 8}, nil)
	for i := range 40 {
		h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d/f%02d", i), Mode: 0o4755, ModTime: when.Add(time.Duration(i) * time.Hour)}
		if i%3 == 0 {
			h.Format = tar.FormatPAX
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "a\x00b", "SCHILY.xattr.security.capability": "\x01\x00", "comment": "none"}
		}
		add(h, text(rnd, rnd.IntN(1<<(i/3)+1)))
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644}, text(rnd, 1<<20))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "d/" + strings.Repeat("long/", 60) + "name", Mode: 0o644}, []byte("x"))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "\xff\xfe no utf-8", Mode: 0o600, Format: tar.FormatGNU}, []byte("y"))
	add(tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "d/f03"}, nil)
	add(tar.Header{Typeflag: tar.TypeLink, Name: "below", Linkname: "in/a/lower/layer"}, nil)
	add(tar.Header{Typeflag: tar.TypeLink, Name: "ring1", Linkname: "ring2"}, nil)
	add(tar.Header{Typeflag: tar.TypeLink, Name: "ring2", Linkname: "ring1"}, nil)
	add(tar.Header{Typeflag: tar.TypeLink, Name: "self", Linkname: "self"}, nil)
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "soft", Linkname: "../../etc", Mode: 0o777}, nil)
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "to", Linkname: "/d", Mode: 0o777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "to/through", Mode: 0o644}, []byte("z"))
	add(tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 5, Devminor: 300, Mode: 0o600}, nil)
	add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "d/.wh.gone"}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "e/.wh..wh..opq"}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "d/f01", Mode: 0o640}, []byte("again"))
	return headers, bodies
}

// newFixture makes a layer; pack compresses its tar, which ends in padding zeros.
func newFixture(t testing.TB, padding int, pack func(w io.Writer, p []byte) error) *fixture {
	t.Helper()
	var b, z bytes.Buffer
	w := tar.NewWriter(&b)
	headers, bodies := entries(rand.New(rand.NewPCG(1, 2)))
	for i := range headers {
		check(t, w.WriteHeader(&headers[i]))
		_, err := w.Write(bodies[i])
		check(t, err)
	}
	check(t, w.Close())
	b.Write(make([]byte, padding))
	check(t, pack(&z, b.Bytes()))
	return &fixture{tar: b.Bytes(), blob: z.Bytes(), desc: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(z.Bytes()), Size: int64(z.Len()),
	}}
}

// whole is gzip in one member, with a name in its header if that is not "".
func whole(name string) func(io.Writer, []byte) error {
	return func(w io.Writer, p []byte) error {
		g := gzip.NewWriter(w)
		g.Name = name
		_, err := g.Write(p)
		return errors.Join(err, g.Close())
	}
}

// members is gzip in members of n bytes of data.
func members(n int) func(io.Writer, []byte) error {
	return func(w io.Writer, p []byte) error {
		for len(p) > 0 {
			k := min(n, len(p))
			if err := whole("")(w, p[:k]); err != nil {
				return err
			}
			p = p[k:]
		}
		return nil
	}
}

// memory is a file that is written in any order.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// TestUnpack: tree and data are those of a layer that was streamed.
func TestUnpack(t *testing.T) {
	for name, f := range map[string]*fixture{
		"one member": newFixture(t, 0, whole("")),
		"named":      newFixture(t, 0, whole("layer.tar")),
		"members":    newFixture(t, 0, members(300<<10)),
		"padded":     newFixture(t, 9<<10, whole("")),
	} {
		t.Run(name, func(t *testing.T) {
			z := f.ztoc(t)
			s, err := soci.Unpack(t.Context(), z.Bytes(), f.desc)
			check(t, err)
			check(t, s.Table.Check())
			if s.Table.Len() != len(z.Spans) || s.Table.Len() < 10 || s.Table.Comparable() || !s.Table.Seekable() {
				t.Errorf("%d chunks of %d spans", s.Table.Len(), len(z.Spans))
			}
			src := layer.Source{Desc: f.desc, DiffID: digest.FromBytes(f.tar)}
			want, err := layer.Stream(t.Context(), src, bytes.NewReader(f.blob), &memory{})
			check(t, err)
			if got := s.Tree.Devices[0]; got.Tag != f.desc.Digest.Encoded() || got.Size != z.Uncompressed {
				t.Errorf("device %+v", got)
			}
			want.Tree.Devices = s.Tree.Devices
			a, err := s.Tree.Encode()
			check(t, err)
			b, err := want.Tree.Encode()
			check(t, err)
			if !bytes.Equal(a, b) {
				t.Error("another tree than Stream makes")
			}
			decodes(t, s.Table, f)
		})
	}
}

// decodes reads parts of the layer and compares them with the tar.
func decodes(t *testing.T, table *layer.Table, f *fixture) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		i := rnd.IntN(table.Len())
		j := i + 1 + rnd.IntN(table.Len()-i)
		off, n := table.Span(i, j)
		next := i
		check(t, table.Decode(bytes.NewReader(f.blob[off:off+n]), i, j, func(k int, p []byte) error {
			c := table.Chunk(k)
			if k != next || !bytes.Equal(p, f.tar[c.Off:c.Off+c.Len]) {
				t.Fatalf("chunk %d, expected %d: wrong bytes", k, next)
			}
			next++
			return nil
		}))
		if next != j {
			t.Errorf("chunks %d to %d: ended at %d", i, j, next)
		}
	}
}

// TestImplied: old ztocs leave out the first checkpoint.
func TestImplied(t *testing.T) {
	f := newFixture(t, 0, whole(""))
	z := f.ztoc(t)
	z.Implied, z.Version = true, "1.0"
	s, err := soci.Unpack(t.Context(), z.Bytes(), f.desc)
	check(t, err)
	decodes(t, s.Table, f)
}

// TestDamaged: no byte of a span whose digest is wrong leaves Decode, and it is told
// from one that is right and does not decode.
func TestDamaged(t *testing.T) {
	f := newFixture(t, 0, whole(""))
	z := f.ztoc(t)
	z.Spans[3].Digest = digest.FromString("other bytes").String()
	z.Spans[6].Window = [len(z.Spans[6].Window)]byte{} // makes other data, which nobody can know
	z.Spans[8].Bits ^= 7
	start, end := z.Range(8)
	z.Spans[8].Digest = digest.FromBytes(f.blob[start:end]).String()
	start, end = z.Range(7)
	z.Spans[7].Digest = digest.FromBytes(f.blob[start:end]).String()
	s, err := soci.Unpack(t.Context(), z.Bytes(), f.desc)
	check(t, err)
	decode := func(i, j int) (last int, err error) {
		off, n := s.Table.Span(i, j)
		last = -1
		err = s.Table.Decode(bytes.NewReader(f.blob[off:off+n]), i, j, func(k int, _ []byte) error { last = k; return nil })
		return last, err
	}
	if last, err := decode(0, 6); last != 2 || !errors.Is(err, layer.ErrDigest) || errors.Is(err, layer.ErrTable) {
		t.Errorf("wrong digest: chunk %d, %v", last, err)
	}
	if last, err := decode(8, 9); last != -1 || !errors.Is(err, layer.ErrTable) {
		t.Errorf("wrong checkpoint: chunk %d, %v", last, err)
	}
	// Wrong bytes are the source's fault, whatever they would decode to.
	off, n := s.Table.Span(4, 5)
	wrong := bytes.Clone(f.blob[off : off+n])
	wrong[n/2] ^= 1
	err = s.Table.Decode(bytes.NewReader(wrong), 4, 5, func(int, []byte) error { return errors.New("emitted") })
	if !errors.Is(err, layer.ErrDigest) {
		t.Errorf("wrong bytes: %v", err)
	}
	err = s.Table.Decode(bytes.NewReader(wrong[:n/2]), 4, 5, func(int, []byte) error { return errors.New("emitted") })
	if !errors.Is(err, layer.ErrDigest) {
		t.Errorf("too few bytes: %v", err)
	}
}

// TestInvalid: what does not fit is refused.
func TestInvalid(t *testing.T) {
	f := newFixture(t, 0, whole(""))
	find := func(z *ztoctest.Ztoc, name string) *ztoctest.Entry {
		for i := range z.Entries {
			if z.Entries[i].Name == name {
				return &z.Entries[i]
			}
		}
		t.Fatal(name)
		return nil
	}
	for name, change := range map[string]func(z *ztoctest.Ztoc){
		"version":           func(z *ztoctest.Ztoc) { z.Version = "2.0" },
		"compression":       func(z *ztoctest.Ztoc) { z.Compression = 2 },
		"blob size":         func(z *ztoctest.Ztoc) { z.Compressed++ },
		"no tar":            func(z *ztoctest.Ztoc) { z.Uncompressed = 0 },
		"huge tar":          func(z *ztoctest.Ztoc) { z.Uncompressed = 1 << 60 },
		"short tar":         func(z *ztoctest.Ztoc) { z.Uncompressed = 1 << 20 },
		"no spans":          func(z *ztoctest.Ztoc) { z.Spans = nil },
		"digest":            func(z *ztoctest.Ztoc) { z.Spans[2].Digest = "sha256:beef" },
		"digest algorithm":  func(z *ztoctest.Ztoc) { z.Spans[2].Digest = digest.SHA512.FromString("x").String() },
		"span beyond blob":  func(z *ztoctest.Ztoc) { z.Spans[len(z.Spans)-1].In = z.Compressed + 1 },
		"span before blob":  func(z *ztoctest.Ztoc) { z.Spans[0].In = -1 },
		"spans swapped":     func(z *ztoctest.Ztoc) { z.Spans[2], z.Spans[3] = z.Spans[3], z.Spans[2] },
		"span twice":        func(z *ztoctest.Ztoc) { z.Spans[3] = z.Spans[2] },
		"span starts late":  func(z *ztoctest.Ztoc) { z.Spans = z.Spans[1:] },
		"negative data":     func(z *ztoctest.Ztoc) { z.Spans[1].Out = -1 },
		"nine bits":         func(z *ztoctest.Ztoc) { z.Spans[1].Bits = 9 },
		"path out":          func(z *ztoctest.Ztoc) { find(z, "big").Name = "../big" },
		"path NUL":          func(z *ztoctest.Ztoc) { find(z, "big").Name = "b\x00g" },
		"name too long":     func(z *ztoctest.Ztoc) { find(z, "big").Name = strings.Repeat("b", 256) },
		"type":              func(z *ztoctest.Ztoc) { find(z, "big").Type = "socket" },
		"time":              func(z *ztoctest.Ztoc) { find(z, "big").Mtime = "" },
		"size negative":     func(z *ztoctest.Ztoc) { find(z, "big").Size = -1 },
		"size":              func(z *ztoctest.Ztoc) { find(z, "big").Size += 4096 },
		"last size":         func(z *ztoctest.Ztoc) { z.Entries[len(z.Entries)-1].Size = 4096 },
		"offset negative":   func(z *ztoctest.Ztoc) { find(z, "big").Offset = -512 },
		"offset odd":        func(z *ztoctest.Ztoc) { find(z, "big").Offset++ },
		"offset beyond":     func(z *ztoctest.Ztoc) { z.Entries[len(z.Entries)-1].Offset = z.Uncompressed + 512 },
		"no header":         func(z *ztoctest.Ztoc) { z.Entries[0].Offset = 0 },
		"entries swapped":   func(z *ztoctest.Ztoc) { z.Entries[5], z.Entries[6] = z.Entries[6], z.Entries[5] },
		"sparse":            func(z *ztoctest.Ztoc) { find(z, "big").PAX = map[string]string{"GNU.sparse.major": "1"} },
		"link to directory": func(z *ztoctest.Ztoc) { find(z, "hard").Link = "d" },
		"link out":          func(z *ztoctest.Ztoc) { find(z, "hard").Link = "../x" },
		"link to nothing":   func(z *ztoctest.Ztoc) { find(z, "soft").Link = "" },
		"device":            func(z *ztoctest.Ztoc) { find(z, "dev").Major = 1 << 12 },
		"huge xattr": func(z *ztoctest.Ztoc) {
			find(z, "big").PAX = map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 1<<17)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			z := f.ztoc(t)
			change(z)
			if s, err := soci.Unpack(t.Context(), z.Bytes(), f.desc); !errors.Is(err, published.ErrInvalid) || s != nil {
				t.Errorf("got %v, %v", s, err)
			}
		})
	}
	zstd := f.desc
	zstd.MediaType = ocispec.MediaTypeImageLayerZstd
	if _, err := soci.Unpack(t.Context(), f.ztoc(t).Bytes(), zstd); !errors.Is(err, published.ErrInvalid) {
		t.Errorf("of a zstd layer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := soci.Unpack(ctx, f.ztoc(t).Bytes(), f.desc); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// TestCut: no part of a ztoc is one, and no change of a byte makes it panic.
func TestCut(t *testing.T) {
	f := newFixture(t, 0, whole(""))
	z := f.ztoc(t)
	for i := range z.Spans {
		z.Spans[i].Window = [len(z.Spans[i].Window)]byte{}
	}
	b := z.Bytes()
	for n := 0; n < len(b); n += 1 + len(b)/200 {
		if _, err := soci.Unpack(t.Context(), b[:n], f.desc); !errors.Is(err, published.ErrInvalid) {
			t.Fatalf("%d bytes of %d: %v", n, len(b), err)
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		c := bytes.Clone(b)
		for range 1 + rnd.IntN(4) {
			at := rnd.IntN(len(c))
			if rnd.IntN(2) == 0 {
				at = rnd.IntN(200)
			}
			c[at] ^= byte(1 << rnd.IntN(8))
		}
		s, err := soci.Unpack(t.Context(), c, f.desc)
		sound(t, s, err)
	}
}

// sound checks what any input must give.
func sound(t *testing.T, s *layer.Scanned, err error) {
	t.Helper()
	if err != nil {
		if !errors.Is(err, published.ErrInvalid) {
			t.Fatalf("other error: %v", err)
		}
		return
	}
	check(t, s.Table.Check())
	if _, err := s.Tree.Encode(); err != nil {
		t.Fatalf("tree: %v", err)
	}
}

// FuzzUnpack: Unpack gives something sound or ErrInvalid.
func FuzzUnpack(f *testing.F) {
	var b, z bytes.Buffer
	w := tar.NewWriter(&b)
	check(f, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "d/f", Size: 600, PAXRecords: map[string]string{"SCHILY.xattr.user.x": "y"}}))
	_, err := w.Write(make([]byte, 600))
	check(f, err)
	check(f, w.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "d/f"}))
	check(f, w.Close())
	check(f, whole("")(&z, b.Bytes()))
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes(z.Bytes()), Size: int64(z.Len())}
	x, err := ztoctest.New(z.Bytes(), span)
	check(f, err)
	f.Add(x.Bytes())
	x.Implied = true
	f.Add(x.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := soci.Unpack(t.Context(), p, desc)
		sound(t, s, err)
	})
}
