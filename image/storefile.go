package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/atomicfile"
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
	if err := makeDir(s.locks); err != nil {
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

// version returns an error if the store is a layout of a version that nothing is
// known of. One that is missing or damaged is for Check.
func (s *Store) version() error {
	raw, err := readFile(dirTree{s.dir}, ocispec.ImageLayoutFile, maxManifest)
	var v ocispec.ImageLayout
	if err == nil && json.Unmarshal(raw, &v) == nil && v.Version != "" && !strings.HasPrefix(v.Version, "1.") {
		return fmt.Errorf("%w: %s is an OCI image layout of version %.20q, only 1.x is known", ErrNotImage, s.dir, v.Version)
	}
	return nil
}

// writer prepares the store for writing: it makes the layout if it is not
// there, and removes what crashed writers left.
func (s *Store) writer() (*storeWriter, error) {
	if err := s.version(); err != nil {
		return nil, err
	}
	w := &storeWriter{dir: s.dir, dirty: make(map[string]bool)}
	if err := makeDir(filepath.Join(s.dir, "blobs", "sha256")); err != nil {
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
	// Before the first blob: without it nobody knows which blobs are needed.
	missing, err := s.lacksIndex()
	if err != nil {
		return nil, err
	}
	if missing {
		blobs, others, err := s.blobFiles()
		if err != nil {
			return nil, err
		}
		if len(blobs)+len(others) == 0 {
			w.json(ocispec.ImageIndexFile, emptyIndex())
		}
	}
	// A file cut off by a crash is not left at these names: they appear by
	// rename, after a sync. So being there is enough.
	if _, err := os.Stat(s.path(ocispec.ImageLayoutFile)); isNotExist(err) {
		w.file(ocispec.ImageLayoutFile, []byte(layoutVersion))
	}
	return w, w.err
}

// lacksIndex says whether there is no index.json.
func (s *Store) lacksIndex() (bool, error) {
	_, err := os.Stat(s.path(ocispec.ImageIndexFile))
	if isNotExist(err) {
		return true, nil
	}
	return false, err
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
func (w *storeWriter) commit(x *ocispec.Index) error {
	w.sync()
	w.json(ocispec.ImageIndexFile, x)
	w.sync()
	return w.err
}

// json is file for a document.
func (w *storeWriter) json(name string, v any) {
	raw, err := json.Marshal(v)
	if err != nil && w.err == nil {
		w.err = err
	}
	w.file(name, raw)
}

// keep saves a damaged file that is about to be replaced, for the curious: as
// NAME.corrupt, while it also stays where it is.
func (w *storeWriter) keep(name string) {
	if w.err != nil {
		return
	}
	path := filepath.Join(w.dir, filepath.FromSlash(name))
	aside := path + ".corrupt"
	if err := os.Remove(aside); err != nil && !isNotExist(err) {
		w.err = err
		return
	}
	err := os.Link(path, aside)
	if err == nil || isNotExist(err) {
		return
	}
	// Not every file system has links, and a directory never does.
	if st, statErr := os.Lstat(path); statErr == nil && st.IsDir() {
		w.err = os.Rename(path, aside)
		return
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		w.err = err
		return
	}
	w.file(name+".corrupt", raw)
}

// file makes or replaces a file in one step: its name stands for the old
// content or the whole new one at any moment. sync makes the name durable.
func (w *storeWriter) file(name string, raw []byte) {
	if w.err != nil {
		return
	}
	path := filepath.Join(w.dir, filepath.FromSlash(name))
	if w.err = makeDir(filepath.Dir(path)); w.err != nil {
		return
	}
	w.err = atomicfile.Place(path, filepath.Join(w.dir, temporary), func(f *os.File) error {
		if _, err := f.Write(raw); err != nil {
			return err
		}
		return f.Chmod(0o644)
	})
	if w.err == nil {
		w.dirty[filepath.Dir(path)] = true
	}
}

// sync makes new names durable.
func (w *storeWriter) sync() {
	for dir := range w.dirty {
		if w.err != nil {
			return
		}
		w.err = atomicfile.SyncDir(dir)
	}
	clear(w.dirty)
}

// makeDir makes a directory and those above it that are missing, and makes their
// names durable: a file that was synced is lost with its directory's name.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent == dir {
		return os.MkdirAll(dir, 0o755)
	}
	if err := makeDir(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		if st, statErr := os.Stat(dir); statErr == nil && st.IsDir() {
			return nil // somebody else was faster, and syncs it
		}
		return err
	}
	if err := atomicfile.SyncDir(parent); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err // who may write to a directory may yet not read it
	}
	return nil
}
