package tarscan_test

import (
	"archive/tar"
	"bytes"
	"compress/bzip2"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/laminafs/lamina/layer/tarscan"
)

// scan runs the whole tar through a Scanner in pieces of the given size.
func scan(b []byte, piece int) ([]tarscan.Header, error) {
	var out []tarscan.Header
	s := tarscan.New(func(h *tarscan.Header) error {
		out = append(out, *h)
		return nil
	})
	for len(b) > 0 {
		n := min(piece, len(b))
		if _, err := s.Write(b[:n]); err != nil {
			return out, err
		}
		b = b[n:]
	}
	return out, s.Close()
}

// reference is what archive/tar makes of an entry.
type reference struct {
	tar.Header
	data []byte
	big  bool
}

const maxContent = 1 << 20

func readReference(b []byte) ([]reference, error) {
	var out []reference
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e := reference{Header: *h, big: h.Size > maxContent}
		if !e.big {
			if e.data, err = io.ReadAll(r); err != nil {
				return out, err
			}
		}
		out = append(out, e)
	}
}

// content rebuilds a file from the place and the segments that the scan gave.
func content(t *testing.T, b []byte, h tarscan.Header) []byte {
	t.Helper()
	if h.Type >= tarscan.TypeLink && h.Type <= tarscan.TypeFifo {
		return nil
	}
	p := make([]byte, h.Size)
	if !h.Sparse {
		copy(p, b[h.Data:h.Data+h.Stored])
		return p
	}
	for _, s := range h.Segments {
		copy(p[s.Off:s.Off+s.Len], b[s.Pos:s.Pos+s.Len])
	}
	return p
}

func compare(t *testing.T, b []byte, got []tarscan.Header, want []reference) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d entries, archive/tar has %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		typ := w.Typeflag
		switch typ {
		case tar.TypeGNUSparse, tar.TypeCont:
			typ = tar.TypeReg
		}
		if g.Name != w.Name || g.Link != w.Linkname || g.Type != typ || g.Mode != w.Mode ||
			g.UID != int64(w.Uid) || g.GID != int64(w.Gid) || g.Size != w.Size ||
			g.Major != w.Devmajor || g.Minor != w.Devminor {
			t.Errorf("entry %d: %+v, archive/tar has %+v", i, g, w.Header)
		}
		if g.Mtime != w.ModTime.Unix() || int(g.MtimeNsec) != w.ModTime.Nanosecond() {
			t.Errorf("entry %d: time %d.%09d, archive/tar has %v", i, g.Mtime, g.MtimeNsec, w.ModTime)
		}
		for k, v := range w.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && !hasXattr(g, name, v) {
				t.Errorf("entry %d: xattr %q missing in %v", i, name, g.Xattrs)
			}
		}
		if !w.big && !bytes.Equal(content(t, b, g), w.data) {
			t.Errorf("entry %d %q: content differs", i, w.Name)
		}
	}
}

func hasXattr(h tarscan.Header, name, value string) bool {
	for _, x := range h.Xattrs {
		if x.Name == name {
			return x.Value == value
		}
	}
	return false
}

// corpus returns Go's own test archives.
func corpus(t testing.TB) map[string][]byte {
	t.Helper()
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(goroot)), "src", "archive", "tar", "testdata")
	files, err := filepath.Glob(filepath.Join(dir, "*.tar*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no corpus in %s: %v", dir, err)
	}
	m := make(map[string][]byte)
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		switch filepath.Ext(f) {
		case ".base64":
			b, err = io.ReadAll(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(b)))
		case ".bz2":
			b, err = io.ReadAll(io.LimitReader(bzip2.NewReader(bytes.NewReader(b)), 32<<20))
		}
		if err != nil {
			t.Fatal(err)
		}
		m[filepath.Base(f)] = b
	}
	return m
}

// TestCorpus compares with archive/tar over its own corpus of oddities.
func TestCorpus(t *testing.T) {
	for name, b := range corpus(t) {
		t.Run(name, func(t *testing.T) {
			want, wantErr := readReference(b)
			var got []tarscan.Header
			for _, piece := range []int{1 << 30, 512, 700, 1} {
				if piece == 1 && len(b) > 1<<20 {
					continue
				}
				var err error
				got, err = scan(b, piece)
				if (err != nil) != (wantErr != nil) {
					t.Fatalf("in pieces of %d: %v; archive/tar: %v", piece, err, wantErr)
				}
				if err != nil && !errors.Is(err, tarscan.ErrTar) {
					t.Errorf("error does not wrap ErrTar: %v", err)
				}
			}
			if wantErr == nil {
				compare(t, b, got, want)
			}
		})
	}
}

// TestSeek scans by jumping over the data, as one does who reads so much at a time,
// and must see the same.
func TestSeek(t *testing.T) {
	for name, b := range corpus(t) {
		want, err := scan(b, 1<<30)
		if err != nil {
			continue
		}
		for _, piece := range []int64{100, 512, 64 << 10} {
			var got int
			s := tarscan.New(func(h *tarscan.Header) error {
				if h.Data != want[got].Data || h.Name != want[got].Name {
					t.Errorf("%s: entry %d differs", name, got)
				}
				got++
				return nil
			})
			for size := int64(len(b)); !s.Done() && s.Pos() < size; {
				s.Advance(min(s.Skip(), size-s.Pos()))
				if _, err := s.Write(b[s.Pos():min(s.Pos()+piece, size)]); err != nil {
					t.Fatal(err)
				}
			}
			if got != len(want) {
				t.Errorf("%s, %d bytes at a time: %d entries, want %d", name, piece, got, len(want))
			}
		}
	}
}

// TestTruncated cuts an archive everywhere: within an entry that is an error,
// and never more entries than archive/tar sees.
func TestTruncated(t *testing.T) {
	b := corpus(t)["pax.tar"]
	for n := range b {
		_, err := scan(b[:n], 512)
		_, wantErr := readReference(b[:n])
		if wantErr != nil && err == nil {
			t.Errorf("cut at %d: no error, archive/tar says %v", n, wantErr)
		}
	}
}

// TestRandom compares over archives of archive/tar's own writer.
func TestRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for range rnd.IntN(8) {
			h := randomHeader(rnd)
			if err := w.WriteHeader(h); err != nil {
				continue // not every combination fits the format
			}
			p := make([]byte, h.Size)
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			if _, err := w.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		want, err := readReference(buf.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		got, err := scan(buf.Bytes(), 1+rnd.IntN(2000))
		if err != nil {
			t.Fatal(err)
		}
		compare(t, buf.Bytes(), got, want)
	}
}
