// Package encode writes layer blobs: the opposite of package layer, for commit.
//
// A [Writer], the central type, takes one tar and writes the blob to the
// io.Writer below it, in one pass and without a temporary file. Afterwards
// [Writer.Result] says what manifest and config need to know of it.
//
//	gzip           one member, in blocks of 512 KiB that are compressed side by
//	               side; each knows the last 32 KiB of the block before
//	zstd           frames of 4 MiB, so that decoding can start inside
//	estargz        a gzip member for each file, or each MiB of one, as tables
//	zstd:chunked   of contents need it; or a zstd frame, in the dialect of
//	               stargz-snapshotter
//
// The tar is kept as it is, byte for byte. The diff ID is that of what the blob
// unpacks to: in an eStargz, the table of contents follows the tar's end.
//
// # Invariants
//
//   - The same tar gives the same blob, whatever the number of CPUs, the load, or
//     the lengths in which it is written. Blocks are cut by their length alone,
//     compressed without knowledge of others, and written in order.
//   - No goroutine is left behind by Close, Abort, or a Write that failed, and no
//     Write to the io.Writer below happens after them.
//   - Annotations that let a layer be mounted from its table of contents are
//     given only when the table says the same as the tar. JSON cannot hold names
//     that are not UTF-8: a layer with one is to be read as a whole, and is said
//     to be no more than gzip or zstd.
//   - Memory is bounded by the number of CPUs, of which at most 8 are used, not by
//     the tar; but a table of contents is made in memory, a few KiB for each file.
//
// # What is not promised
//
// Another version of the libraries may compress to other bytes. Gzip and zstd
// take any bytes, tar or not. The formats with a table of contents refuse what
// is no complete tar, sparse files, PAX global headers, and a file of the name
// stargz.index.json in the root.
package encode
