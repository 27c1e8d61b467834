package cache

import "slices"

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
		s.takeGroup(group, from, to, min(a.trip*int64(1+l.usedOf(group, i))/firstShare, 2*a.trip))
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

// usedOf counts the neighbours of chunk i in its group that were read.
func (l *Layer) usedOf(group uint32, i int) (n int) {
	for k := max(0, i-neighbours); k < min(l.table.Len(), i+neighbours); k++ {
		c := l.table.Chunk(k)
		if c.Group == group && l.bm.has(k, &c.Digest) && !l.isMarked(k) {
			n++
		}
	}
	return n
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
// the file's chunks, or those of it that are near. Where a file comes in large
// chunks the next one is worth a bet at once, for it takes long to come. Where it
// comes in small ones, those around the miss are: a program is read here and
// there, in all directions, and the more of it was read, the more will be.
func (s *surrounding) takeFile(i, j int, trip int64) (from, to int) {
	l := s.l
	for from = i; from > 0 && i-from < neighbours && l.continues(from); from-- {
	}
	for to = j; to < l.table.Len() && to-j < neighbours && l.continues(to); to++ {
	}
	used := int64(1)
	for k := from; k < to; k++ {
		if c := l.table.Chunk(k); l.bm.has(k, &c.Digest) && !l.isMarked(k) {
			used++
		}
	}
	window := min(trip*used/firstShare, goOnTrips*trip)
	if l.table.Chunk(i).BlobLen >= trip/2 {
		window = goOnTrips * trip
	}
	for k, left := j, window; k < to && l.blobAt(k)-l.blobAt(j) < window; k++ {
		if size := l.table.Chunk(k).BlobLen; size <= left && s.take(k) {
			left -= size
		}
	}
	for k, left := i-1, window/2; k >= from && l.blobAt(i)-l.blobAt(k) <= window/2; k-- {
		if size := l.table.Chunk(k).BlobLen; size <= left && s.take(k) {
			left -= size
		}
	}
	return from, to
}

// takeGroup chooses small chunks of group, those nearest to [i, j) first, of
// room bytes at the most.
func (s *surrounding) takeGroup(group uint32, i, j int, room int64) {
	try := func(k int) {
		if k < 0 || k >= s.l.table.Len() {
			return
		}
		c := s.l.table.Chunk(k)
		if c.Group == group && c.BlobLen <= s.small && c.BlobLen <= room && s.take(k) {
			room -= c.BlobLen
		}
	}
	for d := range neighbours {
		try(j + d)
		try(i - 1 - d)
	}
}

// bets joins the chosen chunks to spans, across gaps that are smaller than a
// request is worth. Of too many spans the largest are kept.
func (s *surrounding) bets() [][2]int {
	slices.Sort(s.chosen)
	var bets [][2]int
	for _, k := range s.chosen {
		if n := len(bets); n > 0 && s.joins(bets[n-1][1], k) {
			bets[n-1][1] = k + 1
			continue
		}
		bets = append(bets, [2]int{k, k + 1})
	}
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
	if size > min(s.gap, s.room) {
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
