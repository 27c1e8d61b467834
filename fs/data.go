package fs

import (
	"context"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/overlay"
)

// LayerData is one layer to be served as a file, and later to be a device of an
// EROFS mount.
type LayerData struct {
	Data overlay.Data
	Size int64 // of the data, in bytes
}

// firstLayerID is the node id of layer 0's file; the others follow.
const firstLayerID = rootID + 1

// deviceAlign is the block size of the index, which devices are read in.
const deviceAlign = 512

// data serves one read-only file per layer.
type data struct {
	readOnly
	reader

	layers []LayerData
}

// NewData returns a FUSE filesystem whose root holds a file "0", "1", … for each
// of layers, as long as the layer's data rounded up to 512 with zeros. The kernel
// does not cache the files: the mount that uses them as devices does. It is served
// once; all methods are safe for concurrent use.
func NewData(layers []LayerData, o TreeOptions) fuse.RawFileSystem {
	d := &data{readOnly: newReadOnly(), layers: layers}
	d.init(o)
	return d
}

// layer returns the layer behind node id, or nil.
func (d *data) layer(id uint64) *LayerData {
	if id < firstLayerID || id-firstLayerID >= uint64(len(d.layers)) {
		return nil
	}
	return &d.layers[id-firstLayerID]
}

func (d *data) fill(id uint64, out *fuse.Attr) fuse.Status {
	*out = fuse.Attr{Ino: id, Blksize: blockSize}
	if id == rootID {
		out.Mode, out.Nlink = unix.S_IFDIR|0o500, 2
		return fuse.OK
	}
	l := d.layer(id)
	if l == nil {
		return fuse.ENOENT
	}
	out.Mode, out.Nlink = unix.S_IFREG|0o400, 1
	out.Size = uint64(l.Size+deviceAlign-1) &^ (deviceAlign - 1)
	out.Blocks = out.Size / 512
	return fuse.OK
}

func (d *data) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != rootID {
		return fuse.ENOTDIR
	}
	out.EntryValid, out.AttrValid = forever, forever
	i, err := strconv.ParseUint(name, 10, 16)
	if err != nil || i >= uint64(len(d.layers)) || strconv.FormatUint(i, 10) != name {
		return fuse.OK // node 0: a name that is not there
	}
	out.NodeId = firstLayerID + i
	return d.fill(out.NodeId, &out.Attr)
}

func (d *data) Forget(uint64, uint64) {}

func (d *data) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	return d.fill(in.NodeId, &out.Attr)
}

// Open makes reads go past the page cache, so that pages are kept once, by the
// mount above.
func (d *data) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if d.layer(in.NodeId) == nil {
		return fuse.ENOENT
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

func (d *data) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

func (d *data) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.NodeId != rootID {
		return fuse.ENOTDIR
	}
	for i := in.Offset; i < uint64(len(d.layers)); i++ {
		if !out.AddDirEntry(d.direntry(i)) {
			break
		}
	}
	return fuse.OK
}

func (d *data) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	if in.NodeId != rootID {
		return fuse.ENOTDIR
	}
	for i := in.Offset; i < uint64(len(d.layers)); i++ {
		e := out.AddDirLookupEntry(d.direntry(i))
		if e == nil {
			break
		}
		e.NodeId, e.EntryValid, e.AttrValid = firstLayerID+i, forever, forever
		if status := d.fill(e.NodeId, &e.Attr); !status.Ok() {
			return status
		}
	}
	return fuse.OK
}

func (d *data) direntry(i uint64) fuse.DirEntry {
	return fuse.DirEntry{
		Mode: unix.S_IFREG, Name: strconv.FormatUint(i, 10), Ino: firstLayerID + i, Off: i + 1,
	}
}

func (d *data) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	*out = fuse.StatfsOut{Bsize: blockSize, Frsize: blockSize, NameLen: nameMax}
	return fuse.OK
}

func (d *data) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	l := d.layer(in.NodeId)
	if l == nil {
		return nil, fuse.ENOENT
	}
	return d.run(cancel, in, buf, func(ctx context.Context, p []byte) (int, error) {
		return l.read(ctx, p, int64(in.Offset))
	})
}

// read is ReadAt with the padding up to the next block.
func (l *LayerData) read(ctx context.Context, p []byte, off int64) (int, error) {
	end := (l.Size + deviceAlign - 1) &^ (deviceAlign - 1)
	if off < 0 || off >= end {
		return 0, nil
	}
	p = p[:min(int64(len(p)), end-off)]
	have := max(0, min(int64(len(p)), l.Size-off))
	if have > 0 {
		if err := l.Data.ReadAt(ctx, p[:have], off); err != nil {
			return 0, err
		}
	}
	clear(p[have:])
	return len(p), nil
}
