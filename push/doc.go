// Package push sends images to registries, layouts and archives.
//
// Its central type is Registry: one repository that is pushed to. Registry.Blobs
// sends what images consist of, Registry.Manifest what leads to it, so that whoever
// sees a manifest finds all of it. ToLayout, WriteOCIArchive and WriteDockerArchive put
// the same into files. What goes is blobs and documents as they are; finding them, and
// the names, is the caller's.
//
// # One blob
//
// It is asked for first: what is there is not sent. What is in another repository
// of the same registry is mounted from there, without a byte moving. All else is
// streamed from wherever it lives, a file of the store or the registry it was pulled
// from, and never kept on the way.
//
// An upload is a session with an address. When a connection breaks, the registry is
// asked how much it has, and the upload goes on there; when it does not know the
// session any more, from the first byte. go-containerregistry's remote, which
// package published uses for its small blobs, begins anew every time, and so do
// containerd's and oras-go's pushers: that is why this part is our own.
//
// # Invariants
//
//   - Bytes are sent as they are: digests and annotations stay, so a layer that
//     can be read lazily stays one.
//   - A manifest is sent after all that it leads to.
//   - The registry verifies blobs against their digests; bytes that it finds wrong
//     are asked for once more, of another host if there is one.
//   - No error holds a query string, a token or a password.
package push
