package cache

import (
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Stats are what happened to one layer in this process since it was opened,
// and what of it is in the store. Byte counts named compressed are of the blob;
// the others are of the data.
type Stats struct {
	// Hits are reads answered from the store at once, Misses those that had
	// to wait for bytes.
	Hits   int64 `json:"hits"`
	Misses int64 `json:"misses"`
	// Waits counts the chunks that a read waited for while another process
	// fetched them.
	Waits int64 `json:"waits"`
	// Served are the bytes that reads got.
	Served int64 `json:"served"`
	// Fetched are the compressed bytes that came from the blob, for whatever
	// reason; Requests is the number of ranges they came in.
	Fetched  int64 `json:"fetched"`
	Requests int64 `json:"requests"`
	// Used are the compressed bytes of chunks that this process fetched and
	// that were read. Speculated are the compressed bytes asked for before
	// anybody read them; SpeculatedUsed is the part that was read since.
	Used           int64 `json:"used"`
	Speculated     int64 `json:"speculated"`
	SpeculatedUsed int64 `json:"speculatedUsed"`
	// Rejected counts ranges whose bytes did not verify.
	Rejected int64 `json:"rejected"`
	// Chunks is the number of chunks the layer has, Present how many of them
	// are in the store, verified.
	Chunks  int `json:"chunks"`
	Present int `json:"present"`
	// Complete is what Layer.Complete says.
	Complete bool `json:"complete"`
	// Size is the length of the data.
	Size int64 `json:"size"`
	// Slowest are the reads that took longest, the slowest first.
	Slowest []SlowRead `json:"slowest,omitempty"`
}

// A SlowRead is one read that had to wait.
type SlowRead struct {
	Off  int64         `json:"offset"` // data offset
	Len  int64         `json:"bytes"`  // asked for
	Took time.Duration `json:"took"`   // in nanoseconds
	At   time.Time     `json:"when"`   // it began
}

// slowReads is how many slow reads a layer remembers.
const slowReads = 10

// counters are the numbers of Stats that grow. They are kept apart by who
// writes them: what every read counts has a cache line of its own.
type counters struct {
	hits, served atomic.Int64
	_            [48]byte

	misses, waits                    atomic.Int64
	fetched, requests                atomic.Int64
	used, speculated, speculatedUsed atomic.Int64
	rejected                         atomic.Int64

	slowMu  sync.Mutex
	slowest []SlowRead // guarded by slowMu; slowest first
}

// slow notes a read that waited.
func (c *counters) slow(r SlowRead) {
	c.slowMu.Lock()
	defer c.slowMu.Unlock()
	i := sort.Search(len(c.slowest), func(i int) bool { return c.slowest[i].Took < r.Took })
	if i == slowReads {
		return
	}
	if len(c.slowest) < slowReads {
		c.slowest = append(c.slowest, SlowRead{})
	}
	copy(c.slowest[i+1:], c.slowest[i:])
	c.slowest[i] = r
}

// snapshot fills the counted part of a Stats.
func (c *counters) snapshot() Stats {
	c.slowMu.Lock()
	defer c.slowMu.Unlock()
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Waits: c.waits.Load(),
		Served: c.served.Load(), Fetched: c.fetched.Load(), Requests: c.requests.Load(),
		Used: c.used.Load(), Speculated: c.speculated.Load(),
		SpeculatedUsed: c.speculatedUsed.Load(), Rejected: c.rejected.Load(),
		Slowest: append([]SlowRead(nil), c.slowest...),
	}
}
