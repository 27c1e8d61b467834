// Command bench measures lamina side by side with the file systems it has to
// stand beside, and with the programs that people use instead, in one run on one
// machine, and prints Markdown tables.
//
//	go run ./bench [-runs N] [-only tree,large,first,plain,keep,commit,million,write]
//
//	tree     walk, lstat, small files and tar over one tree: ext4, overlayfs,
//	         fuse-overlayfs and lamina's engines, cold and warm, in turns
//	large    1 GiB read in order, and at random
//	first    from the start of mount to a program's first line, through a link
//	         of 20 ms and 200 Mbit/s; bytes, requests and round trips
//	plain    the same with a plain gzip image, beside podman and umoci
//	keep     a look at one file, published indexes, pulls
//	commit   an image of what was changed in a writable mount
//	million  an image of a million files: warm mounts and resident memory
//	write    what programs do to writable mounts: lamina's engines, overlayfs and
//	         fuse-overlayfs over the same image
//
// It needs root and what hack/setup.sh installs. Nothing else should run on the
// machine: times are medians, but no median mends a busy neighbour.
package main
