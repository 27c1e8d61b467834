package fetch_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/laminafs/lamina/fetch"
)

func ExampleOpenFile() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "blob")
	if err := os.WriteFile(path, []byte("The quick brown fox"), 0o600); err != nil {
		panic(err)
	}
	b := fetch.OpenFile(path, 0, 19, digest.FromString("The quick brown fox"))
	s, err := b.ReadRange(context.Background(), 4, 5)
	if err != nil {
		panic(err)
	}
	defer func() { _ = s.Close() }()
	p, err := io.ReadAll(s)
	fmt.Printf("%s %v\n", p, err)
	// Output: quick <nil>
}
