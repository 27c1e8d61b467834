package checkpoint

import (
	"errors"
	"fmt"
)

// WindowSize is the most data before a position that deflate can refer to, and
// so the longest Window, in bytes.
const WindowSize = 32 << 10

// MinSpan is the smallest distance between checkpoints that NewReader honours,
// in bytes of output: what follows a checkpoint is watched for that long.
const MinSpan = WindowSize

var (
	// ErrCorrupt reports input that is not a gzip stream. Every error that is
	// the input's fault wraps it, except for io.ErrUnexpectedEOF.
	ErrCorrupt = errors.New("corrupt gzip data")
	// ErrChecksum reports a member whose data is not what its trailer says.
	ErrChecksum = fmt.Errorf("%w: checksum or size differs", ErrCorrupt)
	// ErrTrailing reports bytes after the last member that are neither a
	// member nor zero padding.
	ErrTrailing = fmt.Errorf("%w: garbage after the last member", ErrCorrupt)
)

// Checkpoint is a position in a gzip stream at which decoding can start: the
// beginning of a deflate block.
type Checkpoint struct {
	Out  int64 // offset in the uncompressed data
	In   int64 // offset in the blob of the byte that holds the next bit
	Bits uint8 // how many of that byte's low bits belong to what came before, 0..7
	// Window is the data before Out, at most WindowSize bytes and ending at
	// Out; bytes that the blocks after the checkpoint never refer to are zero,
	// or missing at the front. Empty at the start of a member.
	Window []byte
}
