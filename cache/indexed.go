package cache

import (
	"context"
	"errors"
	"fmt"

	"github.com/laminafs/lamina/atomicfile"
	"github.com/laminafs/lamina/layer"
)

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
	if key == "" || s.isUnwanted(key) {
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
	if key == "" || !s.Has(key) || s.isUnwanted(key) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[key]
	return l == nil || !l.refused.Load()
}

// isUnwanted reports whether no index is to be used for the layer called key.
func (s *Store) isUnwanted(key string) bool {
	return exists(s.layerPath(key, refusedName)) || exists(s.layerPath(key, doubtedName))
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

// isRefused reports whether the index by which the layer was opened is known to
// be wrong, here or by another process.
func (l *Layer) isRefused() bool {
	if l.diffID != "" && !l.refused.Load() && exists(l.store.layerPath(l.key, refusedName)) {
		l.refused.Store(true)
	}
	return l.refused.Load()
}

// refuse ends all reads of the layer, whose index is wrong, and its use by others.
func (l *Layer) refuse(why error) error {
	l.refused.Store(true)
	why = fmt.Errorf("%w: %w; the next mount streams the blob", ErrIndex, why)
	if err := l.store.writeReason(l.key, refusedName, why); err != nil {
		return errors.Join(why, err)
	}
	return why
}

// blame returns err, for which a chunk of l cannot be had. If somebody else made the
// index, that may be the reason: if sure it is the only possible one. If not, the
// other chunks are as good as ever, and only the next mount streams the blob.
func (l *Layer) blame(err error, sure bool) error {
	switch {
	case l.diffID == "":
		return err
	case sure:
		return l.refuse(err)
	}
	return errors.Join(err, l.store.writeReason(l.key, doubtedName, err))
}

// refusing begins the name of a refused or doubted file before it is whole.
const refusing = ".refused-"

// writeReason notes for good why the index of the layer called key is not to be used:
// the next mount asks.
func (s *Store) writeReason(key, name string, why error) error {
	return atomicfile.WriteBytes(s.layerPath(key, name), s.layerPath(key, refusing), []byte(why.Error()+"\n"))
}
