package image

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// digestPrefix is how an image is named by the beginning of a digest. Shorter
// ones are likelier to be names.
var digestPrefix = regexp.MustCompile(`^(?:[a-z0-9]+:)?[0-9a-f]{12,}$`)

// Tag gives the stored image from the further name to, which must be one of a
// registry and have no digest, and takes that name away from what had it. from
// is a name or digest as in Remove. All stored platforms of from get the name;
// if from is the digest of one platform's manifest, that one alone, and the new
// name stands for it and not for the image index.
//
// Errors wrap ErrName, ErrNotFound, ErrCorrupt if index.json is damaged, or
// come from the system.
func (s *Store) Tag(from, to string) error {
	if err := s.tag(from, to); err != nil {
		return fmt.Errorf("tag %.300s as %.300s: %w", from, to, err)
	}
	return nil
}

func (s *Store) tag(from, to string) error {
	n, err := ParseName(to)
	if err != nil {
		return err
	}
	if _, byDigest := n.Ref.(reference.Digested); byDigest || n.Transport != Registry {
		return fmt.Errorf("%w %q: write [HOST[:PORT]/]REPOSITORY[:TAG]", ErrName, to)
	}
	return s.update(func(x *ocispec.Index) error {
		found, err := find(x.Manifests, from)
		if err != nil {
			return err
		}
		// The same platform may be there under several names.
		var seen []digest.Digest
		x.Manifests = slices.DeleteFunc(x.Manifests, func(d ocispec.Descriptor) bool { return storedName(d) == n.String() })
		for _, f := range found {
			if slices.Contains(seen, f.entry.Digest) {
				continue
			}
			seen = append(seen, f.entry.Digest)
			d := f.entry
			if d.Annotations = maps.Clone(d.Annotations); d.Annotations == nil {
				d.Annotations = make(map[string]string)
			}
			d.Annotations[annotationName] = n.String()
			delete(d.Annotations, ocispec.AnnotationRefName)
			if f.alone {
				delete(d.Annotations, annotationIndex)
			}
			x.Manifests = append(x.Manifests, d)
		}
		nameOnce(x.Manifests, n.String())
		return nil
	})
}

// Remove removes stored images and returns what it removed: all platforms of a
// name; the platforms with a digest in a repository, written REPOSITORY@DIGEST;
// or those with a digest that begins as given, of at least 12 hexadecimal
// digits, with or without sha256: before them. A digest is a manifest's or an
// image index's. A name goes before a digest that begins the same way.
//
// Only entries of index.json are removed. Their blobs stay until Prune. When
// Remove returns nil that is on disk; a crash earlier leaves the old index.json
// or the new one.
//
// Errors wrap ErrNotFound, ErrName also when the digest stands for images of
// several names, ErrCorrupt if index.json is damaged, or come from the system.
func (s *Store) Remove(name string) ([]Entry, error) {
	var removed []Entry
	err := s.update(func(x *ocispec.Index) error {
		found, err := find(x.Manifests, name)
		if err != nil {
			return err
		}
		gone := make(map[int]bool)
		for _, f := range found {
			gone[f.at] = true
			removed = append(removed, entryOf(f.entry))
		}
		var rest []ocispec.Descriptor
		for i, d := range x.Manifests {
			if !gone[i] {
				rest = append(rest, d)
			}
		}
		x.Manifests = rest
		for _, e := range removed {
			nameOnce(x.Manifests, e.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("remove image %.300s: %w", name, err)
	}
	sortEntries(removed)
	return removed, nil
}

// RemoveEntries removes the stored images that remove returns true for, as Remove
// does, and returns them: none is no error. remove is called with the store locked.
// Errors wrap ErrCorrupt if index.json is damaged, or come from the system.
func (s *Store) RemoveEntries(remove func(Entry) bool) ([]Entry, error) {
	var removed []Entry
	err := s.update(func(x *ocispec.Index) error {
		x.Manifests = slices.DeleteFunc(x.Manifests, func(d ocispec.Descriptor) bool {
			e := entryOf(d)
			if e.Name == "" || isAttachment(d) || !remove(e) {
				return false
			}
			removed = append(removed, e)
			return true
		})
		if len(removed) == 0 {
			return errUnchanged
		}
		for _, e := range removed {
			nameOnce(x.Manifests, e.Name)
		}
		return nil
	})
	if errors.Is(err, errUnchanged) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove images: %w", err)
	}
	sortEntries(removed)
	return removed, nil
}

// errUnchanged ends an update that has nothing to write.
var errUnchanged = errors.New("nothing to change")

// A match is an entry of index.json that a user's name stands for.
type match struct {
	at    int // its place in index.json
	entry ocispec.Descriptor
	alone bool // it was named by its own digest, not by that of its image index
}

// find returns the entries that a name or the beginning of a digest stands for.
func find(entries []ocispec.Descriptor, name string) ([]match, error) {
	n, nameErr := ParseName(name)
	var found []match
	if nameErr == nil && n.Transport == Registry {
		for i, d := range entries {
			if len(named(entries[i:i+1], n)) == 0 {
				continue
			}
			byDigest, ok := n.Ref.(reference.Digested)
			found = append(found, match{i, d, ok && byDigest.Digest() == d.Digest})
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	if digestPrefix.MatchString(name) {
		return findPrefix(entries, name)
	}
	if nameErr != nil {
		return nil, nameErr
	}
	if n.Transport != Registry {
		return nil, fmt.Errorf("%w: only images of registries are stored", ErrName)
	}
	return nil, errNotStored
}

var errNotStored = fmt.Errorf("%w: it is not stored; lamina images lists what is", ErrNotFound)

// findPrefix returns the entries with a digest that begins with prefix.
func findPrefix(entries []ocispec.Descriptor, prefix string) ([]match, error) {
	begins := func(d string) bool {
		_, encoded, _ := strings.Cut(d, ":")
		return strings.HasPrefix(d, prefix) || strings.HasPrefix(encoded, prefix)
	}
	var found []match
	var names, digests []string
	for i, d := range entries {
		index := d.Annotations[annotationIndex]
		own := begins(d.Digest.String())
		switch {
		case own:
			digests = append(digests, d.Digest.String())
		case begins(index):
			digests = append(digests, index)
		default:
			continue
		}
		found = append(found, match{i, d, own})
		names = append(names, entryName(d))
	}
	slices.Sort(names)
	slices.Sort(digests)
	switch {
	case len(found) == 0:
		return nil, errNotStored
	case len(slices.Compact(digests)) > 1:
		return nil, fmt.Errorf("%w: several digests begin so, write more of it: %s", ErrName, list(digests))
	case len(slices.Compact(names)) > 1:
		return nil, fmt.Errorf("%w: several images have this digest, write the name: %s", ErrName, list(names))
	}
	return found, nil
}

// nameOnce gives the layout's own annotation, which must be unique for umoci,
// to the last entry of a name if none has it.
func nameOnce(entries []ocispec.Descriptor, name string) {
	last := -1
	for i, d := range entries {
		if name == "" || d.Annotations[annotationName] != name {
			continue
		}
		if d.Annotations[ocispec.AnnotationRefName] != "" {
			return
		}
		last = i
	}
	if last >= 0 {
		d := &entries[last]
		d.Annotations = maps.Clone(d.Annotations)
		d.Annotations[ocispec.AnnotationRefName] = name
	}
}

// update changes index.json under the lock. If edit fails nothing is written.
func (s *Store) update(edit func(x *ocispec.Index) error) error {
	if _, err := s.readIndex(); err != nil {
		return damaged(err)
	}
	if !s.made() {
		return edit(emptyIndex()) // only to say what is missing: nothing is made for it
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.readIndex()
	if err != nil {
		return damaged(err)
	}
	if err := edit(x); err != nil {
		return err
	}
	if x.Manifests == nil {
		x.Manifests = []ocispec.Descriptor{} // null is no list to other tools
	}
	w, err := s.writer()
	if err != nil {
		return err
	}
	return w.commit(x)
}

// damaged adds what to do about damage to the store itself.
func damaged(err error) error {
	if errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w; see lamina check", err)
	}
	return err
}
