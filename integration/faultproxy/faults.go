package faultproxy

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Kind is one way in which a response goes wrong.
type Kind uint8

// The kinds of fault. Status faults answer instead of the registry; the others
// spoil its answer.
const (
	Drop        Kind = iota // the connection is reset at a random byte of the body
	Truncate                // the body ends in order at a random byte, before its Content-Length
	Short                   // a shorter range than asked for, with headers that say so
	Delay                   // the response is late by Faults.Delay
	Corrupt                 // one byte of the body is another
	IgnoreRange             // 200 and the whole blob in answer to a range
	TooMany                 // 429 with Retry-After
	Err500                  // 500
	Err503                  // 503
	kinds
)

var kindNames = [kinds]string{"drop", "truncate", "short", "delay", "corrupt", "ignore-range", "429", "500", "503"}

func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return "none"
}

// AllKinds returns every kind of fault there is.
func AllKinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Faults says which responses go wrong, and how.
type Faults struct {
	// Rate is the share of matching responses that go wrong, 0 to 1.
	Rate float64
	// Kinds are the faults to choose from, all equally likely; nil means all.
	Kinds []Kind
	// Match chooses the requests that may be hit; nil means GET of a blob.
	Match func(*http.Request) bool
	// Delay is how late a delayed response is; 0 means one second.
	Delay time.Duration
	// RetryAfter is what a 429 asks for, in whole seconds; 0 asks for none.
	RetryAfter time.Duration
}

// Blobs matches a GET of a blob: the default of Faults.Match.
func Blobs(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

const noFault = kinds

// choose picks the fault that r's response meets, or noFault.
func (f *Faults) choose(r *http.Request, rng *rand.Rand) Kind {
	match := f.Match
	if match == nil {
		match = Blobs
	}
	if f.Rate <= 0 || !match(r) || rng.Float64() >= f.Rate {
		return noFault
	}
	if len(f.Kinds) == 0 {
		return Kind(rng.IntN(int(kinds)))
	}
	return f.Kinds[rng.IntN(len(f.Kinds))]
}

// refuse answers in the registry's place, for status faults; it returns the
// status it gave, or 0.
func (f *Faults) refuse(w http.ResponseWriter, k Kind) int {
	status := 0
	switch k {
	case TooMany:
		status = http.StatusTooManyRequests
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter/time.Second)))
		}
	case Err500:
		status = http.StatusInternalServerError
	case Err503:
		status = http.StatusServiceUnavailable
	default:
		return 0
	}
	http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"injected"}]}`, status)
	return status
}
