package view_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/view"
)

// sample is an image of one layer that has all kinds of files.
func sample(t testing.TB) *view.Image {
	t.Helper()
	l := newLayer()
	l.root.Flags = 0
	l.dir("/bin", 0o755)
	su := l.file("/bin/su", 0o4755, "#!su")
	su.UID, su.GID = 0, 42
	l.put("/bin/sudo", su)
	l.link("/bin/sh", "busybox shell")
	l.dir("/dev", 0o755)
	l.put("/dev/null", &index.Node{Mode: syscall.S_IFCHR | 0o666, Mtime: 1e9, Rdev: index.Makedev(1, 3)})
	l.put("/dev/sda", &index.Node{Mode: syscall.S_IFBLK | 0o660, Mtime: 1e9, Rdev: index.Makedev(259, 100000)})
	l.put("/dev/fifo", &index.Node{Mode: syscall.S_IFIFO | 0o600, Mtime: 1e9})
	l.put("/dev/socket", &index.Node{Mode: syscall.S_IFSOCK | 0o600, Mtime: 1e9})
	l.dir("/empty", 0o700)
	l.dir("/etc", 0o750)
	passwd := l.file("/etc/passwd", 0o644, "root:x:0:0\n")
	passwd.MtimeNsec = 123456789
	passwd.Xattrs = []index.Xattr{{Name: "user.note", Value: []byte("a\x00b")}}
	l.link("/etc/link", "/etc/passwd")
	l.link("/etc/out", "../../../../etc/passwd")
	l.link("/etc/loop", "loop")
	l.link("/config", "etc")
	l.file("/odd/a b\n\\\x01\xffü:", 0o604, "")
	l.dir("/odd", 0o1777|syscall.S_ISGID).SetChild("a b\n\\\x01\xffü:", l.file("/x", 0o604, ""))
	l.root.RemoveChild("x")
	l.root.Child("odd").SetChild("d:d d", &index.Node{Mode: syscall.S_IFDIR | 0o711})
	sparse := l.put("/sparse", &index.Node{Mode: syscall.S_IFREG | 0o444, Size: 3<<20 + 17, Mtime: 1e9})
	sparse.Extents = []index.Extent{
		{FileOff: 1 << 20, Len: 4096, Off: l.add(strings.Repeat("data", 1024)), Device: 1},
		{FileOff: 3 << 20, Len: 17, Off: l.add("the end of a file"), Device: 1},
	}
	return stack(t, l)
}

const longList = `drwxr-xr-x 2 0  0       # 2001-09-09 01:46 bin
lrwxrwxrwx 1 0  0       3 2001-09-09 01:46 config -> etc
drwxr-xr-x 2 0  0       # 2001-09-09 01:46 dev
drwx------ 2 0  0       # 2001-09-09 01:46 empty
drwxr-x--- 2 0  0       # 2001-09-09 01:46 etc
drwxrwsrwt 3 0  0       # 2001-09-09 01:46 odd
-r--r--r-- 1 0  0 3145745 2001-09-09 01:46 sparse
`

func TestWriteList(t *testing.T) {
	m := sample(t)
	for _, c := range []struct {
		path string
		o    view.ListOptions
		want string
	}{
		{"/bin", view.ListOptions{}, "sh\nsu\nsudo\n"},
		{"bin/", view.ListOptions{Long: true}, `lrwxrwxrwx 1 0  0 13 2001-09-09 01:46 sh -> busybox\ shell
-rwsr-xr-x 2 0 42  4 2001-09-09 01:46 su
-rwsr-xr-x 2 0 42  4 2001-09-09 01:46 sudo
`},
		{"/dev", view.ListOptions{Long: true}, `prw------- 1 0 0           0 2001-09-09 01:46 fifo
crw-rw-rw- 1 0 0   1,      3 2001-09-09 01:46 null
brw-rw---- 1 0 0 259, 100000 2001-09-09 01:46 sda
srw------- 1 0 0           0 2001-09-09 01:46 socket
`},
		{"config", view.ListOptions{Long: true}, "lrwxrwxrwx 1 0 0 3 2001-09-09 01:46 config -> etc\n"},
		{"config", view.ListOptions{}, "link\nloop\nout\npasswd\n"},
		{"/etc/loop", view.ListOptions{}, "/etc/loop\n"},
		{"config/passwd", view.ListOptions{}, "config/passwd\n"},
		{"config/", view.ListOptions{}, "link\nloop\nout\npasswd\n"},
		{"/empty", view.ListOptions{}, ""},
		{"/odd", view.ListOptions{Recursive: true}, `/odd:
` + `a\ b\n\\\001\377ü:
d:d\ d

/odd/d\:d d:
`},
	} {
		var b bytes.Buffer
		if err := m.WriteList(&b, []string{c.path}, c.o); err != nil || b.String() != c.want {
			t.Errorf("list %s %+v: %v\n%s\nwant\n%s", c.path, c.o, err, &b, c.want)
		}
	}
}

// TestWriteListOfSeveral: files come first, without a heading, and a blank line is
// between groups; what is not there does not keep the others back.
func TestWriteListOfSeveral(t *testing.T) {
	m := sample(t)
	for _, c := range []struct {
		paths []string
		o     view.ListOptions
		want  string
	}{
		{[]string{"/bin", "/etc/passwd", "empty", "/etc/link"}, view.ListOptions{}, "/etc/link\n/etc/passwd\n\n/bin:\nsh\nsu\nsudo\n\n/empty:\n"},
		{[]string{"/odd", "/bin"}, view.ListOptions{Recursive: true}, "/bin:\nsh\nsu\nsudo\n\n/odd:\na\\ b\\n\\\\\\001\\377ü:\nd:d\\ d\n\n/odd/d\\:d d:\n"},
		{[]string{"/bin/su", "/etc/passwd"}, view.ListOptions{Long: true}, "-rwsr-xr-x 2 0 42  4 2001-09-09 01:46 /bin/su\n" +
			"-rw-r--r-- 1 0  0 11 2001-09-09 01:46 /etc/passwd\n"},
	} {
		var b bytes.Buffer
		if err := m.WriteList(&b, c.paths, c.o); err != nil || b.String() != c.want {
			t.Errorf("list %q %+v: %v\n%s\nwant\n%s", c.paths, c.o, err, &b, c.want)
		}
	}
	var b bytes.Buffer
	if err := m.WriteList(&b, []string{"/none", "/empty", "/bin/su"}, view.ListOptions{}); !errors.Is(err, fs.ErrNotExist) || b.String() != "/bin/su\n\n/empty:\n" {
		t.Errorf("%v\n%s", err, &b)
	}
}

func TestEscape(t *testing.T) {
	for name, want := range map[string]string{"a b": "a b", "a\nb\\": `a\nb\\`, "\x1b[31mü\xff": `\033[31mü\377`, "\u009b": `\302\233`} {
		if got := view.Escape(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

// TestWriteListAsLs compares a listing with that of ls, of a copy on the disk.
func TestWriteListAsLs(t *testing.T) {
	ls, err := exec.LookPath("ls")
	if err != nil {
		t.Fatal(err)
	}
	m, dir := sample(t), t.TempDir()
	var skipped *view.SkippedError
	if err := m.Copy(t.Context(), "/", dir, view.CopyOptions{Owners: true}); err != nil && !errors.As(err, &skipped) {
		t.Fatal(err)
	}
	root := skipped == nil
	for _, sub := range []string{"bin", "etc", "odd", "empty", "dev", "."} {
		if !root && (sub == "dev" || sub == "." || sub == "bin") {
			continue // another owner and no devices: not the same
		}
		cmd := exec.CommandContext(t.Context(), ls, "-lnRAb", "--time-style=long-iso", sub)
		cmd.Dir = dir
		cmd.Env = []string{"LC_ALL=C.UTF-8", "TZ=UTC"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := m.WriteList(&b, []string{"/" + sub}, view.ListOptions{Recursive: true, Long: true}); err != nil {
			t.Fatal(err)
		}
		if got, want := alike(b.String(), root), alike(string(out), root); got != want {
			t.Errorf("%s: got\n%s\nls has\n%s", sub, got, want)
		}
	}
}

// alike leaves out what a file system decides: totals, sizes and link counts
// of directories; and owners, unless they were kept.
func alike(list string, owners bool) string {
	var b strings.Builder
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "total":
			continue
		case len(f) < 6 && strings.HasSuffix(line, ":\n"):
			line = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(line, "/"), "."), "/")
			b.WriteString(line)
			continue
		case len(f) < 6:
		case f[0][0] == 'd':
			f[1], f[4] = "#", "#"
		}
		if len(f) > 6 {
			f[0] = strings.TrimRight(f[0], ".+")
			if !owners {
				f[2], f[3] = "#", "#"
				f[0] = strings.ReplaceAll(strings.ReplaceAll(f[0], "s", "x"), "S", "-")
			}
		}
		b.WriteString(strings.Join(f, " ") + "\n")
	}
	return b.String()
}

func TestListLong(t *testing.T) {
	var b bytes.Buffer
	if err := sample(t).WriteList(&b, []string{"/"}, view.ListOptions{Long: true}); err != nil {
		t.Fatal(err)
	}
	if got, want := alike(b.String(), true), alike(longList, true); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestListRecursiveOrder(t *testing.T) {
	l := newLayer()
	for _, p := range []string{"b/x/1", "b/y", "a/2", "c"} {
		l.file(p, 0o644, "")
	}
	var got []string
	for e, err := range stack(t, l).List("", view.ListOptions{Recursive: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Path)
	}
	if s := strings.Join(got, " "); s != "/a /b /c /a/2 /b/x /b/y /b/x/1" {
		t.Error(s)
	}
}

func TestListErrors(t *testing.T) {
	m := sample(t)
	for path, want := range map[string]error{
		"/none": fs.ErrNotExist, "/etc/none/x": fs.ErrNotExist, "/etc/passwd/x": syscall.ENOTDIR,
		"/etc/passwd/": syscall.ENOTDIR, "/etc/loop/": syscall.ELOOP,
	} {
		n := 0
		for _, err := range m.List(path, view.ListOptions{}) {
			if n++; !errors.Is(err, want) {
				t.Errorf("list %s: %v, want %v", path, err, want)
			}
		}
		if n != 1 {
			t.Errorf("list %s: %d results", path, n)
		}
		if err := m.WriteList(&bytes.Buffer{}, []string{path}, view.ListOptions{}); !errors.Is(err, want) {
			t.Errorf("write list %s: %v, want %v", path, err, want)
		}
	}
}

func TestEntryJSON(t *testing.T) {
	m := sample(t)
	var lines []string
	for _, dir := range []string{"/odd", "/dev"} {
		for e, err := range m.List(dir, view.ListOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, string(b))
		}
	}
	for i, want := range map[int]string{
		0: `{"path":"/odd/a b\n\\\u0001\ufffdü:","name":"a b\n\\\u0001\ufffdü:","type":"file","mode":"0604","size":0,"uid":0,"gid":0,` +
			`"mtime":"2001-09-09T01:46:40Z","nlink":1,"pathBase64":"L29kZC9hIGIKXAH/w7w6"}`,
		3: `{"path":"/dev/null","name":"null","type":"char device","mode":"0666","size":0,"uid":0,"gid":0,` +
			`"mtime":"2001-09-09T01:46:40Z","nlink":1,"major":1,"minor":3}`,
	} {
		if lines[i] != want {
			t.Errorf("got  %s\nwant %s", lines[i], want)
		}
	}
}

func TestCat(t *testing.T) {
	m := sample(t)
	hole := strings.Repeat("\x00", 1<<20)
	for path, want := range map[string]string{
		"/etc/passwd": "root:x:0:0\n", "etc/link": "root:x:0:0\n", "/etc/out": "root:x:0:0\n", "config/passwd": "root:x:0:0\n",
		"/sparse":                    hole + strings.Repeat("data", 1024) + (hole + hole)[4096:] + "the end of a file",
		"/odd/a b\n\\\x01\xffü:":     "",
		"/bin/../../etc/./passwd":    "root:x:0:0\n",
		"/config/../bin/sudo":        "#!su",
		"/../../bin//su":             "#!su",
		"/empty/../config/../bin/su": "#!su",
	} {
		var b bytes.Buffer
		if err := m.Cat(t.Context(), &b, path); err != nil || b.String() != want {
			t.Errorf("cat %q: %d bytes, %v, want %d bytes", path, b.Len(), err, len(want))
		}
	}
	for path, want := range map[string]error{
		"/etc": syscall.EISDIR, "/config": syscall.EISDIR, "": syscall.EISDIR, "/dev/null": syscall.EINVAL,
		"/none": fs.ErrNotExist, "/etc/loop": syscall.ELOOP, "/etc/passwd/": syscall.ENOTDIR, "/bin/sh": fs.ErrNotExist,
	} {
		if err := m.Cat(t.Context(), &bytes.Buffer{}, path); !errors.Is(err, want) {
			t.Errorf("cat %q: %v, want %v", path, err, want)
		}
	}
}
