package encode

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
)

// output is where the blob goes: it counts and hashes. After an error it writes
// nothing more.
type output struct {
	w    io.Writer
	hash hash.Hash
	size int64
	err  error
}

func newOutput(w io.Writer) *output { return &output{w: w, hash: sha256.New()} }

func (o *output) Write(p []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(p)
	if err == nil && n != len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		o.err = fmt.Errorf("write blob at %d: %w", o.size, err)
		return max(min(n, len(p)), 0), o.err
	}
	o.hash.Write(p)
	o.size += int64(n)
	return n, nil
}

func (o *output) digest() digest.Digest { return digest.NewDigest(digest.SHA256, o.hash) }
