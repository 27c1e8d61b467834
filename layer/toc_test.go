package layer_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
)

func loadTOC(src layer.Source) (*layer.Scanned, error) {
	return layer.LoadTOC(context.Background(), src)
}

// eStargzOf makes a blob of this payload and this JSON, with a right footer.
func eStargzOf(t testing.TB, payload []byte, toc string) layer.Source {
	t.Helper()
	out := bytes.NewBuffer(append([]byte(nil), payload...))
	z := stdgzip.NewWriter(out)
	body := rawEntry('0', estargz.TOCTarName, []byte(toc))
	_, err := z.Write(append(body, make([]byte, 1024)...))
	check(t, err)
	check(t, z.Close())
	sub := fmt.Sprintf("%016xSTARGZ", len(payload))
	extra := append([]byte{'S', 'G', byte(len(sub)), 0}, sub...)
	out.Write(estargz.CreateGzipFooter(extra))
	return source(out.Bytes(), nil, mediaGzip, map[string]string{
		estargz.TOCJSONDigestAnnotation: digest.FromString(toc).String(),
	})
}

// TestRequests: a table costs one request, of a bounded size.
func TestRequests(t *testing.T) {
	b := randomTar(t, 1, 100, oneSpan)
	for _, f := range formats {
		if !f.lazy {
			continue
		}
		src := f.pack(t, b)
		_, err := loadTOC(src)
		check(t, err)
		m := src.Blob.(*memBlob)
		if m.requests != 1 || m.read > 128<<10 {
			t.Errorf("%s: %d requests, %d bytes of %d", f.name, m.requests, m.read, len(m.b))
		}
	}
	var entries []string
	for i := range 5000 {
		entries = append(entries, fmt.Sprintf(`{"type":"dir","name":"%x"}`, digest.FromString(fmt.Sprint(i))))
	}
	src := eStargzOf(t, []byte("x"), `{"version":1,"entries":[`+strings.Join(entries, ",")+`]}`)
	_, err := loadTOC(src)
	check(t, err)
	if m := src.Blob.(*memBlob); m.requests != 2 || m.read != int64(len(m.b)-1) {
		t.Errorf("a table larger than the tail: %d requests, %d bytes of %d", m.requests, m.read, len(m.b))
	}
}

// TestWrongTOC: what does not match the annotation is not looked at.
func TestWrongTOC(t *testing.T) {
	b := randomTar(t, 1, 20, oneSpan)
	for _, f := range formats {
		if !f.lazy {
			continue
		}
		src := f.pack(t, b)
		for note, v := range src.Desc.Annotations {
			if digest.Digest(v).Validate() != nil {
				continue
			}
			wrong := src
			wrong.Blob = &memBlob{b: src.Blob.(*memBlob).b}
			wrong.Desc.Annotations = maps.Clone(src.Desc.Annotations)
			wrong.Desc.Annotations[note] = digest.FromString("other").String()
			_, err := loadTOC(wrong)
			if !errors.Is(err, layer.ErrTOC) || !errors.Is(err, layer.ErrDigest) {
				t.Errorf("%s: %s changed: %v", f.name, note, err)
			}
			if m := wrong.Blob.(*memBlob); m.rejected != m.requests || m.requests < 2 {
				t.Errorf("%s: %d requests, %d rejected", f.name, m.requests, m.rejected)
			}
		}
	}
}

// TestLandmarks: hidden, and turned into what to prefetch.
func TestLandmarks(t *testing.T) {
	for _, name := range []string{estargz.PrefetchLandmark, estargz.NoPrefetchLandmark} {
		b := tarOf(t, th{Name: "bin/first"}, th{Name: "bin/second"}, th{Name: name}, th{Name: "third"})
		src := packEStargz(0, 0)(t, b)
		s, err := loadTOC(src)
		check(t, err)
		if s.Tree.Root.Child(name) != nil || s.Tree.Root.Child("third") == nil {
			t.Errorf("%s: %q", name, list(s.Tree.Root, "", nil))
		}
		want := []layer.Range{{Off: 0, Len: 1024}}
		if name == estargz.NoPrefetchLandmark {
			want = nil
		}
		if fmt.Sprint(s.Prefetch) != fmt.Sprint(want) {
			t.Errorf("%s: prefetch %v", name, s.Prefetch)
		}
		if s.Table.DataSize() != 3*512 {
			t.Errorf("%s: %d bytes of data", name, s.Table.DataSize())
		}
		streamed, _ := open(t, src, false)
		if streamed.Tree.Root.Child(name) != nil || streamed.Tree.Root.Child(estargz.TOCTarName) != nil {
			t.Error("streaming shows the format's own files")
		}
	}
}

// TestLegacyFooter: stargz before eStargz had a shorter footer.
func TestLegacyFooter(t *testing.T) {
	src := eStargzOf(t, []byte("payload"), `{"version":1,"entries":[{"type":"dir","name":"d"}]}`)
	b := src.Blob.(*memBlob).b
	b = b[:len(b)-estargz.FooterSize]
	b = append(b, estargz.CreateGzipFooter(fmt.Appendf(nil, "%016xSTARGZ", len("payload")))...)
	src = source(b, nil, mediaGzip, src.Desc.Annotations)
	s, err := loadTOC(src)
	if err != nil || s.Tree.Root.Child("d") == nil {
		t.Error(err)
	}
}

// TestFooters: no footer, however mangled, does more than end lazy mounting.
func TestFooters(t *testing.T) {
	good := eStargzOf(t, []byte("payload"), `{"version":1,"entries":[]}`)
	notes := good.Desc.Annotations
	for at := len(good.Blob.(*memBlob).b) - 120; at < len(good.Blob.(*memBlob).b); at++ {
		for _, x := range []byte{1, 4, 0x80, 0xff} {
			b := bytes.Clone(good.Blob.(*memBlob).b)
			b[at] ^= x
			_, err := loadTOC(source(b, nil, mediaGzip, notes))
			if err != nil && !errors.Is(err, layer.ErrTOC) && !errors.Is(err, layer.ErrNoTOC) {
				t.Errorf("byte %d: %v", at, err)
			}
		}
	}
	for n := range 60 {
		if _, err := loadTOC(source(make([]byte, n), nil, mediaGzip, notes)); !errors.Is(err, layer.ErrNoTOC) {
			t.Errorf("%d zeros: %v", n, err)
		}
	}
}

const hash = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881" // of "x"

// TestBadTOC: each is ErrTOC, in one line.
func TestBadTOC(t *testing.T) {
	reg := func(fields string) string {
		return `{"version":1,"entries":[{"type":"reg","name":"f",` + fields + `}]}`
	}
	tests := map[string]string{
		"not JSON":            `{"version":1,"entries":[`,
		"more than JSON":      `{"version":1,"entries":[]} x`,
		"no entries":          `{"version":1}`,
		"two lists":           `{"version":1,"entries":[],"entries":[]}`,
		"version":             `{"version":2,"entries":[]}`,
		"deep":                `{"version":1,"x":` + strings.Repeat("[", 1000) + `}`,
		"outside":             `{"version":1,"entries":[{"type":"dir","name":"../d"}]}`,
		"NUL":                 `{"version":1,"entries":[{"type":"dir","name":"a\u0000b"}]}`,
		"replaced":            `{"version":1,"entries":[{"type":"dir","name":"a\ufffdb"}]}`,
		"lone surrogate":      `{"version":1,"entries":[{"type":"dir","name":"a\ud800b"}]}`,
		"replaced link":       `{"version":1,"entries":[{"type":"symlink","name":"a","linkName":"\ufffd"}]}`,
		"type":                `{"version":1,"entries":[{"type":"door","name":"a"}]}`,
		"owner":               `{"version":1,"entries":[{"type":"dir","name":"a","uid":-5}]}`,
		"time":                `{"version":1,"entries":[{"type":"dir","name":"a","modtime":"yesterday"}]}`,
		"xattr":               `{"version":1,"entries":[{"type":"dir","name":"a","xattrs":{"user.a":"***"}}]}`,
		"chunk of nothing":    `{"version":1,"entries":[{"type":"chunk","name":"a","offset":5}]}`,
		"link to a directory": `{"version":1,"entries":[{"type":"hardlink","name":"a","linkName":"d"},{"type":"dir","name":"d"}]}`,
		"fraction":            reg(`"size":1.5`),
		"huge number":         reg(`"size":99999999999999999999`),
		"negative size":       reg(`"size":-1`),
		"huge size":           reg(`"size":9223372036854775807,"offset":5,"chunkDigest":"` + hash + `"`),
		"no digest":           reg(`"size":1,"offset":5`),
		"short digest":        reg(`"size":1,"offset":5,"chunkDigest":"sha256:00"`),
		"other digest":        reg(`"size":1,"offset":5,"chunkDigest":"md5:00"`),
		"no offset":           reg(`"size":1,"chunkDigest":"` + hash + `"`),
		"offset in the table": reg(`"size":1,"offset":100,"chunkDigest":"` + hash + `"`),
		"negative offset":     reg(`"size":1,"offset":-5,"chunkDigest":"` + hash + `"`),
		"negative inner":      reg(`"size":1,"offset":5,"innerOffset":-1,"chunkDigest":"` + hash + `"`),
		"huge inner":          reg(`"size":1,"offset":5,"innerOffset":9223372036854775807,"chunkDigest":"` + hash + `"`),
		"huge chunk":          reg(`"size":100000000,"offset":5,"chunkDigest":"` + hash + `"`),
		"chunk too long":      reg(`"size":1,"chunkSize":2,"offset":5,"chunkDigest":"` + hash + `"`),
		"negative chunk":      reg(`"size":1,"chunkSize":-2,"offset":5,"chunkDigest":"` + hash + `"`),
		"chunk type":          reg(`"size":1,"offset":5,"chunkType":"?","chunkDigest":"` + hash + `"`),
		"chunks missing":      reg(`"size":3,"chunkSize":2,"offset":5,"chunkDigest":"` + hash + `"`),
		"gap":                 reg(`"size":3,"chunkSize":1,"offset":5,"chunkDigest":"` + hash + `"},{"type":"chunk","name":"f","offset":7,"chunkOffset":2,"chunkDigest":"` + hash + `"`),
		"backwards":           reg(`"size":2,"chunkSize":1,"offset":5,"chunkDigest":"` + hash + `"},{"type":"chunk","name":"f","offset":4,"chunkOffset":1,"chunkDigest":"` + hash + `"`),
		"same place":          reg(`"size":2,"chunkSize":1,"offset":5,"chunkDigest":"` + hash + `"},{"type":"chunk","name":"f","offset":5,"chunkOffset":1,"chunkDigest":"` + hash + `"`),
	}
	for name, toc := range tests {
		src := eStargzOf(t, make([]byte, 100), toc)
		_, err := loadTOC(src)
		if !errors.Is(err, layer.ErrTOC) || errors.Is(err, layer.ErrDigest) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
			t.Errorf("%s: message %q", name, err)
		}
	}
}

// TestJSON compares our reading of JSON with encoding/json's.
func TestJSON(t *testing.T) {
	toc := `{"x":[1,{"a":null},true,"\"",-1.5e+3,[]],"version":1,"entries":[
		{"name":"a\u00fc\ud83d\ude00\n\t\/\\\"","type":"symlink","linkName":"\u0041\b\f\r","mode":511,
		 "uid":4294967295,"gid":null,"modtime":"2024-01-02T03:04:05.678901234+02:00","xattrs":{"user.a":"AAE=","user.b":""},"userName":"root","NumLink":3},
		{"name":"d","type":"dir","xattrs":null,"linkName":null,"modtime":null}]}`
	var want estargz.JTOC
	check(t, json.Unmarshal([]byte(toc), &want))
	s, err := loadTOC(eStargzOf(t, []byte("x"), toc))
	check(t, err)
	n := s.Tree.Root.Child(strings.Split(want.Entries[0].Name, "/")[0])
	if n == nil || !n.IsDir() {
		t.Fatalf("%q", list(s.Tree.Root, "", nil))
	}
	n = n.Child(strings.SplitN(want.Entries[0].Name, "/", 2)[1])
	if string(n.Target) != want.Entries[0].LinkName || n.UID != 4294967295 || n.MtimeNsec != 678901234 || n.Mtime != 1704157445 || len(n.Xattrs) != 2 {
		t.Errorf("%+v", n)
	}
}

// TestHolesOfContainers: chunks of zeros may be longer than memory.
func TestHolesOfContainers(t *testing.T) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	check(t, err)
	const size = 1 << 30
	toc := fmt.Sprintf(`{"version":1,"entries":[{"type":"reg","name":"f","size":%d,"offset":20,"chunkSize":%d,"chunkType":"zeros","chunkDigest":"%s","endOffset":30}]}`, size, size, hash)
	packed := enc.EncodeAll([]byte(toc), nil)
	f := &frames{t: t, enc: enc}
	f.out.Write(make([]byte, 100))
	off := f.skippable(packed)
	src := source(f.out.Bytes(), nil, mediaZstd, map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": digest.FromBytes(packed).String(),
		"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", off, len(packed), len(toc)),
	})
	s, err := loadTOC(src)
	check(t, err)
	if o, n := s.Table.Span(0, s.Table.Len()); o != 0 || n != 0 {
		t.Errorf("zeros need blob bytes %d+%d", o, n)
	}
	var total int64
	check(t, s.Table.Decode(bytes.NewReader(nil), 0, 2, func(i int, p []byte) error {
		total += int64(len(p))
		return s.Table.Verify(i, p)
	}))
	if total != 2*layer.MaxChunk || s.Table.Len() != size/layer.MaxChunk {
		t.Errorf("%d bytes in 2 of %d chunks", total, s.Table.Len())
	}
	check(t, s.Table.Check())
}

// FuzzTOC: no table makes us panic, and what is accepted is a sound table over
// the blob and a tree that can be written.
func FuzzTOC(f *testing.F) {
	for _, s := range []string{
		`{"version":1,"entries":[{"type":"reg","name":"f","size":3,"chunkSize":1,"offset":5,"innerOffset":3,"chunkDigest":"` + hash + `","xattrs":{"user.a":"AAE="}},{"type":"chunk","name":"f","offset":7,"chunkOffset":1,"chunkDigest":"` + hash + `"}]}`,
		`{"version":1,"entries":[{"type":"hardlink","name":"a","linkName":"d/../b","modtime":"2024-01-02T03:04:05Z"},{"type":"reg","name":"b"},{"type":"reg","name":".prefetch.landmark","size":1,"offset":3}]}`,
		`{"entries":[{"type":"reg","name":"z","size":99999,"chunkType":"zeros","endOffset":9,"offset":4}],"x":{"y":[1,2.5e1,"\ud83d\ude00"]}}`,
	} {
		f.Add([]byte(s))
	}
	payload := make([]byte, 100)
	f.Fuzz(func(t *testing.T, toc []byte) {
		src := eStargzOf(t, payload, string(toc))
		s, err := loadTOC(src)
		if err != nil {
			if !errors.Is(err, layer.ErrTOC) {
				t.Fatal(err)
			}
			return
		}
		check(t, s.Table.Check())
		if _, err := s.Tree.Encode(); err != nil {
			t.Fatalf("accepted, cannot be written: %v", err)
		}
		for i := range min(s.Table.Len(), 10) {
			off, n := s.Table.Span(i, i+1)
			if c := s.Table.Chunk(i); c.Kind == layer.Data && (n <= 0 || off < 0 || off+n > 100) {
				t.Fatalf("chunk %+v outside the payload", c)
			}
			_ = s.Table.Decode(bytes.NewReader(payload[off:off+n]), i, i+1, s.Table.Verify)
		}
	})
}

// FuzzTable: no file makes us panic.
func FuzzTable(f *testing.F) {
	for _, k := range formats {
		big := oneSpan
		if k.name == "gzip" {
			big = twoSpans // for a table with points in the middle of the stream
		}
		src := k.pack(f, randomTar(f, 1, 4, big))
		s, _ := open(f, src, k.lazy)
		path := f.TempDir() + "/chunks"
		check(f, s.Table.Write(path))
		f.Add(readFile(f, path))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fixSum(b)
		table, err := layer.NewTable(b)
		if err != nil {
			return
		}
		sound := table.Check() == nil
		noise := bytes.NewReader(bytes.Repeat([]byte{0x1f, 0x8b, 8, 0, 1, 2, 3}, 100))
		for i := range min(table.Len(), 20) {
			c := table.Chunk(i)
			table.Find(c.Off)
			table.Copies(i)
			if sound || c.Len < 1<<20 {
				_ = table.Decode(noise, i, i+1, table.Verify)
				_ = table.Compose(i, make([]byte, min(c.Len, 1<<20)), func([]byte, int64) error { return nil })
			}
		}
		table.Span(0, table.Len())
	})
}

// fixSum makes the header's checksum right, so that what is behind it is fuzzed.
func fixSum(b []byte) {
	if len(b) >= 256 {
		binary.LittleEndian.PutUint32(b[252:], castagnoli(b[:252]))
	}
}
