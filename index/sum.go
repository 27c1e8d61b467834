package index

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sumXattr has the hex of the sha256 of an image that Write has written. The format
// has room for a checksum of the superblock only, and the kernel needs none.
const sumXattr = "user.lamina.sha256"

// summed writes to a file and sums up what is written.
type summed struct {
	f   *os.File
	sum hash.Hash
}

func newSummed(f *os.File) *summed { return &summed{f, sha256.New()} }

func (s *summed) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	_, _ = s.sum.Write(p[:n]) // never fails, by its documentation
	return n, err
}

// note keeps the sum with the file. Where the filesystem has no room for it the
// file goes without: it is there to find damage, and nothing rests on it.
func (s *summed) note() error {
	err := unix.Fsetxattr(int(s.f.Fd()), sumXattr, []byte(hex.EncodeToString(s.sum.Sum(nil))), 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ERANGE):
		return nil
	}
	return fmt.Errorf("set %s: %w", sumXattr, err)
}

// CheckSum reads the image at path and compares it with the digest that Write has
// left with it. ErrCorrupt: it is another. Images without a digest pass.
func CheckSum(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	want := make([]byte, 2*sha256.Size)
	n, err := unix.Fgetxattr(int(f.Fd()), sumXattr, want)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return nil
	case err != nil && !errors.Is(err, unix.ERANGE):
		return fmt.Errorf("%s: get %s: %w", path, sumXattr, err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n < 0 || got != string(want[:n]) {
		return fmt.Errorf("%s: %w: its sha256 is %s, not %q as when it was written", path, ErrCorrupt, got, want[:max(n, 0)])
	}
	return nil
}
