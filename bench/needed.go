package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
)

const page = 4096

// touched maps files, by their paths in the image, to the pages that were read.
type touched map[string][]bool

// touches runs a program from a file system that reads nothing ahead, and sees
// which pages the kernel then holds: the ones that the program needs.
func (b *bench) touches(ctx context.Context, tree string, start func(root string) error) (touched, error) {
	dir, err := b.newDir("touch")
	if err != nil {
		return nil, err
	}
	const script = `
truncate -s 2G "$1/disk"
mkfs.ext4 -q -d "$2" "$1/disk"
mkdir "$1/mnt"
mount -o loop,ro,noload "$1/disk" "$1/mnt"
dev=$(findmnt -n -o SOURCE "$1/mnt")
echo 0 >"/sys/block/${dev#/dev/}/queue/read_ahead_kb"
`
	mnt := filepath.Join(dir, "mnt")
	defer func() { _ = unix.Unmount(mnt, unix.MNT_DETACH); _ = os.RemoveAll(dir) }()
	if err := command(ctx, "sh", "-euc", script, "touch", dir, tree); err != nil {
		return nil, err
	}
	if err := start(mnt); err != nil {
		return nil, err
	}
	pages := touched{}
	err = filepath.WalkDir(mnt, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		in, err := resident(p)
		if slices.Contains(in, true) {
			pages[strings.TrimPrefix(p, mnt+"/")] = in
		}
		return err
	})
	return pages, err
}

// resident returns which pages of a file are in memory.
func resident(p string) ([]bool, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(m) }()
	vec := make([]byte, (len(m)+page-1)/page)
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&vec[0]))); e != 0 {
		return nil, fmt.Errorf("mincore %s: %w", p, e)
	}
	in := make([]bool, len(vec))
	for i, v := range vec {
		in[i] = v&1 != 0
	}
	return in, nil
}

// imageSize returns the sum of the layers' compressed sizes.
func imageSize(layout, tag string) (n int64, err error) {
	m, err := images.Manifest(layout, tag)
	for _, l := range m.Layers {
		n += l.Size
	}
	return n, err
}

// tocEntry is what both kinds of table of contents say of an entry.
type tocEntry struct {
	Type        string `json:"type"`
	Name        string `json:"name"`
	LinkName    string `json:"linkName"`
	Size        int64  `json:"size"`
	Offset      int64  `json:"offset"`
	ChunkOffset int64  `json:"chunkOffset"`
	ChunkSize   int64  `json:"chunkSize"`
}

// needed returns the compressed size of the chunks that hold touched pages, and
// of the tables of contents: what cannot be spared.
func needed(layout, tag string, f images.Format, pages touched) (int64, error) {
	m, err := images.Manifest(layout, tag)
	if err != nil {
		return 0, err
	}
	total := int64(0)
	for _, l := range m.Layers {
		toc, start, err := readTOC(images.BlobFile(layout, l), l, f)
		if err != nil {
			return 0, fmt.Errorf("table of contents of %s: %w", l.Digest, err)
		}
		total += l.Size - start + chunkBytes(toc, start, pages)
	}
	return total, nil
}

// chunkBytes sums up the chunks with touched pages; the table begins at end.
func chunkBytes(toc []tocEntry, end int64, pages touched) (total int64) {
	// Where the next chunk begins, this one ends.
	starts := []int64{end}
	sizes := map[string]int64{}
	names := map[string][]string{} // of a file, its hard links' too
	for _, e := range toc {
		if e.Offset > 0 {
			starts = append(starts, e.Offset)
		}
		name := clean(e.Name)
		switch e.Type {
		case "reg":
			sizes[name] = e.Size
			names[name] = append(names[name], name)
		case "hardlink":
			names[clean(e.LinkName)] = append(names[clean(e.LinkName)], name)
		}
	}
	slices.Sort(starts)
	counted := map[int64]bool{}
	for _, e := range toc {
		name := clean(e.Name)
		if e.Offset == 0 || counted[e.Offset] || e.Type != "reg" && e.Type != "chunk" {
			continue
		}
		size := e.ChunkSize
		if size == 0 {
			size = sizes[name] - e.ChunkOffset
		}
		for _, n := range names[name] {
			if in := pages[n]; !counted[e.Offset] && len(in) > 0 && size > 0 {
				first, last := e.ChunkOffset/page, (e.ChunkOffset+size-1)/page
				if slices.Contains(in[min(first, int64(len(in))):min(last+1, int64(len(in)))], true) {
					counted[e.Offset] = true
					i, _ := slices.BinarySearch(starts, e.Offset+1)
					total += starts[i] - e.Offset
				}
			}
		}
	}
	return total
}

func clean(name string) string { return strings.TrimPrefix(filepath.Clean("/"+name), "/") }

// readTOC returns a blob's table of contents and the offset where it begins.
func readTOC(path string, desc ocispec.Descriptor, f images.Format) ([]tocEntry, int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = file.Close() }()
	var toc struct{ Entries []tocEntry }
	if f == images.Podman {
		var off, size, raw, kind int64
		pos := desc.Annotations["io.github.containers.zstd-chunked.manifest-position"]
		if _, err := fmt.Sscanf(pos, "%d:%d:%d:%d", &off, &size, &raw, &kind); err != nil {
			return nil, 0, fmt.Errorf("position %q: %w", pos, err)
		}
		zr, err := zstd.NewReader(io.NewSectionReader(file, off, size))
		if err != nil {
			return nil, 0, err
		}
		defer zr.Close()
		err = json.NewDecoder(zr).Decode(&toc)
		return toc.Entries, off, err
	}
	sr := io.NewSectionReader(file, 0, desc.Size)
	off, _, err := estargz.OpenFooter(sr)
	if err != nil {
		return nil, 0, err
	}
	b := make([]byte, desc.Size-off-estargz.FooterSize)
	if _, err := sr.ReadAt(b, off); err != nil {
		return nil, 0, err
	}
	j, _, err := new(estargz.GzipDecompressor).ParseTOC(bytes.NewReader(b))
	if err != nil {
		return nil, 0, err
	}
	for _, e := range j.Entries {
		toc.Entries = append(toc.Entries, tocEntry{
			Type: e.Type, Name: e.Name, LinkName: e.LinkName, Size: e.Size,
			Offset: e.Offset, ChunkOffset: e.ChunkOffset, ChunkSize: e.ChunkSize,
		})
	}
	return toc.Entries, off, nil
}
