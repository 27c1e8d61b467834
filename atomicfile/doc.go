// Package atomicfile makes and replaces files so that a crash at any instant leaves
// the old content or the whole new one under a name, and never a part.
//
// Write does all of it: a file without a name, its bytes on the disk, the name, by
// rename if it is taken, the directory on the disk. Place leaves out the last step, for who makes
// several names and then calls SyncDir once.
//
// # Invariants
//
//   - A name never stands for bytes that are not on the disk: a rename may reach it
//     before them.
//   - After an error there is no temporary file, and the name stands for what it
//     stood for before; but if only SyncDir failed, the new content is there, and
//     may be gone after a crash.
//
// # Not promised
//
// A process that is killed between two system calls leaves a temporary file when it
// replaces one, and at any time before on filesystems that know no files without a
// name. The file's name begins as the caller has said, for whoever cleans up to know
// it. Two that write one name at a time do
// not harm one another; the last one stays. Owner, permissions and attributes of a
// file that is replaced are not kept.
package atomicfile
