package difftest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// Kind says what an operation does.
type Kind string

// The kinds of operations. Those that say "file" act on the descriptor Slot, or on
// Path where Slot is 0.
const (
	Open      Kind = "open"      // open Path with Flags and Mode, keep it in Slot
	Close     Kind = "close"     // close Slot
	Write     Kind = "write"     // write Len bytes made from Seed to file at Off; -1: where the descriptor is
	Read      Kind = "read"      // read Len bytes of file at Off; -1: where the descriptor is
	Truncate  Kind = "truncate"  // set file's size to Len
	MapShared Kind = "mapshared" // write through a shared mapping of file
	MapOwn    Kind = "mapown"    // write through a private mapping of file, which must not change it
	Rename    Kind = "rename"    // rename Path to Path2 with Flags
	Link      Kind = "link"      // link file to Path2 with Flags
	Unlink    Kind = "unlink"    // remove Path
	Rmdir     Kind = "rmdir"     // remove directory Path
	Mkdir     Kind = "mkdir"     // make directory Path with Mode
	Symlink   Kind = "symlink"   // make Path a link to Name
	Readlink  Kind = "readlink"  // read link Path
	Mknod     Kind = "mknod"     // make Path a node of Mode, device Off
	Tmpfile   Kind = "tmpfile"   // make a file without a name in Path, keep it in Slot
	Chmod     Kind = "chmod"     // set file's mode
	Chown     Kind = "chown"     // set file's owner to UID and GID
	Utimes    Kind = "utimes"    // set file's times: access Off, modification Off2, in ns; TimeNow, TimeOmit
	Setxattr  Kind = "setxattr"  // set file's attribute Name to Value with Mode XATTR_*
	Getxattr  Kind = "getxattr"  // get file's attribute Name into Len bytes
	Lsxattr   Kind = "lsxattr"   // list file's attributes
	Rmxattr   Kind = "rmxattr"   // remove file's attribute Name
	Fallocate Kind = "fallocate" // allocate in file with Mode at Off, Len
	Holes     Kind = "holes"     // walk file's holes and data
	Copy      Kind = "copy"      // copy_file_range from file at Off to Slot2 or Path2 at Off2
	Sync      Kind = "sync"      // fsync file, or with Mode 1 fdatasync
	Opendir   Kind = "opendir"   // begin a listing of Path in Slot
	Readdir   Kind = "readdir"   // read about Len bytes more of the listing in Slot
	Rewind    Kind = "rewind"    // begin the listing in Slot again
	Flock     Kind = "flock"     // flock Slot with Mode
	Lock      Kind = "lock"      // lock a range of Slot, which the descriptor owns; Mode F_RDLCK...
	StatFile  Kind = "stat"      // stat file
	Access    Kind = "access"    // ask for access Mode to Path
	Statfs    Kind = "statfs"    // statfs of file
	List      Kind = "list"      // list directory Path
)

// Kinds returns all kinds.
func Kinds() []Kind {
	var all []Kind
	for _, m := range makers() {
		all = append(all, m.kind)
	}
	return all
}

// Times of Utimes that are no times.
const (
	TimeNow  = -1 << 62
	TimeOmit = -1<<62 + 1
)

// Slots is how many descriptors are kept open; they are numbered from 1.
const Slots = 16

// Op is one operation. What its fields mean depends on its kind. Paths are
// relative to the directory that is tested.
type Op struct {
	Kind        Kind
	Path, Path2 string
	Name, Value string
	Slot, Slot2 int64
	Off, Off2   int64
	Len         int64
	Flags       int64 // O_*, AT_* or RENAME_*, as the system call takes them
	Mode        int64
	UID, GID    int64
	Seed        int64 // what written bytes are made from; 0 makes zeros
	As          int64 // user and group to act as
	Look        int64 // 1: look at the named files afterwards, 2: and at their directories
	Shared      int64 // 1: Path is in the directory that all workers read
}

// number names a field of an operation in its text form.
type number struct {
	key   string
	field *int64
}

// text likewise.
type text struct {
	key   string
	field *string
}

func (o *Op) texts() []text {
	return []text{{"path", &o.Path}, {"path2", &o.Path2}, {"name", &o.Name}, {"value", &o.Value}}
}

func (o *Op) numbers() []number {
	return []number{
		{"slot", &o.Slot},
		{"slot2", &o.Slot2},
		{"off", &o.Off},
		{"off2", &o.Off2},
		{"len", &o.Len},
		{"flags", &o.Flags},
		{"mode", &o.Mode},
		{"uid", &o.UID},
		{"gid", &o.GID},
		{"seed", &o.Seed},
		{"as", &o.As},
		{"look", &o.Look},
		{"shared", &o.Shared},
	}
}

// String is the operation on one line: its kind and what is not zero. ParseOp
// reads it.
func (o Op) String() string {
	var b strings.Builder
	b.WriteString(string(o.Kind))
	for _, t := range o.texts() {
		if *t.field != "" {
			b.WriteString(" " + t.key + "=" + strconv.QuoteToASCII(*t.field))
		}
	}
	for _, n := range o.numbers() {
		switch {
		case *n.field == 0:
		case n.key == "mode":
			b.WriteString(" mode=0" + strconv.FormatInt(*n.field, 8))
		case n.key == "flags":
			b.WriteString(" flags=0x" + strconv.FormatInt(*n.field, 16))
		default:
			b.WriteString(" " + n.key + "=" + strconv.FormatInt(*n.field, 10))
		}
	}
	return b.String()
}

// ParseOp reads what Op.String wrote.
func ParseOp(line string) (Op, error) {
	kind, rest, _ := strings.Cut(line, " ")
	o := Op{Kind: Kind(kind)}
	if executor(o.Kind) == nil {
		return o, fmt.Errorf("parse operation %q: no such kind", line)
	}
	for rest = strings.TrimLeft(rest, " "); rest != ""; rest = strings.TrimLeft(rest, " ") {
		key, after, ok := strings.Cut(rest, "=")
		if !ok {
			return o, fmt.Errorf("parse operation %q: %q has no value", line, rest)
		}
		value := after
		if strings.HasPrefix(after, `"`) {
			q, err := strconv.QuotedPrefix(after)
			if err != nil {
				return o, fmt.Errorf("parse operation %q: %w", line, err)
			}
			value = q
		} else if i := strings.IndexByte(after, ' '); i >= 0 {
			value = after[:i]
		}
		rest = after[len(value):]
		if err := o.set(key, value); err != nil {
			return o, fmt.Errorf("parse operation %q: %w", line, err)
		}
	}
	return o, nil
}

func (o *Op) set(key, value string) (err error) {
	for _, t := range o.texts() {
		if t.key == key {
			*t.field, err = strconv.Unquote(value)
			return err
		}
	}
	for _, n := range o.numbers() {
		if n.key == key {
			*n.field, err = strconv.ParseInt(value, 0, 64)
			return err
		}
	}
	return fmt.Errorf("no field %q", key)
}

// Save writes the sequence to a file that outlives the test, for ReadOps, and returns
// its path.
func (d *Difference) Save() (string, error) {
	f, err := os.CreateTemp("", "lamina-diff-*.ops")
	if err != nil {
		return "", err
	}
	return f.Name(), errors.Join(WriteOps(f, d.Sequence), f.Close())
}

// WriteOps writes a sequence, one operation a line.
func WriteOps(w io.Writer, ops []Op) error {
	b := bufio.NewWriter(w)
	for _, o := range ops {
		if _, err := fmt.Fprintln(b, o); err != nil {
			return err
		}
	}
	return b.Flush()
}

// ReadOps reads what WriteOps wrote. It skips empty lines and those that begin
// with #.
func ReadOps(r io.Reader) ([]Op, error) {
	var ops []Op
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		o, err := ParseOp(line)
		if err != nil {
			return nil, err
		}
		ops = append(ops, o)
	}
	return ops, lines.Err()
}
