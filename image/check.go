package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A Problem is something that is wrong with the store.
type Problem struct {
	Object   string // path of the file, relative to the store's directory
	What     string // what is wrong with it, in a few words
	Repaired bool   // it is as it should be now, or gone
	Err      error  // why it could not be repaired, if that was tried; else nil
}

// CheckOptions say what Check does.
type CheckOptions struct {
	// Repair removes blobs whose bytes are wrong and entries of index.json that
	// lead to no image, so that both are fetched again when they are needed.
	Repair bool

	// Progress, if set, is told how many bytes of the blobs were read.
	Progress func(done, total int64)
}

// Check reads the whole store and returns what is wrong with it, nil if
// nothing is:
//
//   - an oci-layout file or index.json that is missing beside blobs, or cannot be
//     read;
//   - blobs whose bytes do not have the digest that is their name, and files
//     among the blobs that are none;
//   - entries of index.json whose manifest, config or image index is missing,
//     wrong or none.
//
// A layer that is missing is no problem: it is fetched when it is read. Nor are
// interrupted downloads, which are verified by whoever goes on from them.
//
// With Repair, wrong blobs and entries are removed, an index.json that cannot
// be read is kept as index.json.corrupt and replaced by one of what is usable of
// its entries, and files that are no blobs are removed once they are ten minutes
// old, as another tool may be writing one. What could not be looked at, and what
// a version of this package may have written that knows more, is left alone.
// Others may use the store meanwhile.
//
// The error is that of the context, or says that the store cannot be read; the
// problems found until then are returned with it.
func (s *Store) Check(ctx context.Context, o CheckOptions) ([]Problem, error) {
	c := checker{store: s, o: o, sizes: make(map[digest.Digest]int64)}
	err := c.run(ctx)
	if err != nil {
		err = fmt.Errorf("check %s: %w", s.dir, err)
	}
	return c.problems, err
}

// A checker is one run of Check.
type checker struct {
	store    *Store
	o        CheckOptions
	problems []Problem
	sizes    map[digest.Digest]int64 // what manifests say of blobs; -1 for nothing
	version  error                   // why nothing may be changed; else nil
}

// errLeft is why nothing is done about what may be right after all.
var errLeft = errors.New("it may be another tool's or version's, or another user's, and is left alone")

func (c *checker) run(ctx context.Context) error {
	if st, err := os.Stat(c.store.dir); isNotExist(err) {
		return nil
	} else if err == nil && !st.IsDir() {
		return fmt.Errorf("%w: not a directory", ErrCorrupt)
	}
	c.version = c.store.version()
	if err := c.layoutFile(); err != nil {
		return err
	}
	if err := c.index(); err != nil {
		return err
	}
	c.expect(ctx)
	if err := c.blobs(ctx); err != nil {
		return err
	}
	return c.entries(ctx)
}

// found notes a problem. repair does away with it, and is called only if that is
// wanted; nil if nothing can be done.
func (c *checker) found(object, what string, repair func() error) {
	p := Problem{Object: object, What: what}
	if c.o.Repair {
		switch {
		case repair == nil:
			p.Err = errLeft
		case c.version != nil:
			p.Err = c.version
		default:
			p.Err = repair()
		}
		p.Repaired = p.Err == nil
	}
	c.problems = append(c.problems, p)
}

// layoutFile checks the file that says that the directory is a layout.
func (c *checker) layoutFile() error {
	raw, err := readFile(dirTree{c.store.dir}, ocispec.ImageLayoutFile, maxManifest)
	if isNotExist(err) {
		if blobs, others, err := c.store.blobFiles(); err != nil || len(blobs)+len(others) == 0 {
			return err // nothing was stored yet
		}
		c.found(ocispec.ImageLayoutFile, "missing", c.rewrite(ocispec.ImageLayoutFile, func() ([]byte, error) { return []byte(layoutVersion), nil }))
		return nil
	}
	if err != nil {
		c.found(ocispec.ImageLayoutFile, "cannot be read: "+err.Error(), nil)
		return nil
	}
	var v ocispec.ImageLayout
	switch err := json.Unmarshal(raw, &v); {
	case err != nil || v.Version == "":
		c.found(ocispec.ImageLayoutFile, "cannot be read: it says no version", c.rewrite(ocispec.ImageLayoutFile, func() ([]byte, error) { return []byte(layoutVersion), nil }))
	case !strings.HasPrefix(v.Version, "1."):
		c.found(ocispec.ImageLayoutFile, fmt.Sprintf("version %.20q, only 1.x is known", v.Version), nil)
	}
	return nil
}

// rewrite returns a repair that writes a file anew, and keeps the damaged one if
// there is one. No content says that somebody else has repaired it.
func (c *checker) rewrite(name string, content func() ([]byte, error)) func() error {
	return func() error {
		unlock, err := c.store.lock()
		if err != nil {
			return err
		}
		defer unlock()
		raw, err := content()
		if raw == nil || err != nil {
			return err
		}
		_, err = os.Lstat(c.store.path(name))
		there := !isNotExist(err)
		w, err := c.store.writer() // may refuse: until then nothing is changed
		if err != nil {
			return err
		}
		if there {
			w.keep(name)
		}
		w.file(name, raw)
		w.sync()
		return w.err
	}
}

// index checks that index.json can be read, and that it is there if there are
// blobs that it may be about.
func (c *checker) index() error {
	_, err := c.store.readIndex()
	what := "missing"
	switch {
	case err == nil:
		if blobs, _, err := c.store.blobFiles(); err != nil || len(blobs) == 0 {
			return err
		}
		// Not before: the first Put makes it before its blobs.
		if missing, err := c.store.lacksIndex(); err != nil || !missing {
			return err
		}
	case errors.Is(err, ErrCorrupt):
		what = "cannot be read: " + err.Error()
	default: // a newer version's, or we may not read it
		c.found(ocispec.ImageIndexFile, "cannot be read: "+err.Error(), nil)
		return nil
	}
	c.found(ocispec.ImageIndexFile, what, c.rewrite(ocispec.ImageIndexFile, func() ([]byte, error) {
		missing, err := c.store.lacksIndex()
		if err != nil {
			return nil, err
		}
		if _, err := c.store.readIndex(); err == nil && !missing {
			return nil, nil
		}
		return json.Marshal(c.store.salvage())
	}))
	return nil
}

// salvage returns what is usable of an index.json that cannot be read.
func (s *Store) salvage() *ocispec.Index {
	good := emptyIndex()
	var x ocispec.Index
	raw, err := readFile(dirTree{s.dir}, ocispec.ImageIndexFile, maxIndexJSON)
	if err != nil || json.Unmarshal(raw, &x) != nil {
		return good
	}
	good.Annotations = x.Annotations
	for _, d := range x.Manifests {
		if err := checkDescriptor(d); err == nil || errors.Is(err, ErrAlgorithm) {
			good.Manifests = append(good.Manifests, d)
		}
	}
	return good
}

// expect finds out how long blobs should be, as far as manifests can be read.
func (c *checker) expect(ctx context.Context) {
	x, err := c.store.readIndex()
	if err != nil {
		return
	}
	for _, d := range x.Manifests {
		r := newReach(c.store)
		_ = r.entry(ctx, d) // what is wrong is found out later
		for d, size := range r.sizes {
			if old, ok := c.sizes[d]; !ok || old < 0 {
				c.sizes[d] = size
			}
		}
	}
}

// blobs verifies every blob.
func (c *checker) blobs(ctx context.Context) error {
	blobs, others, err := c.store.blobFiles()
	if err != nil {
		return err
	}
	for _, name := range others {
		c.other(name)
	}
	var done, total int64
	for _, f := range blobs {
		total += f.Size
	}
	progress := func(n int64) {
		if done += n; c.o.Progress != nil {
			c.o.Progress(min(done, total), total)
		}
	}
	progress(0)
	for _, f := range blobs {
		what, st, err := c.verify(ctx, f, progress)
		if err != nil {
			return err
		}
		switch {
		case what == "":
		case st == nil: // who may not read it does not know that it is wrong
			c.found(blobPath(f.Digest), what, nil)
		default:
			c.found(blobPath(f.Digest), what, func() error { return c.removeBlob(f, st) })
		}
	}
	return nil
}

// other notes a file or directory that is no blob.
func (c *checker) other(name string) {
	st, err := os.Lstat(c.store.path(name))
	switch {
	case err != nil: // it is gone
	case strings.Count(name, "/") == 1 && st.IsDir():
		c.found(name, "not a known digest algorithm: what is in it cannot be verified", nil)
	case !st.IsDir() && time.Since(st.ModTime()) >= grace:
		c.found(name, "not a blob", func() error { return os.Remove(c.store.path(name)) })
	default:
		c.found(name, "not a blob", nil)
	}
}

// verify returns what is wrong with a blob, "" for nothing. st is the file that
// was read. Errors are the context's.
func (c *checker) verify(ctx context.Context, f storedFile, progress func(n int64)) (what string, st os.FileInfo, err error) {
	open, err := os.Open(f.path)
	if isNotExist(err) {
		return "", nil, nil // removed meanwhile
	}
	if err == nil {
		defer func() { _ = open.Close() }()
		st, err = open.Stat()
	}
	if err != nil {
		return "cannot be opened: " + err.Error(), nil, nil //nolint:nilerr // what is wrong with the blob
	}
	d := f.Digest.Algorithm().Digester()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return "", nil, err
		}
		n, err := open.Read(buf)
		_, _ = d.Hash().Write(buf[:n])
		progress(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			return "cannot be read: " + err.Error(), st, nil
		}
	}
	got := d.Digest()
	if got == f.Digest {
		return "", st, nil
	}
	// Only a reason: any manifest, also a wrong one, may say any size.
	if want, ok := c.sizes[f.Digest]; ok && st.Size() < want {
		return fmt.Sprintf("truncated: %d bytes of %d", st.Size(), want), st, nil
	}
	return "wrong bytes: they have " + got.String(), st, nil
}

// removeBlob removes the wrong blob that was read, st, unless the right one has
// taken its place.
func (c *checker) removeBlob(f storedFile, st os.FileInfo) error {
	unlock, err := c.store.lock()
	if err != nil {
		return err
	}
	defer unlock()
	now, err := os.Stat(f.path)
	if isNotExist(err) || err == nil && !os.SameFile(now, st) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(f.path)
}

// entries checks what the entries of index.json lead to, and removes those that
// lead nowhere.
func (c *checker) entries(ctx context.Context) error {
	x, err := c.store.readIndex()
	if err != nil {
		return nil //nolint:nilerr // it is a problem that was noted
	}
	wrong := c.wrongEntries(ctx, x)
	if err := ctx.Err(); err != nil || len(wrong) == 0 {
		return err
	}
	// Those of an image that was removed or replaced meanwhile do not count.
	if x, err = c.store.readIndex(); err != nil {
		return err
	}
	wrong = c.wrongEntries(ctx, x)
	if err := ctx.Err(); err != nil {
		return err
	}
	isWrong := func(err error) bool { return errors.Is(err, ErrCorrupt) || isNotExist(err) }
	var repairErr error
	if c.o.Repair && slices.ContainsFunc(slices.Collect(maps.Values(wrong)), isWrong) {
		repairErr = c.store.update(func(x *ocispec.Index) error {
			again := c.wrongEntries(ctx, x) // Put may have repaired some
			if err := ctx.Err(); err != nil {
				return err
			}
			var rest []ocispec.Descriptor
			for i, d := range x.Manifests {
				if !isWrong(again[i]) {
					rest = append(rest, d)
				}
			}
			x.Manifests = rest
			for _, d := range rest {
				nameOnce(x.Manifests, d.Annotations[annotationName])
			}
			return nil
		})
	}
	for _, i := range slices.Sorted(maps.Keys(wrong)) {
		name := entryName(x.Manifests[i])
		if name == "" {
			name = x.Manifests[i].Digest.String()
		}
		repair := func() error { return repairErr }
		if !isWrong(wrong[i]) { // too many open files, a bad disk: the entry may be right
			repair = nil
		}
		c.found(ocispec.ImageIndexFile, fmt.Sprintf("entry %.200q: %v", name, wrong[i]), repair)
	}
	return nil
}

// wrongEntries says by their place what is wrong with entries, or why that is
// not known.
func (c *checker) wrongEntries(ctx context.Context, x *ocispec.Index) map[int]error {
	wrong := make(map[int]error)
	for i, d := range x.Manifests {
		if ctx.Err() != nil {
			break
		}
		if err := c.entry(ctx, d); err != nil {
			wrong[i] = err
		}
	}
	return wrong
}

// entry checks an entry: its manifest, its config and the image index that its
// name stands for. Those that are no images are checked to be there.
func (c *checker) entry(ctx context.Context, d ocispec.Descriptor) error {
	src := c.store.source()
	if index := digest.Digest(d.Annotations[annotationIndex]); index != "" {
		file, err := c.store.indexFile(index)
		if err != nil {
			return err
		}
		if _, err := readVerified(ctx, file.blob(index), maxManifest); err != nil {
			return fmt.Errorf("image index: %w", err)
		}
	}
	if checkDigest(d.Digest) != nil || isAttachment(d) {
		_, err := src.blob(d)
		return err
	}
	raw, err := readDocument(ctx, src, d)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	doc, err := parseDocument(raw, d.MediaType)
	if errors.Is(err, ErrNotImage) || errors.Is(err, ErrAlgorithm) {
		return nil // of another tool
	}
	if err != nil || doc.manifest == nil {
		return err
	}
	if _, err := src.config(ctx, doc.manifest.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	return nil
}
