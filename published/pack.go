package published

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/layer"
)

// LayerMediaType is the media type of a pack.
const LayerMediaType = "application/vnd.lamina.index.layer.v1.tar+zstd"

// The files in a pack, in this order.
const (
	indexName  = "index.erofs"
	chunksName = "chunks"
)

const (
	// maxUnpacked bounds the two files of a pack together, and so does the size of
	// the layer's blob: for a small one somebody's pack must not take much memory.
	// A chunk table takes 4 MB for a GB of blob. An index takes some 100 bytes for
	// a file, for which an empty one takes as few as 5 of a blob; hence the ratio,
	// which is far above what layers of files with contents need.
	maxUnpacked   = 512 << 20
	leastUnpacked = 32 << 20
	unpackedRatio = 32

	// maxFraming is what the tar may have besides.
	maxFraming = 1 << 20

	// window is the zstd window: the memory that unpacking takes besides.
	window = 8 << 20
)

// Errors on which callers decide. They are found with errors.Is.
var (
	// ErrNone: nothing is published for the image.
	ErrNone = errors.New("no published index")
	// ErrInvalid: a pack is damaged, or not the index of that layer. Reading
	// it again does not help; the layer must be streamed.
	ErrInvalid = errors.New("invalid published index")
	// ErrTooBig: an index or chunk table is larger than a pack may hold.
	ErrTooBig = errors.New("too big to be published")
)

// Pack writes the index and the chunk table in the files named to w, as a pack.
// The bytes depend on those of the files only. Errors: ErrTooBig when Unpack would
// refuse the pack, and those of the files and of w.
func Pack(w io.Writer, indexPath, chunksPath string) error {
	if err := pack(w, indexPath, chunksPath); err != nil {
		return fmt.Errorf("pack %s: %w", indexPath, err)
	}
	return nil
}

func pack(w io.Writer, indexPath, chunksPath string) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window),
		zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	left := int64(maxUnpacked)
	if table, err := layer.OpenTable(chunksPath); err == nil { // or what is wrong shows below
		left = unpackedLimit(table.BlobSize())
		_ = table.Close()
	}
	for _, m := range []struct{ name, path string }{{indexName, indexPath}, {chunksName, chunksPath}} {
		n, err := addFile(t, m.name, m.path, left)
		if err != nil {
			_ = z.Close() // only to end the encoder
			return err
		}
		left -= n
	}
	if err := t.Close(); err != nil {
		_ = z.Close()
		return err
	}
	return z.Close()
}

// unpackedLimit is how large the files in the pack of a layer may be whose blob has
// size bytes.
func unpackedLimit(size int64) int64 {
	if size > (maxUnpacked-leastUnpacked)/unpackedRatio {
		return maxUnpacked
	}
	return leastUnpacked + unpackedRatio*max(size, 0)
}

// addFile adds the file at path as name and returns its size, at most limit.
func addFile(t *tar.Writer, name, path string, limit int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if size > limit {
		return 0, fmt.Errorf("%w: %s of %d bytes, at most %d left", ErrTooBig, name, size, limit)
	}
	// No times and no owner: they would differ between machines.
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, Format: tar.FormatUSTAR}
	if err := t.WriteHeader(h); err != nil {
		return 0, err
	}
	_, err = io.CopyN(t, f, size)
	return size, err
}

// Unpack reads the pack of the layer whose blob want describes. The bytes need
// not be trusted, but who reads from a registry compares their digest first, as
// fetch.ReadAll does. It takes 512 MiB at the most, and 32 MiB and 32 times the
// blob's size if that is less. Table and tree of the result are in memory and belong to
// the caller; the device's tag is the hex of the blob's digest, as nothing is
// known of the diff ID.
//
// ErrInvalid: these are not the index and table of that blob. Other errors are
// those of r and of ctx.
func Unpack(ctx context.Context, r io.Reader, want ocispec.Descriptor) (*layer.Scanned, error) {
	s, err := unpack(ctx, r, want)
	if err != nil {
		return nil, fmt.Errorf("unpack index of layer %s: %w", want.Digest, err)
	}
	return s, nil
}

func unpack(ctx context.Context, r io.Reader, want ocispec.Descriptor) (*layer.Scanned, error) {
	in := &input{ctx: ctx, r: r}
	files, err := readPack(in, unpackedLimit(want.Size))
	if in.err != nil {
		return nil, in.err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	s := &layer.Scanned{}
	if s.Table, err = readTable(files[chunksName], want); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, chunksName, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.Tree, err = readTree(files[indexName], s.Table); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, indexName, err)
	}
	return s, ctx.Err()
}

// readPack returns the two files of a pack, of limit bytes together at the most.
func readPack(r io.Reader, limit int64) (map[string][]byte, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(window))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	all := &io.LimitedReader{R: z, N: limit + maxFraming}
	t := tar.NewReader(all)
	files, left := map[string][]byte{}, limit
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		_, again := files[h.Name]
		switch {
		case h.Typeflag != tar.TypeReg || again || h.Name != indexName && h.Name != chunksName:
			return nil, fmt.Errorf("unexpected file %.64q", h.Name)
		case h.Size > left:
			return nil, fmt.Errorf("%s of %d bytes, at most %d wanted", h.Name, h.Size, left)
		}
		left -= h.Size // of a sparse file it is what reading gives, too
		body := make([]byte, h.Size)
		if _, err := io.ReadFull(t, body); err != nil {
			return nil, fmt.Errorf("%s: %w", h.Name, err)
		}
		files[h.Name] = body
	}
	if len(files) != 2 {
		return nil, fmt.Errorf("%d files instead of 2", len(files))
	}
	// The checksum of the last frame is behind the tar.
	if _, err := io.Copy(io.Discard, all); err != nil {
		return nil, err
	}
	if all.N == 0 {
		return nil, errors.New("more bytes than wanted")
	}
	return files, nil
}

// input tells errors of the source from those of what it delivers.
type input struct {
	ctx context.Context
	r   io.Reader
	err error // of r or ctx, other than io.EOF
}

func (in *input) Read(p []byte) (int, error) {
	if err := in.ctx.Err(); err != nil {
		in.err = err
		return 0, err
	}
	n, err := in.r.Read(p)
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}
