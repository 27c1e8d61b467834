package fetch_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/fetch"
)

func TestFallback(t *testing.T) {
	want := bytes.Repeat([]byte("lamina "), 1000)
	size, dgst := int64(len(want)), digest.FromBytes(want)
	dir := t.TempDir()
	file := func(name string, b []byte) fetch.Local {
		path := filepath.Join(dir, name)
		if b != nil {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return fetch.OpenFile(path, 0, size, dgst).(fetch.Local)
	}
	remote := file("remote", want)
	for name, have := range map[string][]byte{"whole": want, "short": want[:100], "empty": {}, "gone": nil} {
		b := fetch.Fallback(file(name, have), remote)
		if path, _ := b.(fetch.Local).File(); path != filepath.Join(dir, name) {
			t.Errorf("%s: it lies in %s", name, path)
		}
		for _, off := range []int64{0, 50, 100, size - 1} {
			s, err := b.ReadRange(t.Context(), off, size-off)
			if err != nil {
				t.Fatalf("%s from %d: %v", name, off, err)
			}
			got, err := io.ReadAll(s)
			_ = s.Close()
			if err != nil || !bytes.Equal(got, want[off:]) {
				t.Errorf("%s from %d: %d bytes, %v", name, off, len(got), err)
			}
		}
	}
	wrong := fetch.Fallback(file("wrong", bytes.ToUpper(want)), remote)
	read := func() string {
		s, err := wrong.ReadRange(t.Context(), 0, 6)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		got, err := io.ReadAll(s)
		if err != nil {
			t.Fatal(err)
		}
		s.Reject(errors.New("wrong digest"))
		return string(got)
	}
	if first, second := read(), read(); first != "LAMINA" || second != "lamina" {
		t.Errorf("first %q, after it was rejected %q", first, second)
	}
}
