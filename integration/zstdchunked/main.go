// Command zstdchunked compresses a tar as podman and buildah do when they push
// with --compression-format zstd:chunked: it is containers/storage's own writer,
// so that lamina is tested against that dialect as it is found in the wild.
// Debian's skopeo and podman still write the older one.
//
// It reads the tar from standard input and writes the blob to standard output;
// the annotations that belong into the layer's descriptor go to the file named
// by its only argument, as JSON.
//
// It is a module of its own so that lamina does not depend on containers/storage.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"go.podman.io/storage/pkg/chunked/compressor"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: zstdchunked ANNOTATIONS <TAR >BLOB")
		os.Exit(2)
	}
	if err := compress(os.Stdout, os.Stdin, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "zstdchunked:", err)
		os.Exit(1)
	}
}

func compress(dst io.Writer, src io.Reader, annotations string) error {
	metadata := map[string]string{}
	w, err := compressor.ZstdCompressor(dst, metadata, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, src); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	b, err := json.Marshal(metadata)
	if err != nil {
		return err
	}
	return os.WriteFile(annotations, b, 0o644)
}
