// Package layer knows the formats of layer blobs, and nobody above it does.
//
// Every format is reduced to one address space, the data offset, and two things
// derived once: the file tree (an index.Tree with whiteouts, whose extents are
// data offsets) and the chunk Table, the central type: for each part of the
// data where in the blob it is, how it is decoded, and its digest.
//
//	tar, gzip, zstd          data offset = offset in the uncompressed tar
//	eStargz, zstd:chunked    each file with data, in the order of the table of
//	                         contents, at the next multiple of 512
//
// Key says which way a Source goes. LoadTOC opens a layer from its table of
// contents, ScanTar a plain tar in a local file from its headers, Stream all
// others, and these too, by reading all of it once. Assembly makes both of what an
// index of another make says. Table.Decode makes chunks from a ranged read of the
// blob ever after, also of gzip and zstd.
//
// # Invariants
//
//   - No byte leaves Decode or Compose that does not have its digest, or was not
//     decoded from bytes of the blob that have theirs (Table.Comparable), and no
//     Scanned leaves Stream unless blob digest and diff ID are right, or LoadTOC
//     unless the table has the digest that the manifest gives.
//   - The chunks of a table are in order, disjoint, and at most MaxChunk long.
//     What they do not cover, up to DataSize, is zeros.
//   - Nothing in a blob makes this package panic, allocate without bound, or
//     name a path outside the layer's root.
//
// # The tree of one layer
//
// Paths are cleaned against the root; one that leaves it is an error. A later
// entry replaces an earlier one of the same path, but a directory keeps its
// entries when it is named again. Symlinks of the same layer above an entry are
// followed, within the root, as unpackers do. A whiteout becomes a character
// device 0:0, an opaque marker the xattr trusted.overlay.opaque=y. Both speak of
// lower layers only: a directory that is both whited out and present is opaque.
// Other xattrs trusted.overlay.* are dropped. A real device 0:0 in a layer is a
// whiteout, as it is beneath overlayfs. PAX global headers are ignored, as all
// runtimes built on archive/tar do. The files by which eStargz marks itself are
// hidden.
//
// # Sparse files
//
// EROFS maps a file in equal chunks that start at a block boundary. A chunk of a
// sparse file that is partly data and partly hole, or whose data starts within
// a block of the tar, is stored again past the end of the tar, rounded up to
// 512: in chunks of kind Copied, described by Copies, so that an evicted one is
// made again from other data. The chunk size is what costs least.
//
// # The chunk table's file
//
// Little-endian, in this order: header, records, points, copies, windows.
//
//	header, 256 bytes
//	  0    magic "LAMINACT"
//	  8    u32 version 1; u8 format: 0 tar 1 gzip 2 zstd 3 eStargz 4 zstd:chunked
//	  13   u8 flags: 1 digests are of blob ranges; gzip only
//	  16   u64 number of records, of points, of copies; u64 bytes of windows
//	  48   u64 data size, u64 blob size
//	  64   u8 length and text of the blob's digest
//	  216  sha256 of all behind the header
//	  252  CRC-32C of the bytes before
//	record, 72 bytes: one chunk
//	  0    u64 data offset, u64 blob offset, u64 blob length
//	  24   u64 bytes decoded before the chunk, from the blob offset on
//	  32   u32 length | kind<<30: 0 data, 1 zeros, 2 copied | 1<<29 if it goes on with
//	       the file of the chunk before
//	  36   u32 point where decoding starts; with a table of contents, the group of
//	       the file instead; 0xffffffff: none
//	  40   sha256 of the chunk; with the flag, of its blob range, which is one place
//	       up to the next with the byte that both share
//	point, 32 bytes: gzip only
//	  0    u64 blob offset<<3 | bits of that byte that belong to what is before
//	  8    u64 data offset; u64 offset in windows, u32 length there, u32 length
//	       of the window; a shorter stored one is a zstd frame
//	copy, 24 bytes: u64 destination, u64 source, u64 length, in data offsets
//
// Opening checks the header; Check all the rest.
//
// # What is not promised
//
// A layer opened from a table of contents was not compared with its diff ID:
// the table is believed because the manifest names its digest. eStargz has times
// in whole seconds. JSON cannot hold names that are not UTF-8: a table in which
// one may have been changed is ErrTOC, and the layer is streamed.
package layer
