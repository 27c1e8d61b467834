package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
)

const (
	// feedLen and feeds are length and number of the buffers between source
	// and decompressor, blockLen and blocks of those behind it. Together they
	// are all the memory that the data of a Stream takes: 12 MiB, or less for a
	// small layer, as they are made when they are first needed.
	feedLen  = 256 << 10
	feeds    = 16
	blockLen = 1 << 20
	blocks   = 8
)

// Stream reads a whole blob from r, once, and derives everything from it: it
// verifies the digests of blob and tar, writes the tar to data at its data
// offsets, and returns tree and table. The format is told by the content, not
// by the media type. Nothing of the result may be used when there is an error.
//
// Behind the tar, data gets the parts of sparse files that must be stored
// again; for them data must be an io.ReaderAt too, as *os.File is.
//
// Errors: ErrDigest when blob or tar are not what the source promises; with the
// right blob, ErrFormat when it is no layer. Errors of r, of data and of ctx are
// returned wrapped. Stream returns only when a blocked Read of r does: whoever
// opened r cancels that with the same ctx.
func Stream(ctx context.Context, src Source, r io.Reader, data io.WriterAt) (*Scanned, error) {
	s, err := stream(ctx, src, r, data)
	if err != nil {
		return nil, fmt.Errorf("stream layer %s: %w", src.Desc.Digest, err)
	}
	return s, nil
}

// streamer is one pass over a blob: four stages that run side by side, each a
// goroutine. The caller's own one feeds.
//
//	feed     r -> buffers, blob digest
//	inflate  buffers -> blocks of the tar, resume points
//	scan     blocks -> diff ID, tree
//	store    blocks -> data, digests of chunks
type streamer struct {
	src  Source
	data io.WriterAt
	ctx  context.Context
	stop context.CancelCauseFunc

	fed, spare            chan []byte
	inflated, scanned     chan *block
	free                  chan *block
	sink                  sink
	format                Format // set before the first block is sent
	blobHash, diffHash    hash.Hash
	sameDigest            bool // blob and tar are the same bytes
	tar                   *tarScan
	size                  int64 // of the tar
	digests               [][sha256.Size]byte
	blobDigest, tarDigest digest.Digest
}

func stream(ctx context.Context, src Source, r io.Reader, data io.WriterAt) (*Scanned, error) {
	if err := src.Desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: blob digest %q: %w", ErrFormat, src.Desc.Digest, err)
	}
	if err := src.DiffID.Validate(); err != nil {
		return nil, fmt.Errorf("%w: diff ID %q: %w", ErrFormat, src.DiffID, err)
	}
	d := tocOf(src.Desc).dialect
	s := &streamer{
		src: src, data: data,
		fed: make(chan []byte, feeds), spare: make(chan []byte, feeds),
		inflated: make(chan *block, blocks), scanned: make(chan *block, blocks), free: make(chan *block, blocks),
		blobHash: src.Desc.Digest.Algorithm().Hash(), diffHash: src.DiffID.Algorithm().Hash(),
		tar: newTarScan(d == dialectEStargz || d == dialectStargz),
	}
	for range feeds {
		s.spare <- nil
	}
	for range blocks {
		s.free <- &block{}
	}
	s.ctx, s.stop = context.WithCancelCause(ctx)
	defer s.stop(nil)
	s.sink = sink{ctx: s.ctx, out: s.inflated, free: s.free, table: newTable(Tar, src.Desc.Digest, src.Desc.Size)}
	if err := s.run(r); err != nil {
		return nil, err
	}
	return s.result()
}

// run runs the stages and waits for them.
func (s *streamer) run(r io.Reader) error {
	var wg sync.WaitGroup
	for _, stage := range []func() error{s.inflate, s.scan, s.store} {
		wg.Go(func() {
			if err := stage(); err != nil {
				s.stop(err)
			}
		})
	}
	feedErr := s.feed(r)
	if feedErr != nil {
		s.stop(feedErr)
	}
	close(s.fed)
	wg.Wait()
	if feedErr != nil {
		return feedErr
	}
	return context.Cause(s.ctx)
}

// feed reads the blob. When a later stage finds the content bad it reads on, to
// tell whether the blob is not the one that was asked for, or was always bad.
func (s *streamer) feed(r io.Reader) error {
	var total int64
	var own []byte // for when the later stages are gone
	for {
		b, send := own, false
		select {
		case b = <-s.spare:
			send = true
		case <-s.ctx.Done():
			if err := context.Cause(s.ctx); !errors.Is(err, ErrFormat) {
				return err
			}
		}
		if b == nil {
			b = make([]byte, feedLen)
		}
		if !send {
			own = b
		}
		n, err := io.ReadFull(r, b[:cap(b)])
		s.blobHash.Write(b[:n])
		if total += int64(n); total > s.src.Desc.Size {
			return fmt.Errorf("%w: blob is longer than %d bytes", ErrDigest, s.src.Desc.Size)
		}
		if n > 0 && send {
			select {
			case s.fed <- b[:n]:
			case <-s.ctx.Done():
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			s.blobDigest = digest.NewDigest(s.src.Desc.Digest.Algorithm(), s.blobHash)
			if s.blobDigest != s.src.Desc.Digest {
				return fmt.Errorf("%w: blob of %d bytes: expected %s, got %s", ErrDigest, total, s.src.Desc.Digest, s.blobDigest)
			}
			return nil
		case err != nil:
			return err
		}
	}
}

// fedReader makes a reader of the fed buffers.
type fedReader struct {
	s    *streamer
	b    []byte
	full []byte // b as it came
}

func (f *fedReader) Read(p []byte) (int, error) {
	for len(f.b) == 0 {
		if f.full != nil {
			f.s.spare <- f.full // never blocks: there is room for all
			f.full = nil
		}
		select {
		case b, ok := <-f.s.fed:
			if !ok {
				return 0, io.EOF
			}
			f.b, f.full = b, b
		case <-f.s.ctx.Done():
			return 0, context.Cause(f.s.ctx)
		}
	}
	n := copy(p, f.b)
	f.b = f.b[n:]
	return n, nil
}

func (s *streamer) inflate() error {
	defer close(s.inflated)
	f := &fedReader{s: s}
	err := inflate(f, &s.sink, func(format Format) {
		s.format = format
		s.sameDigest = format == Tar && s.src.DiffID == s.src.Desc.Digest
	})
	if err == nil {
		_, err = io.Copy(io.Discard, f) // what follows counts for the digest only
	}
	return s.content(err)
}

// content says of an error that is the content's fault that it is one.
func (s *streamer) content(err error) error {
	if err == nil || s.ctx.Err() != nil || errors.Is(err, ErrFormat) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrFormat, err)
}

func (s *streamer) scan() error {
	defer close(s.scanned)
	for b := range s.inflated {
		if !s.sameDigest {
			s.diffHash.Write(b.buf)
		}
		if _, err := s.tar.Write(b.buf); err != nil {
			return formatError(err)
		}
		s.size = b.off + int64(len(b.buf))
		select {
		case s.scanned <- b:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	return nil
}

func (s *streamer) store() error {
	h := sha256.New()
	for b := range s.scanned {
		if _, err := s.data.WriteAt(b.buf, b.off); err != nil {
			return fmt.Errorf("write data: %w", err)
		}
		at := 0
		for _, end := range b.ends {
			h.Write(b.buf[at:end])
			s.digests = append(s.digests, [sha256.Size]byte(h.Sum(nil)))
			h.Reset()
			at = end
		}
		h.Write(b.buf[at:])
		select {
		case s.free <- b:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	return nil
}

// result makes the table and the tree, once all stages are done.
func (s *streamer) result() (*Scanned, error) {
	s.tarDigest = s.blobDigest
	if !s.sameDigest {
		s.tarDigest = digest.NewDigest(s.src.DiffID.Algorithm(), s.diffHash)
	}
	if s.tarDigest != s.src.DiffID {
		return nil, fmt.Errorf("%w: tar of %d bytes: expected diff ID %s, got %s", ErrDigest, s.size, s.src.DiffID, s.tarDigest)
	}
	tree, total, err := s.tar.finish(s.size, tag(DiffKey(s.src)))
	if err != nil {
		return nil, err
	}
	if len(s.digests) != len(s.sink.chunks) {
		return nil, fmt.Errorf("%d chunks with %d digests", len(s.sink.chunks), len(s.digests))
	}
	tb := s.sink.table
	tb.dataSize = total
	for i, c := range s.sink.chunks {
		c.Digest = s.digests[i]
		tb.add(c)
	}
	if err := s.extend(tb, alignUp(s.size), total); err != nil {
		return nil, err
	}
	return &Scanned{Tree: tree, Table: tb.table(), DiffID: s.tarDigest}, nil
}

// extend makes the chunks from data offset base to end, which repeat other data.
func (s *streamer) extend(tb *tableBuilder, base, end int64) error {
	if base == end {
		return nil
	}
	data, ok := s.data.(io.ReaderAt)
	if !ok {
		return errors.New("data of sparse files must be read back, and cannot be")
	}
	copies := s.tar.ext.copies
	for _, c := range copies {
		tb.addCopy(c)
	}
	buf := make([]byte, plainChunk)
	for off := base; off < end; off += plainChunk {
		p := buf[:min(plainChunk, end-off)]
		clear(p)
		for len(copies) > 0 && copies[0].Dst < off+int64(len(p)) {
			c := copies[0]
			n := min(c.Len, off+int64(len(p))-c.Dst)
			to := p[c.Dst-off:][:n]
			if _, err := data.ReadAt(to, c.Src); err != nil {
				return fmt.Errorf("read data: %w", err)
			}
			if _, err := s.data.WriteAt(to, c.Dst); err != nil {
				return fmt.Errorf("write data: %w", err)
			}
			if n < c.Len {
				copies[0] = Copy{c.Dst + n, c.Src + n, c.Len - n}
				break
			}
			copies = copies[1:]
		}
		tb.add(Chunk{Off: off, Len: int64(len(p)), Kind: Copied, Digest: sha256.Sum256(p), point: -1})
	}
	// The last chunk may end in zeros that no copy wrote.
	last := (end - 1 - base) % plainChunk
	if _, err := s.data.WriteAt(buf[last:last+1], end-1); err != nil {
		return fmt.Errorf("write data: %w", err)
	}
	return nil
}
