package cache

import (
	"slices"
	"sync"

	"github.com/laminafs/lamina/layer"
)

// Who decides what to fetch goes from chunk to chunk, by their places in the blob and
// with Layer.mu or readAhead.mu held. Zeros have none and take no room there, and a
// table of contents may name any number of them, one after the other.

// maxLooks is how many chunks are gone through to decide what to fetch besides what
// was asked for. All that is fetched ahead of a reader are fewer, unless they are
// zeros.
const maxLooks = 1 << 14

// skips knows the runs of chunks that are not in the blob.
type skips struct {
	once sync.Once
	runs [][2]int // [i, j), ascending
}

// shortSkip is how many chunks blobAt goes through by itself: few layers have longer
// runs, and the others need no list of them.
const shortSkip = 8

// next returns the first chunk behind i, which is in a run, that is in the blob. There
// must be one.
func (s *skips) next(t *layer.Table, i int) int {
	s.once.Do(func() {
		for k := 0; k < t.Len(); k++ {
			from := k
			for ; k < t.Len() && t.Chunk(k).Kind != layer.Data; k++ {
			}
			if k-from > shortSkip {
				s.runs = append(s.runs, [2]int{from, k})
			}
		}
	})
	n, _ := slices.BinarySearchFunc(s.runs, i, func(run [2]int, i int) int {
		if run[1] <= i {
			return -1
		}
		return 1
	})
	return s.runs[n][1]
}

// blobAt is the blob offset at which chunk i begins, or the next that is in the
// blob at all; past the last, it is the end of that.
func (l *Layer) blobAt(i int) int64 {
	if l.tail == 0 {
		return 0
	}
	if i >= l.tail {
		c := l.table.Chunk(l.tail - 1)
		return c.BlobOff + c.BlobLen
	}
	for k := i; k <= i+shortSkip; k++ { // the last before the tail is in the blob
		if c := l.table.Chunk(k); c.Kind == layer.Data {
			return c.BlobOff
		}
	}
	return l.table.Chunk(l.skips.next(l.table, i)).BlobOff
}
