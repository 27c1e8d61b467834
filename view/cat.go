package view

import (
	"context"
	"fmt"
	"io"
	"syscall"

	"github.com/laminafs/lamina/index"
)

// pieceSize is how much of a file is read at once: enough that a fetch pays, and
// little enough that the first bytes come soon.
const pieceSize = 1 << 20

// Cat writes the regular file at path to w, from front to back. A symbolic link
// is followed. Of a directory the error wraps EISDIR, of what is neither EINVAL.
func (m *Image) Cat(ctx context.Context, w io.Writer, path string) error {
	s, err := m.locate(path, true)
	switch {
	case err != nil:
	case s.isDir():
		err = syscall.EISDIR
	case s.attr.Mode&syscall.S_IFMT != syscall.S_IFREG:
		err = fmt.Errorf("%s, not a regular file: %w", typeName(s.attr.Mode), syscall.EINVAL)
	default:
		buf := make([]byte, min(s.attr.Size, pieceSize))
		err = m.pieces(ctx, s.nid, 0, s.attr.Size, buf, func(p []byte, _ int64) error {
			_, err := w.Write(p)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("cat %s: %w", path, err)
	}
	return nil
}

// pieces calls fn with the n bytes of the regular file nid at off, piece by piece
// in buf, and the place of each.
func (m *Image) pieces(ctx context.Context, nid index.NID, off, n int64, buf []byte, fn func([]byte, int64) error) error {
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), end-off)]
		got, err := m.Tree.Read(ctx, nid, p, off)
		if err != nil {
			return err
		}
		if got < len(p) {
			return io.ErrUnexpectedEOF
		}
		if err := fn(p, off); err != nil {
			return err
		}
		off += int64(got)
	}
	return nil
}
