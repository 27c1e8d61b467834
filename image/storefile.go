package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// temporary begins the names of unfinished files. They lie in the layout's own
// directory, on the same file system as where they are renamed to, and are
// made under the lock only: whoever gets the lock may remove those it finds.
const temporary = ".tmp-"

const layoutVersion = `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`

// Names of lock files.
const (
	storeLock    = "images.lock"   // held by who changes the layout
	fetchingLock = "fetching.lock" // shared by those who have fetched blobs
)

// path is a file of the layout, by its slash-separated name.
func (s *Store) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// lockFile opens a lock file, not yet locked.
func (s *Store) lockFile(name string) (*os.File, error) {
	if err := os.MkdirAll(s.locks, 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(s.locks, name), os.O_RDWR|os.O_CREATE, 0o644)
}

// lock waits for the exclusive right to change the store.
func (s *Store) lock() (unlock func(), err error) {
	f, err := s.lockFile(storeLock)
	if err != nil {
		return nil, err
	}
	if err := flock(f, unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	// The lock goes with the descriptor, thus also when the process dies.
	return func() { _ = f.Close() }, nil
}

// flock locks a file as how says. The lock is given back by closing the file.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// tryLock locks a file exclusively, unless somebody else has it locked.
func tryLock(f *os.File) (bool, error) {
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// storeWriter writes files of a locked store. After the first error it does
// nothing more.
type storeWriter struct {
	dir   string
	err   error
	dirty map[string]bool // directories with new names that are not synced
}

// writer prepares the store for writing: it makes the layout if it is not
// there, and removes what crashed writers left.
func (s *Store) writer() (*storeWriter, error) {
	w := &storeWriter{dir: s.dir, dirty: make(map[string]bool)}
	if err := os.MkdirAll(filepath.Join(s.dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) {
			if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	// A file cut off by a crash is not left at these names: they appear by
	// rename, after a sync. So being there is enough.
	raw, err := readFile(dirTree{s.dir}, ocispec.ImageLayoutFile, maxManifest)
	if isNotExist(err) {
		w.file(ocispec.ImageLayoutFile, []byte(layoutVersion))
		return w, w.err
	}
	var v ocispec.ImageLayout
	if err == nil && json.Unmarshal(raw, &v) == nil && v.Version != "" && !strings.HasPrefix(v.Version, "1.") {
		return nil, fmt.Errorf("%w: %s is an OCI image layout of version %.20q, only 1.x is known", ErrNotImage, s.dir, v.Version)
	}
	return w, nil
}

// blob writes a blob unless it is there and intact.
func (w *storeWriter) blob(d digest.Digest, raw []byte) {
	if w.err != nil {
		return
	}
	if w.err = verify(raw, d); w.err != nil {
		return
	}
	name := blobPath(d)
	if old, err := readFile(dirTree{w.dir}, name, int64(len(raw))); err == nil && verify(old, d) == nil {
		return
	}
	w.file(name, raw)
}

// commit replaces index.json, after everything it refers to is on disk.
func (w *storeWriter) commit(raw []byte) error {
	w.sync()
	w.file(ocispec.ImageIndexFile, raw)
	w.sync()
	return w.err
}

// file makes or replaces a file in one step: its name stands for the old
// content or the whole new one at any moment. The content is on disk first, as
// a rename may reach the disk before the data would.
func (w *storeWriter) file(name string, raw []byte) {
	if w.err != nil {
		return
	}
	path := filepath.Join(w.dir, filepath.FromSlash(name))
	if w.err = os.MkdirAll(filepath.Dir(path), 0o755); w.err != nil {
		return
	}
	f, err := os.CreateTemp(w.dir, temporary+"*")
	if err != nil {
		w.err = err
		return
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		w.err = err
		return
	}
	w.dirty[filepath.Dir(path)] = true
}

// sync makes new names durable.
func (w *storeWriter) sync() {
	for dir := range w.dirty {
		if w.err != nil {
			return
		}
		w.err = syncDir(dir)
	}
	clear(w.dirty)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
