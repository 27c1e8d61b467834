// Package commit makes an image of what changed in a mount: the changes become a
// layer, and the layer with the base image's a new image.
//
// The central function is [Commit]. It asks package overlay for the changes,
// writes them as a tar by the rules of the OCI image specification (layer.md,
// "Change Types", "Whiteouts"), through package layer/encode into a blob in the
// image store, edits the base's config with package commit/config, and enters
// manifest and config under a name. The base's layers are referred to and not
// read.
//
// Invariants: the same changes give the same layer, byte by byte, on any machine;
// an image is entered when all it needs is on disk, and a commit that fails or is
// killed leaves the store as it was, but for a blob that prune frees.
//
// Not promised: a picture at one instant of a tree that is written to. A file
// that shrinks while it is read makes the commit fail.
package commit
