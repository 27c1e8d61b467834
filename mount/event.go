package mount

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Progress is told how far a mount has come. Its methods are called from
// several goroutines at once.
type Progress interface {
	// Layer says that done of total bytes of the blob of layer i (from the
	// bottom, with the given digest) have been read. Layers that need no
	// streaming are never named.
	Layer(i int, digest string, done, total int64)
}

// event is one line of what a server tells the command that started it.
// Exactly one of Ready and Error ends the conversation.
type event struct {
	Layer  int    `json:"layer,omitempty"`
	Digest string `json:"digest,omitempty"`
	Done   int64  `json:"done,omitempty"`
	Total  int64  `json:"total,omitempty"`
	Ready  *State `json:"ready,omitempty"`
	Error  string `json:"error,omitempty"`
}

// errServerGone is what a server that ended without a last word leaves.
var errServerGone = errors.New("the server ended before the tree was usable")

// receive reads events from r until the last one.
func receive(r io.Reader, p Progress) (*State, error) {
	d := json.NewDecoder(r)
	for {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			return nil, errServerGone
		} else if err != nil {
			return nil, fmt.Errorf("%w: %w", errServerGone, err)
		}
		switch {
		case e.Error != "":
			return nil, errors.New(e.Error)
		case e.Ready != nil:
			return e.Ready, nil
		case p != nil:
			p.Layer(e.Layer, e.Digest, e.Done, e.Total)
		}
	}
}
