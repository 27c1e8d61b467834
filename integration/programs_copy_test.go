//go:build integration

package integration_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/tree"
)

// oddTree makes a tree with everything that programs which copy keep, and returns
// its directory.
func oddTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"plain", "links", "acl/inherit", "sparse", "odd", "deep/" + strings.Repeat("d/", 50)} {
		fatal(t, os.MkdirAll(at(d), 0o755))
	}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	for i, name := range []string{"plain/a", "plain/b", "links/one", "odd/new\nline \xff\\", "odd/" + strings.Repeat("n", 255)} {
		fatal(t, os.WriteFile(at(name), []byte(big[:i*100_001]), 0o640))
		fatal(t, os.Lchown(at(name), 1000+i, 2000+i))
	}
	for i, name := range []string{"links/two", "plain/three", "deep/d/four"} {
		fatal(t, os.Link(at([]string{"links/one", "links/one", "plain/b"}[i]), at(name)))
	}
	for name, mode := range map[string]uint32{"odd/fifo": unix.S_IFIFO | 0o620, "odd/null": unix.S_IFCHR | 0o666, "odd/disk": unix.S_IFBLK | 0o600} {
		fatal(t, unix.Mknod(at(name), mode, int(unix.Mkdev(1, 3))))
	}
	fatal(t, os.Symlink(strings.Repeat("x/", 300), at("odd/long link")))
	fatal(t, os.Symlink("../plain/a", at("links/symbolic")))
	fatal(t, unix.Chmod(at("plain/a"), 0o4755))
	fatal(t, unix.Chmod(at("plain"), 0o3775))
	execute(t, "setfacl", "-m", "u:1234:rwx,g:99:---,m::r-x", at("plain/b"))
	execute(t, "setfacl", "-m", "d:u:1234:rwx,d:g:99:r-x", at("acl/inherit"))
	fatal(t, unix.Lsetxattr(at("plain/b"), "user.empty", nil, 0))
	fatal(t, unix.Lsetxattr(at("plain/b"), "user.long", []byte(big[:3000]), 0))
	fatal(t, unix.Lsetxattr(at("links/symbolic"), "trusted.test", []byte("\x00\xff"), 0))
	fatal(t, unix.Lsetxattr(at("deep"), "trusted.test", []byte("of a folder"), 0))
	// The kernel passes this one on in several pieces.
	fatal(t, os.WriteFile(at("plain/capable"), []byte(strings.Repeat(big, 8)), 0o755))
	execute(t, "setcap", "cap_net_raw=ep", at("plain/capable"))
	execute(t, "setcap", "cap_net_raw=ep", at("links/one"))
	holey(t, at("sparse/holes"), 16<<20, 0, 5<<20, 10<<20)
	holey(t, at("sparse/nothing"), 8<<20)
	oldTimes(t, dir)
	return dir
}

// oldTimes gives everything below dir a time of long ago: of folders rsync takes care
// to the second only.
func oldTimes(t testing.TB, dir string) {
	t.Helper()
	at := time.Unix(-1, 999_999_999)
	fatal(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		at = at.Add(100_000_000*time.Second + 1)
		if at.Year() > 2020 {
			at = time.Unix(1, 1)
		}
		ts := unix.NsecToTimespec(at.UnixNano())
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}))
}

// holey makes a file that is mostly holes.
func holey(t testing.TB, file string, size int64, offsets ...int64) {
	t.Helper()
	f, err := os.Create(file)
	fatal(t, err)
	fatal(t, f.Truncate(size))
	for _, off := range offsets {
		_, err := f.WriteAt([]byte(strings.Repeat("data", 1000)), off)
		fatal(t, err)
	}
	fatal(t, f.Close())
}

// copiers copy the tree at the first argument to the second.
func copiers() map[string]string {
	return map[string]string{
		"rsync":   `mkdir "$2"; rsync -aHAXS --numeric-ids "$1/" "$2/"`,
		"inplace": `mkdir "$2"; rsync -aHAX --inplace --preallocate --numeric-ids "$1/" "$2/"`,
		"cp":      `cp -a --sparse=always "$1" "$2"`,
		"tar": `mkdir "$2"; tar -C "$1" --format=posix --numeric-owner --acls --xattrs --xattrs-include='*' --sparse -cf - . |
			tar -C "$2" --numeric-owner --acls --xattrs --xattrs-include='*' -xpf -`,
	}
}

// TestProgramCopy: what programs copy into a workspace, and out of it again, is as it
// was, down to hard links, ACLs, extended attributes and holes.
func TestProgramCopy(t *testing.T) {
	t.Parallel()
	src := oddTree(t)
	want := readUnion(t, src)
	eachEngine(t, func(t *testing.T, engine string) {
		w := newWorkspace(t, engine, "debian")
		fatal(t, os.Mkdir(w.path("srv/copies"), 0o755))
		back := t.TempDir()
		for name, script := range copiers() {
			execute(t, "sh", "-euc", script, name, src, w.path("srv/copies", name))
		}
		w.settled(t, "srv/copies")
		for name, script := range copiers() {
			into := w.path("srv/copies", name)
			sameUnion(t, name+" into the workspace", want, readUnion(t, into))
			if used := strings.Fields(execute(t, "du", "-k", into+"/sparse/holes"))[0]; name != "inplace" && len(used) > 3 {
				t.Errorf("%s: a file of holes and 12 KiB takes %s KiB", name, used)
			}
			execute(t, "sh", "-euc", script, name, into, filepath.Join(back, name))
			sameUnion(t, name+" out of the workspace", want, readUnion(t, filepath.Join(back, name)))
			// And from one place of it to another.
			execute(t, "sh", "-euc", script, name, into, w.path("srv", name))
			sameUnion(t, name+" within the workspace", want, readUnion(t, w.path("srv", name)))
		}
	})
}

// TestProgramSync: rsync makes one image of another, in place: lower files are
// replaced, changed and deleted, and their hard links are those of the other.
func TestProgramSync(t *testing.T) {
	t.Parallel()
	to := shared.set.Tree("nginx")
	want := readUnion(t, to)
	old := time.Unix(1_000_000_000, 5)
	eachEngine(t, func(t *testing.T, engine string) {
		w := newWorkspace(t, engine, "debian")
		// Of these rsync finds that they are not as they should be.
		for _, name := range []string{"usr/bin/perl", "usr/share/zoneinfo/Europe/Berlin", "usr/bin/bash"} {
			fatal(t, os.Chtimes(w.path(name), old, old))
		}
		fatal(t, os.RemoveAll(w.path("usr/share/locale")))
		fatal(t, os.RemoveAll(w.path("usr/share/doc")))
		fatal(t, os.WriteFile(w.path("usr/share/doc"), nil, 0o644))
		execute(t, "rsync", "-aHAX", "--numeric-ids", "--delete", "--inplace", "--no-whole-file", to+"/", w.dir+"/")
		got := w.settled(t, "")
		sameUnion(t, "after rsync", filtered(want, notMany), filtered(got, notMany))
		if engine == "fuse" { // the kernel's overlayfs parts hard links
			sameUnion(t, "after rsync", want, got)
		}
		again := execute(t, "rsync", "-aHAXn", "--numeric-ids", "--delete", "--itemize-changes", to+"/", w.dir+"/")
		if engine == "fuse" && again != "" {
			t.Errorf("after rsync there is more to be done:\n%.2000s", again)
		}
	})
}

// notMany keeps what has one name.
func notMany(_ string, e tree.Entry) bool {
	return e.Mode&unix.S_IFMT == unix.S_IFDIR || e.Link == "" && e.Nlink < 2
}
