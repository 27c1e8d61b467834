package layer

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/laminafs/lamina/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of the containers/storage dialect of zstd:chunked. Those of the
// stargz dialect are constants of package zstdchunked.
const (
	containersChecksum = "io.github.containers.zstd-chunked.manifest-checksum"
	containersPosition = "io.github.containers.zstd-chunked.manifest-position"
)

// Source is one layer of an image: what the manifest says of it, what the
// config says of it, and its bytes.
type Source struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
	Blob   fetch.Blob
}

// Format is how a blob holds a layer.
type Format uint8

// The formats. EStargz and ZstdChunked have a table of contents.
const (
	Tar Format = iota
	Gzip
	Zstd
	EStargz
	ZstdChunked
)

// String returns the name that people use, such as "zstd:chunked".
func (f Format) String() string {
	switch f {
	case Tar:
		return "tar"
	case Gzip:
		return "gzip"
	case Zstd:
		return "zstd"
	case EStargz:
		return "estargz"
	case ZstdChunked:
		return "zstd:chunked"
	}
	return fmt.Sprintf("format %d", uint8(f))
}

// Key names the directory that everything derived from src is kept in, and
// says how src can be opened. Whatever the key, two sources with the same key
// have the same tree and the same data:
//
//   - a layer with a table of contents: "toc-" and the hex of a hash over the
//     digests of table and blob. The table is trusted because the manifest
//     names its digest; it was not compared with the diff ID, so the layer must
//     not share a directory with one that was. The blob's digest is part of it
//     because the last chunk ends where the table starts, which the table does
//     not say;
//   - a plain tar in a local file: "file-" and the hex of a hash over path,
//     offset, size, modification time, device and inode number;
//   - all else: DiffKey.
//
// lazy is true for the first two: LoadTOC or ScanTar can open them, without
// reading all. Key reads nothing but the first bytes of a local file, which say
// more than its media type, as docker saves compressed layers under the name of
// plain ones.
func Key(src Source) (key string, f Format, lazy bool) {
	f = formatOf(src.Desc)
	switch f {
	case EStargz, ZstdChunked:
		t := tocOf(src.Desc)
		return "toc-" + hashOf(t.key.String(), src.Desc.Digest.String()), f, true
	case Tar:
		if key, ok := fileKey(src.Blob); ok {
			return key, Tar, true
		}
	}
	return DiffKey(src), f, false
}

// DiffKey is the key of src once Stream has verified it against its diff ID:
// the hex of that, preceded by the algorithm when it is not sha256.
func DiffKey(src Source) string {
	algorithm, hash, ok := strings.Cut(src.DiffID.String(), ":")
	if ok && algorithm != digest.SHA256.String() {
		return algorithm + "-" + hash
	}
	return hash
}

// indexedPrefix begins the keys of layers that an index made elsewhere leads to.
const indexedPrefix = "idx-"

// IndexedKey is the key of src while it is read by an index that was made
// elsewhere: "idx-" and the hex of a hash over the digests of blob and tar. Its
// data has not been compared with the diff ID, so it shares a directory with
// nothing that was. It is empty for a src that needs no such index.
func IndexedKey(src Source) string {
	if src.DiffID == "" {
		return ""
	}
	switch formatOf(src.Desc) {
	case Gzip, Zstd:
		return indexedPrefix + hashOf(src.Desc.Digest.String(), src.DiffID.String())
	}
	return ""
}

// IsIndexed reports whether key is one that IndexedKey makes.
func IsIndexed(key string) bool { return strings.HasPrefix(key, indexedPrefix) }

// tag is the device tag of a layer with this key: at most 64 bytes.
func tag(key string) string {
	hash := key[strings.LastIndexByte(key, '-')+1:]
	return hash[:min(len(hash), 64)]
}

func hashOf(parts ...string) string {
	h := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return hex.EncodeToString(h[:])
}

// fileKey returns the key of a plain tar in a local file.
func fileKey(b fetch.Blob) (string, bool) {
	l, ok := b.(fetch.Local)
	if !ok {
		return "", false
	}
	path, off := l.File()
	f, err := os.Open(path)
	if err != nil {
		return "", false
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, magicLen)
	n, _ := f.ReadAt(head, off) // a short file is a short head
	if c, err := sniff(head[:min(int64(n), b.Size())]); err != nil || c != Tar {
		return "", false
	}
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		return "", false
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	id := ""
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id = fmt.Sprint(st.Dev, " ", st.Ino, " ", st.Ctim.Sec, " ", st.Ctim.Nsec)
	}
	return "file-" + hashOf(path, fmt.Sprint(off, b.Size(), fi.Size(), fi.ModTime().UnixNano()), id), true
}

// formatOf tells the format from media type and annotations.
func formatOf(d ocispec.Descriptor) Format {
	f := Tar
	switch m, _, _ := strings.Cut(d.MediaType, ";"); {
	case strings.HasSuffix(m, "gzip"): // "+gzip" and Docker's ".gzip", also of foreign layers
		f = Gzip
	case strings.HasSuffix(m, "zstd"):
		f = Zstd
	}
	t := tocOf(d)
	switch {
	case t.dialect == dialectEStargz && f == Gzip:
		return EStargz
	case t.dialect != dialectNone && t.dialect != dialectEStargz && f == Zstd:
		return ZstdChunked
	}
	return f
}

type dialect uint8

const (
	dialectNone       dialect = iota
	dialectEStargz            // gzip members, the table is a tar entry
	dialectStargz             // zstd frames, written by stargz-snapshotter
	dialectContainers         // zstd frames, written by containers/storage
)

// tocNote is what the annotations say about a table of contents.
type tocNote struct {
	dialect  dialect
	key      digest.Digest // the digest that identifies the table
	json     digest.Digest // of the JSON; empty: not given
	packed   digest.Digest // of the compressed JSON; empty: not given
	off, len int64         // of the compressed JSON in the blob; 0: not given
	raw      int64         // length of the JSON; 0: not given
}

// tocOf reads the annotations. Both kinds together are ambiguous: two clients
// could see two different trees, so neither is used.
func tocOf(d ocispec.Descriptor) tocNote {
	var t tocNote
	valid := func(name string) digest.Digest {
		v := digest.Digest(d.Annotations[name])
		if v.Validate() != nil {
			return ""
		}
		return v
	}
	_, ours := d.Annotations[containersChecksum]
	_, theirs := d.Annotations[zstdchunked.ManifestChecksumAnnotation]
	_, json := d.Annotations[estargz.TOCJSONDigestAnnotation]
	switch {
	case ours && (theirs || json):
		return t
	case ours:
		t.packed = valid(containersChecksum)
		if !t.position(d.Annotations[containersPosition]) || t.packed == "" {
			return tocNote{}
		}
		t.dialect, t.key = dialectContainers, t.packed
	case theirs || json:
		t.json = valid(estargz.TOCJSONDigestAnnotation)
		t.packed = valid(zstdchunked.ManifestChecksumAnnotation)
		if json && t.json == "" || theirs && t.packed == "" {
			return tocNote{}
		}
		if t.key = t.json; t.key == "" {
			t.key = t.packed
		}
		t.dialect = dialectEStargz
		if theirs || strings.HasSuffix(d.MediaType, "zstd") {
			t.dialect = dialectStargz
			t.position(d.Annotations[zstdchunked.ManifestPositionAnnotation])
		}
	}
	return t
}

// position reads "offset:length:raw length:type".
func (t *tocNote) position(s string) bool {
	var off, length, raw, typ int64
	if n, err := fmt.Sscanf(s, "%d:%d:%d:%d", &off, &length, &raw, &typ); n != 4 || err != nil {
		return false
	}
	if off <= 0 || length <= 0 || raw <= 0 || typ != 1 {
		return false
	}
	t.off, t.len, t.raw = off, length, raw
	return true
}

// magicLen is how many first bytes sniff looks at.
const magicLen = 6

// sniff tells Tar, Gzip or Zstd from the first bytes of a blob. It fails for
// compressions that no image format allows.
func sniff(head []byte) (Format, error) {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return Gzip, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return Zstd, nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return Tar, fmt.Errorf("%w: compressed with bzip2", ErrFormat)
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return Tar, fmt.Errorf("%w: compressed with xz", ErrFormat)
	}
	return Tar, nil
}
