package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Store remembers images of registries in an OCI image layout: see the
// package comment for what is in it. All methods may be called concurrently,
// also by several processes on one directory.
type Store struct {
	dir      string // the layout
	locks    string // the directory of lock files
	partials string // the directory of blobs that are not whole yet

	mu       sync.Mutex // guards fetching; held while waiting for its lock
	fetching *os.File   // locked since the first Fetch, see announce
}

// An Entry is one stored image: one name, one platform.
type Entry struct {
	Name     string           // full reference
	Digest   digest.Digest    // of the platform's manifest
	Index    digest.Digest    // of the image index the name stands for, or empty
	Origin   string           // the repository the layers are fetched from, or empty
	Platform ocispec.Platform // empty if another tool wrote the entry without
}

// OpenStore returns the store in the directory dir, usually <root>/images; its
// lock files are in <root>/locks and unfinished downloads in <root>/partial,
// beside it. Nothing is read or made yet: a store that does not exist is empty,
// and the first Put or Fetch makes it. Whoever calls Fetch should Close the store.
func OpenStore(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return nil, fmt.Errorf("open image store %s: it is not a directory", dir)
	}
	root := filepath.Dir(dir)
	return &Store{dir: dir, locks: filepath.Join(root, "locks"), partials: filepath.Join(root, "partial")}, nil
}

// Close gives up what the store holds open. From then on Prune, in any process,
// spares nothing for what s has fetched and not Put. A Fetch after it, or beside
// it, holds again. It is no error to Close a store twice.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetching == nil {
		return nil
	}
	err := s.fetching.Close()
	s.fetching = nil
	if err != nil {
		return fmt.Errorf("close image store %s: %w", s.dir, err)
	}
	return nil
}

// Dir returns the directory of the layout.
func (s *Store) Dir() string { return s.dir }

// isDir says whether dir is the store's.
func (s *Store) isDir(dir string) bool {
	a, errA := os.Stat(dir)
	b, errB := os.Stat(s.dir)
	return errA == nil && errB == nil && os.SameFile(a, b)
}

// source reads the store as a layout.
func (s *Store) source() layoutSource { return layoutSource{tree: dirTree{s.dir}} }

// readIndex reads index.json. A store that was not made yet has an empty one.
func (s *Store) readIndex() (*ocispec.Index, error) {
	raw, err := readFile(dirTree{s.dir}, ocispec.ImageIndexFile, maxIndexJSON)
	if isNotExist(err) {
		return emptyIndex(), nil
	}
	if err != nil {
		return nil, err
	}
	x, err := parseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	return x, nil
}

func emptyIndex() *ocispec.Index {
	return &ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
}

// List returns the stored images that have a name, sorted by it and by
// platform. Errors wrap ErrCorrupt or come from the system.
func (s *Store) List() ([]Entry, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, fmt.Errorf("list images in %s: %w", s.dir, err)
	}
	var entries []Entry
	for _, d := range x.Manifests {
		if storedName(d) == "" || isAttachment(d) {
			continue
		}
		entries = append(entries, entryOf(d))
	}
	sortEntries(entries)
	return entries, nil
}

// entryOf is what a descriptor of index.json says.
func entryOf(d ocispec.Descriptor) Entry {
	e := Entry{Name: storedName(d), Digest: d.Digest, Index: digest.Digest(d.Annotations[annotationIndex]), Origin: d.Annotations[annotationOrigin]}
	if d.Platform != nil {
		e.Platform = *d.Platform
	}
	return e
}

// sortEntries sorts by name and platform.
func sortEntries(entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int {
		return strings.Compare(a.Name+" "+a.Platform.OS+"/"+a.Platform.Architecture+"/"+a.Platform.Variant,
			b.Name+" "+b.Platform.OS+"/"+b.Platform.Architecture+"/"+b.Platform.Variant)
	})
}

// storedName is the full reference an entry is stored under. Entries by other
// tools may have only the layout's own annotation: a reference, which is taken
// for what it means, or a bare tag, which is no name here.
func storedName(d ocispec.Descriptor) string {
	if name := d.Annotations[annotationName]; name != "" {
		return name
	}
	name := d.Annotations[ocispec.AnnotationRefName]
	if !strings.ContainsAny(name, "/:@") {
		return ""
	}
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return ""
	}
	return ref.String()
}

// Lookup returns the stored image of a name of a registry, for a platform as in
// Options. Manifest and config are verified. Layers that are not stored are
// read from their origin through c; with a nil c their Blob is nil, as it is
// when no origin is known.
//
// Errors wrap ErrName, ErrNotFound, also when the name is stored for other
// platforms only, or ErrCorrupt.
func (s *Store) Lookup(ctx context.Context, name, platform string, c *fetch.Client) (*Image, error) {
	n, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	if n.Transport != Registry {
		return nil, fmt.Errorf("%w %q: only images of registries are stored", ErrName, name)
	}
	want, err := parseTarget(platform)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", n, err)
	}
	img, err := s.lookup(ctx, n, want, c)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", n, err)
	}
	return img, nil
}

func (s *Store) lookup(ctx context.Context, n Name, want target, c *fetch.Client) (*Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	entries := named(x.Manifests, n)
	if len(entries) == 0 {
		return nil, fmt.Errorf("%w: it is not stored", ErrNotFound)
	}
	found, err := s.choose(ctx, n, entries, want)
	if err != nil {
		return nil, err
	}
	entry := found.desc
	src := s.source()
	src.remote = remoteOf(entry, c)
	if src.remote == nil {
		src.remote = func(ocispec.Descriptor) fetch.Blob { return nil }
	}
	img, err := newImage(src, found)
	if err != nil {
		return nil, err
	}
	img.Name = n.String()
	if origin, err := reference.ParseNormalizedNamed(entry.Annotations[annotationOrigin]); err == nil {
		img.Origin = origin
	}
	// The entry's platform is only a note of the config's unless an index
	// chose it; then a platform asked for must be that of the config.
	if len(found.indexes) == 0 {
		img.desc.Platform = nil
	}
	if err := img.loadConfig(ctx, src, want); err != nil {
		if errors.Is(err, ErrPlatform) {
			return nil, fmt.Errorf("%w: it is stored, but not for %s", ErrNotFound, want)
		}
		return nil, err
	}
	return img, nil
}

// Load returns the image of an entry that List returned, by the manifest's digest
// alone: it is the one also where others have its name and platform. Manifest and
// config are verified, and the image index if there is one. Layers that are not
// stored have no Blob.
//
// Errors wrap ErrCorrupt, also when something is missing, ErrPlatform if the entry
// is an image index of another tool that has nothing for this host, ErrNotImage, or
// come from the system.
func (s *Store) Load(ctx context.Context, e Entry) (*Image, error) {
	img, err := s.load(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", e.Name, err)
	}
	return img, nil
}

func (s *Store) load(ctx context.Context, e Entry) (*Image, error) {
	if e.Index != "" {
		file, err := s.indexFile(e.Index)
		if err != nil {
			return nil, err
		}
		if _, err := readVerified(ctx, file.blob(e.Index), maxManifest); err != nil {
			return nil, err
		}
	}
	if err := checkDigest(e.Digest); err != nil {
		return nil, err
	}
	src := s.source()
	src.remote = func(ocispec.Descriptor) fetch.Blob { return nil }
	file, err := src.tree.file(blobPath(e.Digest))
	if isNotExist(err) {
		err = fmt.Errorf("%w: the manifest %s is not stored", ErrCorrupt, e.Digest)
	}
	if err != nil {
		return nil, err
	}
	want, err := parseTarget("")
	if err != nil {
		return nil, err
	}
	found, err := resolveAny(ctx, src, want, []ocispec.Descriptor{{Digest: e.Digest, Size: file.size}})
	if err != nil {
		return nil, err
	}
	img, err := newImage(src, found)
	if err != nil {
		return nil, err
	}
	img.Name, img.Index = e.Name, e.Index
	if origin, err := reference.ParseNormalizedNamed(e.Origin); err == nil {
		img.Origin = origin
	}
	return img, img.loadConfig(ctx, src, want)
}

// named returns the entries for a reference: of that name, or, for a digest,
// of the repository and with that digest.
func named(entries []ocispec.Descriptor, n Name) []ocispec.Descriptor {
	full := n.String()
	repo := reference.TrimNamed(n.Ref).String()
	digested, byDigest := n.Ref.(reference.Digested)
	var found []ocispec.Descriptor
	for _, d := range entries {
		if isAttachment(d) {
			continue
		}
		name := storedName(d)
		if name == full {
			found = append(found, d)
			continue
		}
		version, ok := strings.CutPrefix(name, repo) // :TAG or @DIGEST
		if !byDigest || !ok || !strings.HasPrefix(version, ":") && !strings.HasPrefix(version, "@") {
			continue
		}
		if want := digested.Digest(); d.Digest == want || d.Annotations[annotationIndex] == want.String() {
			found = append(found, d)
		}
	}
	return found
}

// indexFile finds the image index that an entry of index.json is annotated with.
func (s *Store) indexFile(d digest.Digest) (section, error) {
	if err := checkDigest(d); err != nil {
		return section{}, fmt.Errorf("index.json: %w", err)
	}
	file, err := dirTree{s.dir}.file(blobPath(d))
	if isNotExist(err) {
		err = fmt.Errorf("%w: the image index %s is not stored", ErrCorrupt, d)
	}
	return file, err
}

// choose reads the manifest of the entry for the target. Where the name stands
// for an image index, that index decides, as it would in the registry: what
// happens to be stored may be only second best. The descriptor of the result
// has the entry's annotations.
func (s *Store) choose(ctx context.Context, n Name, entries []ocispec.Descriptor, want target) (*resolved, error) {
	missing := fmt.Errorf("%w: it is stored, but not for %s", ErrNotFound, want)
	root := digest.Digest(entries[0].Annotations[annotationIndex])
	if d, ok := n.Ref.(reference.Digested); ok && d.Digest() != root {
		root = "" // the platform's manifest itself was named
	}
	src := s.source()
	if root == "" {
		entry := entries[0]
		other := func(d ocispec.Descriptor) bool { return d.Digest != entry.Digest }
		if slices.ContainsFunc(entries, other) {
			// Several platforms without an index: written by another tool.
			var ok bool
			if entry, ok = want.pick(entries); !ok {
				return nil, missing
			}
		}
		found, err := resolveAny(ctx, src, want, []ocispec.Descriptor{entry})
		if errors.Is(err, ErrPlatform) {
			return nil, missing
		}
		return found, err
	}
	file, err := s.indexFile(root)
	if err != nil {
		return nil, err
	}
	raw, err := readVerified(ctx, file.blob(root), maxManifest)
	if err != nil {
		return nil, err
	}
	found, err := resolve(ctx, src, want, rawDocument{ocispec.Descriptor{Digest: root, Size: file.size}, raw})
	switch {
	case errors.Is(err, ErrPlatform):
		return nil, missing
	case isNotExist(err):
		for _, d := range entries {
			if _, blobErr := src.blob(d); blobErr != nil {
				return nil, blobErr // it should be stored
			}
		}
		return nil, missing
	case err != nil:
		return nil, err
	}
	for _, d := range entries {
		if d.Digest == found.desc.Digest {
			d.Platform = found.desc.Platform
			found.desc = d
			return found, nil
		}
	}
	return nil, missing
}

// Put stores the image under its name, which must be one of a registry, and
// takes the name away from what had it before, except from other platforms of
// the same image index. Layers are not stored. When Put returns nil the image
// is on disk; a crash earlier leaves the old index.json or the new one. Putting
// again what is stored already writes nothing. Of an index.json that is damaged
// what is usable is taken over, and it is kept as index.json.corrupt; a store of a
// newer version is not touched, and gives ErrNotImage. The other errors come from
// the system.
func (s *Store) Put(img *Image) error {
	if err := s.put(img); err != nil {
		return fmt.Errorf("store image %s: %w", img.Name, err)
	}
	return nil
}

func (s *Store) put(img *Image) (err error) {
	n, err := ParseName(img.Name)
	if err != nil {
		return err
	}
	if n.Transport != Registry {
		return fmt.Errorf("%w: only images of registries are stored", ErrName)
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	w, err := s.writer()
	if err != nil {
		return err
	}
	for _, d := range img.indexes {
		w.blob(d.desc.Digest, d.raw)
	}
	w.blob(img.Manifest.Config.Digest, img.RawConfig)
	w.blob(img.Digest, img.RawManifest)
	if w.err != nil {
		return w.err
	}
	x, err := s.readIndex()
	damaged := errors.Is(err, ErrCorrupt)
	if damaged {
		w.keep(ocispec.ImageIndexFile)
		x, err = s.salvage(), nil
	}
	if err != nil {
		return err
	}
	if !enter(x, img.entry(n)) && !damaged {
		return w.err
	}
	return w.commit(x)
}

// MediaType is that of the image's manifest.
func (img *Image) MediaType() string {
	if t := img.Manifest.MediaType; t != "" {
		return t
	}
	if t := specific(img.desc.MediaType); t != "" {
		return t
	}
	return ocispec.MediaTypeImageManifest
}

// entry is the image's descriptor in index.json.
func (img *Image) entry(n Name) ocispec.Descriptor {
	d := ocispec.Descriptor{
		MediaType: img.MediaType(),
		Digest:    img.Digest,
		Size:      int64(len(img.RawManifest)),
		Annotations: map[string]string{
			ocispec.AnnotationRefName: n.String(),
			annotationName:            n.String(),
		},
	}
	if img.Platform.OS != "" || img.Platform.Architecture != "" {
		p := img.Platform
		d.Platform = &p
	}
	if img.Origin != nil {
		d.Annotations[annotationOrigin] = reference.TrimNamed(img.Origin).String()
	}
	if img.Index != "" {
		d.Annotations[annotationIndex] = img.Index.String()
	}
	return d
}

// enter puts an entry into an index and takes its name from others. It returns
// false if the entry was there already and nothing changed.
func enter(x *ocispec.Index, d ocispec.Descriptor) bool {
	name, root := d.Annotations[annotationName], d.Annotations[annotationIndex]
	keep := make([]ocispec.Descriptor, 0, len(x.Manifests)+1)
	present, removed := false, false
	for _, old := range x.Manifests {
		if storedName(old) != name {
			keep = append(keep, old)
			continue
		}
		switch {
		case old.Digest == d.Digest:
			present = sameEntry(old, d)
			continue // d takes its place
		case root == "" || old.Annotations[annotationIndex] != root:
			removed = true // the tag has moved on
			continue
		}
		// Another platform of the same index. The layout's own name must be
		// unique for umoci; the last one stored has it.
		delete(old.Annotations, ocispec.AnnotationRefName)
		keep = append(keep, old)
	}
	x.Manifests = append(keep, d)
	return removed || !present
}

// sameEntry says whether two entries differ in nothing that we write.
func sameEntry(a, b ocispec.Descriptor) bool {
	if a.MediaType != b.MediaType || a.Size != b.Size || len(a.Annotations) != len(b.Annotations) {
		return false
	}
	for k, v := range a.Annotations {
		if b.Annotations[k] != v {
			return false
		}
	}
	return true
}
