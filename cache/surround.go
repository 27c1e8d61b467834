package cache

import (
	"slices"

	"github.com/laminafs/lamina/layer"
)

// What a miss of a reader that goes here and there fetches besides, in shares of
// what the link carries in a round trip.
const (
	smallShare = 4  // a chunk is small up to this fraction of a round trip
	firstShare = 2  // what the first file of a group brings along
	goOnTrips  = 4  // how much of the rest of a file is fetched
	gapShare   = 16 // what may be fetched for nothing to spare a request
	maxBets    = 4  // requests for all that

	// neighbours is how many chunks on either side of a miss are looked at.
	neighbours = 256

	// minUsed is how many files of a group are read before they say something
	// of the others.
	minUsed = 3
)

// surround chooses what to fetch on speculation around chunks [i, j), which a
// reader who goes here and there has missed: the rest of its file, and small
// chunks of its group on both sides. The first file that is read of a group
// brings a few, the next ones more: a program reads one file in most of the
// folders it enters, and nearly all in a few. What directly follows the last of
// spans is added to it: it then comes behind what is waited for, and not beside
// it. The rest is returned as spans of its own. mu must be held.
func (l *Layer) surround(a advice, i, j int, spans *[][2]int) [][2]int {
	room := l.store.budget.room()
	s := surrounding{l: l, spans: *spans, room: room, small: a.trip / smallShare, gap: a.trip / gapShare}
	from, to := s.takeFile(i, j, a.trip)
	if group := l.table.Chunk(i).Group; group != 0 {
		present, used := l.nearby(group, i)
		if used >= minUsed && 2*used >= present {
			s.small = a.trip // most of what was fetched of the group was read
		}
		s.takeGroup(group, from, to, min(a.trip*int64(1+used)/firstShare, 2*a.trip))
	}
	bets := s.bets()
	last := len(*spans) - 1
	n := slices.IndexFunc(bets, func(b [2]int) bool { return last >= 0 && b[0] >= (*spans)[last][1] })
	if n >= 0 && l.inRun((*spans)[last][0]) && s.joins((*spans)[last][1], bets[n][0]) {
		(*spans)[last][1] = bets[n][1]
		bets = slices.Delete(bets, n, n+1)
	}
	return bets
}

// nearby counts the neighbours of chunk i in its group that are present, and of
// these the ones that were read.
func (l *Layer) nearby(group layer.Group, i int) (present, used int) {
	for k := max(0, i-neighbours); k < min(l.table.Len(), i+neighbours); k++ {
		c := l.table.Chunk(k)
		if c.Group != group || !l.bm.has(k, &c.Digest) {
			continue
		}
		present++
		if !l.isMarked(k) {
			used++
		}
	}
	return present, used
}

// surrounding collects chunks to bet on.
type surrounding struct {
	l      *Layer
	spans  [][2]int // to stay away from
	room   int64    // compressed bytes that the budget has left
	small  int64    // compressed bytes up to which a chunk is small
	gap    int64    // compressed bytes between chunks of one request
	chosen []int
}

// take chooses chunk k if it is worth fetching.
func (s *surrounding) take(k int) bool {
	size := s.l.table.Chunk(k).BlobLen
	if size > s.room || !s.l.open(k, s.spans) {
		return false
	}
	s.room -= size
	s.chosen = append(s.chosen, k)
	return true
}

// takeFile chooses chunks of the file that chunks [i, j) are part of, and returns
// the file's chunks, or those of it that are near. A program is read here and
// there, in all directions, and the more of it was read, the more will be. Other
// files are mostly read from front to back.
func (s *surrounding) takeFile(i, j int, trip int64) (from, to int) {
	l := s.l
	for from = i; from > 0 && i-from < neighbours && l.continues(from); from-- {
	}
	for to = j; to < l.table.Len() && to-j < neighbours && l.continues(to); to++ {
	}
	used := int64(1)
	for k := from; k < to; k++ {
		if l.wasRead(k) {
			used++
		}
	}
	window := min(trip*used/firstShare, goOnTrips*trip)
	if c := l.table.Chunk(i); c.Group != 0 && !c.Continues {
		window = goOnTrips * trip
	}
	s.takeRun(j, to, 1, window)
	s.takeRun(i-1, from-1, -1, window/2)
	return from, to
}

// takeRun chooses chunks from k on, in steps of d, up to end and of at most left
// bytes. It does not pass by what is too large: holes would cost a request each.
func (s *surrounding) takeRun(k, end, d int, left int64) {
	for ; k != end; k += d {
		if !s.l.open(k, s.spans) {
			left -= s.l.table.Chunk(k).BlobLen
			continue
		}
		size := s.l.table.Chunk(k).BlobLen
		if size > left || !s.take(k) {
			return
		}
		left -= size
	}
}

// takeGroup chooses the small files of group, those nearest to [i, j) first, of
// room bytes at the most.
func (s *surrounding) takeGroup(group layer.Group, i, j int, room int64) {
	try := func(k int) {
		if k < 0 || k >= s.l.table.Len() {
			return
		}
		c := s.l.table.Chunk(k)
		if c.Group == group && c.BlobLen <= room && s.isSmall(k) && s.take(k) {
			room -= c.BlobLen
		}
	}
	for d := range neighbours {
		try(j + d)
		try(i - 1 - d)
	}
}

// isSmall tells whether the file that chunk k is part of is small, and in few chunks.
func (s *surrounding) isSmall(k int) bool {
	l := s.l
	size := l.table.Chunk(k).BlobLen
	from, to := k, k+1
	for ; from > 0 && size <= s.small && to-from <= neighbours && l.continues(from); from-- {
		size += l.table.Chunk(from - 1).BlobLen
	}
	for ; to < l.table.Len() && size <= s.small && to-from <= neighbours && l.continues(to); to++ {
		size += l.table.Chunk(to).BlobLen
	}
	return size <= s.small && to-from <= neighbours
}

// joined joins the chosen chunks, which ascend, to spans, across gaps that are
// smaller than a request is worth.
func (s *surrounding) joined() (spans [][2]int) {
	for _, k := range s.chosen {
		if n := len(spans); n > 0 && s.joins(spans[n-1][1], k) {
			spans[n-1][1] = k + 1
			continue
		}
		spans = append(spans, [2]int{k, k + 1})
	}
	return spans
}

// bets joins the chosen chunks to spans. Of too many the largest are kept.
func (s *surrounding) bets() [][2]int {
	slices.Sort(s.chosen)
	bets := s.joined()
	if len(bets) > maxBets {
		size := func(b [2]int) int64 { return s.l.blobAt(b[1]) - s.l.blobAt(b[0]) }
		slices.SortFunc(bets, func(a, b [2]int) int { return int(size(b) - size(a)) })
		bets = bets[:maxBets]
		slices.SortFunc(bets, func(a, b [2]int) int { return a[0] - b[0] })
	}
	return bets
}

// joins tells whether a span that ends before chunk i may go on to chunk k, and
// takes what is between them out of the room: absent chunks there are fetched
// on speculation too.
func (s *surrounding) joins(i, k int) bool {
	size := s.l.blobAt(k) - s.l.blobAt(i)
	if size > 0 && size > min(s.gap, s.room) { // neighbours need no room, and there may be less than none
		return false
	}
	for ; i < k; i++ {
		if s.l.flights[i] != nil || !s.l.isAbsent(i) || !s.l.inRun(i) || s.l.inSpans(s.spans, i) {
			return false
		}
	}
	s.room -= size
	return true
}
