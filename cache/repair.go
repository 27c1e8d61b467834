package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/laminafs/lamina/layer"
)

// renewBitmap makes the bitmap of the layer called key anew, of which cause is
// wrong. All data is verified before it is used again. The layer's lock is held.
func (s *Store) renewBitmap(key string, cause error) error {
	if !isDamage(cause) {
		return cause
	}
	if errors.Is(cause, fs.ErrNotExist) {
		// Those who have the lost file mapped would not see the new one.
		alone, err := s.lockAlone(openLayerLock, key)
		if err != nil {
			return err
		}
		defer alone.unlock()
	}
	table, err := layer.OpenTable(s.layerPath(key, tableName))
	if err != nil {
		return err
	}
	defer func() { _ = table.Close() }()
	b, err := openBitmap(s.layerPath(key, bitmapName), shapeOf(table), s.opts.boot, true)
	if err != nil {
		return err
	}
	return b.close()
}

// dropWrong takes chunks [i, j) of the layer called key, whose bytes are wrong, out
// of it, as an eviction does. The layer's lock is held. What others hold is dropped
// too, for wrong bytes are of no use to them, but keeps its bytes: the kernel may
// read them, and a few that are wrong are better than none.
func (s *Store) dropWrong(ctx context.Context, key string, i, j int) error {
	table, err := layer.OpenTable(s.layerPath(key, tableName))
	if err != nil {
		return err
	}
	defer func() { _ = table.Close() }()
	bm, err := openBitmap(s.layerPath(key, bitmapName), shapeOf(table), s.opts.boot, true)
	if err != nil {
		return err
	}
	defer func() { _ = bm.close() }()
	data, err := os.OpenFile(s.layerPath(key, dataName), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = data.Close() }()
	held := false
	hold, err := tryFlock(s.lockPath("hold", key), false)
	switch {
	case err == nil:
		defer hold.unlock()
		if held, err = s.isHeld(key); err != nil {
			return err
		}
	case errors.Is(err, errLocked):
		held = true
	default:
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, runDeadline)
	defer cancel()
	for k := i; k < j; k++ { // one by one: a fetch nearby may have locked some of them
		if err := bm.locks.wait(ctx, k); err != nil {
			return fmt.Errorf("chunk %d: %w", k, err)
		}
		err := dropOne(bm, table.Chunk(k), k, data, held)
		bm.locks.unlock(k, k+1)
		if err != nil {
			return fmt.Errorf("chunk %d: %w", k, err)
		}
	}
	return nil
}

// dropOne takes chunk k out of the data file, but its bytes only unless held. Its
// range lock and the layer's lock are held.
func dropOne(bm *bitmap, c layer.Chunk, k int, data *os.File, held bool) error {
	if err := bm.clearWhole(); err != nil {
		return err
	}
	bm.clear(k)
	bm.bump()
	if held {
		return nil
	}
	return punch(data, c.Off, c.Len)
}

// wait takes the lock of chunk k, waiting for who has it until ctx ends.
func (r *rangeLocks) wait(ctx context.Context, k int) error {
	for {
		ok, _, _, err := r.try(k, k+1)
		if ok || err != nil {
			return err
		}
		if err := sleep(ctx, maxPause); err != nil {
			return err
		}
	}
}

// punchGaps makes holes of ranges of the layer's data that no chunk covers: zeros
// are right there at any time, whoever reads.
func (s *Store) punchGaps(key string, gaps [][2]int64) error {
	data, err := os.OpenFile(s.layerPath(key, dataName), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = data.Close() }()
	for _, g := range gaps {
		if err := punch(data, g[0], g[1]-g[0]); err != nil {
			return err
		}
	}
	return nil
}
