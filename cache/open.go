package cache

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

// open opens the files of the layer called key. The error is errMissing when
// there is no such layer, or it cannot be used and must be made anew.
func (s *Store) open(key string, src layer.Source) (l *Layer, err error) {
	l = &Layer{
		store: s, key: key, blob: src.Blob, kick: make(chan struct{}, 1),
		flights: make(map[int]*flight),
	}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	defer func() {
		if err != nil {
			l.cancel(err)
			_ = l.free()
			l = nil
		}
	}()
	if layer.IsIndexed(key) {
		l.diffID = src.DiffID
	}
	if l.use, err = s.lockOpen(openLayerLock, key); err != nil {
		return l, fmt.Errorf("open layer %s: %w", key, err)
	}
	if l.index, err = index.Open(s.layerPath(key, indexName)); err != nil {
		return l, s.unusable(key, err)
	}
	if l.table, err = layer.OpenTable(s.layerPath(key, tableName)); err != nil {
		return l, s.unusable(key, err)
	}
	l.size = l.table.DataSize()
	for l.tail = l.table.Len(); l.tail > 0 && l.table.Chunk(l.tail-1).Kind != layer.Data; l.tail-- {
	}
	l.ahead.at, l.ahead.continues, l.ahead.group = l.blobAt, l.continues, l.groupAt
	l.ahead.wasRead, l.ahead.link = l.wasRead, s.opts.Link
	if l.table.Format() == layer.Tar {
		if local, ok := src.Blob.(fetch.Local); ok && !exists(s.layerPath(key, dataName)) {
			return l, l.openInPlace(local)
		}
	}
	l.path = s.layerPath(key, dataName)
	if l.prior, err = readPrefetch(s.layerPath(key, prefetchName)); err != nil {
		return l, err
	}
	l.marked = make([]atomic.Uint32, (l.table.Len()+31)/32)
	if s.opts.Began != nil {
		l.told = make([]atomic.Uint32, len(l.marked))
	}
	if l.bm, err = openBitmap(s.layerPath(key, bitmapName), shapeOf(l.table), s.opts.boot, true); err != nil {
		return l, err
	}
	if err := s.mend(l); err != nil {
		return l, err
	}
	if l.data, err = s.opts.openData(l.path); err != nil {
		return l, fmt.Errorf("open layer %s: %w", key, err)
	}
	if !l.serves(src) {
		return l, fmt.Errorf("open layer %s: made from blob %s: %w", key, l.table.BlobDigest(), errOtherBlob)
	}
	return l, nil
}

func openDataFile(path string) (dataFile, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// errOtherBlob: the layer was made from another blob with the same content,
// and cannot be completed from this one.
var errOtherBlob = errors.New("other blob")

// unusable turns the error of opening a file of the layer called key, which is
// missing or damaged, into errMissing.
func (s *Store) unusable(key string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("layer is damaged and will be made anew", "layer", key, "error", err)
	}
	return fmt.Errorf("open layer %s: %w: %w", key, errMissing, err)
}

// openInPlace opens the tar that l's data is.
func (l *Layer) openInPlace(blob fetch.Local) error {
	l.inPlace = true
	l.path, l.base = blob.File()
	l.end = l.base + blob.Size()
	f, err := os.Open(l.path)
	if err != nil {
		return fmt.Errorf("open layer %s: %w", l.key, err)
	}
	l.data = f
	return nil
}

// mend makes sure that the data file is as long as the data. One that is
// shorter lost what its bitmap promises.
func (s *Store) mend(l *Layer) error {
	if fi, err := os.Stat(l.path); err == nil && fi.Size() >= l.size {
		return nil
	}
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("open layer %s: %w", l.key, err)
	}
	defer func() { _ = f.Close() }()
	if err := l.bm.clearWhole(); err != nil {
		return err
	}
	for i := range l.table.Len() {
		l.bm.doubt(i)
	}
	l.bm.bump()
	if err := f.Truncate(l.size); err != nil && !isFull(err) {
		return fmt.Errorf("open layer %s: %w", l.key, err)
	}
	return nil
}

// serves tells whether l can be read whatever happens with the blob of src.
func (l *Layer) serves(src layer.Source) bool {
	if l.inPlace || l.table.BlobDigest() == src.Desc.Digest {
		return true
	}
	// As long as it is whole, and kept from eviction, no blob is needed.
	_, ok := l.DataFile()
	return ok
}

// start begins what runs as long as the layer is open.
func (l *Layer) start() {
	if l.inPlace {
		return
	}
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		l.settle()
	}()
	l.nudge()
	if layer.IsIndexed(l.key) {
		l.findStarts()
	}
}

// continues tells whether chunk i goes on with the file of the chunk before.
func (l *Layer) continues(i int) bool { return l.table.Chunk(i).Continues }

// wasRead tells whether chunk i is present and was read.
func (l *Layer) wasRead(i int) bool {
	c := l.table.Chunk(i)
	return l.bm.has(i, &c.Digest) && !l.isMarked(i)
}

// groupAt returns the group of chunk i.
func (l *Layer) groupAt(i int) layer.Group { return l.table.Chunk(i).Group }

func shapeOf(t *layer.Table) shape {
	s := shape{chunks: t.Len(), size: t.DataSize()}
	if b, err := hex.DecodeString(t.BlobDigest().Encoded()); err == nil {
		copy(s.blob[:], b)
	}
	return s
}

// writePrefetch keeps the ranges that the image asks to be fetched early: a
// line with offset and length for each.
func writePrefetch(path string, ranges []layer.Range) (err error) {
	if len(ranges) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for _, r := range ranges {
		if _, err := fmt.Fprintln(w, r.Off, r.Len); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(w.Flush(), f.Close())
}

// readPrefetch reads what writePrefetch wrote. Lines that make no sense end the
// list: it is only advice.
func readPrefetch(path string) (ranges []layer.Range, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	for in := bufio.NewScanner(f); in.Scan(); {
		var r layer.Range
		if n, _ := fmt.Sscan(in.Text(), &r.Off, &r.Len); n != 2 || r.Off < 0 || r.Len <= 0 {
			break
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}
