package layer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/layer/tarscan"
)

const (
	// maxTOC bounds the JSON of a table of contents, in bytes; a million
	// files need 400 MB as stargz-snapshotter indents it.
	maxTOC = 1 << 30
	// maxPackedTOC bounds the same compressed.
	maxPackedTOC = 256 << 20
	// tocAttempts is how many copies of a table are tried before it is
	// believed to be wrong everywhere.
	tocAttempts = 3
	// maxInner bounds how much must be decoded to reach a chunk.
	maxInner = 1 << 30
)

// LoadTOC derives tree and chunk table from the table of contents of an eStargz
// or zstd:chunked layer, which it reads in one ranged request, or two when an
// eStargz's table is larger than expected. The table's digest is compared with
// the manifest's annotation before anything of it is looked at.
//
// ErrNoTOC: src has no table that can be used. ErrTOC: what it has is wrong,
// lacks chunk digests, or is not a faithful copy of the tar; together with
// ErrDigest when its digest is wrong. In these cases Stream can open the layer.
// Other errors are those of src.Blob.
func LoadTOC(ctx context.Context, src Source) (*Scanned, error) {
	s, err := loadTOC(ctx, src)
	if err != nil {
		return nil, fmt.Errorf("load table of contents of layer %s: %w", src.Desc.Digest, err)
	}
	return s, nil
}

// toc is a verified table of contents.
type toc struct {
	json []byte
	end  int64 // of the chunks in the blob: where the table starts
}

func loadTOC(ctx context.Context, src Source) (*Scanned, error) {
	key, f, _ := Key(src)
	note := tocOf(src.Desc)
	var read func(context.Context, fetch.Blob, tocNote) (*toc, error)
	switch f {
	case EStargz:
		read = readEStargz
	case ZstdChunked:
		read = readZstdChunked
	default:
		return nil, ErrNoTOC
	}
	var t *toc
	var err error
	for range tocAttempts {
		if t, err = read(ctx, src.Blob, note); !errors.Is(err, ErrDigest) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	l := &tocLoader{
		tree: newBuilder(), table: newTable(f, src.Desc.Digest, src.Blob.Size()),
		end: t.end, landmarks: note.dialect != dialectContainers,
		last: -1,
	}
	l.tree.keepLate = true
	if err := parseTOC(t.json, l.entry); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTOC, err)
	}
	s, err := l.finish(tag(key))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTOC, err)
	}
	return s, nil
}

// tocEntry is an entry of the table, of any dialect. Strings are owned.
type tocEntry struct {
	name, typ, link    string
	mode               int64
	uid, gid           int64
	mtime              int64
	nsec               uint32
	size               int64
	major, minor       int64
	xattrs             []index.Xattr
	digest             sum // of the file
	offset, endOffset  int64
	inner              int64
	chunkOff, chunkLen int64
	chunkDigest        sum
	chunkType          string
}

// sum is a digest as a table of contents gives it.
type sum struct {
	sha256 [sha256.Size]byte
	given  bool
	ok     bool // it is a sha256
}

// tocLoader turns entries into tree and chunks. Data offsets are given out in
// the order of the entries: each file that has data starts at the next multiple
// of 512.
type tocLoader struct {
	tree      *builder
	table     *tableBuilder
	end       int64 // of the chunks in the blob
	landmarks bool
	prefetch  []Range
	n         int // entries seen

	next  int64 // data offset of the next file
	file  openFile
	group int   // first chunk whose end in the blob is not known
	last  int64 // blob offset of the last member
	inner int64 // end of the last chunk in it
}

// openFile is the regular file whose chunks are being read.
type openFile struct {
	name      string
	group     Group
	off, size int64 // of its data
	done      int64 // bytes that chunks cover
	endOffset int64
	digest    sum
}

func (l *tocLoader) entry(e *tocEntry) error {
	l.n++
	if err := l.entryErr(e); err != nil {
		return fmt.Errorf("entry %d %s: %w", l.n, short(e.name), err)
	}
	return nil
}

func (l *tocLoader) entryErr(e *tocEntry) error {
	if e.typ == "chunk" {
		if l.file.done == l.file.size {
			return errors.New("chunk of no file")
		}
		return l.chunk(e)
	}
	if err := l.closeFile(); err != nil {
		return err
	}
	// JSON cannot say what is not UTF-8; writers put U+FFFD in its place. The
	// tar has the true name.
	if strings.Contains(e.name, "\uFFFD") || strings.Contains(e.link, "\uFFFD") {
		return errors.New("name may have been changed: it has a replacement character")
	}
	if l.landmarks && bookkeeping(e.name) {
		return l.landmark(e)
	}
	t, err := l.treeEntry(e)
	if err != nil {
		return err
	}
	if _, err := l.tree.addEntry(t); err != nil {
		return err
	}
	if e.typ == "reg" && e.size > 0 {
		return l.openFile(e)
	}
	return nil
}

// landmark handles the files by which eStargz says what to prefetch.
func (l *tocLoader) landmark(e *tocEntry) error {
	if name, _ := clean(e.name); name == estargz.PrefetchLandmark && l.next > 0 {
		l.prefetch = []Range{{0, l.next}}
	}
	if e.typ == "reg" && e.size > 0 && e.inner == 0 && e.offset > l.last && e.offset < l.end {
		l.startGroup(e.offset) // its data ends what is before it
	}
	return nil
}

// TOCType returns the tar type that tables of contents call name, as eStargz, both
// dialects of zstd:chunked and SOCI do: one of tarscan's, or 0 for none of them.
func TOCType(name string) byte {
	switch name {
	case "reg":
		return tarscan.TypeReg
	case "dir":
		return tarscan.TypeDir
	case "symlink":
		return tarscan.TypeSymlink
	case "hardlink":
		return tarscan.TypeLink
	case "char":
		return tarscan.TypeChar
	case "block":
		return tarscan.TypeBlock
	case "fifo":
		return tarscan.TypeFifo
	}
	return 0
}

// treeEntry translates e, but for its chunks.
func (l *tocLoader) treeEntry(e *tocEntry) (*entry, error) {
	typ := TOCType(e.typ)
	if typ == 0 {
		return nil, fmt.Errorf("unknown type %s", short(e.typ))
	}
	t := &entry{
		name: e.name, link: e.link, typ: typ, mode: e.mode, uid: e.uid, gid: e.gid,
		mtime: e.mtime, nsec: e.nsec, major: e.major, minor: e.minor, xattrs: e.xattrs,
	}
	if typ != tarscan.TypeReg {
		return t, nil
	}
	if e.size < 0 || e.size > maxData-l.next {
		return nil, fmt.Errorf("size of %d", e.size)
	}
	t.size = e.size
	if e.size > 0 {
		t.extents = []index.Extent{{Len: e.size, Off: l.next, Device: 1}}
	}
	return t, nil
}

// openFile starts a file with data; e is its first chunk too.
func (l *tocLoader) openFile(e *tocEntry) error {
	l.file = openFile{name: e.name, group: groupOf(e.name), off: l.next, size: e.size, endOffset: e.endOffset, digest: e.digest}
	l.next += alignUp(e.size)
	return l.chunk(e)
}

// closeFile checks that chunks cover the whole file.
func (l *tocLoader) closeFile() error {
	if l.file.done != l.file.size {
		return fmt.Errorf("file %s before it has %d bytes of chunks, not %d", short(l.file.name), l.file.done, l.file.size)
	}
	if e := l.file.endOffset; e > l.last && e <= l.end {
		l.closeGroup(e)
		l.group = l.table.count()
	}
	l.file = openFile{}
	return nil
}

// chunk adds one chunk of the open file.
func (l *tocLoader) chunk(e *tocEntry) error {
	f := &l.file
	if e.chunkOff != f.done {
		return fmt.Errorf("chunk at %d, expected %d", e.chunkOff, f.done)
	}
	n := e.chunkLen
	if n == 0 {
		n = f.size - f.done // to the end of the file
	}
	if n <= 0 || n > f.size-f.done {
		return fmt.Errorf("chunk of %d bytes at %d of %d", n, f.done, f.size)
	}
	c := Chunk{Off: f.off + f.done, Len: n, Continues: f.done > 0, Group: f.group, point: -1}
	f.done += n
	switch e.chunkType {
	case "", "data":
	case "zeros":
		if e.offset > l.last && e.offset < l.end {
			l.startGroup(e.offset)
		}
		l.zeros(c)
		return nil
	default:
		return fmt.Errorf("unknown chunk type %s", short(e.chunkType))
	}
	d := e.chunkDigest
	if !d.given && n == f.size {
		d = f.digest // of a file in one chunk, that is the same
	}
	if !d.ok {
		return errors.New("chunk without a sha256 digest")
	}
	c.Digest = d.sha256
	if n > MaxChunk {
		return fmt.Errorf("chunk of %d bytes, at most %d are read at once", n, MaxChunk)
	}
	return l.place(e, c)
}

// place adds a chunk with data in the blob. Chunks must be in the order of the
// blob, so that neighbours can be fetched together.
func (l *tocLoader) place(e *tocEntry, c Chunk) error {
	if e.offset < 0 || e.offset >= l.end || e.inner < 0 || e.inner > maxInner || e.offset == 0 && e.inner == 0 {
		return fmt.Errorf("chunk at %d, %d within, of %d", e.offset, e.inner, l.end)
	}
	switch {
	case e.offset == l.last && e.inner >= l.inner:
	case e.offset > l.last:
		l.startGroup(e.offset)
	default:
		return fmt.Errorf("chunk at %d, %d within, is not behind the one before", e.offset, e.inner)
	}
	if l.table.count() >= math.MaxInt32 {
		return errors.New("too many chunks")
	}
	c.BlobOff, c.inner = e.offset, e.inner
	l.inner = e.inner + c.Len
	l.table.add(c)
	return nil
}

// zeros adds chunks of zeros in place of c, which may be of any length. They do
// not end the group of chunks before them.
func (l *tocLoader) zeros(c Chunk) {
	end := c.Off + c.Len
	for c.Kind = Zeros; c.Off < end; c.Off += c.Len {
		c.Len = min(end-c.Off, MaxChunk)
		l.table.add(c)
		c.Continues = true
	}
}

// startGroup starts a member at blob offset off. It ends the one before.
func (l *tocLoader) startGroup(off int64) {
	l.closeGroup(off)
	l.group, l.last, l.inner = l.table.count(), off, 0
}

// closeGroup notes that the blob range of the last member's chunks ends at end.
func (l *tocLoader) closeGroup(end int64) {
	for i := l.group; i < l.table.count(); i++ {
		if l.table.kind(i) == Data {
			l.table.setEnd(i, end)
		}
	}
}

func (l *tocLoader) finish(tag string) (*Scanned, error) {
	if err := l.closeFile(); err != nil {
		return nil, err
	}
	l.closeGroup(l.end)
	root, err := l.tree.finish()
	if err != nil {
		return nil, err
	}
	l.table.dataSize = l.next
	return &Scanned{
		Tree:     &index.Tree{Root: root, Devices: []index.Device{{Tag: tag, Size: l.next}}},
		Table:    l.table.table(),
		Prefetch: l.prefetch,
	}, nil
}
