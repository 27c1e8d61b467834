package view

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// ListOptions configures List and WriteList.
type ListOptions struct {
	// Recursive lists the directories in a directory too.
	Recursive bool
	// Long is for WriteList: attributes and not names alone.
	Long bool
}

// group is a directory and its entries.
type group struct {
	path    string
	entries []Entry
}

// groups iterates over the directory s and, if recursive, those below it, in the
// order of ls -R: a directory, then the ones in it.
func (m *Image) groups(s spot, recursive bool) iter.Seq2[group, error] {
	return func(yield func(group, error) bool) {
		g := newGuard(m.Tree.Index)
		todo := []step{{s.path, s.nid}}
		for len(todo) > 0 {
			at := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			entries, err := m.readDir(at.path, at.nid, g)
			if !yield(group{at.path, entries}, err) || err != nil {
				return
			}
			for i := len(entries) - 1; recursive && i >= 0; i-- {
				if e := &entries[i]; e.IsDir() {
					todo = append(todo, step{e.Path, e.NID})
				}
			}
		}
	}
}

// List iterates over the entries of the directory at path in byte order of their
// names, those whose name begins with a dot among them; of something else it
// gives the one entry, and of a symbolic link the link. Directories come in the
// order of ls -R: first the entries of one, then those of the directories in it.
// An error is the last thing it gives.
func (m *Image) List(path string, o ListOptions) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		fail := func(err error) { yield(Entry{}, fmt.Errorf("list %s: %w", path, err)) }
		s, err := m.locate(path, false)
		if err != nil {
			fail(err)
			return
		}
		if !s.isDir() {
			e, err := m.entryAt(s)
			if err != nil {
				fail(err)
				return
			}
			yield(e, nil)
			return
		}
		for g, err := range m.groups(s, o.Recursive) {
			if err != nil {
				fail(err)
				return
			}
			for _, e := range g.entries {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// WriteList writes what List gives of each path as ls -Ab does: one name a line; with
// Long as ls -lnAb, without totals and with the times of --time-style=long-iso, in
// UTC, so that what is written depends on the image alone; with Recursive as ls -R.
// A symbolic link to a directory is followed unless Long is set, as ls does, and
// what is no directory comes first. Directories have their paths as headings, from
// the root and without links, if there are several paths or with Recursive. Paths
// that are not there are told by the error, after the others were written.
func (m *Image) WriteList(w io.Writer, paths []string, o ListOptions) error {
	var files []Entry
	var dirs []spot
	var errs []error
	for _, p := range slices.Sorted(slices.Values(paths)) {
		s, err := m.locate(p, false)
		if !o.Long {
			if to, e := m.locate(p, true); e == nil && to.isDir() {
				s = to
			}
		}
		if err == nil && s.isDir() {
			dirs = append(dirs, s)
			continue
		}
		var e Entry
		if err == nil {
			e, err = m.entryAt(s)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("list %s: %w", p, err))
			continue
		}
		e.Name = p
		files = append(files, e)
	}
	out := bufio.NewWriter(w)
	err := writeEntries(out, files, o.Long)
	first := len(files) == 0
	for i := 0; err == nil && i < len(dirs); i++ {
		err = m.writeDir(out, dirs[i], o, len(paths) > 1 || o.Recursive, &first)
	}
	if e := out.Flush(); err == nil {
		err = e
	}
	return errors.Join(append(errs, err)...)
}

// writeDir writes the directory s and, if o is recursive, those in it. first says
// that nothing was written yet.
func (m *Image) writeDir(w io.Writer, s spot, o ListOptions, heading bool, first *bool) error {
	for g, err := range m.groups(s, o.Recursive) {
		if err != nil {
			return fmt.Errorf("list %s: %w", s.path, err)
		}
		if heading {
			text := escape(g.path, ':') + ":\n"
			if !*first {
				text = "\n" + text
			}
			if _, err := io.WriteString(w, text); err != nil {
				return err
			}
		}
		*first = false
		if err := writeEntries(w, g.entries, o.Long); err != nil {
			return err
		}
	}
	return nil
}

// writeEntries writes entries, one a line, as WriteList does those of one
// directory. Columns are as wide as these entries need them.
func writeEntries(w io.Writer, entries []Entry, long bool) error {
	var width columns
	for i := range entries {
		width.add(&entries[i])
	}
	for i := range entries {
		line := escape(entries[i].Name, ' ') + "\n"
		if long {
			line = width.line(&entries[i])
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}

// columns are the widths of the columns of a long listing.
type columns struct{ nlink, uid, gid, size, major, minor int }

func digits[T uint32 | int64](n T) int { return len(strconv.FormatInt(int64(n), 10)) }

func (c *columns) add(e *Entry) {
	c.nlink = max(c.nlink, digits(e.Nlink))
	c.uid = max(c.uid, digits(e.UID))
	c.gid = max(c.gid, digits(e.GID))
	if !e.isDevice() {
		c.size = max(c.size, digits(e.Size))
		return
	}
	c.major = max(c.major, digits(unix.Major(uint64(e.Rdev))))
	c.minor = max(c.minor, digits(unix.Minor(uint64(e.Rdev))))
	c.size = max(c.size, c.major+2+c.minor)
}

func (c *columns) line(e *Entry) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %*d %*d %*d ", modeString(e.Mode), c.nlink, e.Nlink, c.uid, e.UID, c.gid, e.GID)
	if e.isDevice() {
		rdev := uint64(e.Rdev)
		fmt.Fprintf(&b, "%*d, %*d", c.size-2-c.minor, unix.Major(rdev), c.minor, unix.Minor(rdev))
	} else {
		fmt.Fprintf(&b, "%*d", c.size, e.Size)
	}
	fmt.Fprintf(&b, " %s %s", e.Mtime.Format("2006-01-02 15:04"), escape(e.Name, ' '))
	if e.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		b.WriteString(" -> " + escape(e.Target, ' '))
	}
	b.WriteByte('\n')
	return b.String()
}

// modeString is a mode as ls -l prints it.
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx")
	b[0] = typeLetter(mode)
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for i, special := range []string{"sS", "sS", "tT"} {
		if mode&(0o4000>>i) == 0 {
			continue
		}
		at := 3 * (i + 1)
		if b[at] == 'x' {
			b[at] = special[0]
		} else {
			b[at] = special[1]
		}
	}
	return string(b)
}

// escapes are the characters for which ls -b has a letter.
var escapes = map[rune]string{
	'\a': `\a`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\v': `\v`, '\\': `\\`,
}

// Escape writes a name so that a terminal shows it and does nothing else: what cannot
// be printed as ls -b does, as a letter or in octal, with a backslash before it. A
// backslash becomes two, a space stays.
func Escape(name string) string { return escape(name, '\\') }

// escape writes a name as ls -b does: what cannot be printed as its letter or in
// octal, with a backslash before those and before the character also.
func escape(name string, also rune) string {
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		letter, known := escapes[r]
		switch {
		case known:
			b.WriteString(letter)
		case r == also:
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == utf8.RuneError && n == 1 || !unicode.IsPrint(r):
			for _, c := range []byte(name[i : i+n]) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}
