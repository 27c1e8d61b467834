// Package published keeps what was derived from an image's layers beside the
// image in its registry, so that other machines mount the image, as it is,
// without reading all of it first.
//
// Its central type is Artifact: an OCI artifact that refers to the manifest of
// one image for one platform. It has a blob for each layer that cannot be opened
// lazily by itself, a pack. Pack makes one, Push uploads all and the artifact's
// manifest, Find gets the Artifact (of several, what they have together), Unpack a
// layer.Scanned from a pack.
//
// # The artifact
//
// An OCI 1.1 image manifest: artifactType ArtifactType, the empty config, the
// image's manifest as subject, and for each pack a layer of LayerMediaType with
// AnnotationLayer and AnnotationDiffID. It is found by the referrers API, or
// where the registry lacks that, by the tag schema of the distribution
// specification. The image itself is not touched.
//
// A pack is a tar, compressed with zstd, of two files: index.erofs, the layer's
// index, and chunks, its chunk table, both as they are in a store
// (docs/formats.md). The same files give the same pack.
//
// # Invariants
//
//   - Find returns an artifact only if its manifest has the digest that it was
//     listed with and names the subject asked for, whatever the list says.
//   - Unpack takes bounded memory and time for any input, and does not panic.
//     What it returns describes the blob that was asked for, is consistent in
//     itself, and its tree was decoded in whole: the image in the pack is never
//     mounted, only written anew.
//
// # Not promised
//
// That an index tells the truth. Whoever may push to the repository can publish
// one that leads to other names and other bytes than the layer has. The chunks'
// digests come from the same place. It is known when all data was read: then the
// cache compares it with the layer's diff ID, and the tree with the headers in it.
// Who needs to know sooner streams the layer.
//
// Two that push to one image at the same time, to a registry without the
// referrers API, may lose one of the entries: its list is read, changed and
// written, and the protocol knows nothing better.
package published
