package image

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestAddBlob(t *testing.T) {
	s, err := OpenStore(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	content := []byte("a layer")
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(content), Size: int64(len(content))}
	failed := errors.New("no more")
	for _, c := range []struct {
		name string
		desc ocispec.Descriptor
		err  error
		want error
	}{
		{"fails", desc, failed, failed},
		{"size", ocispec.Descriptor{Digest: desc.Digest, Size: 3}, nil, ErrCorrupt},
		{"good", desc, nil, nil},
		{"again", desc, nil, nil},
	} {
		got, err := s.AddBlob(func(w io.Writer) (ocispec.Descriptor, error) {
			if _, err := w.Write(content); err != nil {
				return c.desc, err
			}
			return c.desc, c.err
		})
		if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", c.name, err)
		}
		if has := s.HasBlob(desc); has != (c.want == nil) {
			t.Errorf("%s: the blob is there: %t", c.name, has)
		}
		if err == nil && got.Digest != desc.Digest {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	b, err := os.ReadFile(filepath.Join(s.Dir(), "blobs", "sha256", desc.Digest.Encoded()))
	if err != nil || string(b) != string(content) {
		t.Errorf("%q: %v", b, err)
	}
	if left, err := os.ReadDir(s.partials); err != nil || len(left) != 0 {
		t.Errorf("%v is left: %v", left, err)
	}
	// It is in no image, and its maker has not ended.
	if gone, err := s.Prune(t.Context(), PruneOptions{OlderThan: time.Nanosecond}); err != nil || len(gone) != 0 {
		t.Errorf("prune takes %v: %v", gone, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if gone, err := s.Prune(t.Context(), PruneOptions{}); err != nil || len(gone) != 1 {
		t.Errorf("after Close prune takes %v: %v", gone, err)
	}
}
