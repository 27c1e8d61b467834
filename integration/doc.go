// Package integration tests lamina as people use it: the built program, images
// made of Debian packages, a real registry, and real faults.
//
// The tests are behind the build tag integration and need root, FUSE and what
// hack/setup.sh installs. They fail, never skip, where something is missing.
//
//	images       builds the images and keeps them
//	registry     runs docker-registry with TLS and a password
//	faultproxy   a slow and unreliable link in front of it
//	tree         takes a tree down entry by entry, and compares
//	mkimages     the command that builds the images
//	zstdchunked  a module of its own: podman's zstd:chunked writer
//
// The truth that mounts are compared with is umoci's unpacking of the same
// image; for layers that umoci gets wrong, the test says what is right.
package integration
