package faultproxy

import (
	"slices"
	"sort"
	"strings"
	"time"
)

// Exchange is one thing that cost a client a round trip: a connection's set-up
// or a request with its response.
type Exchange struct {
	Method string // "CONNECT" for the set-up of a connection
	Path   string
	Range  string // the Range header, or ""
	Status int
	Fault  Kind
	// Offset and Bytes are the part of the blob that was sent, as far as the
	// proxy sent it; Bytes of other responses counts their body.
	Offset, Bytes int64
	// Cut says that the client went away before the end of the body: it may have
	// taken less than Bytes.
	Cut bool
	// Start and End are when the client began the exchange and when the first
	// byte of the answer reached it; End is zero until then.
	Start, End time.Time
}

// Count is the sum over exchanges.
type Count struct {
	Requests, Connections int
	Bytes                 int64 // of response bodies
}

// Sum counts the exchanges whose path contains each of the given parts.
func Sum(ex []Exchange, parts ...string) Count {
	var c Count
	for _, e := range ex {
		switch {
		case e.Method == connect:
			c.Connections++
		case containsAll(e.Path, parts):
			c.Requests++
			c.Bytes += e.Bytes
		}
	}
	return c
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// RoundTrips returns the length of the longest chain of exchanges each of which
// began after the one before had been answered: the number of round trips that
// waited for each other, however many others ran beside them.
func RoundTrips(ex []Exchange) int {
	byEnd := slices.DeleteFunc(slices.Clone(ex), func(e Exchange) bool { return e.End.IsZero() })
	slices.SortFunc(byEnd, func(a, b Exchange) int { return a.End.Compare(b.End) })
	n := 0
	var last time.Time
	for _, e := range byEnd {
		if n == 0 || !e.Start.Before(last) {
			n, last = n+1, e.End
		}
	}
	return n
}

// SentTwice returns, per path, how many bytes of blobs were sent more than once.
// Paths of which no byte was sent twice are left out, and so are exchanges that
// the client cut: what it did not take had to be sent again.
func SentTwice(ex []Exchange) map[string]int64 {
	type span struct{ from, to int64 }
	spans := map[string][]span{}
	for _, e := range ex {
		if e.Bytes > 0 && !e.Cut && e.Status/100 == 2 && strings.Contains(e.Path, "/blobs/") {
			spans[e.Path] = append(spans[e.Path], span{e.Offset, e.Offset + e.Bytes})
		}
	}
	twice := map[string]int64{}
	for path, s := range spans {
		sort.Slice(s, func(i, j int) bool { return s[i].from < s[j].from })
		end := int64(0)
		for _, r := range s {
			if over := min(end, r.to) - r.from; over > 0 {
				twice[path] += over
			}
			end = max(end, r.to)
		}
	}
	return twice
}
