package store

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/image"
)

// Problem is something wrong in a store.
type Problem struct {
	// Object is the path of what is wrong, from the store's directory.
	Object string `json:"object"`
	What   string `json:"what"`
	// Repaired says that what was wrong is gone, to be fetched again.
	Repaired bool `json:"repaired"`
	// Failed says why it could not be repaired.
	Failed string `json:"failed,omitempty"`
}

// Check verifies everything in the store: images and blobs, indexes, chunk tables
// and cached data. With repair what is wrong is dropped. Others may use the store
// meanwhile. The error says what could not be looked at; what has no digest is
// logged.
func (s *Store) Check(ctx context.Context, repair bool) ([]Problem, error) {
	problems := []Problem{}
	add := func(object, what string, repaired bool, err error) {
		p := Problem{Object: object, What: what, Repaired: repaired}
		if err != nil {
			p.Failed = err.Error()
		}
		problems = append(problems, p)
	}
	images, errImages := s.Images.Check(ctx, image.CheckOptions{Repair: repair})
	for _, p := range images {
		add(filepath.Join("images", p.Object), p.What, p.Repaired, p.Err)
	}
	layers, errLayers := s.Cache.Check(ctx, cache.CheckOptions{Repair: repair, Unverified: func(object string) {
		s.Log.Warn("not verified: the layer is read by a SOCI index, which has no digests of data", "object", object)
	}})
	for _, p := range layers {
		add(p.Object, p.What, p.Repaired, p.Err)
	}
	return problems, errors.Join(errImages, errLayers)
}
