// Package checkpoint gives random access to gzip streams.
//
// A deflate stream can be entered at the start of any block, given the bit at
// which it starts and those of the 32 KiB before it that the blocks behind it
// refer to. Reader decompresses a whole stream once, checks it, and reports
// such places, each a Checkpoint; Resume goes on from one later. The first pass
// bounds how soon a plain gzip layer can be used, so it has an inflate of its
// own, which also sees what no library tells: where blocks start, in bits, and
// which bytes of a window are referred to at all. The others are zero in a
// Checkpoint's Window, which makes it small when it is compressed.
//
// Invariants:
//
//   - A checkpoint is reported when exactly the data before it has been
//     delivered, and only if data follows it. Out and the pair of In and Bits
//     grow strictly; the first checkpoint has Out 0.
//   - The bytes of the blob that decode the data from checkpoint a to checkpoint
//     b are [a.In, b.In), and the one at b.In if b.Bits is not 0.
//   - io.EOF is returned only after the checksum and size of every member that
//     was read from its header on were right.
//   - Memory does not depend on the input; no input panics.
//
// What is accepted is what compress/gzip accepts, except that zeros may follow
// the last member, as gzip(1) allows (tapes and block devices pad with them);
// that names and comments may be of any length; and that an empty input, which
// holds no member, is io.ErrUnexpectedEOF.
//
// Not promised: the checksum of a member entered in its middle, for which
// callers keep digests of their own; where in a span the checkpoint lies.
package checkpoint
