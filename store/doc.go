// Package store opens a store directory as a whole: the images that are
// remembered in it, the layers that are cached in it, and the client that
// fetches what is missing of both.
//
// Its central type is [Store]; [Store.Open] turns the name of an image into a
// [Tree], whose layers are opened and merged, and whose data is fetched as it is
// read. Mounts and looks at an image without a mount both begin there.
//
// Invariants: a Tree keeps its layers open until it is closed, and closes before
// its Store; nothing of a registry is asked for what is here. Several processes
// may open one directory at once. All methods are safe for concurrent use.
package store
