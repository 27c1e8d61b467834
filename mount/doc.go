// Package mount is the life of a mount: an image is resolved, its layers are
// opened and merged, an engine shows the tree at a directory, a process serves
// it in the background, and in the end it is unmounted.
//
// The central type is [State], the record of one mount, kept as
// mounts/<name>/state.json in the store. A mount has up to three processes:
//
//   - the command that was typed. It starts the server, shows its progress and
//     returns when the tree is usable;
//   - the server ([ServeCommand]). It resolves and assembles the image, mounts,
//     and answers the kernel. It alone holds connections and tokens, so the ones
//     that fetched the manifest also fetch the data;
//   - the holder ([HoldCommand]). It does nothing but keep the FUSE session's
//     descriptor: when the server dies, the holder starts another one
//     ([TakeoverCommand]), which goes on with the same session. Readers notice a
//     pause.
//
// A kernel-engine mount whose layers are all complete has no process at all.
//
// Invariants:
//
//   - state.json is written before the tree is announced as usable and removed
//     after the tree is gone; it is replaced as a whole.
//   - what is mounted is decided by /proc/self/mountinfo, never by state.json:
//     after a crash or a reboot a record without a mount is rubbish and is
//     removed by whoever finds it.
//   - a server that is told to take over needs nothing but state.json, the FUSE
//     descriptor and the store's layers: it resolves no image, in a registry or in
//     the store, and it goes on with exactly the layers that were mounted or not at
//     all. A registry is asked when bytes are read that are not here.
//
// The package does not promise that a mount survives the death of server and
// holder together: its directory then answers ENOTCONN until it is unmounted,
// which the next mount at the same place does by itself.
package mount
