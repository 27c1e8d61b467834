package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// claim fetches chunks [i, j) of r under their range lock. What another process
// is fetching right now is left to it; only chunks that a read waits for are
// waited for.
func (l *Layer) claim(ctx context.Context, r *run, i, j int) error {
	for i < j {
		ok, ci, cj, err := l.bm.locks.try(i, j)
		if err != nil {
			return err
		}
		if ok {
			defer l.bm.locks.unlock(i, j)
			return l.fill(ctx, r, i, j)
		}
		if i < ci {
			if err := l.claim(ctx, r, i, ci); err != nil {
				return err
			}
		}
		if cj < j {
			if err := l.claim(ctx, r, cj, j); err != nil {
				return err
			}
		}
		i, j = ci, cj
		if i, j, err = l.leave(ctx, r, i, j); err != nil {
			return err
		}
	}
	return nil
}

// leave waits for what other processes do with chunks [i, j): until they are
// all present, or those that are not can be claimed again, which it returns.
func (l *Layer) leave(ctx context.Context, r *run, i, j int) (int, int, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		first, last := -1, -1
		l.mu.Lock()
		for k := i; k < j; k++ {
			c := l.table.Chunk(k)
			switch f := &r.flights[k-r.i]; {
			case f.over:
			case l.bm.has(k, &c.Digest):
				l.finish(r, k, nil, nil)
			case !f.wanted:
				l.finish(r, k, errAgain, nil)
			default:
				if first < 0 {
					first = k
				}
				last = k + 1
			}
		}
		l.mu.Unlock()
		if first < 0 {
			return j, j, nil
		}
		ok, _, _, err := l.bm.locks.try(first, last)
		if err != nil {
			return 0, 0, err
		}
		if ok {
			l.bm.locks.unlock(first, last)
			return first, last, nil
		}
		l.count.waits.Add(1)
		if err := sleep(ctx, pause); err != nil {
			return 0, 0, err
		}
	}
}

// fill makes chunks [i, j) of r present. Their range lock is held.
func (l *Layer) fill(ctx context.Context, r *run, i, j int) error {
	var missing []int
	for k := i; k < j; k++ {
		c := l.table.Chunk(k)
		state := l.bm.state(k, &c.Digest)
		if state == doubted && !l.recheck(k, c) {
			state = absent
		}
		switch {
		case r.flights[k-r.i].over: // left to another process before
		case state != absent:
			l.finishRest(r, k, k+1, nil)
		case c.Kind != layer.Data:
			if err := l.compose(ctx, r, k, c); err != nil {
				return err
			}
		default:
			missing = append(missing, k)
		}
	}
	gap := l.gap()
	for len(missing) > 0 {
		n := 1
		for n < len(missing) && l.near(missing[n-1], missing[n], gap) {
			n++
		}
		if err := l.download(ctx, r, missing[0], missing[n-1]+1); err != nil {
			return err
		}
		missing = missing[n:]
	}
	return nil
}

// recheck verifies chunk k, which the bitmap only suspects to be present, and
// marks it as what it is: absent if there is no digest to compare its data with.
func (l *Layer) recheck(k int, c layer.Chunk) bool {
	if c.Kind != layer.Zeros && l.table.Comparable() { // zeros are as quickly made anew
		h := sha256.New()
		n, err := io.Copy(h, io.NewSectionReader(l.data, c.Off, c.Len))
		if err == nil && n == c.Len && [sha256.Size]byte(h.Sum(nil)) == c.Digest {
			l.bm.set(k, &c.Digest)
			return true
		}
	}
	l.bm.clear(k)
	l.bm.bump()
	return false
}

// inRun tells whether chunk k can be part of a run: it comes from the blob, or
// is zeros, which cost nothing and must not part what is on both sides of them.
// A copy of other data asks for chunks itself.
func (l *Layer) inRun(k int) bool { return l.table.Chunk(k).Kind != layer.Copied }

// compose makes chunk k, which is not in the blob. What it is a copy of may have
// to be fetched.
func (l *Layer) compose(ctx context.Context, r *run, k int, c layer.Chunk) error {
	if c.Kind == layer.Zeros && l.composeHole(r, k, c) {
		return nil
	}
	p := make([]byte, c.Len)
	if c.Kind == layer.Copied {
		err := l.table.Compose(k, p, func(p []byte, off int64) error {
			if l.readPresent(p, off) {
				return nil
			}
			return l.readMissing(ctx, p, off)
		})
		if err != nil {
			return err
		}
	}
	l.keep(r, k, p)
	return nil
}

// composeHole makes chunk k, of zeros, a hole of the data file, if that can be
// done and nobody wants the bytes.
func (l *Layer) composeHole(r *run, k int, c layer.Chunk) bool {
	f, ok := l.data.(*os.File)
	if !ok || punch(f, c.Off, c.Len) != nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.flights[k-r.i].keep {
		return false
	}
	l.bm.touch(k, l.store.now())
	l.bm.set(k, &c.Digest)
	l.finish(r, k, nil, nil)
	return true
}

// gap is how many bytes of a blob that belong to no chunk are better fetched for
// nothing than left out by one more request.
func (l *Layer) gap() int64 { return l.ahead.roundTrip() / 4 }

// near tells whether chunk k, after chunk j, is close enough to it in the blob
// for both to be fetched in one request. What lies between must be no chunk's:
// nothing that is present is downloaded again.
func (l *Layer) near(j, k int, gap int64) bool {
	for m := j + 1; m < k; m++ {
		if l.table.Chunk(m).Kind == layer.Data {
			return false
		}
	}
	d := l.blobAt(k) - l.blobAt(j+1)
	return d >= 0 && d <= gap
}

// rejections bounds how often the bytes of one range may be wrong.
const rejections = 4

// download fetches chunks [i, j), of which some may be present, in one request
// unless bytes turn out wrong. The range lock is held.
func (l *Layer) download(ctx context.Context, r *run, i, j int) error {
	if l.blob == nil {
		return fmt.Errorf("%w: layer %s has no source", fetch.ErrUnavailable, l.key)
	}
	for wrong := 0; ; {
		off, n := l.table.Span(i, j)
		s, err := l.blob.ReadRange(ctx, off, n)
		if err != nil {
			return err
		}
		l.count.requests.Add(1)
		in := &arrivals{Stream: s, run: r, count: &l.count}
		next := i
		err = l.table.Decode(in, i, j, func(k int, p []byte) error {
			next = k + 1
			l.keep(r, k, p)
			return ctx.Err()
		})
		if errors.Is(err, layer.ErrTable) {
			_ = s.Close()
			return l.blame(err, true)
		}
		if err != nil && in.err == nil && ctx.Err() == nil {
			wrong++
			s.Reject(err)
			l.count.rejected.Add(1)
			l.store.log.Error("wrong bytes from blob", "blob", l.table.BlobDigest(), "offset", off, "length", n, "error", err)
		}
		_ = s.Close()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case in.err != nil:
			return in.err
		case wrong == rejections && !errors.Is(err, layer.ErrDigest):
			return l.blame(fmt.Errorf("%w: %w", layer.ErrDigest, err), false)
		case wrong == rejections:
			return l.blame(err, false)
		}
		i = next
	}
}

// arrivals counts the bytes of a stream, and remembers its error.
type arrivals struct {
	fetch.Stream
	run   *run
	count *counters
	err   error
}

func (a *arrivals) Read(p []byte) (int, error) {
	n, err := a.Stream.Read(p)
	a.run.fetched.Add(int64(n))
	a.count.fetched.Add(int64(n))
	if err != nil && err != io.EOF {
		a.err = err
	}
	return n, err
}

// keep puts the verified chunk k of r, with content p, into the data file and
// wakes who waits for it. What cannot be stored is handed to them in memory.
func (l *Layer) keep(r *run, k int, p []byte) {
	c := l.table.Chunk(k)
	if l.bm.has(k, &c.Digest) {
		l.finishRest(r, k, k+1, nil)
		return
	}
	_, werr := l.data.WriteAt(p, c.Off)
	if werr != nil {
		l.store.storeFailed(l.key, werr)
	}
	if sure, wished := l.stored(r, k, &c, p, werr); sure || wished {
		l.began(k, &c, p, sure)
	}
	s := l.starts.Load()
	if s != nil {
		s.came(l, p, c.Off)
	}
	if came := l.store.opts.Came; came != nil && (c.Continues || s != nil) && l.tells() {
		came(l, c.Off, p)
	}
}

// stored notes that chunk k of r, with content p, was written to the data file
// unless werr says why not. It reports whether the chunk is as good as read, and
// whether it was wished for.
func (l *Layer) stored(r *run, k int, c *layer.Chunk, p []byte, werr error) (sure, wished bool) {
	if werr == nil {
		defer l.store.added(c.Len) // after mu is released
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := &r.flights[k-r.i] // may be over, given up before: the bytes are good all the same
	var data []byte
	if !f.over && f.wanted && (werr != nil || f.keep) {
		data = slices.Clone(p)
	}
	var err error
	if werr == nil {
		switch {
		case f.over:
		case f.wanted || f.sure:
			l.charge(c.BlobLen, f.bet)
			f.bet = 0
		case f.bet > 0:
			l.mark(k)
			f.bet = 0
		}
		l.bm.touch(k, l.store.now())
		l.bm.set(k, &c.Digest)
	} else if data == nil {
		err = fmt.Errorf("%w: %w", errAgain, werr)
	}
	l.finish(r, k, err, data)
	return f.sure || f.wanted, f.wished
}

// isFull reports whether err says that there is no room for more data.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}
