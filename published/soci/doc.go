// Package soci reads the indexes that Amazon's SOCI publishes beside unmodified
// gzip images, of versions 1 and 2.
//
// Find gets the index of an image, as a published.Artifact, and Unpack a
// layer.Scanned from what it has for one layer, a ztoc. Nothing is written in this
// format.
//
// # The index
//
// An OCI image manifest whose config has the media type TypeV1 or TypeV2; its layers
// are ztocs, each annotated with the digest of the image layer's blob. An index of
// version 1 names the image's manifest as subject and is found by the referrers API
// or the tag that stands for it. One of version 2 has no subject: the image's own
// manifest names its digest in an annotation, so it is as trustworthy as the image.
// SOCI makes none for layers under 10 MiB.
//
// # The ztoc
//
// A flatbuffer (ztoc.fbs): the headers of the tar in their order, with the offsets
// and sizes of the files' data, and for each 4 MiB or so of data a checkpoint of
// deflate and the digest of the blob's bytes up to the next one. A checkpoint that
// is within a byte shares that byte with the span before, and both digests cover it.
// Checkpoints are a block of their own, little-endian:
//
//	i32 count, i64 span size, then for each, but for the first in old ztocs:
//	i64 first whole byte in the blob, i64 data offset,
//	u8 bits of the byte before that belong to it, 32768 bytes of window
//
// # Invariants
//
//   - Unpack takes bounded memory and time for any input, and does not panic,
//     though the generated accessors of flatbuffers do: catch stands around them.
//   - What it returns fits the blob that was asked for and is consistent in itself.
//     The data of two files never overlaps, and headers have room before it.
//
// # Not promised
//
// That a ztoc tells the truth; see package published. A ztoc cannot say which parts
// of a sparse file are stored: a layer that has one is refused. Digests are of the
// blob only, so the chunk table is not Comparable. What SOCI says of files to
// prefetch is not read.
package soci
