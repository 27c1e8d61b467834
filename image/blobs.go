package image

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	// copyPiece is how much of a local file is copied at once. A multiple of
	// every file system's block size, so that pieces can be shared.
	copyPiece = 16 << 20

	// readPiece is how much of a download is written at once.
	readPiece = 256 << 10

	// waitPoll is how often one who waits for another process's download
	// looks at it. flock cannot be waited for with a context.
	waitPoll = 50 * time.Millisecond
)

// HasBlob says whether the layout has a blob of the descriptor's digest and
// size. Its bytes are not read: they were verified when it was fetched. A blob
// that no stored image needs may be pruned at any moment; Fetch keeps it.
func (s *Store) HasBlob(desc ocispec.Descriptor) bool {
	if checkDescriptor(desc) != nil {
		return false
	}
	_, err := s.source().blob(desc)
	return err == nil
}

// Fetch puts a blob, usually a layer's, into the layout. from must be the blob
// that desc describes; it may be nil if the blob is there. When Fetch returns
// nil the blob is there, verified and on disk.
//
// What an interrupted Fetch has written is kept and gone on from by the next
// one, in any process. Of several that fetch the same blob at once, one does
// and the others wait for it. Bytes with the wrong digest are thrown away and
// fetched again, once and from the first. A file on this machine is copied,
// where possible by sharing its blocks; if it is gone by then, from may know
// where else the bytes are.
//
// progress, which may be nil, is called from Fetch's own goroutine with the
// bytes that are there, also with those that another process fetches; done can
// go back to 0. Prune spares the blob, and all others that were fetched
// recently, at least as long as this process lives.
//
// Errors wrap ErrAlgorithm, ErrCorrupt if no copy has the digest, ErrNotFound
// if from is nil, ErrNotImage if a newer version made the store, or what from or
// the system returned. If the disk is full the
// error names the directory.
func (s *Store) Fetch(ctx context.Context, desc ocispec.Descriptor, from fetch.Blob, progress func(done, total int64)) error {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	if err := s.fetch(ctx, desc, from, progress); err != nil {
		return fmt.Errorf("fetch blob %.150s: %w", desc.Digest, err)
	}
	return nil
}

func (s *Store) fetch(ctx context.Context, desc ocispec.Descriptor, from fetch.Blob, progress func(done, total int64)) error {
	if err := checkDescriptor(desc); err != nil {
		return err
	}
	err := s.version()
	if err == nil {
		err = s.announce()
	}
	if err != nil {
		if s.HasBlob(desc) { // in a store that we may only read
			return nil
		}
		return err
	}
	if s.refresh(desc) {
		progress(desc.Size, desc.Size)
		return nil
	}
	switch {
	case from == nil:
		return fmt.Errorf("%w: it is not stored, and there is nowhere to fetch it from", ErrNotFound)
	case from.Digest() != desc.Digest || from.Size() != desc.Size:
		return fmt.Errorf("%w: the source has %s of %d bytes, the descriptor says %d", ErrCorrupt, from.Digest(), from.Size(), desc.Size)
	}
	p, err := s.openPartial(ctx, desc, progress)
	if err != nil || p == nil {
		return err
	}
	defer p.close()
	for again := false; ; again = true {
		err = p.fill(ctx, from)
		if err == nil {
			err = p.install()
		}
		if !errors.Is(err, fetch.ErrDigest) {
			return err
		}
		// Nobody knows which of the bytes are wrong: an earlier process or a
		// crash of the machine may have left them.
		if cutErr := p.f.Truncate(0); cutErr != nil {
			return cutErr
		}
		if again {
			return err
		}
	}
}

// refresh says whether a blob is there, and if so makes it as young as if it
// had just been fetched. It takes the lock so as not to be overtaken by a Prune
// that has found the blob to be old.
func (s *Store) refresh(desc ocispec.Descriptor) bool {
	if !s.HasBlob(desc) {
		return false
	}
	unlock, err := s.lock()
	if err != nil {
		return s.HasBlob(desc)
	}
	defer unlock()
	now := time.Now()
	_ = os.Chtimes(s.path(blobPath(desc.Digest)), now, now) // fails if the file is another user's
	return s.HasBlob(desc)
}

// A partial is a blob under way. Its file is outside the layout, locked, and
// renamed into the layout when it is whole.
type partial struct {
	store    *Store
	f        *os.File
	path     string
	desc     ocispec.Descriptor
	progress func(done, total int64)
}

// partialPath is where the beginning of a blob is kept.
func (s *Store) partialPath(d digest.Digest) string {
	return filepath.Join(s.partials, d.Algorithm().String()+"-"+d.Encoded())
}

// openPartial returns the locked partial file of a blob, once nobody else has
// it; nil if the blob was completed meanwhile.
func (s *Store) openPartial(ctx context.Context, desc ocispec.Descriptor, progress func(done, total int64)) (*partial, error) {
	if err := makeDir(s.partials); err != nil {
		return nil, full(err, s.partials)
	}
	path := s.partialPath(desc.Digest)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, full(err, s.partials)
		}
		locked, err := tryLock(f)
		switch {
		case err != nil:
			_ = f.Close()
			return nil, err
		case locked && !isAt(f, path):
			// Its last owner has renamed or removed it.
			_ = f.Close()
			continue
		case locked && s.HasBlob(desc):
			err := os.Remove(path)
			_ = f.Close()
			progress(desc.Size, desc.Size)
			return nil, err
		case locked:
			return &partial{s, f, path, desc, progress}, nil
		}
		if st, err := f.Stat(); err == nil {
			progress(min(st.Size(), desc.Size), desc.Size)
		}
		_ = f.Close()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(waitPoll):
		}
	}
}

// isAt says whether the open file is the one at path.
func isAt(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Stat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// close gives the partial up to whoever is next.
func (p *partial) close() {
	if st, err := p.f.Stat(); err == nil && st.Size() == 0 && isAt(p.f, p.path) {
		_ = os.Remove(p.path) // nothing to go on from
	}
	_ = p.f.Close()
}

// fill gets what is missing of the blob and verifies the whole. An error that
// wraps fetch.ErrDigest says that the bytes are wrong.
func (p *partial) fill(ctx context.Context, from fetch.Blob) error {
	st, err := p.f.Stat()
	if err != nil {
		return err
	}
	have := st.Size()
	if have > p.desc.Size {
		have = 0
		if err := p.f.Truncate(0); err != nil {
			return err
		}
	}
	p.progress(have, p.desc.Size)
	h := p.desc.Digest.Algorithm().Hash()
	reject := func(error) {}
	if local, ok := from.(fetch.Local); ok {
		copied, err := p.copy(ctx, local, have)
		have += copied
		// It was pruned, or is being made. from may have the rest elsewhere, or
		// says what is wrong.
		if err != nil && !isNotExist(err) && !errors.Is(err, fetch.ErrShort) {
			return err
		}
	}
	if err := p.hash(ctx, h, have); err != nil {
		return err
	}
	if have < p.desc.Size {
		reject, err = p.download(ctx, from, h, have)
	}
	if err != nil {
		return err
	}
	got := digest.NewDigest(p.desc.Digest.Algorithm(), h)
	if got == p.desc.Digest {
		return nil
	}
	err = fmt.Errorf("%w: %w: its bytes have %s", ErrCorrupt, fetch.ErrDigest, got)
	if have == 0 { // else it may be what was there
		reject(err)
	}
	return err
}

// hash feeds the first n bytes of the file to h.
func (p *partial) hash(ctx context.Context, h hash.Hash, n int64) error {
	got, err := io.Copy(h, contextReader{ctx, io.NewSectionReader(p.f, 0, n)})
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF // somebody has truncated it
	}
	return err
}

// download appends the bytes from have on to the file and feeds them to h. The
// function it returns tells the source that its bytes were wrong.
func (p *partial) download(ctx context.Context, from fetch.Blob, h hash.Hash, have int64) (reject func(error), err error) {
	total := p.desc.Size
	st, err := from.ReadRange(ctx, have, total-have)
	if err != nil {
		return nil, err
	}
	defer func() { _ = st.Close() }()
	buf := make([]byte, readPiece)
	for have < total {
		n, readErr := io.ReadAtLeast(st, buf[:min(readPiece, total-have)], 1)
		if n > 0 {
			if _, err := p.f.WriteAt(buf[:n], have); err != nil {
				return nil, full(err, p.store.partials)
			}
			_, _ = h.Write(buf[:n]) // never fails
			have += int64(n)
			p.progress(have, total)
		}
		if readErr != nil && have < total {
			return nil, readErr
		}
	}
	return st.Reject, nil
}

// copy appends the bytes from have on of a file on this machine, and returns how
// many. Between two files io.Copy lets the kernel do it, which shares blocks where
// it can.
func (p *partial) copy(ctx context.Context, from fetch.Local, have int64) (copied int64, err error) {
	path, off := from.File()
	src, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = src.Close() }()
	if _, err := src.Seek(off+have, io.SeekStart); err != nil {
		return 0, err
	}
	if _, err := p.f.Seek(have, io.SeekStart); err != nil {
		return 0, err
	}
	for have+copied < p.desc.Size {
		if err := ctx.Err(); err != nil {
			return copied, err
		}
		n, err := io.Copy(p.f, io.LimitReader(src, min(copyPiece, p.desc.Size-have-copied)))
		copied += n
		switch {
		case err != nil:
			return copied, full(err, p.store.partials)
		case n == 0:
			return copied, fmt.Errorf("%w: %s ends at %d of %d bytes", fetch.ErrShort, path, have+copied, p.desc.Size)
		}
		p.progress(have+copied, p.desc.Size)
	}
	return copied, nil
}

// install moves the verified blob into the layout. It takes the store's lock:
// Check must not remove a wrong blob when the right one has taken its place.
func (p *partial) install() error {
	if err := p.f.Chmod(0o644); err != nil {
		return err
	}
	// A partial of another day may have been whole already. Prune goes by the
	// time.
	now := time.Now()
	if err := os.Chtimes(p.path, now, now); err != nil {
		return err
	}
	// On disk before it has its name: a rename may reach the disk first.
	if err := p.f.Sync(); err != nil {
		return full(err, p.store.partials)
	}
	unlock, err := p.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	w, err := p.store.writer()
	if err != nil {
		return full(err, p.store.dir)
	}
	path := p.store.path(blobPath(p.desc.Digest))
	if err := makeDir(filepath.Dir(path)); err != nil {
		return full(err, filepath.Dir(path))
	}
	if err := os.Rename(p.path, path); err != nil {
		return full(err, filepath.Dir(path))
	}
	w.dirty[filepath.Dir(path)] = true
	w.sync()
	return w.err
}

// full makes the error of a full disk one that says what to do.
func full(err error, dir string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("no room in %s, what is there is kept; make some, for example with lamina prune, and try again: %w", dir, err)
	}
	return err
}

// announce makes known to Prune, until Close or the end of this process, that s fetches blobs which perhaps no entry leads to yet. It waits for
// a Prune that is under way.
func (s *Store) announce() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetching != nil {
		return nil
	}
	f, err := s.lockFile(fetchingLock)
	if err != nil {
		return err
	}
	if err := flock(f, unix.LOCK_SH); err != nil {
		_ = f.Close()
		return err
	}
	s.fetching = f
	return nil
}
