package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/laminafs/lamina/fetch"
)

// The tail of an eStargz that is read first shall hold the whole table in most
// cases: a second request costs a round trip. Tables were 0.1 to 0.7% of the
// blobs of Debian images.
const (
	tailShare = 100
	minTail   = 64 << 10
	maxTail   = 4 << 20
)

// gzipFooter parses the footers that eStargz and stargz before it have.
type gzipFooter interface {
	FooterSize() int64
	ParseFooter(p []byte) (payload, tocOff, tocSize int64, err error)
}

// readEStargz reads the table of an eStargz: the last tar entry, in a gzip
// member of its own, to which the footer points.
func readEStargz(ctx context.Context, b fetch.Blob, note tocNote) (*toc, error) {
	size := b.Size()
	n := min(max(size/tailShare, minTail), maxTail, size)
	tail := make([]byte, n)
	first, err := readRange(ctx, b, size-n, tail)
	if err != nil {
		return nil, err
	}
	off, footer, err := parseFooter(tail)
	if err != nil {
		first.Reject(err)
		return nil, err
	}
	if off <= 0 || off >= size-footer || size-footer-off > maxPackedTOC {
		err := fmt.Errorf("%w: footer puts it at %d of %d", ErrTOC, off, size)
		first.Reject(err)
		return nil, err
	}
	streams := []fetch.Stream{first}
	packed := tail[:n-footer]
	if have := size - n; off < have {
		head := make([]byte, have-off, have-off+int64(len(packed)))
		second, err := readRange(ctx, b, off, head)
		if err != nil {
			return nil, err
		}
		streams = append(streams, second)
		packed = append(head, packed...)
	} else {
		packed = packed[off-have:]
	}
	json, err := unpackEStargz(packed)
	if err == nil {
		err = checkDigest("table of contents", note.json, json)
	} else {
		err = fmt.Errorf("%w: %w: %w", ErrTOC, ErrDigest, err)
	}
	if err != nil {
		for _, s := range streams {
			s.Reject(err)
		}
		return nil, err
	}
	return &toc{json: json, end: off}, nil
}

// parseFooter finds the footer at the end of tail.
func parseFooter(tail []byte) (off, size int64, err error) {
	for _, f := range []gzipFooter{&estargz.GzipDecompressor{}, &estargz.LegacyGzipDecompressor{}} {
		size = f.FooterSize()
		if int64(len(tail)) < size {
			continue
		}
		p := tail[int64(len(tail))-size:]
		if size == estargz.FooterSize && (p[10] != 26 || p[11] != 0) {
			continue // the parser would index a shorter extra field
		}
		if _, off, _, err := f.ParseFooter(p); err == nil {
			return off, size, nil
		}
	}
	// An external table has another footer, and this blob no table of its own.
	return 0, 0, fmt.Errorf("%w: no eStargz footer", ErrNoTOC)
}

// unpackEStargz returns the JSON in a gzip member with a tar of one entry.
func unpackEStargz(packed []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	tr := tar.NewReader(z)
	h, err := tr.Next()
	if err != nil {
		return nil, err
	}
	if h.Name != estargz.TOCTarName || h.Size < 0 || h.Size > maxTOC {
		return nil, fmt.Errorf("entry %s of %d bytes", short(h.Name), h.Size)
	}
	return readExactly(tr, h.Size)
}

// readExactly reads n bytes. It believes n only as far as bytes come.
func readExactly(r io.Reader, n int64) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(int(min(n, 16<<20)) + bytes.MinRead) // the end is found without growing
	k, err := io.Copy(&b, io.LimitReader(r, n))
	if err == nil && k != n {
		err = io.ErrUnexpectedEOF
	}
	return b.Bytes(), err
}
