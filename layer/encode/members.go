package encode

import (
	"hash"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

const (
	// chunkLen cuts the files of a layer with a table of contents, in bytes: what
	// must be fetched to read one of them.
	chunkLen = 1 << 20
	// jobLen is how many bytes of members are compressed by one goroutine, at
	// least: most members are small.
	jobLen = 1 << 20
	// maxJob bounds a block. Only a very long run of entries without data is
	// more; it may be cut anywhere, because no chunk lies behind its first
	// chunkLen bytes.
	maxJob = jobLen + chunkLen + 1<<20
)

// members compresses what an estargz.Writer writes side by side, although that
// wants to know where in the blob a member starts before it goes on. It gets the
// number of the member instead: each seems to be one byte long. The numbers are
// replaced by offsets once they are known, when the table of contents is written.
type members struct {
	p     *pipeline
	toc   estargz.Compressor // writes the table of contents
	cur   *block
	begun []int // frame with which a member begins
	count int   // of frames
	size  int64 // of the tar, and of the table of contents as part of it

	exact bool // the table of contents says the same as the tar
}

// Writer begins a member.
func (m *members) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	if m.cur != nil && len(m.cur.in) < jobLen {
		m.cur.cuts = append(m.cur.cuts, len(m.cur.in))
	} else if err := m.next(); err != nil {
		return nil, err
	}
	m.begun = append(m.begun, m.count)
	m.count++
	return &member{m, w}, nil
}

// next goes to the next block.
func (m *members) next() error {
	if m.cur != nil {
		if err := m.p.submit(m.cur); err != nil {
			return err
		}
	}
	m.cur = m.p.block()
	return nil
}

// member is the member that is being written.
type member struct {
	m *members
	w io.Writer // counts members
}

func (w *member) Write(p []byte) (int, error) {
	m := w.m
	if len(m.cur.in) > 0 && len(m.cur.in)+len(p) > maxJob {
		if err := m.next(); err != nil {
			return 0, err
		}
		m.count++
	}
	m.cur.add(p, jobLen+chunkLen)
	m.size += int64(len(p))
	return len(p), nil
}

// Flush does nothing: a member's number is known before it is written.
func (w *member) Flush() error { return nil }

func (w *member) Close() error {
	_, err := w.w.Write([]byte{0})
	return err
}

// WriteTOCAndFooter writes the rest of the blob.
func (m *members) WriteTOCAndFooter(_ io.Writer, _ int64, toc *estargz.JTOC, diff hash.Hash) (digest.Digest, error) {
	if m.cur != nil {
		if err := m.p.finish(m.cur); err != nil {
			return "", err
		}
	}
	m.exact = true
	for _, e := range toc.Entries {
		if e.Offset > 0 { // the member 0 is the first header, and no chunk
			e.Offset = m.p.frames[m.begun[e.Offset]]
		}
		m.exact = m.exact && exact(e)
	}
	counted := &countedHash{Hash: diff}
	d, err := m.toc.WriteTOCAndFooter(m.p.out, m.p.out.size, toc, counted)
	if err != nil {
		return "", err
	}
	m.size += counted.n
	return d, nil
}

// exact tells whether JSON can hold the names of e. Readers cannot tell a
// replacement character that the tar has from one that JSON put there.
func exact(e *estargz.TOCEntry) bool {
	ok := func(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError) }
	for name := range e.Xattrs {
		if !ok(name) {
			return false
		}
	}
	return ok(e.Name) && ok(e.LinkName)
}

// countedHash counts what it hashes: the table of contents, if that is in the tar.
type countedHash struct {
	hash.Hash
	n int64
}

func (c *countedHash) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.Hash.Write(p)
}
