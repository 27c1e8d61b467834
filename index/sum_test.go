package index_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

// TestCheckSum: any byte that turned is found, also one in a name.
func TestCheckSum(t *testing.T) {
	root := &index.Node{Mode: unix.S_IFDIR | 0o755}
	root.SetChild("name", &index.Node{Mode: unix.S_IFLNK | 0o777, Target: []byte("target")})
	path := filepath.Join(t.TempDir(), "index")
	if err := (&index.Tree{Root: root}).Write(path); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Getxattr(path, "user.lamina.sha256", nil); err != nil {
		t.Fatalf("nothing is noted: %v", err)
	}
	if err := index.CheckSum(path); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for i := 0; i < len(whole); i += 37 {
		if _, err := f.WriteAt([]byte{whole[i] ^ 4}, int64(i)); err != nil {
			t.Fatal(err)
		}
		if err := index.CheckSum(path); !errors.Is(err, index.ErrCorrupt) {
			t.Errorf("byte %d turned: %v", i, err)
		}
		if _, err := f.WriteAt(whole[i:i+1], int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(path, "user.lamina.sha256", []byte("short"), 0); err != nil {
		t.Fatal(err)
	}
	if err := index.CheckSum(path); !errors.Is(err, index.ErrCorrupt) {
		t.Errorf("another digest: %v", err)
	}
	if err := unix.Removexattr(path, "user.lamina.sha256"); err != nil {
		t.Fatal(err)
	}
	if err := index.CheckSum(path); err != nil {
		t.Errorf("without a digest: %v", err)
	}
	if err := index.CheckSum(path + "none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
