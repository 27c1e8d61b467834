package cache

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/fetch"
)

// A spool downloads a blob into a file and is read behind the download, in
// order. So the link is not held up by who decodes, and a process that is killed
// leaves what it downloaded to the next one, which goes on from there.
type spool struct {
	f        *os.File
	blob     fetch.Blob
	progress func(done, total int64)
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	resumed  bool  // the file had bytes of an earlier attempt
	pos      int64 // of the reader

	mu      sync.Mutex
	changed sync.Cond // on mu, when what follows changes
	have    int64     // bytes of the blob in the file
	err     error     // that ended the download
	stream  fetch.Stream
	full    bool   // the file takes no more: read pending, then stream
	pending []byte // arrived, but not in the file
}

// openSpool starts the download of blob into the file at path, after what is
// there already.
func openSpool(ctx context.Context, path string, blob fetch.Blob, progress func(done, total int64)) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open partial blob: %w", err)
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() > blob.Size() {
		err = f.Truncate(0)
		fi, _ = f.Stat()
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open partial blob: %w", err)
	}
	s := &spool{f: f, blob: blob, progress: progress, have: fi.Size(), resumed: fi.Size() > 0}
	s.changed.L = &s.mu
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		err := s.download()
		s.mu.Lock()
		s.err = err
		s.changed.Broadcast()
		s.mu.Unlock()
	}()
	return s, nil
}

// download fills the file until the blob is whole, or the file takes no more.
func (s *spool) download() error {
	total := s.blob.Size()
	s.progress(s.have, total)
	if s.have == total {
		return nil
	}
	st, err := s.blob.ReadRange(s.ctx, s.have, total-s.have)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.stream = st
	s.mu.Unlock()
	buf := make([]byte, 256<<10)
	for have := s.have; have < total; {
		n, err := st.Read(buf)
		if n > 0 {
			w, werr := s.f.WriteAt(buf[:n], have)
			have += int64(w)
			s.mu.Lock()
			s.have = have
			if werr != nil {
				s.full, s.pending = true, slices.Clone(buf[w:n])
			}
			s.changed.Broadcast()
			s.mu.Unlock()
			if werr != nil {
				return nil
			}
			s.progress(have, total)
		}
		if err != nil && have < total {
			if err == io.EOF {
				err = fmt.Errorf("%w: blob %s ends at %d of %d", fetch.ErrShort, s.blob.Digest(), have, total)
			}
			return err
		}
	}
	return nil
}

// Read reads the blob from its first byte on.
func (s *spool) Read(p []byte) (int, error) {
	s.mu.Lock()
	for s.pos == s.have && s.pos < s.blob.Size() && s.err == nil && !s.full {
		s.changed.Wait()
	}
	have, err, full := s.have, s.err, s.full
	s.mu.Unlock()
	switch {
	case s.pos < have:
		n, err := s.f.ReadAt(p[:min(int64(len(p)), have-s.pos)], s.pos)
		s.pos += int64(n)
		if n > 0 {
			err = nil
		}
		return n, err
	case s.pos >= s.blob.Size():
		return 0, io.EOF
	case !full:
		return 0, err
	}
	// The disk is full: go on without the file. The downloader has ended.
	if len(s.pending) > 0 {
		n := copy(p, s.pending)
		s.pending = s.pending[n:]
		s.pos, s.have = s.pos+int64(n), s.have+int64(n)
		return n, nil
	}
	n, err := s.stream.Read(p)
	s.pos, s.have = s.pos+int64(n), s.have+int64(n)
	s.progress(s.pos, s.blob.Size())
	return n, err
}

// reject tells the source that its bytes were wrong.
func (s *spool) reject(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream != nil {
		s.stream.Reject(cause)
	}
}

// failed returns the error of the transfer, as opposed to those of its bytes.
func (s *spool) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// genuine reads what is left of the blob and reports whether it has its digest.
func (s *spool) genuine() bool {
	if _, err := io.Copy(io.Discard, s); err != nil || s.full {
		return false
	}
	d, err := digest.FromReader(io.NewSectionReader(s.f, 0, s.blob.Size()))
	return err == nil && d == s.blob.Digest()
}

// close ends the download and waits for it. The file stays.
func (s *spool) close() {
	s.cancel()
	s.wg.Wait()
	if s.stream != nil {
		_ = s.stream.Close()
	}
	_ = s.f.Close()
}
