package checkpoint_test

import (
	"testing"
)

// lens returns n code lengths, all zero but those given.
func lens(n int, set map[int]uint) []uint {
	l := make([]uint, n)
	for i, v := range set {
		l[i] = v
	}
	return l
}

// chain is a code with every length up to the longest.
func chain() map[int]uint {
	set := map[int]uint{256: 1, 14: 15}
	for i := range 14 {
		set[i] = uint(i) + 2
	}
	return set
}

// oddBlocks are blocks that compressors rarely write. ok is what compress/flate
// says of them.
var oddBlocks = []struct {
	name string
	make func(w *bitWriter)
	data string
	ok   bool
}{
	{"block type 3", func(w *bitWriter) { w.put(7, 3) }, "", false},
	{"stored, length unlike its complement", func(w *bitWriter) { w.put(1, 8); w.put(5, 16); w.put(5, 16); w.put(0, 40) }, "", false},
	{"stored, empty", func(w *bitWriter) { w.put(1, 8); w.put(0, 16); w.put(0xffff, 16) }, "", true},
	{"fixed, empty", func(w *bitWriter) { w.put(3, 3); w.put(0, 7) }, "", true},
	{"fixed, symbol 286", func(w *bitWriter) { w.put(3, 3); w.code(0b11000110, 8); w.put(0, 40) }, "", false},
	{"fixed, distance 30", func(w *bitWriter) {
		w.put(3, 3)
		w.code(0x30+'a', 8)
		w.code(1, 7)
		w.code(30, 5)
		w.put(0, 40)
	}, "", false},
	{"fixed, before the data", func(w *bitWriter) { w.put(3, 3); w.code(0x30+'a', 8); w.code(1, 7); w.code(1, 5); w.put(0, 40) }, "", false},
	{"fixed, run", func(w *bitWriter) { w.put(3, 3); w.code(0x30+'a', 8); w.code(1, 7); w.code(0, 5); w.put(0, 7) }, "aaaa", true},
	{"287 literals", func(w *bitWriter) { w.put(5, 3); w.put(30, 5); w.put(0, 300) }, "", false},
	{"31 distances", func(w *bitWriter) { w.put(5, 3); w.put(0, 5); w.put(30, 5); w.put(0, 300) }, "", false},
	{"no code for code lengths", func(w *bitWriter) { w.put(5, 3); w.put(0, 14); w.put(0, 300) }, "", false},
	{"code lengths over-subscribed", func(w *bitWriter) {
		w.put(5, 3)
		w.put(0, 10)
		w.put(15, 4)
		for range 19 {
			w.put(1, 3)
		}
		w.put(0, 300)
	}, "", false},
	{"code lengths incomplete", func(w *bitWriter) {
		w.put(5, 3)
		w.put(0, 14)
		for range 4 {
			w.put(3, 3)
		}
		w.put(0, 300)
	}, "", false},
	{"repeat without a first", func(w *bitWriter) {
		w.put(5, 3)
		w.put(0, 14)
		w.put(1, 3)
		w.put(1, 3)
		w.put(0, 300)
	}, "", false},
	{"repeat beyond the end", func(w *bitWriter) {
		w.put(5, 3)
		w.put(0, 14)
		w.put(0, 6)
		w.put(1, 3)
		w.put(1, 3)
		w.put(^uint(0), 60)
	}, "", false},
	{"only the end", func(w *bitWriter) { w.dynamic(lens(257, map[int]uint{256: 1}), lens(1, nil)); w.code(0, 1) }, "", true},
	{"the code that one symbol leaves", func(w *bitWriter) {
		w.dynamic(lens(257, map[int]uint{256: 1}), lens(1, nil))
		w.put(^uint(0), 60)
	}, "", false},
	{"one symbol of two bits", func(w *bitWriter) { w.dynamic(lens(257, map[int]uint{256: 2}), lens(1, nil)); w.put(0, 60) }, "", false},
	{"no symbols", func(w *bitWriter) { w.dynamic(lens(257, nil), lens(1, nil)); w.put(0, 60) }, "", false},
	{"literals incomplete", func(w *bitWriter) {
		w.dynamic(lens(257, map[int]uint{'a': 2, 'b': 2, 256: 2}), lens(1, nil))
		w.put(0, 60)
	}, "", false},
	{"literals over-subscribed", func(w *bitWriter) {
		w.dynamic(lens(257, map[int]uint{'a': 1, 'b': 1, 256: 1}), lens(1, nil))
		w.put(0, 60)
	}, "", false},
	{"literals over-subscribed at the longest", func(w *bitWriter) {
		over := chain()
		over[15] = 15
		w.dynamic(lens(257, over), lens(1, nil))
		w.put(0, 60)
	}, "", false},
	{"one distance", func(w *bitWriter) {
		w.dynamic(lens(258, map[int]uint{'a': 1, 256: 2, 257: 2}), lens(1, map[int]uint{0: 1}))
		w.code(0, 1)
		w.code(3, 2)
		w.code(0, 1)
		w.code(2, 2)
	}, "aaaa", true},
	{"the distance that one leaves", func(w *bitWriter) {
		w.dynamic(lens(258, map[int]uint{'a': 1, 256: 2, 257: 2}), lens(1, map[int]uint{0: 1}))
		w.code(0, 1)
		w.code(3, 2)
		w.put(^uint(0), 60)
	}, "", false},
	{"no distance, and one used", func(w *bitWriter) {
		w.dynamic(lens(258, map[int]uint{'a': 1, 256: 2, 257: 2}), lens(1, nil))
		w.code(0, 1)
		w.code(3, 2)
		w.put(0, 60)
	}, "", false},
	{"distances incomplete", func(w *bitWriter) {
		w.dynamic(lens(257, map[int]uint{'a': 1, 256: 1}), lens(3, map[int]uint{0: 2, 1: 2, 2: 2}))
		w.put(^uint(0), 60)
	}, "", false},
	{"distances over-subscribed", func(w *bitWriter) {
		w.dynamic(lens(257, map[int]uint{'a': 1, 256: 1}), lens(3, map[int]uint{0: 1, 1: 1, 2: 1}))
		w.put(^uint(0), 60)
	}, "", false},
	{"codes of every length", func(w *bitWriter) {
		w.dynamic(lens(257, chain()), lens(1, nil))
		for i := range 14 {
			w.code(1<<(i+2)-2, uint(i)+2)
		}
		w.code(1<<15-1, 15)
		w.code(0, 1)
	}, "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e", true},
}

func TestOddBlocks(t *testing.T) {
	for _, c := range oddBlocks {
		t.Run(c.name, func(t *testing.T) {
			var w bitWriter
			c.make(&w)
			blob := member(w.b, []byte(c.data))
			want, err := reference(blob)
			if (err == nil) != c.ok || c.ok && string(want) != c.data {
				t.Fatalf("compress/gzip: %q, %v", want, err)
			}
			compare(t, blob)
			// Behind more members, the fast loop sees it too.
			before := compress(t, source(t, 5000), 6, 0)
			compare(t, concat(before, blob, before, before))
		})
	}
}
