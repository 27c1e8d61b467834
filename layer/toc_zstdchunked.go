package layer

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
)

// skippableHeader is the length of magic and size before a skippable frame's
// contents, in bytes. Positions of tables are behind it.
const skippableHeader = 8

// readZstdChunked reads the table of a zstd:chunked layer: the contents of a
// skippable frame, at the place that the annotations give, or the footer.
func readZstdChunked(ctx context.Context, b fetch.Blob, note tocNote) (*toc, error) {
	if note.off == 0 {
		if err := readStargzFooter(ctx, b, &note); err != nil {
			return nil, err
		}
	}
	size := b.Size()
	if note.off <= skippableHeader || note.len <= 0 || note.len > maxPackedTOC ||
		note.off > size || note.len > size-note.off || note.raw < 0 || note.raw > maxTOC {
		return nil, fmt.Errorf("%w: %d bytes at %d of %d, %d unpacked", ErrTOC, note.len, note.off, size, note.raw)
	}
	packed := make([]byte, note.len)
	s, err := readRange(ctx, b, note.off, packed)
	if err != nil {
		return nil, err
	}
	if err := checkDigest("packed table of contents", note.packed, packed); err != nil {
		s.Reject(err)
		return nil, err
	}
	json, err := unpackZstd(packed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTOC, err)
	}
	if err := checkDigest("table of contents", note.json, json); err != nil {
		s.Reject(err)
		return nil, err
	}
	return &toc{json: json, end: note.off - skippableHeader}, nil
}

// readStargzFooter finds the table by the footer of the stargz dialect.
func readStargzFooter(ctx context.Context, b fetch.Blob, note *tocNote) error {
	if b.Size() < zstdchunked.FooterSize {
		return fmt.Errorf("%w: no footer", ErrNoTOC)
	}
	p := make([]byte, zstdchunked.FooterSize)
	s, err := readRange(ctx, b, b.Size()-int64(len(p)), p)
	if err != nil {
		return err
	}
	_, note.off, note.len, err = (&zstdchunked.Decompressor{}).ParseFooter(p)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNoTOC, err)
		s.Reject(err)
	}
	return err
}

// unpackZstd returns the contents of zstd frames, at most maxTOC bytes.
func unpackZstd(packed []byte) ([]byte, error) {
	z, err := newZstd(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var b bytes.Buffer
	b.Grow(min(len(packed)*8, 16<<20))
	n, err := io.Copy(&b, io.LimitReader(z, maxTOC+1))
	if err == nil && n > maxTOC {
		err = fmt.Errorf("more than %d bytes", maxTOC)
	}
	return b.Bytes(), err
}

// readRange fills p from offset off of b. The stream is closed already; it is
// returned to be rejected.
func readRange(ctx context.Context, b fetch.Blob, off int64, p []byte) (fetch.Stream, error) {
	s, err := b.ReadRange(ctx, off, int64(len(p)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	if _, err := io.ReadFull(s, p); err != nil {
		return nil, err
	}
	return s, nil
}

// checkDigest compares p with a digest, unless that is empty.
func checkDigest(what string, want digest.Digest, p []byte) error {
	if want == "" {
		return nil
	}
	if got := want.Algorithm().FromBytes(p); got != want {
		return fmt.Errorf("%w: %w: %s: expected %s, got %s", ErrTOC, ErrDigest, what, want, got)
	}
	return nil
}
