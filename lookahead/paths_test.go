package lookahead

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/laminafs/lamina/index"
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
		m.add(0, "/bin/other", cutProgram())
		w := watch(t, m)
		defer w.Close()
		begin(w, m, "/bin/cut", "/bin/other")
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
		cameFrom(w, m, "/bin/other", large.String()+"\x00")
		settle()
		if got := len(m.wished()) - before; got != mostBytes/mostFile {
			t.Errorf("%d large files wished for", got)
		}
	})
}

// TestCameKept: who names no more is forgotten, and so is who began long ago: all are
// gone through for every chunk that comes.
func TestCameKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		var small, large strings.Builder
		for i := range mostPaths {
			fmt.Fprintf(&small, "\x00/etc/f%03d", i)
		}
		for i := range mostBytes / mostFile {
			fmt.Fprintf(&large, "\x00/var/f%03d", i)
			m.add(1, fmt.Sprintf("/var/f%03d", i), make([]byte, mostFile))
		}
		m.add(0, "/etc/last", []byte("conf"))
		var programs []string
		for i := range 2 * mostNamers {
			programs = append(programs, fmt.Sprintf("/bin/p%03d", i))
			m.add(0, programs[i], cutProgram())
		}
		w := watch(t, m)
		defer w.Close()
		key := m.layers[0].key
		begin(w, m, programs[:mostNamers]...)
		settle()
		cameFrom(w, m, programs[0], small.String()+"\x00")
		cameFrom(w, m, programs[1], large.String()+"\x00")
		settle()
		if n := len(w.elfs[key]); n != mostNamers-2 {
			t.Errorf("%d are listened to, %d have named all that they may", n, 2)
		}
		begin(w, m, programs[mostNamers:]...)
		settle()
		if n := len(w.elfs[key]); n != mostNamers {
			t.Errorf("%d are listened to", n)
		}
		before := len(m.wished())
		cameFrom(w, m, programs[2], "\x00/etc/last\x00")
		settle()
		if got := m.wished()[before:]; len(got) > 0 {
			t.Errorf("one that began long ago: %q", got)
		}
		cameFrom(w, m, programs[len(programs)-1], "\x00/etc/last\x00")
		settle()
		if got := m.wished(); !slices.Contains(got, "/etc/last") {
			t.Errorf("the latest one: %q", got)
		}
	})
}

// TestCameBehind: what lies behind a program in one chunk is not its own.
func TestCameBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		m.add(0, "/etc/mine", []byte("conf"))
		m.add(0, "/etc/other", []byte("conf"))
		w := watch(t, m)
		defer w.Close()
		begin(w, m, "/bin/cut")
		key, b := m.begun("/bin/cut")
		p := make([]byte, b.Len)
		copy(p[10:], "\x00/etc/mine\x00")
		copy(p[b.Len-90:], "\x00/etc/other\x00")
		w.came(key, b.Off+100, p)
		settle()
		if got, want := m.wished(), []string{"/etc/mine"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// TestCameClose: after Close nobody looks into the tree, whose index may be
// unmapped.
func TestCameClose(t *testing.T) {
	for range 20 {
		m := someImage()
		path := filepath.Join(t.TempDir(), "index")
		tree := &index.Tree{Root: m.root, Devices: []index.Device{{Size: 1 << 30}, {Size: 1 << 30}}}
		if err := tree.Write(path); err != nil {
			t.Fatal(err)
		}
		x, err := index.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		w, s := New(), sceneOf(x, m.layers...)
		w.Watch(s.tree, s.layers)
		key, b := m.begun("/bin/cut")
		var names strings.Builder
		for i := range mostPaths {
			fmt.Fprintf(&names, "\x00/etc/f%03d", i)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 50 {
					w.mu.Lock()
					w.listen(key, b) // its budget is used up each time
					w.mu.Unlock()
					cameFrom(w, m, "/bin/cut", names.String()+"\x00")
				}
			})
		}
		time.Sleep(time.Millisecond)
		w.Close()
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}
