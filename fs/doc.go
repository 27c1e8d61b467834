// Package fs puts an image's tree into the kernel: as a FUSE filesystem served
// by this process, or as an EROFS mount the kernel reads itself.
//
// # The session
//
// Serve is a read-reply loop on /dev/fuse around go-fuse's ProtocolServer. It is
// our own because a session has to outlive its server: a holder keeps the
// descriptor, and a new server that calls Serve with Takeover replays the
// kernel's INIT request from InitFile and has everything unanswered sent again.
// The loop reads with blocking read(2) and keeps at least one goroutine waiting
// there, however many handlers wait for the network.
//
// # The two filesystems
//
// NewTree serves an overlay.Tree. Node ids are the index's nids (the root is
// FUSE's 1), so nodes cost no memory, FORGET means nothing and a new server
// knows every node the kernel does. Entries, attributes, links and negative
// lookups are valid forever, and OPEN and OPENDIR are refused with ENOSYS once:
// after that the kernel opens without asking and keeps its caches.
//
// NewData serves one file per layer, uncached by the kernel, to be the devices of
// an EROFS mount. MountKernel builds that mount: a FUSE superblock that is
// attached nowhere, its files opened, EROFS on top. When the EROFS mount goes,
// the FUSE superblock goes with it and Serve returns.
//
// # Interrupts
//
// A signal that does not kill must not fail a read: a page fault would become
// SIGBUS, and Go programs send themselves signals all the time. So an INTERRUPT
// gives a read up only once its caller has SIGKILL pending (any fatal signal puts
// it there) or is gone; all reads end at the deadline, with EIO.
//
// # Invariants
//
//   - A read is answered with exactly the file's bytes or with an error.
//   - A request is answered at most once per session, by whichever server.
//   - Nothing here writes to the tree: every change gets EROFS.
//
// Not promised: that a server may touch its own mount without deadlock; that a
// mount of a killed server without a holder can be brought back (IsStale and
// CleanStale find and remove it).
package fs
