// Package difftest finds out where a file system behaves unlike another one.
//
// It is given directories that show the same tree, say the mount under test, an
// overlayfs of the kernel over the same lower tree, and a plain copy on ext4. It
// runs one long random sequence of operations on all of them, compares what each
// operation returned, and from time to time compares the whole trees. The first
// directory is the reference: it decides what is right, and what the generator of
// the sequence believes about the tree.
//
//	MakeTree  makes a tree to begin with
//	Run       runs a random sequence and compares
//	Replay    runs a given sequence and compares
//	Shrink    makes a failing sequence short
//
// What may differ is written down with a reason, as a [Rule]: see
// [OverlayfsRules]. Some things are never compared, because they belong to the
// file system and not to the tree:
//
//   - device and inode numbers as such. But where the reference says that two
//     things seen are one file, by its file handle, each other directory has to
//     say so too, by its inode number: through renames, links, kept descriptors
//     and copying up. Two names are one file in all directories or in none. In a
//     listing, d_ino is st_ino.
//   - sizes and link counts of directories, block counts, the order of listings.
//   - access and change times, and modification times that come from the clock.
//     Times that operations set are all before the year 2008; a time before that
//     is compared exactly, and a later one must be later everywhere. So it shows
//     when a write forgets to change the time, and when copying up changes it.
//     Access times are compared right after they were set.
//   - whether truncate(2) to the size that a file has changes its time. POSIX does
//     not say; it is set to the clock's afterwards.
//   - where a file's holes are. But what is said to be a hole must read as zeros.
//
// Invariants: a sequence is determined by the seed and by the reference's results.
// Operations touch nothing outside their directory: every directory gets a thread
// that has it for its root, so absolute links and ".." stay inside.
//
// Not promised: mappings kept across operations are not tested, and neither is
// what a crash leaves. Needs root, as the operations include changes of owner and
// device nodes. It needs no free machine: no comparison depends on the time that
// something takes.
package difftest
