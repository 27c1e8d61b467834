package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/images"
)

// watch runs f and returns the paths, relative to the mount at dir, of the files
// that were opened meanwhile.
func watch(dir string, f func() error) (map[string]bool, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_UNLIMITED_QUEUE|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_LARGEFILE)
	if err != nil {
		return nil, fmt.Errorf("fanotify: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_MOUNT, unix.FAN_OPEN|unix.FAN_OPEN_EXEC, unix.AT_FDCWD, dir); err != nil {
		return nil, fmt.Errorf("fanotify: mark %s: %w", dir, err)
	}
	if err := f(); err != nil {
		return nil, err
	}
	opened := map[string]bool{}
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			return opened, nil
		}
		if err != nil {
			return nil, fmt.Errorf("fanotify: %w", err)
		}
		for e := buf[:n]; len(e) >= 24; {
			size := binary.NativeEndian.Uint32(e)
			file := int32(binary.NativeEndian.Uint32(e[16:]))
			if file >= 0 {
				if p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file)); err == nil {
					if rel, err := filepath.Rel(dir, p); err == nil {
						opened[rel] = true
					}
				}
				_ = unix.Close(int(file))
			}
			e = e[size:]
		}
	}
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
	Type      string `json:"type"`
	Name      string `json:"name"`
	LinkName  string `json:"linkName"`
	Offset    int64  `json:"offset"`
	EndOffset int64  `json:"endOffset"` // of zstd:chunked only
}

// needed returns the compressed size of the chunks of all opened files, and of
// the tables of contents: what cannot be spared.
func needed(layout, tag string, f images.Format, opened map[string]bool) (int64, error) {
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
		total += l.Size - start
		total += chunkBytes(toc, start, opened)
	}
	return total, nil
}

// chunkBytes sums up the opened files' chunks; the table begins at end.
func chunkBytes(toc []tocEntry, end int64, opened map[string]bool) (total int64) {
	// Where the next chunk begins, this one ends.
	var starts []int64
	for _, e := range toc {
		if e.Offset > 0 {
			starts = append(starts, e.Offset)
		}
	}
	starts = append(starts, end)
	slices.Sort(starts)
	counted := map[int64]bool{}
	links := map[string]bool{}
	for _, e := range toc {
		if e.Type == "hardlink" && opened[clean(e.Name)] {
			links[clean(e.LinkName)] = true
		}
	}
	for _, e := range toc {
		name := clean(e.Name)
		if e.Offset == 0 || counted[e.Offset] || !opened[name] && !links[name] {
			continue
		}
		counted[e.Offset] = true
		next := e.EndOffset
		if next == 0 {
			i, _ := slices.BinarySearch(starts, e.Offset+1)
			next = starts[i]
		}
		total += next - e.Offset
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
		toc.Entries = append(toc.Entries, tocEntry{Type: e.Type, Name: e.Name, LinkName: e.LinkName, Offset: e.Offset})
	}
	return toc.Entries, off, nil
}
