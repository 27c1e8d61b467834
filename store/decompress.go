package store

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// compressions are what archives come in, and how that begins.
var compressions = []struct {
	magic string
	open  func(r io.Reader) (io.ReadCloser, error)
}{
	{"\x1f\x8b", func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"\x28\xb5\x2f\xfd", func(r io.Reader) (io.ReadCloser, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}},
	{"\xfd7zXZ\x00", func(r io.Reader) (io.ReadCloser, error) {
		d, err := xz.ReaderConfig{DictCap: maxWindow}.NewReader(r)
		return io.NopCloser(d), err
	}},
	{"BZh", func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }},
}

// maxWindow bounds the memory that decompression takes, in bytes: what zstd --long writes.
const maxWindow = 128 << 20

// Decompressed returns what r holds, without its compression if it is gzip, zstd, xz or
// bzip2. It takes 128 MiB of memory at the most. Closing it does not close r.
func Decompressed(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	head, err := b.Peek(8)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	for _, c := range compressions {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			d, err := c.open(b)
			if err != nil {
				return nil, fmt.Errorf("read the archive: %w", err)
			}
			return d, nil
		}
	}
	return io.NopCloser(b), nil
}

// isPlainTar tells whether f is a regular file that is not compressed.
func isPlainTar(f *os.File) (bool, error) {
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return false, err
	}
	head := make([]byte, 8)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	for _, c := range compressions {
		if bytes.HasPrefix(head[:n], []byte(c.magic)) {
			return false, nil
		}
	}
	return true, nil
}
