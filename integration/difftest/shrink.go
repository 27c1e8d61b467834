package difftest

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Fresh makes targets as they were before the sequence was run, the reference
// first, and a function that takes them down again.
type Fresh func() (targets []Target, done func(), err error)

// Shrink makes a failing sequence short: it leaves out operations as long as a
// difference of the same kind comes at the end, in the same target. It returns the
// shortest difference that it found until ctx was done, which is d itself if the
// sequence does not fail again. c is as for Replay; its Targets mean nothing.
func Shrink(ctx context.Context, c Config, d *Difference, fresh Fresh) (*Difference, error) {
	best := d
	var failure error
	try := func(ops []Op) bool {
		if failure != nil || ctx.Err() != nil {
			return false
		}
		targets, done, err := fresh()
		if err != nil {
			failure = err
			return false
		}
		defer done()
		c.Targets = targets
		rep, err := Replay(ctx, c, d.Dir, ops)
		if err != nil && ctx.Err() == nil {
			failure = err
		}
		if err != nil || rep.Difference == nil || !rep.Difference.like(d) {
			return false
		}
		best = rep.Difference
		return true
	}
	ops := d.Sequence
	if near := related(ops, d); len(near) < len(ops) && try(near) {
		ops = near
	}
	shorten(ctx, ops, try)
	return best, failure
}

// like says whether two differences have a cause in common, probably.
func (d *Difference) like(o *Difference) bool {
	return d.Target == o.Target && d.Op.Kind == o.Op.Kind && d.Deltas[0].Field == o.Deltas[0].Field
}

// related leaves out operations that have no name and no slot in common with the
// failing one, not even by others between. It is a guess that saves much time.
func related(ops []Op, d *Difference) []Op {
	names, slots := map[string]bool{}, map[int64]bool{}
	note(names, d.Deltas[0].Path)
	quoted(names, d.Deltas[0].Got)
	var near []Op
	for i := len(ops) - 1; i >= 0; i-- {
		op := ops[i]
		last := i == len(ops)-1 && d.Op.Kind != ""
		hit := slots[op.Slot] || slots[op.Slot2] || names[path.Base(op.Path)] || names[path.Base(op.Path2)]
		if !hit && !last {
			continue
		}
		near = append(near, op)
		note(names, op.Path)
		note(names, op.Path2)
		for _, n := range []int64{op.Slot, op.Slot2} {
			if n != 0 {
				slots[n] = true
			}
		}
	}
	slices.Reverse(near)
	return near
}

func note(names map[string]bool, p string) {
	for part := range strings.SplitSeq(p, "/") {
		if part != "" && part != "." && part != ".." {
			names[part] = true
		}
	}
}

// quoted notes the names that a description has in quotes.
func quoted(names map[string]bool, s string) {
	for i := strings.IndexByte(s, '"'); i >= 0; i = strings.IndexByte(s, '"') {
		q, err := strconv.QuotedPrefix(s[i:])
		if err != nil {
			return
		}
		if n, err := strconv.Unquote(q); err == nil {
			note(names, n)
		}
		s = s[i+len(q):]
	}
}

// shorten leaves out parts of a sequence that fails, larger ones first, until
// nothing more can be left out, or ctx ends.
func shorten(ctx context.Context, ops []Op, fails func([]Op) bool) []Op {
	for part := max(1, len(ops)/2); ; {
		smaller := false
		for from := 0; from < len(ops) && ctx.Err() == nil; {
			rest := slices.Concat(ops[:from], ops[min(from+part, len(ops)):])
			if fails(rest) {
				ops, smaller = rest, true
				continue
			}
			from += part
		}
		if part == 1 && !smaller || ctx.Err() != nil {
			break
		}
		part = max(1, part/2)
	}
	return ops
}
