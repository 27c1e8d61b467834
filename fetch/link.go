package fetch

import (
	"slices"
	"sync"
	"time"
)

const (
	defaultRTT       = 20 * time.Millisecond
	defaultBandwidth = 25e6 // bytes per second

	rttSamples       = 16
	bandwidthSamples = 8

	// The first bytes of a body mostly lie in buffers when its header has
	// been read; timing them would measure memory. They are not counted.
	meterSkip = 64 << 10

	// A bandwidth sample ends after so much time of transfer and so many bytes.
	sampleTime  = 50 * time.Millisecond
	sampleBytes = 128 << 10

	// maxPause is the longest time between two reads that still counts as
	// transfer: a consumer at work. Longer ones say nothing of the link.
	maxPause = 5 * time.Millisecond
)

// link keeps the last measurements of round trips and transfers. Time is counted
// while any stream waits for the network, so parallel transfers add up. The
// estimates are order statistics, not means, so that a stalled or a buffered
// transfer moves them little.
type link struct {
	now func() time.Time

	mu sync.Mutex // guards the fields below

	rtts [rttSamples]time.Duration
	nrtt int // how many were ever taken

	rates [bandwidthSamples]float64
	nrate int

	reading int       // reads under way
	idle    time.Time // when the last one ended
	since   time.Time // start of the running sample, moved on by long pauses
	bytes   int64     // of the running sample
}

func newLink(now func() time.Time) *link {
	t := now()
	return &link{now: now, idle: t, since: t}
}

// roundTrip notes the time from a request to its first byte.
func (l *link) roundTrip(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rtts[l.nrtt%rttSamples] = d
	l.nrtt++
}

// begin says that a read of a body begins to wait for the network.
func (l *link) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reading == 0 {
		if pause := l.now().Sub(l.idle); pause > maxPause {
			l.since = l.since.Add(pause)
		}
	}
	l.reading++
}

// end says that the read has got n bytes.
func (l *link) end(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.reading--
	l.idle = now
	l.bytes += int64(n)
	if d := now.Sub(l.since); d >= sampleTime && l.bytes >= sampleBytes {
		l.rates[l.nrate%bandwidthSamples] = float64(l.bytes) / d.Seconds()
		l.nrate++
		l.since, l.bytes = now, 0
	}
}

// estimate returns a low round-trip time and a high rate among the last
// samples: queueing and small demand make the others worse than the link is.
func (l *link) estimate() (time.Duration, float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rtt, bandwidth := defaultRTT, float64(defaultBandwidth)
	if n := min(l.nrtt, rttSamples); n > 0 {
		s := l.rtts
		slices.Sort(s[:n])
		rtt = s[n/8]
	}
	if n := min(l.nrate, bandwidthSamples); n > 0 {
		s := l.rates
		slices.Sort(s[:n])
		bandwidth = s[n*3/4]
	}
	return rtt, bandwidth
}
