package cache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/laminafs/lamina/layer"
)

// Reading ahead is a bet: bytes fetched now that nobody asked for spare a round
// trip later, or were in the way for nothing. Three rules keep it worth making.
//
//   - A reader that reads most of what it passes is given more and more of what
//     follows. One that picks a little here and there gets, with each miss, only
//     what the link carries during the round trip that the miss costs anyway,
//     and of that only what is small: a chunk of a tenth of that size saves as
//     much time, if it is read, as one that is ten times as large, and costs a
//     tenth. The rest of a file that is being read is likely enough to be read
//     to be fetched whatever its size.
//   - Positions are those in the blob, so that a reader that goes from file to
//     file in the order of the tar is one sequential reader.
//   - All layers of a store share a budget: what was fetched on speculation and
//     not read yet may not exceed what was read, and a little to start with.
const (
	// startAllowance is the speculation, in compressed bytes, that is allowed
	// before anything was read.
	startAllowance = 1 << 20
	// minWindow and maxWindow bound how far ahead of its reader a stream is
	// fetched, in compressed bytes.
	minWindow = 128 << 10
	maxWindow = 16 << 20
	// streamCount is how many readers are told apart in one layer.
	streamCount = 8
	// streamSlack is how far behind the last position, or ahead of what was
	// asked for, a read may be and still belong to a stream.
	streamSlack = 512 << 10
)

// budget bounds the speculation of a store. Its unit is compressed bytes.
type budget struct {
	mu     sync.Mutex
	used   int64 // bytes that were read
	unused int64 // bytes asked for on speculation that were not read yet
}

// room is how much speculation is allowed now.
func (b *budget) room() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used/4*3 + startAllowance - b.unused
}

// take counts n bytes as asked for on speculation; giveBack takes them back.
func (b *budget) take(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unused += n
}

func (b *budget) giveBack(n int64) { b.take(-n) }

// use counts n bytes that were read, of which taken had been taken.
func (b *budget) use(n, taken int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used += n
	b.unused -= taken
}

// stream is one reader's way through a layer. Chunk numbers stand for
// positions; distances are measured in the blob.
type stream struct {
	pos     int     // the chunk after the last that was read
	ahead   int     // the chunk after the last that was asked for, at least pos
	stretch         // the recent past
	file    stretch // of it, what was read of the present file
	files   int     // number of files that were begun in order
	begun   int     // the chunk that the last of them begins with
	steps   int     // number of times that it went on from one group to the next
	stamp   uint64
}

// stretch is a part of a stream's way.
type stretch struct {
	began int64 // blob offset
	read  int64 // compressed bytes read in it
	reads int   // number of reads in it
}

func (s *stretch) add(size int64) {
	s.read += size
	s.reads++
}

// credit counts bytes that were passed as read.
func (s *stream) credit(size int64) {
	s.read += size
	s.file.read += size
}

// sequential tells whether most of what was passed on the way to blob offset
// here was read, often enough to say so.
func (s *stretch) sequential(here int64) bool { return 2*s.read >= here-s.began && s.reads >= 3 }

// readAhead decides what one layer fetches before it is asked for.
type readAhead struct {
	mu      sync.Mutex // innermost: nothing else is taken under it
	streams [streamCount]stream
	clock   uint64
	// at returns the blob offset at which chunk i begins; i may be the number
	// of chunks.
	at func(i int) int64
	// continues tells whether chunk i goes on with the file of the one before.
	continues func(i int) bool
	// group is the group of chunk i.
	group func(i int) layer.Group
	// wasRead tells whether chunk i was read, not only fetched.
	wasRead func(i int) bool
	// order grows with every read of a reader that goes from file to file in
	// the order of the blob, and falls with every other; see orderly.
	order atomic.Int32
	// link is the measured round trip time and bandwidth.
	link func() (time.Duration, float64)
}

// roundTrip is what the link carries during one round trip, in bytes.
func (r *readAhead) roundTrip() int64 {
	rtt, bps := r.link()
	return min(max(int64(rtt.Seconds()*bps), minWindow), maxWindow/8)
}

// advice is what to fetch beside what was asked for: chunks from ahead on, as
// long as they begin before the blob offset until.
type advice struct {
	ahead int
	until int64
	slop  int64 // how far past until the last of them may reach
	piece int64 // compressed bytes worth one request
	// picks says that the reader goes here and there: what surrounds it is
	// chosen by size, see Layer.surround. trip is what a round trip carries.
	picks  bool
	trip   int64
	within bounds
}

// bounds end what is fetched ahead of a stream.
type bounds int

const (
	// withinFile: who reads one large file from front to back has not said that
	// the next one is wanted.
	withinFile bounds = iota
	// withinGroup: who reads the files of one kind in one folder, that the
	// others are.
	withinGroup
	unbounded
)

// streamFiles is how many files a reader has to read in order before the next
// ones are fetched ahead of it.
const streamFiles = 3

// looseFiles is the same for files in no group: the libraries of a program lie
// side by side in many a layer.
const looseFiles = 8

// minOrder is from which order on readers are orderly, maxOrder the most it grows.
const (
	minOrder = 2
	maxOrder = 10
)

// stepSlack is how many chunks a read may skip, or repeat, and still go on from
// group to group: links were read elsewhere, and pages overlap small files.
const stepSlack = 4

// note is told of a read of chunks [i, j), of which size compressed bytes were
// read for the first time, and says what to fetch next. missed: the reader has
// to wait for some of them. room is what the budget has left.
func (r *readAhead) note(i, j int, size int64, missed bool, room int64) advice {
	trip := r.roundTrip()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	s := r.find(i)
	if s == nil {
		s = r.oldest()
		from := stretch{began: r.at(i)}
		*s = stream{pos: j, ahead: j, stretch: from, file: from, begun: i - 1}
	}
	s.stamp = r.clock
	d := i - s.pos
	for k := max(s.pos, i-maxLooks); k < i; k++ {
		// What was there already he has read without our being told.
		if r.wasRead(k) {
			d--
			s.credit(r.at(k+1) - r.at(k))
		}
	}
	if -stepSlack <= d && d <= stepSlack && i > 0 && r.group(i) != r.group(i-1) && r.wasRead(i-1) {
		s.steps++
	}
	for k := i; k < j; k++ {
		if !r.continues(k) {
			s.file = stretch{began: r.at(k)}
			if k >= s.pos-stepSlack && k > s.begun { // many may wait for one chunk
				s.files++
				s.begun = k
			}
		}
	}
	s.pos = max(s.pos, j)
	s.ahead = max(s.ahead, s.pos)
	s.add(size)
	s.file.add(size)
	here, within, past := r.at(s.pos), r.bounds(s, i), &s.stretch
	if within == withinFile {
		past = &s.file // what was read of other files says nothing of this one
	}
	passed := here - past.began
	window := int64(0)
	streams := past.sequential(here)
	if streams && within == unbounded {
		r.order.Store(min(r.order.Load()+1, maxOrder))
	} else {
		r.order.Store(max(r.order.Load()-1, 0))
	}
	if streams {
		// What was passed is the best guess of what is still to come.
		if window = passed / 2; passed >= 4*trip || room >= 16*trip {
			window = passed
		}
	}
	if missed {
		if window = max(window, trip); room >= 16*trip {
			window = max(window, 2*trip) // most of what was fetched so far was read
		}
	}
	window = min(window, maxWindow)
	if d := here - s.began; d > maxWindow { // judge by the recent past
		s.began += d / 2
		s.read /= 2
	}
	gain := here + window - r.at(s.ahead)
	if gain <= 0 || !missed && gain < window/4 {
		return advice{} // far enough ahead
	}
	return advice{
		ahead: s.ahead, until: here + window, slop: window / 2, piece: max(trip, window/8),
		picks: !streams, trip: trip, within: within,
	}
}

// crosses tells whether chunk i is beyond the bounds of what is fetched for chunk
// i-1, and the other way round.
func (r *readAhead) crosses(within bounds, i int) bool {
	switch within {
	case withinFile:
		return !r.continues(i)
	case withinGroup:
		return i > 0 && r.group(i) != r.group(i-1)
	}
	return false
}

// orderly tells whether the readers go from file to file in the order of the
// blob. One who does may meet much that is there already and look like a new one
// behind it: that takes a few reads to be believed.
func (r *readAhead) orderly() bool { return r.order.Load() >= minOrder }

// bounds tells how far s, which reads chunk i, may be fetched ahead of.
func (r *readAhead) bounds(s *stream, i int) bounds {
	group := r.group(i)
	switch {
	case s.files < streamFiles, s.steps == 0 && group == 0 && s.files < looseFiles:
		return withinFile
	case s.steps == 0 && group != 0:
		return withinGroup
	}
	return unbounded
}

// asked is told that what follows a was asked for, up to chunk j.
func (r *readAhead) asked(a advice, j int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.streams {
		if s := &r.streams[k]; s.stamp != 0 && s.ahead == a.ahead {
			s.ahead = max(s.ahead, j)
			return
		}
	}
}

// find returns the stream that a read of chunk i continues, or nil.
func (r *readAhead) find(i int) *stream {
	here := r.at(i)
	var best *stream
	for k := range r.streams {
		s := &r.streams[k]
		if s.stamp == 0 || here < r.at(s.pos)-streamSlack || here > r.at(s.ahead)+streamSlack {
			continue
		}
		if best == nil || s.stamp > best.stamp {
			best = s
		}
	}
	return best
}

// oldest returns the stream that was not continued for longest.
func (r *readAhead) oldest() *stream {
	best := &r.streams[0]
	for k := range r.streams {
		if r.streams[k].stamp < best.stamp {
			best = &r.streams[k]
		}
	}
	return best
}
