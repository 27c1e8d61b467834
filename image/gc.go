package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// grace is how long a blob that no entry leads to is spared while somebody
// fetches: its entry may be about to be Put.
const grace = 10 * time.Minute

// A BlobInfo is a file of the store that holds a blob.
type BlobInfo struct {
	Digest  digest.Digest
	Size    int64     // bytes in the file
	ModTime time.Time // when it was last fetched, or asked for by Fetch
	Partial bool      // the beginning of a blob whose download was interrupted
}

// PruneOptions say what Prune removes. The zero PruneOptions remove all that
// nobody can need.
type PruneOptions struct {
	// DryRun returns what would be removed and changes nothing.
	DryRun bool

	// OlderThan spares what was fetched less long ago.
	OlderThan time.Duration

	// Keep spares the blobs it returns true for, such as those of mounted
	// images. May be nil. It is called with the store locked.
	Keep func(digest.Digest) bool

	// Without takes the entries it returns true for as removed, to find out by
	// DryRun what would be unused then. May be nil.
	Without func(Entry) bool
}

// Unused returns the blobs that no stored image needs, sorted by digest, and
// the interrupted downloads of such blobs. A blob is needed if an entry of
// index.json leads to it: through image indexes, manifests, their configs,
// layers and subjects, and the annotation that names an image index. Downloads
// that somebody is at are not returned, nor interrupted ones of a stored
// image's layer, as the next Fetch goes on from them. Nor are files that this
// package cannot know to be blobs: of unknown names or digest algorithms.
//
// A document whose bytes are wrong, and an entry whose manifest is missing, may
// need any blob, and so may an index.json that is missing beside blobs. Then Unused
// fails: with ErrCorrupt, naming the document.
func (s *Store) Unused(ctx context.Context) ([]BlobInfo, error) {
	unused, err := s.unused(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("look for unused blobs in %s: %w", s.dir, err)
	}
	infos := make([]BlobInfo, 0, len(unused))
	for _, f := range unused {
		infos = append(infos, f.BlobInfo)
	}
	return infos, nil
}

// Prune removes what Unused returns, but for what o spares, and returns what it
// removed. Others may use the store meanwhile. None of the following is
// removed:
//
//   - what an entry leads to: entries cannot be made while Prune looks;
//   - a blob that is being fetched;
//   - for ten minutes, a blob that was fetched, or that Fetch found to be
//     there, as long as any process that has called Fetch lives and has not
//     called Close. So a blob may be fetched before the entry that needs it is
//     Put. If no such process lives, nobody can be about to Put: what it left is
//     removed at once.
//
// A mount of an image that was removed reads its blobs in place until it ends:
// o.Keep must know them. Tools other than this package, which take no lock, must
// not write to the layout beside Prune. If a file cannot be removed the others
// are, and the error says so. The other errors are those of Unused, and ErrNotImage
// for a store of a newer version.
func (s *Store) Prune(ctx context.Context, o PruneOptions) ([]BlobInfo, error) {
	infos, err := s.prune(ctx, o)
	if err != nil {
		err = fmt.Errorf("prune %s: %w", s.dir, err)
	}
	return infos, err
}

func (s *Store) prune(ctx context.Context, o PruneOptions) ([]BlobInfo, error) {
	if !s.made() {
		return nil, nil
	}
	if err := s.version(); err != nil {
		return nil, err
	}
	if !o.DryRun {
		unlock, err := s.lock()
		if err != nil {
			return nil, err
		}
		defer unlock()
	}
	release, idle, err := s.idle(o.DryRun)
	if err != nil {
		return nil, err
	}
	defer release()
	if !idle {
		o.OlderThan = max(o.OlderThan, grace)
	}
	var without func(Entry) bool
	if o.DryRun {
		without = o.Without
	}
	unused, err := s.unused(ctx, without)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	var removed []BlobInfo
	var failed []error
	for _, f := range unused {
		if o.OlderThan > 0 && now.Sub(f.ModTime) < o.OlderThan || o.Keep != nil && o.Keep(f.Digest) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, errors.Join(append(failed, err)...)
		}
		if !o.DryRun {
			gone, err := f.remove()
			if err != nil {
				failed = append(failed, err)
			}
			if !gone {
				continue
			}
		}
		removed = append(removed, f.BlobInfo)
	}
	return removed, errors.Join(failed...)
}

// made says whether there is anything of the store on the disk.
func (s *Store) made() bool {
	_, errLayout := os.Stat(s.dir)
	_, errPartials := os.Stat(s.partials)
	return errLayout == nil || errPartials == nil
}

// idle says whether no process that has fetched lives, and keeps others from
// beginning to until release is called. With look nothing is written.
func (s *Store) idle(look bool) (release func(), idle bool, err error) {
	var f *os.File
	if look {
		f, err = os.Open(filepath.Join(s.locks, fetchingLock))
		if isNotExist(err) {
			return func() {}, true, nil
		}
	} else {
		f, err = s.lockFile(fetchingLock)
	}
	if err != nil {
		return nil, false, err
	}
	idle, err = tryLock(f)
	if err != nil {
		_ = f.Close()
		return nil, false, err
	}
	return func() { _ = f.Close() }, idle, nil
}

// A storedFile is a file that holds a blob.
type storedFile struct {
	BlobInfo
	path string
}

// remove removes the file, unless it is a download that somebody is at.
func (f storedFile) remove() (gone bool, err error) {
	if f.Partial {
		open, free, err := f.claim()
		if !free {
			return false, err
		}
		defer func() { _ = open.Close() }()
	}
	err = os.Remove(f.path)
	return err == nil, err
}

// claim locks a partial file, if nobody else has it locked.
func (f storedFile) claim() (open *os.File, free bool, err error) {
	open, err = os.OpenFile(f.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if isNotExist(err) {
			err = nil
		}
		return nil, false, err
	}
	if free, err = tryLock(open); !free || !isAt(open, f.path) {
		_ = open.Close()
		return nil, false, err
	}
	return open, true, nil
}

// unused finds the files that hold blobs that no entry leads to, but for those
// that without, if it is not nil, returns true for.
func (s *Store) unused(ctx context.Context, without func(Entry) bool) ([]storedFile, error) {
	blobs, _, err := s.blobFiles()
	if err != nil {
		return nil, err
	}
	missing, err := s.lacksIndex() // not before: the first Put makes it before its blobs
	if err != nil {
		return nil, err
	}
	if missing && len(blobs) > 0 {
		return nil, fmt.Errorf("%w: index.json is missing, and with it the list of the images that need the blobs; 'lamina check --repair' begins a new one", ErrCorrupt)
	}
	x, err := s.readIndex()
	if err != nil {
		return nil, damaged(err)
	}
	if without != nil {
		x.Manifests = slices.DeleteFunc(x.Manifests, func(d ocispec.Descriptor) bool { return storedName(d) != "" && without(entryOf(d)) })
	}
	r := newReach(s)
	if err := r.entries(ctx, x); err != nil {
		return nil, damaged(err)
	}
	partials, err := s.partialFiles()
	if err != nil {
		return nil, err
	}
	var unused []storedFile
	for _, f := range append(blobs, partials...) {
		if size, needed := r.sizes[f.Digest]; needed && (!f.Partial || !s.HasBlob(ocispec.Descriptor{Digest: f.Digest, Size: size})) {
			continue
		}
		if f.Partial {
			open, free, err := f.claim()
			if err != nil {
				return nil, err
			}
			if !free {
				continue
			}
			_ = open.Close()
		}
		unused = append(unused, f)
	}
	slices.SortStableFunc(unused, func(a, b storedFile) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	return unused, nil
}

// algorithms are the digests that blobs are verified by.
var algorithms = []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512}

// blobFiles lists the blobs of the layout. others are the names, relative to
// the layout, of what lies among them and is none.
func (s *Store) blobFiles() (blobs []storedFile, others []string, err error) {
	dirs, err := readDir(s.path("blobs"))
	if err != nil {
		return nil, nil, err
	}
	for _, dir := range dirs {
		alg := digest.Algorithm(dir.Name())
		if !slices.Contains(algorithms, alg) {
			others = append(others, "blobs/"+dir.Name())
			continue
		}
		files, err := readDir(s.path("blobs/" + dir.Name()))
		if err != nil {
			return nil, nil, err
		}
		for _, f := range files {
			name := "blobs/" + dir.Name() + "/" + f.Name()
			info, ok, err := blobInfo(f, digest.NewDigestFromEncoded(alg, f.Name()))
			switch {
			case err != nil:
				return nil, nil, err
			case ok:
				blobs = append(blobs, storedFile{info, s.path(name)})
			default:
				others = append(others, name)
			}
		}
	}
	return blobs, others, nil
}

// partialFiles lists the beginnings of blobs.
func (s *Store) partialFiles() ([]storedFile, error) {
	files, err := readDir(s.partials)
	if err != nil {
		return nil, err
	}
	var partials []storedFile
	for _, f := range files {
		alg, encoded, _ := strings.Cut(f.Name(), "-")
		info, ok, err := blobInfo(f, digest.NewDigestFromEncoded(digest.Algorithm(alg), encoded))
		if err != nil {
			return nil, err
		}
		if info.Partial = true; ok {
			partials = append(partials, storedFile{info, filepath.Join(s.partials, f.Name())})
		}
	}
	return partials, nil
}

// blobInfo describes a file whose name says the digest. ok is false if it is no
// blob, or is gone.
func blobInfo(f fs.DirEntry, d digest.Digest) (info BlobInfo, ok bool, err error) {
	if d.Validate() != nil || !f.Type().IsRegular() {
		return info, false, nil
	}
	st, err := f.Info()
	if isNotExist(err) {
		return info, false, nil
	}
	if err != nil {
		return info, false, err
	}
	return BlobInfo{Digest: d, Size: st.Size(), ModTime: st.ModTime()}, true, nil
}

// readDir lists a directory, which may be missing.
func readDir(dir string) ([]fs.DirEntry, error) {
	list, err := os.ReadDir(dir)
	if isNotExist(err) {
		return nil, nil
	}
	return list, err
}

// A reach is what the entries of index.json lead to.
type reach struct {
	tree  dirTree
	sizes map[digest.Digest]int64 // of all blobs; -1 if nothing says it
	read  map[digest.Digest]bool  // documents that were followed
}

func newReach(s *Store) *reach {
	return &reach{tree: dirTree{s.dir}, sizes: make(map[digest.Digest]int64), read: make(map[digest.Digest]bool)}
}

// entries follows all entries of index.json.
func (r *reach) entries(ctx context.Context, x *ocispec.Index) error {
	for _, d := range x.Manifests {
		if err := r.entry(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// entry follows an entry, whose manifest and image index must be there: nobody
// knows what they would lead to.
func (r *reach) entry(ctx context.Context, d ocispec.Descriptor) error {
	if err := r.follow(ctx, d, true); err != nil {
		return err
	}
	index := digest.Digest(d.Annotations[annotationIndex])
	if index == "" {
		return nil
	}
	return r.follow(ctx, ocispec.Descriptor{Digest: index, Size: -1, MediaType: ocispec.MediaTypeImageIndex}, true)
}

// need notes a blob. It returns false for what is no name of a file in blobs/.
func (r *reach) need(d ocispec.Descriptor) bool {
	if err := checkDigest(d.Digest); err != nil && !errors.Is(err, ErrAlgorithm) {
		return false
	}
	if size, ok := r.sizes[d.Digest]; !ok || size < 0 {
		r.sizes[d.Digest] = d.Size
	}
	return true
}

// A links is what any known kind of manifest may refer to.
type links struct {
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Blobs     []ocispec.Descriptor `json:"blobs"` // of OCI's former artifact manifest
	Manifests []ocispec.Descriptor `json:"manifests"`
	Subject   *ocispec.Descriptor  `json:"subject"`
	FSLayers  []struct {
		BlobSum digest.Digest `json:"blobSum"`
	} `json:"fsLayers"` // of docker's schema 1
}

// follow notes a document and all that it leads to. One that is not there is an
// error if it must be: manifests of platforms that are not stored need not.
func (r *reach) follow(ctx context.Context, d ocispec.Descriptor, must bool) error {
	if !r.need(d) || r.read[d.Digest] {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := r.tree.file(blobPath(d.Digest))
	if isNotExist(err) && !must {
		return nil
	}
	if isNotExist(err) {
		return fmt.Errorf("%w: the manifest %s of an entry of index.json is missing, and with it the list of the blobs it needs", ErrCorrupt, d.Digest)
	}
	if err != nil {
		return err
	}
	kind := specific(d.MediaType)
	known := kind == "" || isManifestType(kind) || isIndexType(kind) || isSchema1(kind)
	if file.size > maxManifest && !known {
		r.read[d.Digest] = true
		return nil // not JSON, or JSON that no tool would read
	}
	if file.size > maxManifest && !must {
		return r.leaf(ctx, d.Digest, file)
	}
	raw, err := file.read(maxManifest)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if err := verify(raw, d.Digest); err != nil && !errors.Is(err, ErrAlgorithm) {
		return fmt.Errorf("manifest: %w", err)
	}
	var l links
	if err := json.Unmarshal(raw, &l); err != nil {
		// Somebody's index may call anything a manifest. What is intact and no
		// JSON leads nowhere.
		if !known || !must {
			r.read[d.Digest] = true
			return nil
		}
		return fmt.Errorf("%w: parse manifest %s: %w", ErrCorrupt, d.Digest, err)
	}
	r.read[d.Digest] = true
	return r.follows(ctx, &l)
}

// leaf notes that a file too large for a manifest is, being intact, none.
func (r *reach) leaf(ctx context.Context, d digest.Digest, file section) error {
	if checkDigest(d) != nil {
		return nil
	}
	f, err := os.Open(file.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	v := d.Verifier()
	if _, err := io.Copy(v, contextReader{ctx, f}); err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("%w: manifest: the bytes of %s have another digest", ErrCorrupt, d)
	}
	r.read[d] = true
	return nil
}

// follows notes what a document leads to.
func (r *reach) follows(ctx context.Context, l *links) error {
	if l.Config != nil {
		r.need(*l.Config)
	}
	for _, b := range append(l.Layers, l.Blobs...) {
		r.need(b)
	}
	for _, b := range l.FSLayers {
		r.need(ocispec.Descriptor{Digest: b.BlobSum, Size: -1})
	}
	if l.Subject != nil {
		l.Manifests = append(l.Manifests, *l.Subject)
	}
	for _, m := range l.Manifests {
		if err := r.follow(ctx, m, false); err != nil {
			return err
		}
	}
	return nil
}
