package store

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"golang.org/x/time/rate"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
)

// Options say where a store is and how what it lacks is fetched.
type Options struct {
	// Root is the store's directory.
	Root string
	// PlainHTTP speaks HTTP to registries that are not on loopback.
	PlainHTTP bool
	// Insecure skips the verification of TLS certificates.
	Insecure bool
	// HostsDirs are certs.d directories; empty means the default ones.
	HostsDirs []string
	// Parallel bounds the requests in flight to registries; 0 is the default.
	Parallel int
	// FillRate bounds background fetching, in bytes per second; 0 is no bound.
	FillRate int64
	// CacheLimit bounds the data of layers that is kept, in bytes; 0 is no bound.
	CacheLimit int64
	// Log is told what does not stop a call; nil is silence.
	Log *slog.Logger
	// Held, Began and Came are those of cache.Options.
	Held  func() (map[string]bool, error)
	Began func(*cache.Layer, cache.Begun)
	Came  func(l *cache.Layer, off int64, p []byte)
}

// Store is an opened store directory.
type Store struct {
	Root   string
	Client *fetch.Client
	Images *image.Store
	Cache  *cache.Store
	Log    *slog.Logger
}

// New opens the store at o.Root, making its directories if there are none.
func New(o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	images, err := image.OpenStore(filepath.Join(o.Root, "images"))
	if err != nil {
		return nil, err
	}
	client := fetch.New(fetch.Options{
		HostsDirs: o.HostsDirs, PlainHTTP: o.PlainHTTP, Insecure: o.Insecure,
		Parallel: o.Parallel, FillRate: rate.Limit(o.FillRate),
	})
	layers, err := cache.Open(o.Root, cache.Options{
		Limit: o.CacheLimit, Log: o.Log, Link: client.Link, Held: o.Held, Began: o.Began, Came: o.Came,
	})
	if err != nil {
		client.Close()
		return nil, err
	}
	return &Store{Root: o.Root, Client: client, Images: images, Cache: layers, Log: o.Log}, nil
}

// Close ends what the store does by itself. Its trees must have been closed.
func (s *Store) Close() error {
	err := errors.Join(s.Cache.Close(), s.Images.Close())
	s.Client.Close()
	if err != nil {
		return fmt.Errorf("close store %s: %w", s.Root, err)
	}
	return nil
}
