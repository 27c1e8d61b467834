package fetch

import (
	"sync/atomic"
	"time"
)

// Stats are what a Client did since it was made. Counts only grow.
type Stats struct {
	// Requests is the number of HTTP requests sent, redirects and token
	// renewals' second tries included.
	Requests int64 `json:"requests"`
	// Bytes is the number of body bytes received, useful or not.
	Bytes int64 `json:"bytes"`
	// Retries is the number of attempts that followed a failed one.
	Retries int64 `json:"retries"`
	// Errors is the number of attempts that failed.
	Errors int64 `json:"errors"`
	// Rejected is the number of streams whose bytes a caller rejected.
	Rejected int64 `json:"rejected"`
	// Active and Waiting are the requests under way and in the queue now.
	Active  int `json:"active"`
	Waiting int `json:"waiting"`
	// RTT, in nanoseconds, and Bandwidth, in bytes per second, are what Link
	// estimates now.
	RTT       time.Duration `json:"rttNs"`
	Bandwidth float64       `json:"bandwidthBytesPerSecond"`
	// Hosts has the same counts for each host that was asked, by host:port.
	Hosts map[string]HostStats `json:"hosts,omitempty"`
}

// HostStats are the counts of one registry host or mirror, with whatever it
// redirects to.
type HostStats struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
	Errors   int64 `json:"errors"`
	Rejected int64 `json:"rejected"`
	// IgnoresRanges: the last ranged request was answered with the whole.
	IgnoresRanges bool `json:"ignoresRanges,omitempty"`
}

// counters are the live form of Stats and HostStats.
type counters struct {
	requests, bytes, retries, errors, rejected atomic.Int64
}

// Stats returns the counts so far. The result is the caller's.
func (c *Client) Stats() Stats {
	s := Stats{
		Requests: c.stats.requests.Load(),
		Bytes:    c.stats.bytes.Load(),
		Retries:  c.stats.retries.Load(),
		Errors:   c.stats.errors.Load(),
		Rejected: c.stats.rejected.Load(),
		Hosts:    make(map[string]HostStats),
	}
	s.Active, s.Waiting = c.queue.load()
	s.RTT, s.Bandwidth = c.link.estimate()

	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.registries {
		for _, h := range r.hosts {
			if h.stats.requests.Load() == 0 && h.stats.errors.Load() == 0 {
				continue
			}
			sum := s.Hosts[h.name] // a host may serve several registries
			sum.Requests += h.stats.requests.Load()
			sum.Bytes += h.stats.bytes.Load()
			sum.Errors += h.stats.errors.Load()
			sum.Rejected += h.stats.rejected.Load()
			sum.IgnoresRanges = sum.IgnoresRanges || h.ignoresRanges.Load()
			s.Hosts[h.name] = sum
		}
	}
	return s
}

func (c *Client) countBytes(h *host, n int) {
	c.stats.bytes.Add(int64(n))
	h.stats.bytes.Add(int64(n))
}
