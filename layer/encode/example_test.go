package encode_test

import (
	"archive/tar"
	"bytes"
	"fmt"

	"github.com/laminafs/lamina/layer"
	"github.com/laminafs/lamina/layer/encode"
)

func Example() {
	var blob bytes.Buffer
	w, err := encode.NewWriter(&blob, layer.Gzip)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Abort() // if anything fails before Close

	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Name: "etc/motd", Mode: 0o644, Size: 6}); err != nil {
		fmt.Println(err)
		return
	}
	if _, err := t.Write([]byte("hello\n")); err != nil {
		fmt.Println(err)
		return
	}
	if err := t.Close(); err != nil {
		fmt.Println(err)
		return
	}
	if err := w.Close(); err != nil {
		fmt.Println(err)
		return
	}
	r := w.Result()
	fmt.Println(r.Desc.MediaType, r.Desc.Size == int64(blob.Len()))
	fmt.Println(r.DiffID.Algorithm(), r.Size)
	// Output:
	// application/vnd.oci.image.layer.v1.tar+gzip true
	// sha256 2048
}
