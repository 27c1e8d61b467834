// Package union is a writable tree: an upper directory over an image's tree, with
// what the kernel's overlayfs promises with redirect_dir=on,metacopy=on,xino=on
// and, beyond that, hard links that survive copy-up.
//
// Its central type is [Union]. Files are named by [ID], as FUSE names nodes. The
// ID of a file that comes from the lower tree is its nid there, before and after
// copy-up, and of any other one Base plus its inode number in the upper directory;
// both are for life, and the inode number that stat shows. What nobody has written
// to costs no memory and no lock: it is answered by the lower tree. Only what the
// upper directory has, and was looked up, is a node here, until Forget.
//
// # On disk
//
// The upper directory is in overlayfs's format, and nothing else is kept: whiteouts,
// opaque directories, redirects, metacopy files and origins, as the kernel writes
// them, so that either can go on with what the other left. Of a lower file with
// several names all are copied up together, as one inode. What is in the making, and
// what was unlinked while it may still be open, is in a directory of this package's
// own inside overlayfs's work directory.
//
// # Invariants
//
//   - At every instant the upper directory is that of the union before or after a
//     change, also when the process or the machine dies; only what replaces an open
//     file or a directory may leave something in the work directory, which the next
//     Open removes.
//   - A file's data is copied up at the first change of its data, on disk before the
//     file is; changes of attributes, names and links copy none.
//   - An ID means one file for as long as it has not been forgotten.
//
// # Locks
//
// Union.names orders changes of names against lookups; nothing slow happens under
// it. node.data orders the copying of a file's data against its use. Union.table
// guards the maps alone. They are taken in this order, but for data, with which
// only table may be taken.
//
// Permissions belong to the kernel, which has asked before it calls (FUSE's
// default_permissions). All methods are safe for concurrent use.
package union
