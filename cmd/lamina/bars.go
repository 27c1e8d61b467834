package main

import (
	"fmt"
	"io"
	"math"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// bars shows the progress of layers: bars on a terminal, with one for all of them
// when they are several, and elsewhere a line for each layer that is done. It
// implements mount.Progress.
type bars struct {
	out   io.Writer
	quiet bool
	done  string // what is said to have been done with a layer

	mu       sync.Mutex // guards what follows
	progress *mpb.Progress
	bar      map[int]*mpb.Bar
	finished map[int]bool
	sum      *mpb.Bar         // of all layers; nil while there is one
	counts   map[int][2]int64 // done and total of each layer
}

func newBars(out *os.File, quiet bool) *bars {
	b := &bars{out: out, quiet: quiet, done: "read", bar: map[int]*mpb.Bar{}, finished: map[int]bool{}, counts: map[int][2]int64{}}
	if !quiet && term.IsTerminal(int(out.Fd())) {
		b.progress = mpb.New(mpb.WithOutput(out), mpb.WithWidth(60), mpb.WithAutoRefresh())
	}
	return b
}

func shortDigest(d string) string {
	const head = len("sha256:")
	if len(d) > head+12 {
		return d[head : head+12]
	}
	return d
}

// Layer shows that done of total bytes of layer i have been read.
func (b *bars) Layer(i int, digest string, done, total int64) {
	if b.quiet {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.progress == nil {
		if done >= total && !b.finished[i] {
			b.finished[i] = true
			_, _ = fmt.Fprintf(b.out, "layer %s: %s %s\n", shortDigest(digest), formatSize(total), b.done)
		}
		return
	}
	bar := b.bar[i]
	if bar == nil {
		bar = b.add(shortDigest(digest), total)
		b.bar[i] = bar
	}
	bar.SetCurrent(done)
	b.counts[i] = [2]int64{done, total}
	if len(b.bar) < 2 {
		return
	}
	if b.sum == nil {
		b.sum = b.add("all layers", 0, mpb.BarPriority(math.MaxInt))
	}
	var sum [2]int64
	for _, c := range b.counts {
		sum[0] += c[0]
		sum[1] += c[1]
	}
	b.sum.SetTotal(sum[1], false)
	b.sum.SetCurrent(sum[0])
}

func (b *bars) add(name string, total int64, o ...mpb.BarOption) *mpb.Bar {
	return b.progress.AddBar(total, append(o,
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-12s ", name))),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Percentage(decor.WC{W: 5})))...)
}

// Close leaves the bars as they are and gives the terminal back.
func (b *bars) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.progress == nil {
		return
	}
	for _, bar := range b.bar {
		bar.Abort(false)
	}
	if b.sum != nil {
		b.sum.Abort(false)
	}
	b.progress.Wait()
	b.progress = nil
	b.quiet = true
}
