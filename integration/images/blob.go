package images

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layer is a layer in one format: what a manifest and a config say of it.
type layer struct {
	desc   ocispec.Descriptor
	diffID digest.Digest
}

// encoder compresses a tar.
type encoder struct {
	zstdchunked string   // path of the zstdchunked command
	first       []string // for eStargz: what to put in front
}

// encode writes the tar in the file tarPath to w in a format. Digest and size of
// the descriptor are left for the caller, who sees the bytes.
func (e encoder) encode(ctx context.Context, w io.Writer, tarPath string, f Format) (layer, error) {
	src, err := os.Open(tarPath)
	if err != nil {
		return layer{}, err
	}
	defer func() { _ = src.Close() }()
	switch f {
	case EStargz, Stargz:
		return e.stargz(ctx, w, src, f)
	}
	// These leave the tar as it is.
	diff := digest.Canonical.Digester()
	in := io.TeeReader(src, diff.Hash())
	l := layer{}
	switch f {
	case Tar:
		l.desc.MediaType = ocispec.MediaTypeImageLayer
		_, err = io.Copy(w, in)
	case Gzip:
		l.desc.MediaType = ocispec.MediaTypeImageLayerGzip
		err = copyInto(gzip.NewWriter(w), in)
	case Zstd:
		l.desc.MediaType = ocispec.MediaTypeImageLayerZstd
		var zw *zstd.Encoder
		if zw, err = zstd.NewWriter(w); err == nil {
			err = copyInto(zw, in)
		}
	case Podman:
		l.desc.MediaType = ocispec.MediaTypeImageLayerZstd
		l.desc.Annotations, err = e.podman(ctx, w, in)
	default:
		err = fmt.Errorf("no encoder")
	}
	if err != nil {
		return layer{}, fmt.Errorf("encode %s as %s: %w", tarPath, f, err)
	}
	l.diffID = diff.Digest()
	return l, nil
}

func copyInto(w io.WriteCloser, r io.Reader) error {
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	return w.Close()
}

// podman runs containers/storage's writer, which lives in a module of its own.
func (e encoder) podman(ctx context.Context, w io.Writer, r io.Reader) (map[string]string, error) {
	f, err := os.CreateTemp("", "annotations")
	if err != nil {
		return nil, err
	}
	_ = f.Close()
	defer func() { _ = os.Remove(f.Name()) }()
	cmd := exec.CommandContext(ctx, e.zstdchunked, f.Name())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, w, os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		return nil, err
	}
	var a map[string]string
	return a, json.Unmarshal(b, &a)
}

// zstdCompression joins the halves that estargz.Build wants as one.
type zstdCompression struct {
	*zstdchunked.Compressor
	*zstdchunked.Decompressor
}

// stargz writes eStargz or its zstd:chunked. Both reorder the tar and add to it,
// so the diff ID is another than the tar's.
func (e encoder) stargz(ctx context.Context, w io.Writer, src *os.File, f Format) (layer, error) {
	info, err := src.Stat()
	if err != nil {
		return layer{}, err
	}
	meta := map[string]string{}
	// Parallelism decides where chunks end: fixed, or blobs would differ
	// between machines.
	opts := []estargz.Option{estargz.WithContext(ctx), estargz.WithParallelism(2)}
	l := layer{desc: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}}
	if f == Stargz {
		l.desc.MediaType = ocispec.MediaTypeImageLayerZstd
		opts = append(opts, estargz.WithCompression(zstdCompression{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: meta}, &zstdchunked.Decompressor{},
		}))
	} else {
		opts = append(opts, estargz.WithCompressionLevel(gzip.DefaultCompression))
	}
	if len(e.first) > 0 {
		opts = append(opts, estargz.WithPrioritizedFiles(e.first))
	}
	blob, err := estargz.Build(io.NewSectionReader(src, 0, info.Size()), opts...)
	if err != nil {
		return layer{}, err
	}
	if _, err := io.Copy(w, blob); err != nil {
		_ = blob.Close()
		return layer{}, err
	}
	if err := blob.Close(); err != nil {
		return layer{}, err
	}
	size, err := blob.UncompressedSize()
	if err != nil {
		return layer{}, err
	}
	meta[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
	meta[estargz.StoreUncompressedSizeAnnotation] = strconv.FormatInt(size, 10)
	l.desc.Annotations, l.diffID = meta, blob.DiffID()
	return l, nil
}
