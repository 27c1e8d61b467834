package push

import (
	"context"
	"fmt"
	"io"

	"github.com/laminafs/lamina/fetch"
)

// copyTo writes the bytes of b to w, and verifies them. fetch.ErrDigest: they are
// others than its descriptor says; w has got them all the same.
func (b *Blob) copyTo(ctx context.Context, w io.Writer, progress func(done int64)) error {
	if err := b.Desc.Digest.Validate(); err != nil {
		return fmt.Errorf("copy blob %q: %w: %w", b.Desc.Digest, fetch.ErrDigest, err)
	}
	s, err := b.From.ReadRange(ctx, 0, b.Desc.Size)
	if err != nil {
		return fmt.Errorf("copy blob %s: %w", b.Desc.Digest, err)
	}
	defer func() { _ = s.Close() }()
	verify := b.Desc.Digest.Verifier()
	buf := make([]byte, 256<<10)
	for done := int64(0); ; {
		n, err := s.Read(buf)
		_, _ = verify.Write(buf[:n]) // a hash cannot fail
		if _, werr := w.Write(buf[:n]); werr != nil {
			return fmt.Errorf("copy blob %s: %w", b.Desc.Digest, werr)
		}
		done += int64(n)
		progress(done)
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("copy blob %s: %w", b.Desc.Digest, err)
		}
	}
	if !verify.Verified() {
		err := fmt.Errorf("copy blob %s: %w", b.Desc.Digest, fetch.ErrDigest)
		s.Reject(err)
		return err
	}
	return nil
}

// of returns what is to be told of blob i of many.
func (p Progress) of(i int, b *Blob) func(done int64) {
	return func(done int64) {
		if p != nil {
			p(i, b.Desc.Digest.String(), done, b.Desc.Size)
		}
	}
}
