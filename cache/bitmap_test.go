package cache

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

var testShape = shape{chunks: 100, size: 1 << 20, blob: [32]byte{1, 2, 3}}

func digestOf(i int) *[32]byte {
	var d [32]byte
	binary.LittleEndian.PutUint64(d[:], rand.New(rand.NewPCG(7, uint64(i))).Uint64())
	return &d
}

func openTestBitmap(t *testing.T, path string, s shape, boot string) *bitmap {
	t.Helper()
	b, err := openBitmap(path, s, boot, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.close() })
	return b
}

func TestBitmapMarks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bitmap")
	b := openTestBitmap(t, path, testShape, "one")
	for i := range testShape.chunks {
		if got := b.state(i, digestOf(i)); got != absent {
			t.Fatalf("chunk %d of a new bitmap: state %d", i, got)
		}
		if i%2 == 0 {
			b.set(i, digestOf(i))
		}
	}
	for name, want := range map[string]presence{"one": present, "two": doubted} {
		b := openTestBitmap(t, path, testShape, name)
		if b.fresh {
			t.Errorf("boot %s: made anew", name)
		}
		for i := range testShape.chunks {
			want := want
			if i%2 != 0 {
				want = absent
			}
			if got := b.state(i, digestOf(i)); got != want {
				t.Errorf("boot %s: chunk %d: state %d, want %d", name, i, got, want)
			}
		}
	}
	if b.state(0, digestOf(1)) != doubted {
		t.Error("a mark is valid for another digest")
	}
}

func TestBitmapFlags(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bitmap")
	one := openTestBitmap(t, path, testShape, "one")
	two := openTestBitmap(t, path, testShape, "two")
	check := func(what string, whole1, whole2, complete bool) {
		t.Helper()
		if one.whole() != whole1 || two.whole() != whole2 || one.complete() != complete || two.complete() != complete {
			t.Errorf("%s: whole %v, %v, complete %v, %v", what, one.whole(), two.whole(), one.complete(), two.complete())
		}
	}
	check("new", false, false, false)
	one.setWhole()
	check("whole in one boot", true, false, false)
	if err := one.setComplete(); err != nil {
		t.Fatal(err)
	}
	check("complete", true, true, true)
	if err := two.clearWhole(); err != nil {
		t.Fatal(err)
	}
	check("cleared", false, false, false)
}

func TestBitmapDamage(t *testing.T) {
	other := testShape
	other.chunks--
	for name, damage := range map[string]func(p []byte) []byte{
		"empty":       func([]byte) []byte { return nil },
		"header only": func(p []byte) []byte { return p[:100] },
		"too long":    func(p []byte) []byte { return append(p, p...) },
		"magic":       func(p []byte) []byte { p[0]++; return p },
		"version":     func(p []byte) []byte { p[posVersion]++; return p },
		"count":       func(p []byte) []byte { p[posCount]++; return p },
		"blob":        func(p []byte) []byte { p[posBlob]++; return p },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bitmap")
			b := openTestBitmap(t, path, testShape, "one")
			for i := range testShape.chunks {
				b.set(i, digestOf(i))
			}
			b.setWhole()
			p, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(p), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err = openBitmap(path, testShape, "one", true)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = b.close() }()
			if !b.fresh || b.whole() || b.complete() {
				t.Errorf("fresh %v, whole %v, complete %v", b.fresh, b.whole(), b.complete())
			}
			for i := range testShape.chunks {
				if b.state(i, digestOf(i)) != doubted {
					t.Fatalf("chunk %d: state %d", i, b.state(i, digestOf(i)))
				}
			}
		})
	}
}

// FuzzBitmap: whatever is in the file, opening it neither fails nor crashes, and
// no chunk is present that was not marked.
func FuzzBitmap(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte(bitmapMagic))
	f.Add(append(testShape.header(), make([]byte, 8192-posGeneration)...))
	f.Fuzz(func(t *testing.T, p []byte) {
		path := filepath.Join(t.TempDir(), "bitmap")
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		b := openTestBitmap(t, path, testShape, "one")
		if b.whole() {
			t.Error("whole")
		}
		for i := range testShape.chunks {
			if b.has(i, digestOf(i)) {
				t.Errorf("chunk %d is present", i)
			}
		}
		b.set(3, digestOf(3))
		if !b.has(3, digestOf(3)) {
			t.Error("cannot mark chunk 3")
		}
	})
}

func TestRangeLocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bitmap")
	a := openTestBitmap(t, path, testShape, "one")
	b := openTestBitmap(t, path, testShape, "one")
	try := func(r *bitmap, i, j int, wantI, wantJ int) {
		t.Helper()
		ok, ci, cj, err := r.locks.try(i, j)
		if err != nil || ok != (wantI == wantJ) || ci != wantI || cj != wantJ {
			t.Fatalf("lock [%d, %d): %v, conflict [%d, %d), %v", i, j, ok, ci, cj, err)
		}
	}
	try(a, 10, 20, 0, 0)
	try(b, 0, 100, 10, 20)
	try(b, 12, 15, 12, 15)
	try(b, 20, 30, 0, 0)
	try(a, 5, 25, 20, 25)
	// What another of a's ranges covers stays locked.
	try(a, 12, 14, 0, 0)
	a.locks.unlock(10, 20)
	try(b, 0, 20, 12, 14)
	try(b, 14, 20, 0, 0)
	a.locks.unlock(12, 14)
	try(b, 0, 20, 0, 0)
	b.locks.unlock(0, 20)
	try(a, 0, 14, 0, 0)
	try(a, 0, 15, 14, 15)
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	try(a, 0, 100, 0, 0)
	b.mem, b.f = nil, a.f // closed already; Cleanup may fail
}
