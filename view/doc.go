// Package view looks at an image without mounting it: it lists, reads, copies
// out, searches and compares what is in its tree, and says which layer put it
// there.
//
// An [Image] is the merged tree, as a mount would show it, with the layers it was
// made of. Everything that the tree answers (listing, reading, copying) is asked
// of the tree; data is read through it and therefore fetched when it is asked
// for, and not before. Where something comes from is not kept in the tree: it is
// found by going through the layers' own indexes side by side, by the rules that
// [index.Merge] made the tree by.
//
// # Paths
//
// A path is one of the image's, from its root, with or without a slash in front.
// Symbolic links on the way are followed inside the tree and never out of it: an
// absolute target starts at the image's root, and ".." stops there. The last name
// of a path is followed only where the function says so, or if a slash is behind
// it.
//
// # Invariants
//
//   - A Copy writes below its destination and nowhere else, whatever the image
//     has for names, links and targets, and never through a symbolic link that
//     lies in the tree that is copied to.
//   - What is said of a layer agrees with the merged tree: a path that the tree
//     has comes from a layer, and one that it lacks comes from none.
//   - No index makes an operation endless: a tree that is deeper than it has
//     directories is [index.ErrCorrupt].
//
// # What is not promised
//
// Layers can be made whose links lead through directories that the same layer
// replaces. Should the layers' trees then not explain the merged one, Which and
// Find say so with [index.ErrCorrupt].
//
// Errors about paths wrap the errors of the system (ENOENT, ENOTDIR, EISDIR,
// ELOOP), so that [io/fs.ErrNotExist] is found in them; other ones are those of the
// index and of reading data. Nothing checks permissions: who has the image may
// see all of it. An Image may be used concurrently, and is not changed.
package view
