// Package cache keeps the layers of images on disk: each layer's index, and as
// much of its data as was fetched, verified, shared between processes, bounded.
//
// Its central type is Layer: the data of one layer at any offset. Store opens
// layers, making what is missing (from a table of contents, or by streaming the
// blob once), and merges them to a Chain. Layer.ReadAt answers from the data
// file, and fetches what is not in it. One process downloads a chunk; the others
// find it in the file.
//
// A store is plain files. For every layer, in layers/<key>/ (see layer.Key):
//
//	index.erofs   the tree; the layer exists when this file does
//	chunks        the chunk table
//	data          the data, sparse; chunk bytes stand at their data offset
//	bitmap        which chunks are in data: see bitmap.go
//	prefetch      data ranges to fetch early, a line for each
//	refused       why the index that Indexed was given is wrong, if it is
//	doubted       why it may be: a chunk cannot be had
//	blob.partial  the blob, as far as a first mount that streams it has come
//
// Layers, Chains and Check look at all of that from outside, and RemoveLayer and
// RemoveChain throw it away, while others use the store.
//
// What always holds:
//
//   - Only verified bytes are served: chunks are compared with their digests in the
//     chunk table. Whether that is right was verified before for every layer but
//     those that Indexed opens, of which it is known once all of their data is
//     here. A chunk is verified, written, and then marked; a mark is worth nothing after the machine has restarted, until the
//     chunk was verified again or the layer was complete before.
//   - Layers are made under the flock of locks/layer-<key>, and appear by the
//     rename of index.erofs. Chunks come and go under their range locks, in the
//     bitmap file. Both end with their process: a kill at any instant leaves a
//     store that works and that has lost at most what was under way.
//   - Who has a layer open holds the flock of locks/open-<key>, shared, and nobody
//     removes it then. A layer is renamed before its files go: nobody finds half.
//   - Eviction clears marks, raises the generation, and only then takes bytes;
//     readers look at the generation before and after.
//   - A read of present data waits for no lock and allocates nothing, but for the
//     first one of what was fetched ahead, which may begin to fetch what follows.
//
// What is not promised: that data survives a restart of the machine before the
// layer is complete (it is fetched again); that the limit is met to the byte;
// anything, if others change files of the store while it is open, except that
// damage found when a layer is opened is repaired.
package cache
