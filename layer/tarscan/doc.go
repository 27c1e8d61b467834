// Package tarscan reads the headers of a tar stream and tells where in the
// stream each file's bytes lie.
//
// archive/tar hides exactly what a seekable tar needs: the absolute offset of
// the data, and the map of a sparse file. Otherwise this package reads what
// archive/tar reads, in the same way: V7, USTAR, GNU and STAR headers, PAX
// records, GNU long names, base-256 numbers, GNU sparse files and PAX sparse
// files 0.0, 0.1 and 1.0. Tests compare the two.
//
// The central type is Scanner. It is pushed, not pulled: the owner of the
// stream writes its bytes to it, in pieces of any size, while it also hashes or
// stores them; or, when it can seek, asks Skip how far the next header is and
// calls Advance instead of reading the data between.
//
// Invariants: every Segment lies within the stored bytes of its entry, and
// within the size of the file; segments are in order and disjoint. Memory is
// bounded whatever the input: 1 MiB for PAX records, a long name or a sparse
// map.
//
// Not promised: names are as the tar has them. They may be absolute, hold "..",
// or be no valid UTF-8. PAX global headers are checked and ignored, as every
// container runtime built on archive/tar ignores them. What follows the end
// marker is not looked at.
package tarscan
