// Package lookahead guesses what a program will read next from what it has just
// begun to read, and has it fetched meanwhile.
//
// Programs find out what they need one file after the other, and over a slow
// link every step costs a round trip. But the files say it themselves: the
// dynamic section of a program names its libraries, a compiled Python module
// names what it imports, and the strings of a program are paths of what it will
// open. The central type is [Watcher]: the cache tells it of every file that is
// begun ([cache.Options.Began]) and shows it what comes of files
// ([cache.Options.Came]); it reads the file, finds what it names in the tree, and
// wishes for that ([cache.Layer.Want]). What was wished for tells the Watcher in
// turn when it has come, so that a program with a hundred modules is there after
// as many round trips as its imports are deep.
//
// Invariants: nobody waits for a Watcher, and nothing goes wrong without it; a
// file that cannot be understood is left alone; what is read of files is
// bounded, and so is what is looked for and kept in memory on their account. What
// a running program names is as good as read, and so is what that names: only
// guesses, like the files that most programs read when they start, have to fit the
// budget for speculation, and of those only what is here is looked at. All methods
// are safe for concurrent use.
//
// It knows ELF (System V ABI, chapters 4 and 5) and the compiled modules of
// CPython 3.8 to 3.14 (its marshal format, versions 4 and 5).
package lookahead
