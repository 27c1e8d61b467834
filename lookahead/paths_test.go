package lookahead

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

func TestPaths(t *testing.T) {
	long := "/etc/" + strings.Repeat("x", longestPath-5)
	in := strings.Join([]string{
		"", "/etc/app.conf", "/usr/share/app/main.js", "no/path", "/", "/etc", "/etc/", "/etc//x", "/etc/../x",
		"/etc/%s.conf", "/a/b:/c/d", "/etc/a file", "/etc/caf\u00e9", "/bin/sh", "/usr/sbin/app", "/usr/share/bin/x",
		long, long + "y", "/etc/after", "/etc/cut",
	}, "\x00")
	want := []string{"/etc/app.conf", "/usr/share/app/main.js", long, "/etc/after"}
	if got := paths([]byte(in)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzPaths(f *testing.F) {
	f.Add([]byte("\x00/etc/passwd\x00/etc"))
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, name := range paths(p) {
			if len(name) > longestPath || !bytes.Contains(p, []byte("\x00"+name+"\x00")) {
				t.Errorf("%q", name)
			}
		}
	})
}

// cameFrom shows w a part of the file at path that is not its beginning.
func cameFrom(w *Watcher, m *image, path, content string) {
	key, b := m.begun(path)
	p := []byte(content)
	w.came(key, b.Off+b.Len/2, p)
	clear(p) // it is the cache's
}

// TestCame: what programs name is wished for, and nobody else's names are.
func TestCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		m.add(0, "/etc/app.conf", []byte("conf"))
		m.add(1, "/usr/share/app.js", []byte("script"))
		m.add(1, "/var/large", make([]byte, mostFile+1))
		w := watch(t, m)
		defer w.Close()
		strings := "\x00/etc/app.conf\x00/var/large\x00/etc/none\x00/usr/share/app.js\x00"
		cameFrom(w, m, "/bin/cut", strings)
		settle()
		if got := m.wished(); len(got) > 0 {
			t.Errorf("before it began: %q", got)
		}
		begin(w, m, "/bin/cut", "/bin/script")
		cameFrom(w, m, "/bin/script", strings)
		settle()
		if got := m.wished(); len(got) > 0 {
			t.Errorf("by a script: %q", got)
		}
		cameFrom(w, m, "/bin/cut", strings)
		settle()
		if got, want := m.wished(), []string{"/etc/app.conf", "/usr/share/app.js"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		for _, l := range m.layers {
			for _, v := range slices.Concat(l.wanted()...) {
				if v.Sure {
					t.Errorf("wish %+v", v)
				}
			}
		}
	})
}

// TestCameBounds: one program has so many names looked for, and so much fetched.
func TestCameBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		var small, large strings.Builder
		for i := range 2 * mostPaths {
			fmt.Fprintf(&small, "\x00/etc/f%03d", i)
			m.add(0, fmt.Sprintf("/etc/f%03d", i), []byte{1})
		}
		for i := range 2 * mostBytes / mostFile {
			fmt.Fprintf(&large, "\x00/var/f%03d", i)
			m.add(1, fmt.Sprintf("/var/f%03d", i), make([]byte, mostFile))
		}
		w := watch(t, m)
		defer w.Close()
		begin(w, m, "/bin/cut", "/bin/program")
		settle()
		before := len(m.wished())
		for range 2 {
			cameFrom(w, m, "/bin/cut", small.String()+"\x00")
			settle()
		}
		if got := len(m.wished()) - before; got != mostPaths {
			t.Errorf("%d small files wished for", got)
		}
		before = len(m.wished())
		cameFrom(w, m, "/bin/program", large.String()+"\x00")
		settle()
		if got := len(m.wished()) - before; got != mostBytes/mostFile {
			t.Errorf("%d large files wished for", got)
		}
	})
}
