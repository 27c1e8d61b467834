package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/laminafs/lamina/layer"
)

// Errors on which callers decide. They are found with errors.Is.
var (
	// ErrClosed: the layer or the store was closed.
	ErrClosed = errors.New("closed")
	// ErrRange: the bytes asked for are not within the layer's data.
	ErrRange = errors.New("range outside layer data")
	// ErrBusy: the cache is so small that chunks are evicted faster than read.
	ErrBusy = errors.New("cache too busy")
	// ErrFull: the disk, or the limit of the store, has no room for more.
	ErrFull = errors.New("no room in the cache")
)

// The files of a layer's directory, see the package's documentation, and of a
// chain's.
const (
	indexName    = "index.erofs"
	tableName    = "chunks"
	dataName     = "data"
	bitmapName   = "bitmap"
	prefetchName = "prefetch"
	partialName  = "blob.partial"
	refusedName  = "refused" // why the index that was offered for the layer is wrong
	doubtedName  = "doubted" // why it may be

	mergedName = "merged.erofs"
)

// Options are what Open needs to know. The zero value is usable.
type Options struct {
	// Limit bounds the bytes of layer data on the disk, as blocks; 0 is no
	// bound. It is kept to within a few percent.
	Limit int64
	// Log gets what users may have to know; nil discards it.
	Log *slog.Logger
	// Link returns the round trip time to the source of the blobs, and its
	// bandwidth in bytes per second; nil stands for 20 ms and 25 MB/s.
	Link func() (rtt time.Duration, bytesPerSecond float64)
	// Held returns the keys of layers whose data files were given to the
	// kernel, by any process; they are not evicted. nil stands for none; after
	// an error nothing is evicted.
	Held func() (map[string]bool, error)
	// Began, if not nil, is told of a file when it is first read, or arrives after
	// Want: when the chunk it begins with is, in layers with a table of contents;
	// when its beginning is, in layers that were opened by an index, once their
	// files are known. Others know no files. Of a file with a chunk of its own that
	// came in another way, by Prefetch, Fill, an earlier mount or another process,
	// it is not told: reads of what is present are to cost nothing. It is called
	// while somebody waits, and must be quick.
	Began func(l *Layer, b Begun)
	// Came, if not nil, is shown what has come of files beyond their beginnings:
	// p, not to be kept, is at off of the layer's data. It is
	// told by the same layers as Began, and not for who reads them in order; where
	// chunks know nothing of files, p may hold parts of several.
	// What was fetched along with it waits for its return.
	Came func(l *Layer, off int64, p []byte)

	// For tests.
	boot     string
	clock    func() time.Time
	openData func(path string) (dataFile, error)
}

// A Store is the layers/ and chains/ of a store directory, shared with other
// processes. All methods may be called concurrently.
type Store struct {
	root   string
	opts   Options
	log    *slog.Logger
	budget budget
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // evictions; Add only under mu with !closed
	scans  chan struct{}  // has one for each blob that is being decoded as a whole

	grown    atomic.Int64 // bytes added since the last look at the limit
	evicting atomic.Bool
	lastFull atomic.Int64 // Unix seconds at which a full disk was logged

	// mu guards what follows, and Layer.refs. Nothing that can wait is done under
	// it, and no other lock is taken.
	mu     sync.Mutex
	layers map[string]*Layer
	closed bool
}

// Open opens the store in directory root, making it if need be.
func Open(root string, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Link == nil {
		o.Link = func() (time.Duration, float64) { return 20 * time.Millisecond, 25e6 }
	}
	if o.boot == "" {
		id, err := bootID()
		if err != nil {
			return nil, err
		}
		o.boot = id
	}
	if o.clock == nil {
		o.clock = time.Now
	}
	if o.openData == nil {
		o.openData = openDataFile
	}
	for _, dir := range []string{"layers", "chains", "locks"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	s := &Store{
		root: root, opts: o, log: o.Log, layers: make(map[string]*Layer),
		scans: make(chan struct{}, max(runtime.GOMAXPROCS(0)+2, leastScans)),
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// Close ends what the store does by itself and waits for it. Layers and chains
// must have been closed before.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	open := len(s.layers)
	s.mu.Unlock()
	s.cancel(ErrClosed)
	s.wg.Wait()
	if open > 0 {
		return fmt.Errorf("close store %s: %d layers are still open", s.root, open)
	}
	return nil
}

// Has reports whether the layer called key is in the store, so that opening it
// asks nothing of its source. Data may still be missing.
func (s *Store) Has(key string) bool { return exists(s.layerPath(key, indexName)) }

// Layer opens the layer of src, verified against its digests, making it if the
// store does not have it: from its table of contents or by a look at its headers if
// the format allows, by streaming the whole blob otherwise. One process does that; others wait for it.
// progress, if not nil, is told the bytes of the blob that have arrived, here or
// there, by one goroutine at a time. Each Layer needs its own Close; all of one
// key share everything. Errors are those of packages fetch and layer, of ctx,
// and ErrClosed. What was downloaded before an error is kept for the next try.
func (s *Store) Layer(ctx context.Context, src layer.Source, progress func(done, total int64)) (*Layer, error) {
	return s.openOrMake(ctx, src, progress, false)
}

// AnyLayer is Layer for who is content with a layer that was opened by somebody's
// index before (see Indexed) and is not verified yet, when the store has no other.
func (s *Store) AnyLayer(ctx context.Context, src layer.Source, progress func(done, total int64)) (*Layer, error) {
	return s.openOrMake(ctx, src, progress, true)
}

// openOrMake is Layer, or AnyLayer if indexed is set.
func (s *Store) openOrMake(ctx context.Context, src layer.Source, progress func(done, total int64), indexed bool) (*Layer, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	key, format, lazy := layer.Key(src)
	if key == "" || key != filepath.Base(key) || src.Desc.Digest.Validate() != nil {
		return nil, fmt.Errorf("open layer %s: %w: bad key %q", src.Desc.Digest, layer.ErrFormat, key)
	}
	if src.DiffID != "" && src.DiffID.Validate() != nil {
		return nil, fmt.Errorf("open layer %s: %w: bad diff ID %q", src.Desc.Digest, layer.ErrFormat, src.DiffID)
	}
	l, err := s.get(key, src)
	if err == nil || !isMissing(err) && !errors.Is(err, errOtherBlob) {
		return l, err
	}
	if !lazy {
		if indexed && s.HasIndexed(src) && !s.Has(key) {
			if l, err := s.get(layer.IndexedKey(src), src); err == nil {
				return l, nil
			}
		}
		return s.plainLayer(ctx, key, src, progress)
	}
	plain := layer.DiffKey(src)
	if plain != "" {
		// All of it may be there, verified against the diff ID.
		if l, err := s.get(plain, src); err == nil {
			return l, nil
		}
	}
	l, err = s.makeLazy(ctx, key, format, src)
	if !errors.Is(err, layer.ErrNoTOC) && !errors.Is(err, layer.ErrTOC) {
		return l, err
	}
	if plain == "" {
		return nil, err
	}
	s.log.Warn("layer cannot be read lazily: streaming all of it", "blob", src.Desc.Digest, "error", err)
	return s.plainLayer(ctx, plain, src, progress)
}

// LayerAt opens the layer of src that is called key, as Layer, AnyLayer or Indexed
// opened it once, and never another one: of one blob the store may have several, and
// each puts its data elsewhere. If it is not there any more it is made again in the
// way it was, unless that took an index. fs.ErrNotExist: it cannot be.
func (s *Store) LayerAt(ctx context.Context, key string, src layer.Source) (*Layer, error) {
	if !isKey(key) || src.Desc.Digest.Validate() != nil || src.DiffID != "" && src.DiffID.Validate() != nil {
		return nil, fmt.Errorf("open layer %s: %w: bad key %q", src.Desc.Digest, layer.ErrFormat, key)
	}
	own, format, lazy := layer.Key(src)
	lazy = lazy && key == own
	plain := layer.DiffKey(src)
	stream := plain != "" && (key == plain || key == otherKey(plain, src))
	if !lazy && !stream && key != layer.IndexedKey(src) {
		return nil, fmt.Errorf("open layer %s: %w: its file has changed", key, fs.ErrNotExist)
	}
	l, err := s.get(key, src)
	switch {
	case err == nil || !isMissing(err):
		return l, err
	case lazy:
		return s.makeLazy(ctx, key, format, src)
	case stream:
		return s.makeStream(ctx, key, src, func(int64, int64) {})
	}
	return nil, fmt.Errorf("open layer %s: %w: %w", key, fs.ErrNotExist, err)
}

// otherKey is the key of src where another blob with the same content has plain.
func otherKey(plain string, src layer.Source) string {
	return plain + "-" + src.Desc.Digest.Encoded()[:16]
}

// plainLayer is Layer for one that is verified against its diff ID.
func (s *Store) plainLayer(ctx context.Context, key string, src layer.Source, progress func(done, total int64)) (*Layer, error) {
	l, err := s.get(key, src)
	if err == nil || !isMissing(err) && !errors.Is(err, errOtherBlob) {
		return l, err
	}
	if isMissing(err) {
		l, err = s.makeStream(ctx, key, src, progress)
	}
	if errors.Is(err, errOtherBlob) {
		// The same content was compressed in two ways, and the chunks of the
		// other, which are not all here, cannot be had from this blob.
		l, err = s.makeStream(ctx, otherKey(key, src), src, progress)
	}
	return l, err
}

// errMissing: the store has no such layer, or one that is damaged beyond use.
var errMissing = errors.New("not in the store")

func isMissing(err error) bool { return errors.Is(err, errMissing) }

// get returns the layer called key, opening its files unless this process has.
func (s *Store) get(key string, src layer.Source) (*Layer, error) {
	s.mu.Lock()
	l, closed := s.layers[key], s.closed
	if closed {
		s.mu.Unlock()
		return nil, fmt.Errorf("open layer %s: %w", key, ErrClosed)
	}
	if l != nil {
		l.refs++
	}
	s.mu.Unlock()
	if l != nil {
		if l.refused.Load() {
			return nil, errors.Join(fmt.Errorf("open layer %s: %w", key, ErrIndex), l.Close())
		}
		if l.serves(src) { // it may wait for an eviction
			return l, nil
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	opened, err := s.open(key, src)
	if err != nil {
		return nil, err
	}
	return s.share(opened, src)
}

// share returns opened for all to use, or the layer that another call has opened
// meanwhile, and closes opened.
func (s *Store) share(opened *Layer, src layer.Source) (*Layer, error) {
	s.mu.Lock()
	l := s.layers[opened.key]
	if l == nil && !s.closed {
		opened.refs = 1
		s.layers[opened.key] = opened
		s.mu.Unlock()
		opened.start()
		return opened, nil
	}
	if l != nil {
		l.refs++
	}
	s.mu.Unlock()
	if l == nil {
		return nil, errors.Join(fmt.Errorf("open layer %s: %w", opened.key, ErrClosed), opened.shut())
	}
	serves := l.serves(src) // not after opened has given up its hold
	if err := opened.shut(); err != nil || !serves {
		if err == nil {
			err = fmt.Errorf("open layer %s: %w", l.key, errOtherBlob)
		}
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// release counts one Close of l and reports whether it was the last.
func (s *Store) release(l *Layer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.refs--
	if l.refs != 0 {
		return false
	}
	if s.layers[l.key] == l {
		delete(s.layers, l.key)
	}
	return true
}

func (s *Store) layerPath(key, file string) string {
	return filepath.Join(s.root, "layers", key, file)
}

func (s *Store) lockPath(kind, key string) string {
	return filepath.Join(s.root, "locks", kind+"-"+key)
}

// now is the time in Unix seconds, as the bitmap keeps it.
func (s *Store) now() uint32 { return uint32(s.opts.clock().Unix()) }

// storeFailed is told that data of the layer called key could not be written.
// Reads go on without the store; an eviction may help.
func (s *Store) storeFailed(key string, err error) {
	now := s.opts.clock().Unix()
	if last := s.lastFull.Load(); now-last >= 60 && s.lastFull.CompareAndSwap(last, now) {
		s.log.Error("cannot store layer data, serving it without", "layer", key, "error", err)
	}
	if isFull(err) {
		s.startEvict(true)
	}
}
