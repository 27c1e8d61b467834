package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer"
)

// LayerInfo is what a layer's directory holds and costs.
type LayerInfo struct {
	// Key is the name of the directory: see layer.Key.
	Key string
	// DataSize is the length of the layer's data in bytes.
	DataSize int64
	// Present is how many bytes of chunks can be read without a source. After a
	// restart of the machine, what is verified anew before use counts too. What
	// no chunk covers does not, so it may be less than DataSize in the end.
	Present int64
	// Fetched is what Present took in the blob, in compressed bytes. Of a layer
	// that is Partial it is the bytes of the blob that have come.
	Fetched int64
	// Disk is what all files of the directory take on the disk, in bytes.
	Disk int64
	// Complete: every chunk can be read without a source, and is not refused
	// because the layer's index turned out to be wrong.
	Complete bool
	// InPlace: the data is a local tar outside of the store.
	InPlace bool
	// Partial: there is no layer yet, only what an interrupted download, or one
	// that runs now, has brought. Key, Fetched, Disk and Used are known then.
	Partial bool
	// Used is when the layer was last read or opened, or made, to some seconds.
	Used time.Time
	// BlobDigest and BlobSize tell the blob that the layer was made from.
	BlobDigest digest.Digest
	BlobSize   int64
	// Damaged is not nil when a file of the layer is missing or is not what it
	// should be, as far as a look at its head tells: see Store.Check. What could
	// not be read is zero then.
	Damaged error
}

// ChainInfo is what a chain's directory costs.
type ChainInfo struct {
	// ID is the name of the directory: see Chain.ID.
	ID string
	// Disk is what its files take on the disk, in bytes.
	Disk int64
	// Used is when the chain was last opened, or made.
	Used time.Time
}

// Layers returns what is known of every layer directory of the store, ordered by
// key. It opens no layer for reading, takes no lock and changes nothing: layers
// that come, go or change meanwhile are reported as they are when their turn
// comes. Layers that are damaged are reported too. It costs time proportional to
// the number of chunks.
func (s *Store) Layers() ([]LayerInfo, error) {
	keys, err := s.directories("layers")
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	all := make([]LayerInfo, 0, len(keys))
	for _, key := range keys {
		if info, ok := s.layerInfo(key); ok {
			all = append(all, info)
		}
	}
	return all, nil
}

// MadeFrom reports whether each of blobs has a layer that was made from it, in the
// store, as far as the heads of chunk tables tell; it looks at nothing else. What
// cannot be read does not count.
func (s *Store) MadeFrom(blobs ...digest.Digest) bool {
	keys, err := s.directories("layers")
	if err != nil {
		return false
	}
	missing := make(map[digest.Digest]bool, len(blobs))
	for _, d := range blobs {
		missing[d] = true
	}
	for _, key := range keys {
		if len(missing) == 0 {
			break
		}
		if d, err := layer.TableBlob(s.layerPath(key, tableName)); err == nil && missing[d] && s.Has(key) {
			delete(missing, d)
		}
	}
	return len(missing) == 0
}

// Chains returns what is known of every chain directory of the store, ordered by
// ID. As Layers, it takes no lock and changes nothing.
func (s *Store) Chains() ([]ChainInfo, error) {
	ids, err := s.directories("chains")
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	all := make([]ChainInfo, 0, len(ids))
	for _, id := range ids {
		disk, changed, err := diskUsage(filepath.Join(s.root, "chains", id))
		if err != nil {
			continue // it has gone meanwhile
		}
		used := later(changed, s.opened(openChainLock, id))
		all = append(all, ChainInfo{ID: id, Disk: disk, Used: used})
	}
	return all, nil
}

// directories returns the names in the store's directory kind that are, or can
// be, a layer's or chain's.
func (s *Store) directories(kind string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.root, kind))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range entries {
		if d.IsDir() && isKey(d.Name()) {
			names = append(names, d.Name())
		}
	}
	return names, nil
}

// isKey reports whether name can be that of a layer's or chain's directory. No
// key begins with a dot, so such names are free for other uses.
func isKey(name string) bool {
	return fs.ValidPath(name) && !strings.HasPrefix(name, ".") && !strings.Contains(name, "/")
}

// diskUsage returns the bytes on the disk of the files in dir, and when one of
// them was changed last. Files that go meanwhile count nothing.
func diskUsage(dir string) (sum int64, changed time.Time, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, time.Time{}, err
	}
	for _, d := range entries {
		fi, err := d.Info()
		if err != nil {
			continue
		}
		sum += blocks(filepath.Join(dir, d.Name()))
		changed = later(changed, fi.ModTime())
	}
	return sum, changed, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// layerInfo looks at the layer called key; ok is false when it has gone.
func (s *Store) layerInfo(key string) (info LayerInfo, ok bool) {
	disk, changed, err := diskUsage(s.layerPath(key, ""))
	if errors.Is(err, fs.ErrNotExist) {
		return info, false
	}
	info = LayerInfo{Key: key, Disk: disk, Damaged: err}
	v := s.look(key)
	defer v.close()
	if v == nil {
		info.Partial = true
		if fi, err := os.Stat(s.layerPath(key, partialName)); err == nil {
			info.Fetched = fi.Size()
		}
		info.Used = changed
		return info, true
	}
	info.Damaged = errors.Join(err, v.indexErr, v.tableErr, v.bitmapErr)
	if v.table != nil {
		info.DataSize, info.BlobDigest, info.BlobSize = v.table.DataSize(), v.table.BlobDigest(), v.table.BlobSize()
		info.InPlace = v.inPlace
		info.Complete = v.count(&info) && !exists(s.layerPath(key, refusedName))
	}
	used := later(s.opened(openLayerLock, key), info.Used)
	if used.IsZero() {
		used = changed
	}
	info.Used = used
	return info, true
}

// A view is the small files of a layer, for looking at. Unlike an opened Layer
// it changes nothing, and has what can be read when other files are damaged.
type view struct {
	table   *layer.Table // nil if tableErr is not
	bm      *bitmap      // a copy; nil without a table, in place, or if bitmapErr is not
	inPlace bool

	indexErr, tableErr, bitmapErr error
}

// look opens a view of the layer called key. It is nil when there is none.
func (s *Store) look(key string) *view {
	// A file that is not there may have come meanwhile, with a new layer.
	var v *view
	for range lookTurns {
		v.close()
		v = s.lookOnce(key)
		if !s.Has(key) {
			v.close()
			return nil
		}
		if !errors.Is(errors.Join(v.indexErr, v.tableErr, v.bitmapErr), fs.ErrNotExist) {
			break
		}
	}
	return v
}

// lookTurns is how often a layer is looked at until no file is missing.
const lookTurns = 3

func (s *Store) lookOnce(key string) *view {
	v := &view{}
	x, err := index.Open(s.layerPath(key, indexName))
	if err == nil {
		err = x.Close()
	}
	v.indexErr = err
	if v.table, v.tableErr = layer.OpenTable(s.layerPath(key, tableName)); v.tableErr != nil {
		return v
	}
	if v.table.Format() == layer.Tar && strings.HasPrefix(key, "file-") && !exists(s.layerPath(key, dataName)) {
		v.inPlace = true
		return v
	}
	v.bm, v.bitmapErr = readBitmap(s.layerPath(key, bitmapName), shapeOf(v.table), s.opts.boot)
	return v
}

func (v *view) close() {
	if v != nil && v.table != nil {
		_ = v.table.Close()
	}
}

// count adds up what is present into info, and when that was used last. It
// reports whether every chunk is.
func (v *view) count(info *LayerInfo) (complete bool) {
	if v.bm == nil && !v.inPlace {
		return false
	}
	whole := v.inPlace || v.bm.whole()
	complete = true
	var used uint32
	for i := range v.table.Len() {
		c := v.table.Chunk(i)
		if !v.inPlace {
			used = max(used, v.bm.lastUse(i))
		}
		if !whole {
			state := v.bm.state(i, &c.Digest)
			complete = complete && state == present
			if state == absent {
				continue
			}
		}
		info.Present += c.Len
		if !v.inPlace {
			info.Fetched += c.BlobLen
		}
	}
	if !v.inPlace {
		used = max(used, v.bm.lastUseAll())
	}
	if used > 0 {
		info.Used = time.Unix(int64(used), 0)
	}
	return complete
}

// errBitmap: a file is not the bitmap that it should be.
var errBitmap = errors.New("not the bitmap of the chunk table")

// readBitmap returns a copy of the bitmap file at path, for looking at: close
// must not be called. A file that openBitmap would make anew is errBitmap.
func readBitmap(path string, s shape, boot string) (*bitmap, error) {
	mem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read bitmap: %w", err)
	}
	want := s.header()
	if int64(len(mem)) != s.length() || string(mem[:len(want)]) != string(want) {
		return nil, fmt.Errorf("read bitmap %s: %w", path, errBitmap)
	}
	b := newBitmap(s, boot)
	b.lay(mem)
	return b, nil
}
