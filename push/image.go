package push

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
)

// uploads is how many blobs are sent at once.
const uploads = 4

// Progress is told how many bytes of blob i, of the given digest, the registry has; done
// may go back. It is called by several goroutines.
type Progress func(i int, digest string, done, total int64)

// Result says how the blobs of images came to be where they are.
type Result struct {
	Present int   `json:"present"` // were there
	Mounted int   `json:"mounted"` // came from another repository of the registry
	Sent    int   `json:"sent"`
	Bytes   int64 `json:"bytes"` // of those that were sent
}

// Blob is one to be pushed.
type Blob struct {
	Desc ocispec.Descriptor
	From fetch.Blob
	// Origin is the repository that it comes from, or nil.
	Origin reference.Named
}

// Blobs sends blobs, several at a time and each once. p, which may be nil, is told of
// all of them by their places. Errors are as from Blob; if one fails, the others are
// given up.
func (r *Registry) Blobs(ctx context.Context, blobs []Blob, p Progress) (Result, error) {
	var mu sync.Mutex // guards result
	var result Result
	seen := map[digest.Digest]bool{}
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	for i, b := range blobs {
		if seen[b.Desc.Digest] {
			continue
		}
		seen[b.Desc.Digest] = true
		g.Go(func() error {
			way, err := r.Blob(all, b.Desc, b.From, b.Origin, func(done, total int64) {
				if p != nil {
					p(i, b.Desc.Digest.String(), done, total)
				}
			})
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			switch way {
			case Present:
				result.Present++
			case Mounted:
				result.Mounted++
			case Sent:
				result.Sent++
				result.Bytes += b.Desc.Size
			}
			return nil
		})
	}
	return result, g.Wait()
}

// Parts returns the blobs of an image: its layers, and then its config.
func Parts(img *image.Image) []Blob {
	var all []Blob
	for _, l := range img.Layers {
		all = append(all, Blob{l.Desc, l.Blob, img.Origin})
	}
	config := img.Manifest.Config
	return append(all, Blob{config, memory{config.Digest, img.RawConfig}, img.Origin})
}

// Descriptor returns that of an image's manifest.
func Descriptor(img *image.Image) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: img.MediaType(), Digest: img.Digest, Size: int64(len(img.RawManifest))}
}

// memory is a blob whose bytes are at hand.
type memory struct {
	digest digest.Digest
	raw    []byte
}

// Digest implements fetch.Blob.
func (m memory) Digest() digest.Digest { return m.digest }

// Size implements fetch.Blob.
func (m memory) Size() int64 { return int64(len(m.raw)) }

// ReadRange implements fetch.Blob.
func (m memory) ReadRange(_ context.Context, off, n int64) (fetch.Stream, error) {
	if off < 0 || n < 0 || off > m.Size()-n {
		return nil, fmt.Errorf("read blob %s: %w", m.digest, fetch.ErrRange)
	}
	return memoryStream{io.NopCloser(bytes.NewReader(m.raw[off : off+n]))}, nil
}

type memoryStream struct{ io.ReadCloser }

// Reject implements fetch.Stream: there are no other bytes to be had.
func (memoryStream) Reject(error) {}
