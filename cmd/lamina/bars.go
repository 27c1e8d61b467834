package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// bars shows the progress of layers: bars on a terminal, a line for each layer
// that is done elsewhere. It implements mount.Progress.
type bars struct {
	out   io.Writer
	quiet bool

	mu       sync.Mutex // guards what follows
	progress *mpb.Progress
	bar      map[int]*mpb.Bar
	finished map[int]bool
}

func newBars(out *os.File, quiet bool) *bars {
	b := &bars{out: out, quiet: quiet, bar: map[int]*mpb.Bar{}, finished: map[int]bool{}}
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
			_, _ = fmt.Fprintf(b.out, "layer %s: %s read\n", shortDigest(digest), formatSize(total))
		}
		return
	}
	bar := b.bar[i]
	if bar == nil {
		bar = b.progress.AddBar(total,
			mpb.PrependDecorators(decor.Name(shortDigest(digest)+" ")),
			mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Percentage(decor.WC{W: 5})))
		b.bar[i] = bar
	}
	bar.SetCurrent(done)
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
	b.progress.Wait()
	b.progress = nil
	b.quiet = true
}
