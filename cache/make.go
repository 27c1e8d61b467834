package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// makeLazy makes the layer called key without reading its data: from its table
// of contents, or the headers of a local tar. The error wraps layer.ErrNoTOC or
// layer.ErrTOC when it has to be streamed.
func (s *Store) makeLazy(ctx context.Context, key string, f layer.Format, src layer.Source) (*Layer, error) {
	lock, err := waitFlock(ctx, s.lockPath("layer", key), nil)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", key, err)
	}
	defer lock.unlock()
	if l, err := s.get(key, src); err == nil || !isMissing(err) {
		return l, err // another process was first
	}
	var sc *layer.Scanned
	if f == layer.Tar {
		sc, err = layer.ScanTar(ctx, src)
	} else {
		sc, err = layer.LoadTOC(ctx, src)
	}
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", key, err)
	}
	if f == layer.Tar {
		if err = s.clean(key); err == nil {
			err = s.install(key, sc, nil)
		}
	} else {
		err = s.installLazy(key, sc)
	}
	if err != nil {
		return nil, err
	}
	return s.get(key, src)
}

// clean removes what is left of an earlier layer called key, but for what was
// downloaded of its blob. Whoever still has it open keeps his files. The
// layer's lock must be held.
func (s *Store) clean(key string) error {
	if err := os.MkdirAll(s.layerPath(key, ""), 0o700); err != nil {
		return fmt.Errorf("make layer %s: %w", key, err)
	}
	for _, name := range []string{indexName, tableName, bitmapName, prefetchName, dataName} {
		if err := os.Remove(s.layerPath(key, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make layer %s: %w", key, err)
		}
	}
	return nil
}

// newData makes the layer's data file, empty and size bytes long, or as long as
// the file system allows: what it does not hold is served without it.
func (s *Store) newData(key string, size int64) (*os.File, error) {
	f, err := os.OpenFile(s.layerPath(key, dataName), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make layer %s: %w", key, err)
	}
	if err := f.Truncate(size); err != nil && !isFull(err) {
		_ = f.Close()
		return nil, fmt.Errorf("make layer %s: %w", key, err)
	}
	return f, nil
}

// install writes the files of the layer called key from sc. Its data file is in
// place; filled, if not nil, is what was written to it, all of it verified. The
// layer exists once this returns.
func (s *Store) install(key string, sc *layer.Scanned, filled *filler) error {
	if err := sc.Table.Write(s.layerPath(key, tableName)); err != nil {
		return fmt.Errorf("make layer %s: %w", key, err)
	}
	b, err := openBitmap(s.layerPath(key, bitmapName), shapeOf(sc.Table), s.opts.boot, false)
	if err != nil {
		return fmt.Errorf("make layer %s: %w", key, err)
	}
	if filled != nil {
		now, whole := s.now(), true
		for i := range sc.Table.Len() {
			c := sc.Table.Chunk(i)
			if filled.lacks(c.Off, c.Len) {
				whole = false
				continue
			}
			b.touch(i, now)
			b.set(i, &c.Digest)
		}
		if whole {
			b.touchAll(now)
			b.setWhole()
		}
	}
	if err := b.close(); err != nil {
		return fmt.Errorf("make layer %s: %w", key, err)
	}
	if err := writePrefetch(s.layerPath(key, prefetchName), sc.Prefetch); err != nil {
		return fmt.Errorf("make layer %s: %w", key, err)
	}
	// Last: from now on the layer is there.
	if err := sc.Tree.Write(s.layerPath(key, indexName)); err != nil {
		return fmt.Errorf("make layer %s: %w", key, err)
	}
	return nil
}

// makeStream makes the layer called key by reading the whole blob once.
func (s *Store) makeStream(ctx context.Context, key string, src layer.Source, progress func(done, total int64)) (*Layer, error) {
	if src.Blob == nil {
		return nil, fmt.Errorf("open layer %s: %w: no source", key, fetch.ErrUnavailable)
	}
	total := src.Blob.Size()
	lock, err := waitFlock(ctx, s.lockPath("layer", key), func() {
		if fi, err := os.Stat(s.layerPath(key, partialName)); err == nil {
			progress(min(fi.Size(), total), total)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", key, err)
	}
	defer lock.unlock()
	if l, err := s.get(key, src); err == nil || !isMissing(err) {
		return l, err // another process was first
	}
	stream := s.streamRemote
	if _, ok := src.Blob.(fetch.Local); ok {
		stream = s.streamLocal
	}
	sc, filled, err := stream(ctx, key, src, progress)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", key, err)
	}
	err = s.install(key, sc, filled)
	if err == nil {
		err = filled.f.Close()
	} else {
		_ = filled.f.Close()
	}
	if err != nil {
		return nil, err
	}
	// Not before: until the layer is there, this is what a kill leaves.
	if err := os.Remove(s.layerPath(key, partialName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open layer %s: %w", key, err)
	}
	s.added(filled.size())
	return s.get(key, src)
}

// leastScans is how many blobs may be decoded at once where there are few processors
// for it: all layers of most images, so that none of them is left to be decoded when
// all have been downloaded. Each takes some 12 MiB, and images may have thousands.
const leastScans = 10

// stream is layer.Stream when it is its turn.
func (s *Store) stream(ctx context.Context, src layer.Source, r io.Reader, data io.WriterAt) (*layer.Scanned, error) {
	select {
	case s.scans <- struct{}{}:
		defer func() { <-s.scans }()
		return layer.Stream(ctx, src, r, data)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// streamLocal streams a blob that is a local file.
func (s *Store) streamLocal(ctx context.Context, key string, src layer.Source, progress func(done, total int64)) (*layer.Scanned, *filler, error) {
	in, err := src.Blob.ReadRange(ctx, 0, src.Blob.Size())
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = in.Close() }()
	return s.scan(ctx, key, src, &reporter{r: in, total: src.Blob.Size(), progress: progress})
}

// streamRemote streams a blob through a file that outlives this process, so
// that what was downloaded is not downloaded again. Wrong bytes that may have
// come from an earlier attempt are downloaded again; wrong bytes that came
// just now are asked for once more, of another host.
func (s *Store) streamRemote(ctx context.Context, key string, src layer.Source, progress func(done, total int64)) (*layer.Scanned, *filler, error) {
	path := s.layerPath(key, partialName)
	if err := os.MkdirAll(s.layerPath(key, ""), 0o700); err != nil {
		return nil, nil, err
	}
	for rejected := false; ; {
		sp, err := openSpool(ctx, path, src.Blob, progress)
		if err != nil {
			return nil, nil, err
		}
		sc, filled, err := s.scan(ctx, key, src, sp)
		if err == nil {
			sp.close()
			return sc, filled, nil
		}
		again := false
		switch {
		case sp.failed() != nil:
			err = sp.failed()
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case !errors.Is(err, layer.ErrDigest) && !errors.Is(err, layer.ErrFormat):
			// The disk, or the like: the bytes are not to blame.
		case !errors.Is(err, layer.ErrDigest) && sp.genuine():
			// The blob is what the manifest says, and no layer.
		case sp.resumed:
			again = true
		default:
			sp.reject(err)
			again, rejected = !rejected, true
		}
		wrong := again || rejected
		resumed := sp.resumed
		sp.close()
		if wrong {
			s.log.Error("wrong bytes from blob", "blob", src.Blob.Digest(), "offset", 0, "length", src.Blob.Size(), "resumed", resumed, "error", err)
			if rerr := os.Remove(path); rerr != nil {
				return nil, nil, errors.Join(err, rerr)
			}
		}
		if !again {
			return nil, nil, err
		}
	}
}

// scan reads the blob of src from r into a new data file, when it is its turn; a
// spool fills up meanwhile.
func (s *Store) scan(ctx context.Context, key string, src layer.Source, r io.Reader) (*layer.Scanned, *filler, error) {
	if err := s.clean(key); err != nil {
		return nil, nil, err
	}
	f, err := s.newData(key, 0)
	if err != nil {
		return nil, nil, err
	}
	w := &filler{store: s, key: key, f: f}
	sc, err := s.stream(ctx, src, r, w)
	if err == nil {
		if err = f.Truncate(sc.Table.DataSize()); isFull(err) {
			err = nil // as in newData
		}
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(s.layerPath(key, dataName))
		return nil, nil, err
	}
	return sc, w, nil
}

// reporter passes bytes through and tells how many.
type reporter struct {
	r           io.Reader
	done, total int64
	progress    func(done, total int64)
}

func (p *reporter) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	p.progress(p.done, p.total)
	return n, err
}

// filler is the data file of a layer that is streamed. What the disk has no
// room for is left out, and remembered: it can be fetched later.
type filler struct {
	store *Store
	key   string
	f     *os.File

	mu   sync.Mutex
	left [][2]int64 // data ranges that were not written, ascending or nearly
	end  int64
}

// WriteAt implements io.WriterAt. It does not fail for want of room.
func (w *filler) WriteAt(p []byte, off int64) (int, error) {
	n, err := w.f.WriteAt(p, off)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = max(w.end, off+int64(len(p)))
	if err == nil {
		return n, nil
	}
	if !isFull(err) {
		return n, err
	}
	w.store.storeFailed(w.key, err)
	from, to := off, off+int64(len(p))
	if k := len(w.left) - 1; k >= 0 && w.left[k][1] == from {
		w.left[k][1] = to
	} else {
		w.left = append(w.left, [2]int64{from, to})
	}
	return len(p), nil
}

// ReadAt implements io.ReaderAt, for what repeats other data. Bytes that were
// left out are an error: digests are made of what this returns.
func (w *filler) ReadAt(p []byte, off int64) (int, error) {
	if w.lacks(off, int64(len(p))) {
		return 0, fmt.Errorf("%w: %d bytes of sparse files at %d", ErrFull, len(p), off)
	}
	return w.f.ReadAt(p, off)
}

// lacks tells whether some of n bytes at off were not written.
func (w *filler) lacks(off, n int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.left {
		if r[0] < off+n && off < r[1] {
			return true
		}
	}
	return false
}

// size is the length of what was written.
func (w *filler) size() int64 { return w.end }
