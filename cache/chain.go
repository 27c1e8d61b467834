package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/index"
)

// A Chain is the merged tree of several layers.
type Chain struct {
	// ID names the chain's directory in the store. For layers that were all
	// verified against their diff IDs it is the hex of the OCI chain ID.
	ID string
	// Path is the file of the merged index, an EROFS image.
	Path string
	// Index is that file opened. It belongs to the chain.
	Index *index.Index

	use *flock // says so to who would remove the chain
}

// Close closes the index, which nobody may use any more.
func (c *Chain) Close() error {
	defer c.use.unlock()
	return c.Index.Close()
}

// Chain returns the merged tree of layers, the lowest first, made at the first
// call by any process and kept. Its device i is layers[i-1]. The layers must
// stay open during the call only. Errors are those of package index, and of ctx.
func (s *Store) Chain(ctx context.Context, layers []*Layer) (*Chain, error) {
	keys := make([]string, len(layers))
	for i, l := range layers {
		keys[i] = l.key
	}
	id := ChainID(keys)
	c := &Chain{ID: id, Path: filepath.Join(s.root, "chains", id, mergedName)}
	var err error
	if c.use, err = s.lockOpen(openChainLock, id); err != nil {
		return nil, fmt.Errorf("open chain %s: %w", id, err)
	}
	defer func() {
		if c.Index == nil {
			c.use.unlock()
		}
	}()
	if c.Index, err = index.Open(c.Path); err == nil {
		return c, nil
	}
	lock, err := waitFlock(ctx, s.lockPath("chain", id), nil)
	if err != nil {
		return nil, fmt.Errorf("open chain %s: %w", id, err)
	}
	defer lock.unlock()
	if c.Index, err = index.Open(c.Path); err == nil {
		return c, nil // another process was first
	}
	if !errors.Is(err, os.ErrNotExist) {
		s.log.Error("merged index is damaged and will be made anew", "chain", id, "error", err)
	}
	indexes := make([]*index.Index, len(layers))
	for i, l := range layers {
		indexes[i] = l.index
	}
	tree, err := index.Merge(indexes)
	if err != nil {
		return nil, fmt.Errorf("open chain %s: %w", id, err)
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, fmt.Errorf("open chain %s: %w", id, err)
	}
	if err := tree.Write(c.Path); err != nil {
		return nil, fmt.Errorf("open chain %s: %w", id, err)
	}
	for _, x := range indexes {
		x.Release() // merging touched every page; serving touches none
	}
	if c.Index, err = index.Open(c.Path); err != nil {
		return nil, fmt.Errorf("open chain %s: %w", id, err)
	}
	return c, nil
}

// ChainID returns the name of the chain of layers with these keys, the lowest
// first. It applies the OCI image specification's rule for chain IDs: a key that
// is the hex of a diff ID counts as that diff ID, any other as it is, so that what
// was not verified against diff IDs never has the name of what was.
func ChainID(keys []string) string {
	if len(keys) == 0 {
		return "empty"
	}
	id := ""
	for i, d := range keys {
		if !strings.Contains(d, "-") {
			d = digest.NewDigestFromEncoded(digest.SHA256, d).String()
		}
		if i == 0 {
			id = d
			continue
		}
		sum := sha256.Sum256([]byte(id + " " + d))
		id = "sha256:" + hex.EncodeToString(sum[:])
	}
	return strings.TrimPrefix(id, "sha256:")
}
