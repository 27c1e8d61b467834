// Package overlay is the tree a mount shows: the merged index of an image's
// layers, with the layers' data behind it.
//
// A [Tree] answers by node number: attributes, names and links come from the
// index, which is mapped memory, and file contents from the layers' [Data]. Node
// numbers are the index's nids, so a tree keeps nothing per node and any number
// of processes agree on them.
//
// This is the read-only half. The upper half, a writable directory over the
// index in overlayfs's own format, goes into this package too: nodes it touches
// get numbers of their own, and all others keep going the way they go here.
//
// Invariants: a read gives the file's bytes or an error, never zeros for data
// that could not be had; holes are zeros; nothing is read beyond the end of the
// file. All methods are safe for concurrent use.
//
// Not promised: any check of permissions, which belong to the kernel, and any
// caching, which belongs to the kernel and to package cache.
package overlay
