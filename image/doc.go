// Package image turns the name a user types into the description of one
// container image: its manifest, its config and one lazily readable blob per
// layer.
//
// A name is a registry reference by Docker's rules (nginx:1.27,
// host:5000/repo@sha256:…), or one of skopeo's transports for files:
//
//	oci:DIR[:TAG][@sha256:…]     a directory in the OCI image layout
//	oci-archive:FILE[:TAG]       a tar of such a directory
//	docker-archive:FILE[:REF]    what docker save and podman save write
//
// A colon in DIR or FILE is written \: there. Everything is read in place; nothing
// is unpacked. [Open] is the one way in and [Image] the one result, whatever the
// transport. What the rest of lamina needs from an image is then only Image.Layers.
//
// # Reading
//
// Each transport is a source: manifests and blobs by descriptor. Above it, one
// resolver walks image indexes to the manifest of the wanted platform, and one
// parser checks manifests and configs. So an image index in a registry, in a
// layout and in our own store is read by the same code.
//
// Invariants:
//   - A manifest, index or config that was addressed by digest is verified
//     against it before a byte of it is interpreted, also when it comes from
//     our own store. Sizes are capped first.
//   - A document that could be read as two kinds (manifests and layers in one
//     object, or a media type that contradicts the one it was announced with)
//     is refused.
//   - A manifest has as many layers as its config has diff IDs.
//
// Not promised: layer blobs are neither read nor verified here (the one
// exception is a compressed layer in a docker archive, whose digest is recorded
// nowhere and is computed by reading it once). A file that changes while it is
// mounted is not noticed here either.
//
// # The store
//
// [Store] is an OCI image layout that holds what a second mount needs: the
// manifest, the config and, where the name stood for several platforms, the
// image index. Layer blobs are there if somebody wanted them by [Store.Fetch];
// the others are read from where they came from, and an annotation of the entry
// says where that is. A blob that is there is always read in place, whichever
// way an image was opened: with all of them here nothing is asked of a registry.
// skopeo, crane and umoci can read the directory as it stands. Entries carry
// these annotations:
//
//	org.opencontainers.image.ref.name   the full name; only on the platform
//	                                    stored last, so that it is unique
//	io.containerd.image.name            the full name
//	io.github.laminafs.image.origin     the repository the layers come from
//	io.github.laminafs.image.index      the digest of the image index, if any
//
// The image index is kept as a blob, to choose by platform without a registry.
// No descriptor leads to it, only the annotation: whoever removes blobs that
// are not used must look there too, as [Store.Prune] does.
//
// Several processes share the store: readers take no lock, as index.json is
// replaced by rename; writers hold a lock file, write and sync blobs first and
// index.json last. A crash leaves the old or the new index.json, and at most
// some temporary files, which the next writer removes. The first writer begins
// with an empty index.json: where it is missing beside blobs, it was lost. Beside
// the layout lie:
//
//	locks/images.lock     held by who changes the layout
//	locks/fetching.lock   shared by the processes that have fetched blobs, until
//	                      [Store.Close]; while there are any, Prune spares
//	                      young blobs
//	partial/ALG-HEX       the beginning of a blob; locked while it is fetched,
//	                      gone on from if it is not
//
// Where several of these locks are taken, it is in the order fetching.lock,
// partial, images.lock, or without waiting.
//
// Removing a name and freeing what it took are two steps: [Store.Remove] changes
// index.json only, [Store.Prune] removes blobs that nothing leads to, and
// neither guesses: a manifest that cannot be read, or an index.json that is
// missing, stops Prune, until [Store.Check] has removed the entry that leads to
// it, or begun anew. A layout of another version than 1.x is not changed at all.
//
// # Digests
//
// sha256, sha384 and sha512 are verified. An image with digests of another
// algorithm gives ErrAlgorithm; in an image index it is in nobody's way.
package image
