package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/laminafs/lamina/layer"
)

// refusedName is the file of a layer's directory that says why the index that
// was offered for it is wrong.
const refusedName = "refused"

// ErrIndex: the index that was offered for a layer is not the layer's.
var ErrIndex = errors.New("index does not belong to the layer")

// Indexed opens the layer of src by an index that somebody else has made of it,
// without reading its blob, unless the store has the layer already, verified. load
// gets the index, and is called only if the store does not have it.
//
// Such an index is believed until all of the layer has been read: then its data
// is compared with the diff ID. If that differs the layer answers no further
// read, and the store takes no index for it any more: Indexed gives ErrIndex.
func (s *Store) Indexed(ctx context.Context, src layer.Source, load func(context.Context) (*layer.Scanned, error)) (*Layer, error) {
	if plain := layer.DiffKey(src); plain != "" {
		if l, err := s.get(plain, src); err == nil {
			return l, nil
		}
	}
	key := layer.IndexedKey(src)
	if key == "" || exists(s.layerPath(key, refusedName)) {
		return nil, fmt.Errorf("open layer %s by an index: %w", src.Desc.Digest, ErrIndex)
	}
	if l, err := s.get(key, src); err == nil || !isMissing(err) {
		return l, err
	}
	lock, err := waitFlock(ctx, s.lockPath("layer", key), nil)
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", key, err)
	}
	defer lock.unlock()
	if l, err := s.get(key, src); err == nil || !isMissing(err) {
		return l, err // another process was first
	}
	sc, err := load(ctx)
	if err != nil {
		return nil, fmt.Errorf("open layer %s by an index: %w", src.Desc.Digest, err)
	}
	if sc.Table.BlobDigest() != src.Desc.Digest || sc.Table.BlobSize() != src.Desc.Size {
		return nil, fmt.Errorf("open layer %s by an index of blob %s: %w", src.Desc.Digest, sc.Table.BlobDigest(), ErrIndex)
	}
	if !sc.Table.Seekable() {
		return nil, fmt.Errorf("open layer %s by an index: %w: its blob cannot be read in parts", src.Desc.Digest, ErrIndex)
	}
	if err := s.installLazy(key, sc); err != nil {
		return nil, err
	}
	return s.get(key, src)
}

// HasIndexed reports whether src can be opened by an index that is in the store.
func (s *Store) HasIndexed(src layer.Source) bool {
	key := layer.IndexedKey(src)
	return key != "" && s.Has(key) && !exists(s.layerPath(key, refusedName))
}

// installLazy makes the layer called key, none of whose data is here. Its lock
// must be held.
func (s *Store) installLazy(key string, sc *layer.Scanned) error {
	if err := s.clean(key); err != nil {
		return err
	}
	data, err := s.newData(key, sc.Table.DataSize())
	if err != nil {
		return err
	}
	if err := data.Close(); err != nil {
		return fmt.Errorf("make layer %s: %w", key, err)
	}
	return s.install(key, sc, nil)
}

// verifyIndexed compares the data of a layer that was opened by an index, and is
// whole, with its diff ID.
func (l *Layer) verifyIndexed(ctx context.Context) error {
	if l.diffID == "" {
		return nil
	}
	end := int64(0) // of the tar: what is behind it repeats parts of it
	for i := l.table.Len() - 1; i >= 0 && end == 0; i-- {
		if c := l.table.Chunk(i); c.Kind != layer.Copied {
			end = c.Off + c.Len
		}
	}
	v := l.diffID.Verifier()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < end; off += int64(len(buf)) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), end-off)]
		if _, err := l.data.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		_, _ = v.Write(p) // a hash cannot fail
	}
	if v.Verified() {
		return nil
	}
	l.refused.Store(true)
	why := fmt.Sprintf("the data that the index of blob %s leads to is not %s\n", l.table.BlobDigest(), l.diffID)
	if err := os.WriteFile(l.store.layerPath(l.key, refusedName), []byte(why), 0o600); err != nil {
		return errors.Join(ErrIndex, err)
	}
	return fmt.Errorf("%w: its data is not %s; the next mount streams the blob", ErrIndex, l.diffID)
}
