package encode

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/laminafs/lamina/layer"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pipeLen is how many bytes go from Write to the tar reader at once.
const pipeLen = 64 << 10

// lazy is a layer with a table of contents. The tar is read by a library in a
// goroutine, which writes the blob too.
type lazy struct {
	out       *output
	members   *members
	mediaType string
	notes     map[string]string // that the library adds, of the table of contents

	buf  *bufio.Writer // of pipe
	pipe *io.PipeWriter
	done chan struct{} // closed when the goroutine has set the rest

	toc    digest.Digest
	diffID digest.Digest
	err    error
}

func newEStargz(out *output) *lazy {
	m := &members{p: newPipeline(out, newMembers), toc: estargz.NewGzipCompressorWithLevel(gzipLevel)}
	return startLazy(out, m, ocispec.MediaTypeImageLayerGzip, nil)
}

func newZstdChunked(out *output) *lazy {
	notes := make(map[string]string)
	m := &members{
		p:   newPipeline(out, newFrames),
		toc: &zstdchunked.Compressor{CompressionLevel: zstdLevel, Metadata: notes},
	}
	return startLazy(out, m, ocispec.MediaTypeImageLayerZstd, notes)
}

func startLazy(out *output, m *members, mediaType string, notes map[string]string) *lazy {
	r, w := io.Pipe()
	l := &lazy{
		out: out, members: m, mediaType: mediaType, notes: notes,
		buf: bufio.NewWriterSize(w, pipeLen), pipe: w, done: make(chan struct{}),
	}
	go func() {
		defer close(l.done)
		l.err = l.run(r)
		l.members.p.wait()
		_ = r.CloseWithError(l.err) // a Write that waits gets it; never fails
	}()
	return l
}

// run makes the blob of the tar in r.
func (l *lazy) run(r io.Reader) error {
	src := &source{r: bufio.NewReaderSize(r, 4<<10)}
	// The library would unpack it, which is not what the tar is.
	if head, _ := src.r.Peek(3); bytes.Equal(head, []byte{0x1f, 0x8b, 8}) {
		return fmt.Errorf("%w: tar is compressed", layer.ErrFormat)
	}
	w := estargz.NewWriterWithCompressor(io.Discard, l.members)
	w.ChunkSize = chunkLen
	if err := w.AppendTarLossLess(src); err != nil {
		return l.cause(src, err)
	}
	if err := src.complete(l.members.size); err != nil {
		return err
	}
	var err error
	if l.toc, err = w.Close(); err != nil {
		return err
	}
	l.diffID = digest.Digest(w.DiffID())
	return nil
}

// cause finds out why the library has failed: it does not wrap what it was told.
func (l *lazy) cause(src *source, err error) error {
	switch {
	case l.out.err != nil:
		return l.out.err
	case src.err != nil && src.err != io.EOF:
		return src.err
	}
	return fmt.Errorf("%w: at byte %d: %w", layer.ErrFormat, src.n, err)
}

func (l *lazy) Write(p []byte) (int, error) { return l.buf.Write(p) }

func (l *lazy) finish() (Result, error) {
	// The pipe's errors are those of the goroutine, which it keeps.
	_ = l.buf.Flush()
	_ = l.pipe.Close()
	<-l.done
	if l.err != nil {
		return Result{}, l.err
	}
	r := Result{DiffID: l.diffID, Size: l.members.size}
	r.Desc.MediaType = l.mediaType
	if l.members.exact {
		r.Desc.Annotations = map[string]string{
			estargz.TOCJSONDigestAnnotation:         l.toc.String(),
			estargz.StoreUncompressedSizeAnnotation: strconv.FormatInt(r.Size, 10),
		}
		maps.Copy(r.Desc.Annotations, l.notes)
	}
	return r, nil
}

func (l *lazy) abort() {
	_ = l.pipe.CloseWithError(errAborted) // never fails
	<-l.done
}

// endLen is the length of the zeros that end a tar, in bytes.
const endLen = 1024

// source is the tar as it is read. It keeps what cause and complete need.
type source struct {
	r    *bufio.Reader
	n    int64
	tail []byte // the last bytes, up to endLen
	err  error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	s.err = err
	if n >= endLen {
		s.tail = append(s.tail[:0], p[n-endLen:n]...)
	} else {
		s.tail = append(s.tail, p[:n]...)
		s.tail = append(s.tail[:0], s.tail[max(0, len(s.tail)-endLen):]...)
	}
	return n, err
}

// complete finds what the library does not: a tar that was cut between two
// entries, or before the first, and a sparse file, of which it has written more
// bytes than it read. Without the end of the archive, unpackers would take the table
// of contents for a file of the layer.
func (s *source) complete(written int64) error {
	if written != s.n {
		return fmt.Errorf("%w: tar of %d bytes has a sparse file", layer.ErrFormat, s.n)
	}
	if len(s.tail) < endLen || len(bytes.Trim(s.tail, "\x00")) > 0 {
		return fmt.Errorf("%w: tar of %d bytes: %w: no end of the archive", layer.ErrFormat, s.n, io.ErrUnexpectedEOF)
	}
	return nil
}
