package store_test

import (
	"bytes"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/laminafs/lamina/store"
)

func TestDecompressed(t *testing.T) {
	const text = "hello, archive\n"
	bz2, err := base64.StdEncoding.DecodeString("QlpoOTFBWSZTWVknjWcAAAPRgAAQQAQqZJEAIAAxA0DQIAGmlQJ4jA+lOPi7kinChILJPGs4")
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string][]byte{"plain": []byte(text), "bzip2": bz2, "nothing": nil}
	for name, open := range map[string]func(w io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	} {
		var b bytes.Buffer
		w, err := open(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		forms[name] = b.Bytes()
	}
	for name, b := range forms {
		want := text
		if b == nil {
			want = ""
		}
		r, err := store.Decompressed(bytes.NewReader(b))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "plain" || b == nil {
			continue
		}
		r, err = store.Decompressed(bytes.NewReader(b[:len(b)-4]))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s, cut off: %v", name, err)
		}
	}
}
