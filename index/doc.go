// Package index holds the file tree of an image layer, or of a whole image, as
// one EROFS image without file data: the index.
//
// A [Tree] of [Node] is built in memory, by scanning a layer or by merging
// layers, and written with [Tree.Write]. An [Index] is the written form, mapped
// into memory and read in place: [Open] costs the same for ten entries and for
// a million, and looking up names, attributes, directory entries and extents
// allocates nothing and takes no lock. Inodes are named by [NID], which is what
// the kernel and the FUSE server call them too.
//
// # Format
//
// The image is what Linux mounts: 512-byte blocks, extended inodes, directories
// as plain blocks, one chunk index for an ordinary file, one device slot for
// each layer (docs/formats.md has the fields). In order: 1024 zero bytes,
// superblock, device table, inodes with the root first, shared xattrs, then the
// blocks of directories and of long symlinks. The children of a directory lie
// side by side, and directories follow in depth-first order, so that a walk
// reads the file from front to back twice, once for inodes and once for names.
//
// Two things are lamina's own. Both stand in bytes the kernel ignores, and a
// merged index has neither: the [Flags] of a node, in the first reserved byte
// of its inode, and the path of a [HardLink] node, kept where a symlink keeps
// its target.
//
// # Layers and merging
//
// The index of a single layer keeps what the layer says about the layers below
// it: a whiteout is a character device 0:0, an opaque directory has the xattr
// trusted.overlay.opaque=y. [Merge] applies layers bottom up by the rules of
// the OCI image specification and of its reference unpacker; the result has
// neither, and no other trusted.overlay xattr.
//
// # Invariants
//
//   - The same tree gives the same bytes: nothing depends on time, on map order
//     or on the order in which entries were added.
//   - No input makes a reader panic, read outside the image or loop without
//     bound; what is wrong is [ErrCorrupt].
//   - An image that was cut short, or whose superblock was overwritten, is
//     refused by Open.
//   - A file under its final name was complete and on disk before it got it.
//
// # What is not promised
//
// A reader checks what it touches and no more: whether a whole foreign image is
// sound is known after [Index.Tree] has decoded all of it. Only the superblock
// carries a checksum. Images made by other EROFS writers are read only as far
// as they keep to the same layouts. A Tree is not safe for concurrent use, not
// even for two Encodes; an Index is.
package index
