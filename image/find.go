package image

import "fmt"

// Find returns the stored images that Remove would remove for name, with the
// same errors, and changes nothing.
func (s *Store) Find(name string) ([]Entry, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, fmt.Errorf("find image %.300s: %w", name, err)
	}
	found, err := find(x.Manifests, name)
	if err != nil {
		return nil, fmt.Errorf("find image %.300s: %w", name, err)
	}
	entries := make([]Entry, 0, len(found))
	for _, f := range found {
		entries = append(entries, entryOf(f.entry))
	}
	sortEntries(entries)
	return entries, nil
}
