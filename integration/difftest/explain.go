package difftest

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Rule explains a difference from the reference that is no fault.
type Rule struct {
	// Name is short, for counting in reports.
	Name string
	// Reason says why the difference is none, or nobody's to mend.
	Reason string
	// Match says whether the rule explains a difference. In a comparison of trees
	// the operation has no kind. It must not change its arguments, and may be
	// called concurrently.
	Match func(Op, Delta) bool
	// Parts says that the difference leaves unlike trees behind. Then the rule
	// explains all differences of the operation, what the operation names is
	// removed from all targets, and if it names a slot, all slots are emptied.
	Parts bool
}

// explain returns the rule that a difference falls under, nil if none.
func explain(rules []Rule, op Op, d Delta) *Rule {
	for i := range rules {
		if rules[i].Match(op, d) {
			return &rules[i]
		}
	}
	return nil
}

func isTime(d Delta) bool { return strings.HasSuffix(d.Field, ".mtime") }

func isMode(d Delta, kind uint32) bool { return d.Mode&unix.S_IFMT == kind }

// OverlayfsRules returns the differences of the kernel's overlayfs, with
// redirect_dir, index, metacopy and xino on, from the ext4 that it lies on.
func OverlayfsRules() []Rule {
	return append(overlayfsIdentity(), []Rule{
		{
			Name: "metacopy mtime",
			Reason: "With metacopy, a change of attributes copies a lower file up without its data. " +
				"Copying up the data later, because the file is opened for writing, is a write to the " +
				"upper file, and nothing sets the time back. The new time stays.",
			Match: func(_ Op, d Delta) bool {
				return isTime(d) && isMode(d, unix.S_IFREG) && d.Got == "from the clock"
			},
		},
		{
			Name: "remove no ACL",
			Reason: "Removing an access control list that a file does not have succeeds on ext4. " +
				"overlayfs looks first, so as not to copy a lower file up for nothing, and says ENODATA.",
			Match: func(op Op, d Delta) bool {
				return op.Kind == Rmxattr && (op.Name == accessACL || op.Name == defaultACL) &&
					d.Field == "errno" && d.WantErrno == 0 && d.GotErrno == unix.ENODATA
			},
		},
		{
			Name: "fifo mtime",
			Reason: "Writing to a fifo sets its time. overlayfs knows no real fifo below its own, and " +
				"does not copy up for it.",
			Match: func(_ Op, d Delta) bool { return isTime(d) && isMode(d, unix.S_IFIFO) },
		},
		{
			Name: "mapping of a lower file",
			Reason: "A descriptor opened for reading before the file is copied up reads what is written " +
				"afterwards, but maps the lower file (Documentation/filesystems/overlayfs.rst, " +
				"\"Non-standard behavior\").",
			Match: func(op Op, d Delta) bool {
				return op.Kind == MapOwn && op.Slot != 0 && (d.Field == "data" || d.Field == "broken" ||
					d.Field == "errno" && d.GotErrno == unix.EFAULT)
			},
		},
	}...)
}

// overlayfsIdentity is the half of the table on which file is which, and where.
func overlayfsIdentity() []Rule {
	return []Rule{
		{
			Name: "link count of the removed",
			Reason: "A lower file that was removed while it was open for reading, without having been " +
				"copied up: its link count is the lower file's, which nothing removes.",
			Match: func(_ Op, d Delta) bool { return strings.HasSuffix(d.Field, ".nlink") && d.Want == "0" },
		},
		{
			Name: "setgid and no ACL",
			Reason: "Removing the access control list of a setgid file of another group clears setgid in " +
				"overlayfs, which takes it for a change of mode by a user who may not set the bit. ext4 " +
				"leaves the bit.",
			Match: func(op Op, d Delta) bool {
				return op.Kind == Rmxattr && op.Name == accessACL && op.As != 0 && d.Mode&unix.S_ISGID != 0 &&
					strings.HasSuffix(d.Field, ".mode") && d.Got == fmt.Sprintf("%#o", d.Mode&^unix.S_ISGID)
			},
			Parts: true,
		},
		{
			Name: "change of the removed",
			Reason: "A change, by a descriptor, of a lower file that was removed while it was open for " +
				"reading: it would have to be copied up to a name that has a whiteout now, or no " +
				"directory, and the change fails.",
			Match: func(op Op, d Delta) bool {
				failed := d.GotErrno == unix.EEXIST || d.GotErrno == unix.ENOENT || d.GotErrno == unix.ESTALE
				switch op.Kind {
				case Setxattr, Rmxattr, Chmod, Chown, Utimes:
					return op.Slot != 0 && d.Field == "errno" && d.WantErrno == 0 && failed
				}
				return false
			},
			Parts: true,
		},
		{
			Name: "d_ino of a link",
			Reason: "A link to a file that has been copied up, in a directory that exists in the upper " +
				"half alone: overlayfs does not mark the directory as one whose entries have the " +
				"inode numbers of lower files, as it does for renames, and lists the upper file's.",
			Match: func(op Op, d Delta) bool {
				return op.Kind == List && d.Field == "broken" && strings.Contains(d.Got, "has inode number")
			},
		},
		{
			Name: "long redirect",
			Reason: "Moving or linking what is only partly copied up needs a note of where the rest is. " +
				"Where that path has more than 256 bytes, overlayfs says EXDEV.",
			Match: func(op Op, d Delta) bool {
				return (op.Kind == Rename || op.Kind == Link) && d.Field == "errno" && d.GotErrno == unix.EXDEV
			},
			Parts: true,
		},
	}
}
