package checkpoint_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/klauspost/compress/flate"

	"github.com/laminafs/lamina/layer/checkpoint"
)

// span is the part of blob that decodes the data from cs[i] to the next
// checkpoint, as doc.go gives it.
func span(blob []byte, cs []checkpoint.Checkpoint, i int) []byte {
	if i+1 == len(cs) {
		return blob[cs[i].In:]
	}
	end := cs[i+1].In
	if cs[i+1].Bits > 0 {
		end++
	}
	return blob[cs[i].In:end]
}

func TestResumeEverywhere(t *testing.T) {
	for name, blob := range streams(t) {
		t.Run(name, func(t *testing.T) {
			want, cs, err := pass(t, bytes.NewReader(blob), 0)
			if err != nil {
				t.Fatal(err)
			}
			z := checkpoint.NewReader(nil, 0, nil)
			for i, c := range cs {
				if err := z.Resume(bytes.NewReader(blob[c.In:]), c); err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(z)
				if err != nil || !bytes.Equal(got, want[c.Out:]) {
					t.Fatalf("from %d: %d of %d bytes, %v", c.Out, len(got), len(want)-int(c.Out), err)
				}
				end := int64(len(want))
				if i+1 < len(cs) {
					end = cs[i+1].Out
				}
				got = make([]byte, end-c.Out)
				z, err := checkpoint.Resume(bytes.NewReader(span(blob, cs, i)), c)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(z, got); err != nil || !bytes.Equal(got, want[c.Out:end]) {
					t.Fatalf("chunk at %d: %v", c.Out, err)
				}
			}
		})
	}
}

// TestLibraryResumes has an inflate that is not ours start at the checkpoints.
func TestLibraryResumes(t *testing.T) {
	for name, blob := range streams(t) {
		want, cs, err := pass(t, bytes.NewReader(blob), 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range cs {
			end := int64(len(want))
			if i+1 < len(cs) {
				end = cs[i+1].Out
			}
			got := make([]byte, end-c.Out)
			n, err := io.ReadFull(libraryResume(span(blob, cs, i), c), got)
			if c.Out+int64(n) != end && errors.Is(err, io.ErrUnexpectedEOF) && n > 0 {
				continue // the member ended: that is all a deflate library can do
			}
			if err != nil || !bytes.Equal(got, want[c.Out:end]) {
				t.Fatalf("%s: chunk at %d: %v", name, c.Out, err)
			}
		}
	}
}

// libraryResume reads from a checkpoint with klauspost's inflate. Shifting the
// input by the checkpoint's bits would move the bytes at which stored blocks
// start; empty blocks whose bits make up for the missing ones do not.
func libraryResume(part []byte, c checkpoint.Checkpoint) io.Reader {
	var w bitWriter
	if c.Bits%2 == 1 {
		w.put(0, 1) // a dynamic block of 93 bits that holds nothing
		w.put(2, 2)
		w.put(0, 5)
		w.put(0, 5)
		w.put(14, 4)
		for _, sym := range []int{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1} {
			w.put(map[int]uint{18: 2, 1: 1, 0: 2}[sym], 3)
		}
		w.code(3, 2)
		w.put(138-11, 7)
		w.code(3, 2)
		w.put(118-11, 7)
		w.code(0, 1)
		w.code(2, 2)
		w.code(0, 1)
	}
	for w.n%8 != uint(c.Bits) {
		w.put(0, 1) // a fixed block of 10 bits that holds nothing
		w.put(1, 2)
		w.put(0, 7)
	}
	if c.Bits > 0 {
		w.b[len(w.b)-1] |= part[0] &^ (1<<c.Bits - 1)
		part = part[1:]
	}
	return flate.NewReaderDict(bytes.NewReader(concat(w.b, part)), c.Window)
}

func TestResumeRefuses(t *testing.T) {
	for _, c := range []checkpoint.Checkpoint{
		{Bits: 8}, {In: -1}, {Out: -1}, {Window: make([]byte, checkpoint.WindowSize+1)},
	} {
		if _, err := checkpoint.Resume(bytes.NewReader(nil), c); !errors.Is(err, checkpoint.ErrCorrupt) {
			t.Errorf("%d %d %d: %v", c.In, c.Bits, len(c.Window), err)
		}
	}
	z, err := checkpoint.Resume(bytes.NewReader(nil), checkpoint.Checkpoint{Bits: 3})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(z); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
}

// TestResumeWithoutWindow: data that a missing window should hold is an error,
// not zeros.
func TestResumeWithoutWindow(t *testing.T) {
	blob := compress(t, source(t, 1<<20), 6, 0)
	_, cs, err := pass(t, bytes.NewReader(blob), 0)
	if err != nil {
		t.Fatal(err)
	}
	c := cs[len(cs)/2]
	c.Window = nil
	z, err := checkpoint.Resume(bytes.NewReader(blob[c.In:]), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(z); !errors.Is(err, checkpoint.ErrCorrupt) {
		t.Error(err)
	}
}
