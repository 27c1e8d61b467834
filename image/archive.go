package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	maxMembers = 1 << 16 // an archive holds a few files per layer
	maxLinks   = 16      // links followed for one name
)

// archive is a tree in a tar file, read in place: only the headers of its
// members were looked at.
type archive struct {
	path    string
	members map[string]member
}

// A member is a file or a link in an archive. A name that occurs again replaces
// the earlier one, as it does when a tar is unpacked.
type member struct {
	off, size int64
	link      string // cleaned name this one refers to; "" for a file
	problem   string // why the file cannot be read in place; "" if it can
}

// compressions are the files that look like tar archives but must be
// decompressed first, as they cannot be read at any offset.
var compressions = [...]struct{ magic, name, tool string }{
	{"\x1f\x8b", "gzip", "gunzip"},
	{"\x28\xb5\x2f\xfd", "zstd", "unzstd"},
	{"\xfd7zXZ\x00", "xz", "unxz"},
	{"BZh", "bzip2", "bunzip2"},
}

// openArchive finds the members of the tar file that n names. Errors wrap ErrNotFound or
// ErrCorrupt, or come from the system.
func openArchive(ctx context.Context, n Name) (*archive, error) {
	file, err := filepath.Abs(n.Path)
	if err != nil {
		return nil, err
	}
	switch st, err := os.Stat(file); {
	case isNotExist(err):
		return nil, fmt.Errorf("%w: no file %s%s", ErrNotFound, n.Path, n.colonHint())
	case err != nil:
		return nil, err
	case st.IsDir():
		return nil, fmt.Errorf("%w: %s is a directory; write oci:DIR", ErrNotFound, n.Path)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file, it cannot be read in place", ErrNotFound, n.Path)
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	a := &archive{path: file}
	if a.members, err = scanMembers(ctx, f); err != nil {
		return nil, err
	}
	return a, nil
}

// scanMembers reads the headers of a tar. Data is skipped by seeking.
func scanMembers(ctx context.Context, f io.ReadSeeker) (map[string]member, error) {
	head := make([]byte, 8)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	for _, c := range compressions {
		if bytes.HasPrefix(head[:n], []byte(c.magic)) {
			return nil, fmt.Errorf("%w: the archive is compressed with %s and cannot be read in place; run %s on it first", ErrNotImage, c.name, c.tool)
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	members := make(map[string]member)
	for r := tar.NewReader(f); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return members, nil
		}
		// The tar reader reads whole headers and nothing ahead, so the file is
		// now at the member's data, or where an error was met.
		off, seekErr := f.Seek(0, io.SeekCurrent)
		if seekErr != nil {
			return nil, seekErr
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: the archive is cut off at byte %d", ErrCorrupt, off)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: read tar header before byte %d: %w", ErrCorrupt, off, err)
		}
		if len(members) == maxMembers {
			return nil, fmt.Errorf("%w: the archive has more than %d files", ErrNotImage, maxMembers)
		}
		if m, ok := newMember(h, off); ok {
			members[memberName(h.Name)] = m
		}
	}
}

// newMember describes a file or link whose data begins at off; ok is false for
// members of other types.
func newMember(h *tar.Header, off int64) (m member, ok bool) {
	switch h.Typeflag {
	case tar.TypeReg:
		m = member{off: off, size: h.Size}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				m.problem = "it is stored as a sparse file"
			}
		}
	case tar.TypeGNUSparse:
		m = member{problem: "it is stored as a sparse file"}
	case tar.TypeSymlink:
		target := h.Linkname
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(memberName(h.Name)), target)
		}
		m = member{link: memberName(target)}
	case tar.TypeLink:
		m = member{link: memberName(h.Linkname)}
	default:
		return member{}, false
	}
	return m, true
}

// memberName is the form of names in an archive that is looked up: relative to
// its root, and never outside.
func memberName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// file implements tree. Links are followed within the archive.
func (a *archive) file(name string) (section, error) {
	at := memberName(name)
	for range maxLinks {
		m, ok := a.members[at]
		switch {
		case !ok:
			return section{}, &fs.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
		case m.problem != "":
			return section{}, fmt.Errorf("%w: member %.200q cannot be read in place: %s", ErrNotImage, at, m.problem)
		case m.link == "":
			return section{path: a.path, off: m.off, size: m.size}, nil
		}
		at = m.link
	}
	return section{}, fmt.Errorf("%w: too many links at member %.200q", ErrCorrupt, name)
}

// has says whether the archive has a file of the name.
func (a *archive) has(name string) bool { _, ok := a.members[name]; return ok }

// openOCIArchive opens an image in a tar of an OCI image layout.
func openOCIArchive(ctx context.Context, n Name, want target, o Options) (*Image, error) {
	src, roots, err := findOCIArchive(ctx, n)
	if err != nil {
		return nil, err
	}
	return openResolved(ctx, src, n, want, roots, o)
}

// findOCIArchive returns the OCI layout in a tar file and the descriptors that
// the name stands for in it.
func findOCIArchive(ctx context.Context, n Name) (src layoutSource, roots []ocispec.Descriptor, err error) {
	a, err := openArchive(ctx, n)
	if err != nil {
		return src, nil, err
	}
	if !a.has(ocispec.ImageIndexFile) && a.has(dockerArchiveManifest) {
		return src, nil, fmt.Errorf("%w: %s is no OCI archive; write docker-archive:FILE", ErrNotFound, n.Path)
	}
	src = layoutSource{tree: a}
	roots, err = src.roots(n)
	return src, roots, err
}
