package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
)

// fileBlob is a Blob whose bytes lie in a file.
type fileBlob struct {
	path      string
	off, size int64
	dgst      digest.Digest
}

var _ Local = (*fileBlob)(nil)

// OpenFile returns the blob of size bytes at offset off of the file path; dgst
// is its digest as the manifest has it, which is not verified. Nothing is opened yet: every ReadRange opens the file and
// its stream's Close closes it, so the blob itself needs no closing. A file
// that is missing gives ErrNotFound, an unreadable one ErrDenied, one that is
// too short ErrShort.
func OpenFile(path string, off, size int64, dgst digest.Digest) Local {
	return &fileBlob{path: path, off: off, size: size, dgst: dgst}
}

func (b *fileBlob) Digest() digest.Digest { return b.dgst }
func (b *fileBlob) Size() int64           { return b.size }

// File implements Local.
func (b *fileBlob) File() (path string, off int64) { return b.path, b.off }

func (b *fileBlob) ReadRange(ctx context.Context, off, n int64) (Stream, error) {
	if err := checkRange(b.dgst, off, n, b.size); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read blob %s: %w", b.dgst, err)
	}
	if n == 0 {
		return emptyStream{}, nil
	}
	f, err := os.Open(b.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read blob %s: %w: %w", b.dgst, ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("read blob %s: %w: %w", b.dgst, ErrDenied, err)
	case err != nil:
		return nil, fmt.Errorf("read blob %s: %w", b.dgst, err)
	}
	return &fileStream{ctx: ctx, blob: b, f: f, pos: b.off + off, end: b.off + off + n}, nil
}

// fileStream reads [pos, end) of a file.
type fileStream struct {
	ctx      context.Context // of ReadRange: it governs the stream's life
	blob     *fileBlob
	f        *os.File
	pos, end int64
}

func (s *fileStream) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, fmt.Errorf("read blob %s: %w", s.blob.dgst, err)
	}
	if s.pos == s.end {
		return 0, io.EOF
	}
	if int64(len(p)) > s.end-s.pos {
		p = p[:s.end-s.pos]
	}
	n, err := s.f.ReadAt(p, s.pos)
	s.pos += int64(n)
	switch {
	case n > 0:
		return n, nil // an error comes again with the next call
	case errors.Is(err, io.EOF):
		return 0, fmt.Errorf("read blob %s: %w: %s ends at %d, %d more bytes wanted", s.blob.dgst, ErrShort, s.blob.path, s.pos, s.end-s.pos)
	case err != nil:
		return 0, fmt.Errorf("read blob %s: %w", s.blob.dgst, err)
	}
	return 0, nil // len(p) is 0
}

func (s *fileStream) Close() error { _ = s.f.Close(); return nil }

// Reject does nothing: a file has no other host.
func (s *fileStream) Reject(error) {}
