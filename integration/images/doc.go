// Package images builds the container images that lamina is tested and measured
// with, out of Debian packages, and keeps them for the next run.
//
// A Set holds every image in every format:
//
//	debian   minbase
//	nginx    debian + nginx
//	httpd    debian + apache2
//	python   debian + python3 + python3-numpy
//	node     debian + nodejs + node-typescript
//
// The base comes from mmdebstrap and the machine's own apt sources. A further
// layer is what apt-get changed in an overlay over the base, written as an OCI
// diff. Images share the blob of the base layer, as images in a registry do.
//
// Each layer is compressed by the writer that people use for the format: Go's
// gzip (docker), klauspost's zstd (buildkit), estargz, containers/storage
// (podman's zstd:chunked) and skopeo (its older dialect).
//
// Sets lie in a cache directory under a key of everything here that determines
// them; package versions do not, so a Set grows old until it is deleted.
// Building needs root, and several processes may ask for a Set at once.
package images
