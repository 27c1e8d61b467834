package layer_test

import (
	"archive/tar"
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// memBlob is a blob in memory that counts requests and rejections.
type memBlob struct {
	b                  []byte
	requests, rejected int
	read               int64
}

func (m *memBlob) Digest() digest.Digest { return digest.FromBytes(m.b) }
func (m *memBlob) Size() int64           { return int64(len(m.b)) }

func (m *memBlob) ReadRange(_ context.Context, off, n int64) (fetch.Stream, error) {
	if off < 0 || n < 0 || off+n > int64(len(m.b)) {
		return nil, fmt.Errorf("range %d+%d outside %d bytes", off, n, len(m.b))
	}
	m.requests++
	m.read += n
	return &memStream{bytes.NewReader(m.b[off : off+n]), m}, nil
}

type memStream struct {
	io.Reader
	m *memBlob
}

func (*memStream) Close() error   { return nil }
func (s *memStream) Reject(error) { s.m.rejected++ }

// source makes a Source of a blob whose tar is known.
func source(blob, tarBytes []byte, mediaType string, notes map[string]string) layer.Source {
	return layer.Source{
		Desc: ocispec.Descriptor{
			MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob)), Annotations: notes,
		},
		DiffID: digest.FromBytes(tarBytes),
		Blob:   &memBlob{b: blob},
	}
}

// format is one way to make a blob of a tar.
type format struct {
	name string
	want layer.Format
	lazy bool
	// lossy: the table of contents has whole seconds only.
	lossy bool
	pack  func(t testing.TB, tarBytes []byte) layer.Source
}

const (
	mediaTar  = ocispec.MediaTypeImageLayer
	mediaGzip = ocispec.MediaTypeImageLayerGzip
	mediaZstd = ocispec.MediaTypeImageLayerZstd
)

var formats = []format{
	{"tar", layer.Tar, false, false, packTar},
	{"gzip", layer.Gzip, false, false, packGzip(6, 0)},
	{"gzip best", layer.Gzip, false, false, packGzip(9, 0)},
	{"gzip members", layer.Gzip, false, false, packGzip(6, 300_000)},
	{"gzip stored", layer.Gzip, false, false, packGzip(0, 0)},
	{"gzip of std", layer.Gzip, false, false, packStdGzip},
	{"zstd", layer.Zstd, false, false, packZstd(0)},
	{"zstd frames", layer.Zstd, false, false, packZstd(700_000)},
	{"zstd small frames", layer.Zstd, false, false, packZstd(10_000)},
	{"estargz", layer.EStargz, true, true, packEStargz(0, 0)},
	{"estargz small chunks", layer.EStargz, true, true, packEStargz(50_000, 0)},
	{"estargz shared members", layer.EStargz, true, true, packEStargz(50_000, 200_000)},
	{"zstd:chunked of stargz", layer.ZstdChunked, true, true, packStargzZstd},
	{"zstd:chunked of containers", layer.ZstdChunked, true, false, packContainers},
}

func packTar(_ testing.TB, b []byte) layer.Source { return source(b, b, mediaTar, nil) }

// packGzip compresses, as several members if member is not 0.
func packGzip(level, member int) func(testing.TB, []byte) layer.Source {
	return func(t testing.TB, b []byte) layer.Source {
		var out bytes.Buffer
		for rest := b; ; {
			n := len(rest)
			if member > 0 {
				n = min(n, member)
			}
			w, err := gzip.NewWriterLevel(&out, level)
			check(t, err)
			w.Name, w.Comment, w.Extra = "layer.tar", "c", []byte("extra")
			_, err = w.Write(rest[:n])
			check(t, err)
			check(t, w.Close())
			if rest = rest[n:]; len(rest) == 0 {
				return source(out.Bytes(), b, mediaGzip, nil)
			}
		}
	}
}

func packStdGzip(t testing.TB, b []byte) layer.Source {
	var out bytes.Buffer
	w := stdgzip.NewWriter(&out)
	_, err := w.Write(b)
	check(t, err)
	check(t, w.Close())
	return source(out.Bytes(), b, mediaGzip, nil)
}

func packZstd(frame int) func(testing.TB, []byte) layer.Source {
	return func(t testing.TB, b []byte) layer.Source {
		var out bytes.Buffer
		w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		check(t, err)
		for rest := b; ; w.Reset(&out) {
			n := len(rest)
			if frame > 0 {
				n = min(n, frame)
			}
			_, err = w.Write(rest[:n])
			check(t, err)
			check(t, w.Close())
			if rest = rest[n:]; len(rest) == 0 {
				return source(out.Bytes(), b, mediaZstd, nil)
			}
			out.Write([]byte{0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}) // skippable
		}
	}
}

// oneWriter compresses as estargz does, with one writer for all chunks: to make one
// takes long under the race detector.
type oneWriter struct {
	*estargz.GzipCompressor
	z *stdgzip.Writer
}

func (c *oneWriter) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	c.z.Reset(w)
	return c.z, nil
}

func packEStargz(chunk, minChunk int) func(testing.TB, []byte) layer.Source {
	return func(t testing.TB, b []byte) layer.Source {
		var out bytes.Buffer
		w := estargz.NewWriterWithCompressor(&out, &oneWriter{estargz.NewGzipCompressorWithLevel(6), stdgzip.NewWriter(nil)})
		w.ChunkSize, w.MinChunkSize = chunk, minChunk
		check(t, w.AppendTarLossLess(bytes.NewReader(b)))
		toc, err := w.Close()
		check(t, err)
		return source(out.Bytes(), gunzip(t, out.Bytes()), mediaGzip,
			map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()})
	}
}

// gunzip returns the tar of an eStargz, with the table that it has in it.
func gunzip(t testing.TB, b []byte) []byte {
	r, err := stdgzip.NewReader(bytes.NewReader(b))
	check(t, err)
	p, err := io.ReadAll(r)
	check(t, err)
	return p
}

func packStargzZstd(t testing.TB, b []byte) layer.Source {
	var out bytes.Buffer
	notes := map[string]string{}
	w := estargz.NewWriterWithCompressor(&out, &zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: notes})
	w.ChunkSize = 100_000
	check(t, w.AppendTarLossLess(bytes.NewReader(b)))
	toc, err := w.Close()
	check(t, err)
	notes[estargz.TOCJSONDigestAnnotation] = toc.String()
	r, err := zstd.NewReader(bytes.NewReader(out.Bytes()))
	check(t, err)
	defer r.Close()
	p, err := io.ReadAll(r)
	check(t, err)
	return source(out.Bytes(), p, mediaZstd, notes)
}

// frames writes zstd frames and skippable ones.
type frames struct {
	t   testing.TB
	out bytes.Buffer
	enc *zstd.Encoder
}

func (f *frames) frame(p []byte) {
	if len(p) > 0 {
		f.out.Write(f.enc.EncodeAll(p, nil))
	}
}

func (f *frames) skippable(p []byte) (off int64) {
	f.out.Write([]byte{0x50, 0x2a, 0x4d, 0x18})
	f.out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(p))))
	off = int64(f.out.Len())
	f.out.Write(p)
	return off
}

// packContainers writes zstd:chunked as containers/storage does, with chunks of
// odd lengths and chunks of zeros.
func packContainers(t testing.TB, b []byte) layer.Source {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	check(t, err)
	f := &frames{t: t, enc: enc}
	entries := []map[string]any{}
	in := bytes.NewReader(b)
	raw := 0 // tar bytes written so far
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		e := map[string]any{
			"type": containersType(h), "name": h.Name, "mode": h.Mode, "uid": h.Uid, "gid": h.Gid,
			"modtime": h.ModTime.UTC(), "size": h.Size,
		}
		if h.Linkname != "" {
			e["linkName"] = h.Linkname
		}
		if h.Devmajor != 0 || h.Devminor != 0 {
			e["devMajor"], e["devMinor"] = h.Devmajor, h.Devminor
		}
		xattrs := map[string][]byte{}
		for k, v := range h.PAXRecords {
			if name, ok := bytes.CutPrefix([]byte(k), []byte("SCHILY.xattr.")); ok {
				xattrs[string(name)] = []byte(v)
			}
		}
		if len(xattrs) > 0 {
			e["xattrs"] = xattrs
		}
		entries = append(entries, e)
		if h.Size == 0 || h.Typeflag != tar.TypeReg {
			continue
		}
		data := int(in.Size()) - in.Len()
		f.frame(b[raw:data])
		raw = data + int(h.Size)
		entries = append(entries, f.chunks(e, b[data:raw])...)
	}
	f.frame(b[raw:])
	toc, err := json.Marshal(map[string]any{"version": 1, "entries": entries, "tarSplitDigest": "sha256:x"})
	check(t, err)
	packed := enc.EncodeAll(toc, nil)
	off := f.skippable(packed)
	f.skippable([]byte("tar-split"))
	f.skippable(make([]byte, 64))
	return source(f.out.Bytes(), b, mediaZstd, map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": digest.FromBytes(packed).String(),
		"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", off, len(packed), len(toc)),
	})
}

func containersType(h *tar.Header) string {
	return map[byte]string{
		tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "hardlink",
		tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
	}[h.Typeflag]
}

// chunks writes p in frames, notes the first in e and returns the others.
func (f *frames) chunks(e map[string]any, p []byte) []map[string]any {
	e["digest"] = digest.FromBytes(p).String()
	var more []map[string]any
	cut := func(n int) int { return min(n, 60_000+n%777) }
	single := cut(len(p)) == len(p)
	for at, c := 0, e; at < len(p); {
		n := cut(len(p) - at)
		q := p[at : at+n]
		c["offset"] = f.out.Len()
		if !single {
			c["chunkSize"], c["chunkOffset"], c["chunkDigest"] = n, at, digest.FromBytes(q).String()
			if len(bytes.Trim(q, "\x00")) == 0 {
				c["chunkType"] = "zeros"
			}
		}
		f.frame(q)
		if at += n; at < len(p) {
			c = map[string]any{"type": "chunk", "name": e["name"]}
			more = append(more, c)
		}
	}
	e["endOffset"] = f.out.Len()
	return more
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
