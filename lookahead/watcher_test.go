package lookahead

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/laminafs/lamina/cache"
)

// watch returns a Watcher of m. In a bubble of synctest, where these tests run,
// time stands still until everything waits, and a goroutine that is left behind
// is an error.
func watch(t *testing.T, m *image) *Watcher {
	t.Helper()
	w, s := New(), m.scene(t)
	w.Watch(s.tree, s.layers)
	return w
}

// begin tells w that the files at paths have begun.
func begin(w *Watcher, m *image, paths ...string) {
	for _, path := range paths {
		key, b := m.begun(path)
		b.Head = slices.Clone(b.Head)
		w.began(key, b)
		clear(b.Head) // it is the cache's
	}
}

// settle waits until nothing is under way.
func settle() {
	synctest.Wait()
	time.Sleep(10 * gather)
	synctest.Wait()
}

// calls counts the calls of Want.
func (m *image) calls() (list []int) {
	for _, l := range m.layers {
		list = append(list, len(l.wanted()))
	}
	return list
}

// wished names what was wished for, in the order of the layers.
func (m *image) wished() []string {
	var wishes []wish
	for i, l := range m.layers {
		for _, call := range l.wanted() {
			slices.SortFunc(call, func(a, b cache.Wish) int { return cmp.Compare(a.Off, b.Off) })
			for _, v := range call {
				wishes = append(wishes, wish{extents: extentsOf(i, v.Off, v.Len)})
			}
		}
	}
	return m.paths(wishes)
}

// cutProgram is a program of which nothing is known, with room for names.
func cutProgram() []byte {
	return append([]byte("\x7fELF\x02\x01\x01 and nothing that is known"), make([]byte, 64<<10)...)
}

// someImage has a program, its libraries and two modules in two layers.
func someImage() *image {
	m := newImage(2)
	m.add(0, "/bin/program", (&binaryFile{interp: "/lib/ld-musl-x86_64.so.1", needed: []string{"liba.so", "libb.so"}, change: notLinked}).bytes())
	m.add(0, "/bin/script", []byte("#!/bin/sh\n"+strings.Repeat("# nothing\n", 10)))
	m.add(0, "/bin/short", []byte("\x7fELF"))
	m.add(0, "/bin/cut", cutProgram())
	m.add(0, "/lib/ld-musl-x86_64.so.1", []byte("linker"))
	m.add(1, "/lib/liba.so", []byte("a"))
	m.add(1, "/lib/libb.so", []byte("b"))
	m.module(1, 12, "/app/main.py", importing{name: "one"})
	m.module(1, 12, "/app/one.py")
	return m
}

func TestWatcher(t *testing.T) {
	for _, sure := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			m := someImage()
			w := watch(t, m)
			defer w.Close()
			for path, f := range m.files {
				f.sure = sure
				m.files[path] = f
			}
			begin(w, m, "/bin/program")
			settle()
			want := []string{"/lib/ld-musl-x86_64.so.1", "/lib/liba.so", "/lib/libb.so"}
			if got := m.wished(); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
			begin(w, m, "/app/main.py")
			settle()
			if got, want := m.wished(), append(want, "/app/one.py"); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
			for _, l := range m.layers {
				for _, v := range slices.Concat(l.wanted()...) {
					if !v.Ends || v.Sure != sure {
						t.Errorf("wish %+v", v)
					}
				}
			}
		})
	}
}

// TestWatcherBegan: the exported way in is the same.
func TestWatcherBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		m.layers[0].key = new(cache.Layer).Key()
		w := watch(t, m)
		defer w.Close()
		_, b := m.begun("/bin/program")
		w.Began(new(cache.Layer), b)
		settle()
		if got := m.wished(); len(got) != 3 {
			t.Errorf("%q", got)
		}
	})
}

// TestWatcherParts: parts of the file itself are wished for in its own layer.
func TestWatcherParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		m.add(1, "/bin/linked", (&binaryFile{}).bytes())
		w := watch(t, m)
		defer w.Close()
		begin(w, m, "/bin/linked")
		settle()
		f := m.files["/bin/linked"]
		got := m.layers[1].wanted()
		if want := (cache.Wish{Off: f.off, Len: f.len, Sure: true}); len(got) != 1 || len(got[0]) != 1 || got[0][0] != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	})
}

// TestWatcherNothing: what is not understood, or not known, does nothing.
func TestWatcherNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		// An empty library is a wish for nothing.
		m.add(0, "/bin/odd", (&binaryFile{needed: []string{"libempty.so"}, change: notLinked}).bytes())
		put(m.root, "/lib/libempty.so", emptyFile())
		w := watch(t, m)
		defer w.Close()
		begin(w, m, "/bin/script", "/bin/short", "/bin/cut", "/bin/odd", "/app/one.py")
		_, b := m.begun("/bin/program")
		w.began("of another image", b)
		w.began("", b)
		w.began(m.layers[1].key, b) // no file begins there
		b.Head = nil
		w.began(m.layers[0].key, b)
		w.began(m.layers[0].key, cache.Begun{})
		settle()
		if got := m.wished(); len(got) > 0 {
			t.Errorf("%q", got)
		}
	})
}

// TestWatcherEarly: before there is a tree nothing is done, nor kept for later.
func TestWatcherEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		w := New()
		defer w.Close()
		begin(w, m, "/bin/program", "/app/main.py")
		settle()
		s := m.scene(t)
		w.Watch(s.tree, s.layers)
		settle()
		if got := m.wished(); len(got) > 0 || m.layers[0].tries > 0 || m.layers[1].tries > 0 {
			t.Errorf("%q", got)
		}
		begin(w, m, "/app/main.py")
		settle()
		if got := m.wished(); !slices.Equal(got, []string{"/app/one.py"}) {
			t.Errorf("%q", got)
		}
	})
}

// TestWatcherGathers: what is wished for at about the same time comes to each
// layer in one call.
func TestWatcherGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 100
		m := newImage(3)
		for i := range many {
			m.module(0, 12, fmt.Sprintf("/app%d/main.py", i), importing{level: 1, name: "one"}, importing{level: 1, name: "two"})
			m.module(1, 12, fmt.Sprintf("/app%d/one.py", i))
			m.module(2, 12, fmt.Sprintf("/app%d/two.py", i))
		}
		w := watch(t, m)
		defer w.Close()
		for i := range many - 1 {
			begin(w, m, fmt.Sprintf("/app%d/main.py", i))
		}
		synctest.Wait()
		if got := m.calls(); !slices.Equal(got, []int{0, 0, 0}) {
			t.Errorf("%v calls at once", got)
		}
		settle()
		if got, n := m.calls(), len(m.wished()); !slices.Equal(got, []int{0, 1, 1}) || n != 2*(many-1) {
			t.Errorf("%v calls, %d wishes", got, n)
		}
		begin(w, m, fmt.Sprintf("/app%d/main.py", many-1))
		settle()
		if got, n := m.calls(), len(m.wished()); !slices.Equal(got, []int{0, 2, 2}) || n != 2*many {
			t.Errorf("%v calls, %d wishes, after one more", got, n)
		}
	})
}

// TestWatcherClosed: after Close nothing is done, nor was before for a Watcher
// that never had a tree.
func TestWatcherClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		New().Close()
		m := someImage()
		w := watch(t, m)
		w.Close()
		begin(w, m, "/bin/program", "/app/main.py")
		w.wish([]wish{{extents: extentsOf(0, 0, 1)}})
		settle()
		w.Close()
		if got := m.wished(); len(got) > 0 || m.layers[0].tries > 0 || m.layers[1].tries > 0 {
			t.Errorf("%q", got)
		}
	})
}

// TestWatcherCloseEndsReads: Close gives up reads, and waits until they are over.
func TestWatcherCloseEndsReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		for _, l := range m.layers {
			l.gate = make(chan struct{}) // the link is down
		}
		w := watch(t, m)
		begin(w, m, "/bin/program", "/app/main.py")
		settle()
		w.Close()
		if got := m.wished(); len(got) > 0 {
			t.Errorf("%q", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		m.layers[0].gate, m.layers[0].deaf = make(chan struct{}), true
		w := watch(t, m)
		begin(w, m, "/bin/program")
		synctest.Wait()
		over := make(chan struct{})
		go func() {
			w.Close()
			close(over)
		}()
		settle()
		select {
		case <-over:
			t.Error("Close did not wait for a read")
		default:
		}
		close(m.layers[0].gate)
		<-over
		if got := m.wished(); len(got) > 0 {
			t.Errorf("%q", got)
		}
	})
}

// TestCancelledAfterReading: what was found in a file is not looked for when
// nobody waits for it any more. There may be much of it.
func TestCancelledAfterReading(t *testing.T) {
	m := someImage()
	// Its names are what is read last.
	program := &binaryFile{needed: []string{"liba.so", "libb.so"}, change: notLinked}
	m.add(0, "/bin/program", program.bytes())
	s := m.scene(t)
	for path, look := range map[string]func(context.Context, *scene, file) ([]wish, error){
		"/app/main.py": imports,
		"/bin/program": libraries,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		f := m.files[path]
		l := m.layers[f.layer]
		l.then, l.tries = func() {}, 0
		if _, err := look(ctx, s, f); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		left := l.tries
		l.then = func() {
			if left--; left == 0 {
				cancel()
			}
		}
		if got, err := look(ctx, s, f); !errors.Is(err, context.Canceled) || got != nil || left != 0 {
			t.Errorf("%s: %v, %v, %d reads less", path, got, err, left)
		}
	}
}

// TestWatcherCloseWhileGathering: Close does not wait for more wishes, and what
// there is comes before it returns or never.
func TestWatcherCloseWhileGathering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		w := watch(t, m)
		began := time.Now()
		begin(w, m, "/bin/program")
		synctest.Wait()
		w.Close()
		if time.Since(began) > 0 {
			t.Error("Close waited for more wishes")
		}
		n := len(m.wished())
		settle()
		if got := len(m.wished()); got != n {
			t.Errorf("%d wishes, and after Close %d", n, got)
		}
	})
}

// TestWatcherBounded: not everything that begins is kept in memory at once.
func TestWatcherBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 3 * mostHeld / maxModule
		m := newImage(1)
		m.layers[0].gate = make(chan struct{})
		for i := range many {
			m.module(0, 12, fmt.Sprintf("/app/m%d.py", i), importing{name: "none"})
		}
		w := watch(t, m)
		for i := range many {
			key, b := m.begun(fmt.Sprintf("/app/m%d.py", i))
			b.Len = maxModule // as far as is known
			w.began(key, b)
		}
		synctest.Wait()
		if n := m.layers[0].reading(); n == 0 || n > mostHeld/maxModule {
			t.Errorf("%d of %d are read at once", n, many)
		}
		w.Close()
	})
}

// TestWatcherGuess: of a file that is only a guess nothing is fetched.
func TestWatcherGuess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := someImage()
		for path, f := range m.files {
			f.sure = false
			m.files[path] = f
		}
		for _, l := range m.layers {
			l.far = true
		}
		w := watch(t, m)
		defer w.Close()
		begin(w, m, "/bin/program", "/app/main.py")
		settle()
		if got := m.wished(); len(got) > 0 || m.layers[0].reading() > 0 || m.layers[1].reading() > 0 {
			t.Errorf("%q, and it was read", got)
		}
	})
}

// TestWatcherTogether: everything may happen at once.
func TestWatcherTogether(t *testing.T) {
	for range 20 {
		m := someImage()
		w, s := New(), m.scene(t)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if i == 0 {
					w.Watch(s.tree, s.layers)
				}
				for range 50 {
					begin(w, m, "/bin/program", "/app/main.py", "/bin/cut")
				}
				if i == 1 {
					time.Sleep(gather)
					w.Close()
				}
			})
		}
		wg.Wait()
		w.Close()
		n := len(m.wished())
		time.Sleep(2 * gather)
		if got := len(m.wished()); got != n {
			t.Errorf("%d wishes, and after Close %d", n, got)
		}
	}
}
