package push

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
)

// uploads is how many blobs are sent at once.
const uploads = 4

// Progress is told how many bytes of layer i, whose blob has the given digest, the
// registry has; done may go back. It is called by several goroutines.
type Progress func(i int, digest string, done, total int64)

// Result says how the blobs of images came to be where they are.
type Result struct {
	Present int   `json:"present"` // were there
	Mounted int   `json:"mounted"` // came from another repository of the registry
	Sent    int   `json:"sent"`
	Bytes   int64 `json:"bytes"` // of those that were sent
}

// Blobs sends what images consist of, each blob once; their manifests are then for
// Manifest to send. p, which may be nil, counts the layers of all images on.
//
// Errors are as from Blob; if one blob fails, the others are given up.
func (r *Registry) Blobs(ctx context.Context, images []*image.Image, p Progress) (Result, error) {
	var mu sync.Mutex // guards result
	var result Result
	seen := map[digest.Digest]bool{}
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(uploads)
	send := func(desc ocispec.Descriptor, from fetch.Blob, img *image.Image, progress func(done, total int64)) {
		if seen[desc.Digest] {
			return
		}
		seen[desc.Digest] = true
		g.Go(func() error {
			way, err := r.Blob(all, desc, from, img.Origin, progress)
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
				result.Bytes += desc.Size
			}
			return nil
		})
	}
	first := 0
	for _, img := range images {
		for k, l := range img.Layers {
			n := first + k
			send(l.Desc, l.Blob, img, func(done, total int64) {
				if p != nil {
					p(n, l.Desc.Digest.String(), done, total)
				}
			})
		}
		first += len(img.Layers)
		config := img.Manifest.Config
		send(config, memory{config.Digest, img.RawConfig}, img, nil)
	}
	return result, g.Wait()
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
