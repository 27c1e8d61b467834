package mount

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/fs"
)

// Stats is what a mount has cost and served since its server started. Sizes
// are bytes.
type Stats struct {
	Name       string        `json:"name"`
	Image      string        `json:"image"`
	Digest     digest.Digest `json:"digest"`
	Mountpoint string        `json:"mountpoint"`
	Engine     Engine        `json:"engine"`
	Reason     string        `json:"reason,omitempty"`
	// ImageSize is the sum of the layers' compressed sizes.
	ImageSize int64 `json:"imageSize"`
	// Served is false for a kernel mount that needs no process: the rest is
	// then empty, as nobody counts.
	Served bool         `json:"served"`
	FS     fs.Snapshot  `json:"fs"`
	Fetch  fetch.Stats  `json:"fetch"`
	Layers []LayerStats `json:"layers,omitempty"`
	// Resident is the server's memory, from /proc/self/statm.
	Resident int64 `json:"resident"`
}

// LayerStats is the share of one layer, from the bottom.
type LayerStats struct {
	Digest digest.Digest `json:"digest"`
	// Size is that of the blob; Cache.Size is that of what is in it.
	Size  int64       `json:"size"`
	Cache cache.Stats `json:"cache"`
}

func (s *server) measure() Stats {
	st := s.state.stats()
	st.Served = true
	st.FS, st.Fetch = s.session.stats.Snapshot(), s.store.Client.Stats()
	for i, l := range s.tree.Layers {
		d := s.state.Layers[i].Desc
		st.Layers = append(st.Layers, LayerStats{Digest: d.Digest, Size: d.Size, Cache: l.Stats()})
	}
	st.Resident, _ = memory()
	return st
}

func (s *State) stats() Stats {
	return Stats{
		Name: s.Name, Image: s.Image, Digest: s.Digest, Mountpoint: s.Options.Dir,
		Engine: s.Engine, Reason: s.Reason, ImageSize: s.ImageSize,
	}
}

// Measure returns the statistics of the mount that target, a mountpoint or a
// name, means. Every mount of the store is measured when target is empty.
func Measure(root, target string) ([]Stats, error) {
	if target != "" {
		e, err := find(root, target)
		if err != nil {
			return nil, fmt.Errorf("stats: %w", err)
		}
		if e.Status == Unmounted {
			return nil, fmt.Errorf("stats: workspace %s is not mounted", e.Name)
		}
		st, err := e.ask()
		return []Stats{st}, err
	}
	all, err := List(root)
	if err != nil {
		return nil, err
	}
	var sts []Stats
	var errs []error
	for _, e := range all {
		if e.Status == Unmounted {
			continue
		}
		st, err := e.ask()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		sts = append(sts, st)
	}
	return sts, errors.Join(errs...)
}

// ask asks the mount's server.
func (e *Entry) ask() (Stats, error) {
	name := e.Name
	if e.ServedBy != "" {
		name = e.ServedBy
	} else if e.Server.PID == 0 {
		return e.stats(), nil
	}
	c, err := dial(e.Options.Root, name)
	if err != nil {
		return Stats{}, fmt.Errorf("stats of %s: its server does not answer (%s): %w", e.Options.Dir, e.Status, err)
	}
	defer func() { _ = c.Close() }()
	var st Stats
	if err := c.call(question{Op: opStats}, &st, answerTime); err != nil {
		return Stats{}, fmt.Errorf("stats of %s: %w", e.Options.Dir, err)
	}
	st.Name, st.Mountpoint = e.Name, e.Options.Dir
	return st, nil
}
