//go:build integration

package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/tree"
)

// service is a program that serves /srv/page at 127.0.0.1:8080 when conf holds config.
type service struct {
	pkg          string // installs it; the image of that name has what it needs
	image        string
	conf, config string
	dirs         []string // are written to while it runs
	// start runs it in the foreground, and quit is the signal that ends it.
	start, quit string
}

// services are what the test images are made for.
var services = map[string]service{
	"nginx": {
		pkg: "nginx", image: "nginx",
		conf:   "etc/nginx/conf.d/here.conf",
		config: "server { listen 127.0.0.1:8080; root /srv; }\n",
		dirs:   []string{"run", "var/log/nginx", "var/lib/nginx"},
		start:  "nginx -t >&2; exec nginx -g 'daemon off;'",
		quit:   "QUIT",
	},
	"httpd": {
		pkg: "apache2", image: "httpd",
		conf: "etc/apache2/conf-enabled/here.conf",
		config: "Listen 127.0.0.1:8080\n<VirtualHost 127.0.0.1:8080>\nDocumentRoot /srv\n" +
			"<Directory /srv>\nRequire all granted\n</Directory>\n</VirtualHost>\n",
		dirs:  []string{"run", "var/log/apache2"},
		start: `. /etc/apache2/envvars; mkdir -p /run/lock "$APACHE_RUN_DIR" "$APACHE_LOCK_DIR"; apache2 -t >&2; exec apache2 -DFOREGROUND`,
		quit:  "TERM",
	},
}

// debs is a repository of the packages that a service's image has more than the base.
type debs struct {
	dir   string
	names []string
	files tree.Tree // what the packages hold, as dpkg-deb unpacks them
}

// stanza is one package of a dpkg database.
type stanza struct{ name, arch, text string }

// stanzas reads the dpkg database of the tree at root: what each package says of
// itself, without what the database adds.
func stanzas(t testing.TB, root string) map[string]stanza {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "var/lib/dpkg/status"))
	fatal(t, err)
	all := map[string]stanza{}
	for text := range strings.SplitSeq(strings.TrimSpace(string(b)), "\n\n") {
		var s stanza
		kept := false
		for line := range strings.Lines(text + "\n") {
			if !strings.HasPrefix(line, " ") {
				field, value, _ := strings.Cut(line, ": ")
				kept = field != "Status" && field != "Config-Version" && !strings.HasPrefix(line, "Conffiles:")
				switch field {
				case "Package":
					s.name = strings.TrimSpace(value)
				case "Architecture":
					s.arch = strings.TrimSpace(value)
				}
			}
			if kept {
				s.text += line
			}
		}
		all[s.name] = s
	}
	return all
}

// repack makes a package again of what it has in the tree at root, and unpacks it.
const repack = `root=$1 build=$2 deb=$3 unpacked=$4
tar -C "$root" --no-recursion --numeric-owner --xattrs --xattrs-include='*' -T "$build.list" -cf - |
	tar -C "$build" --numeric-owner --xattrs --xattrs-include='*' -xpf -
dpkg-deb --build -Zgzip -z1 "$build" "$deb"
dpkg-deb -x "$deb" "$unpacked"
rm -r "$build"`

// newDebs makes the repository. Nothing is fetched: the packages come out of the image.
func newDebs(t testing.TB, s service) *debs {
	t.Helper()
	root, base := shared.set.Tree(s.image), stanzas(t, shared.set.Tree("debian"))
	d := &debs{dir: t.TempDir()}
	fatal(t, os.Chmod(filepath.Dir(d.dir), 0o755))
	unpacked := t.TempDir()
	all := stanzas(t, root)
	var index bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if _, ok := base[name]; ok {
			continue
		}
		pkg := all[name]
		build, deb := filepath.Join(d.dir, name), filepath.Join(d.dir, name+".deb")
		pkg.spread(t, root, build)
		execute(t, "sh", "-euc", repack, "repack", root, build, deb, unpacked)
		fi, err := os.Stat(deb)
		fatal(t, err)
		sum, err := tree.Sum(deb)
		fatal(t, err)
		fmt.Fprintf(&index, "%sFilename: ./%s.deb\nSize: %d\nSHA256: %x\n\n", pkg.text, name, fi.Size(), sum)
		d.names = append(d.names, name)
	}
	if !slices.Contains(d.names, s.pkg) {
		t.Fatalf("the image %s has no %s, but %q", s.image, s.pkg, d.names)
	}
	fatal(t, os.WriteFile(filepath.Join(d.dir, "Packages"), index.Bytes(), 0o644))
	fatal(t, os.WriteFile(filepath.Join(d.dir, "sources.list"), []byte("deb [trusted=yes] copy:/mnt ./\n"), 0o644))
	d.files = underUsr(filtered(readUnion(t, unpacked), func(_ string, e tree.Entry) bool {
		return e.Mode&unix.S_IFMT != unix.S_IFDIR
	}))
	return d
}

// spread makes the control files of a package that is to be built in a directory,
// and beside it the list of the files that it has in the tree at root.
func (s stanza) spread(t testing.TB, root, build string) {
	t.Helper()
	control := filepath.Join(build, "DEBIAN")
	fatal(t, os.MkdirAll(control, 0o755))
	fatal(t, os.WriteFile(filepath.Join(control, "control"), []byte(s.text), 0o644))
	prefix := filepath.Join(root, "var/lib/dpkg/info", s.name)
	if _, err := os.Stat(prefix + ".list"); err != nil {
		prefix += ":" + s.arch
	}
	parts, err := filepath.Glob(prefix + ".*")
	fatal(t, err)
	for _, p := range parts {
		part := strings.TrimPrefix(p, prefix+".")
		if part == "list" {
			continue
		}
		b, err := os.ReadFile(p)
		fatal(t, err)
		fi, err := os.Stat(p)
		fatal(t, err)
		fatal(t, os.WriteFile(filepath.Join(control, part), b, fi.Mode()))
	}
	list, err := os.ReadFile(prefix + ".list")
	fatal(t, err)
	var names strings.Builder
	for line := range strings.Lines(string(list)) {
		name := strings.TrimPrefix(strings.TrimSpace(line), "/")
		if name == "." || isUsrLink(name) {
			continue
		}
		names.WriteString("./" + name + "\n")
	}
	fatal(t, os.WriteFile(build+".list", []byte(names.String()), 0o644))
}

// isUsrLink reports whether a name at the root is Debian's link into usr.
func isUsrLink(name string) bool {
	return slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, name)
}

// underUsr gives what packages call bin, sbin and lib the names that it has.
func underUsr(all tree.Tree) tree.Tree {
	moved := tree.Tree{}
	for name, e := range all {
		if first, _, _ := strings.Cut(name, "/"); isUsrLink(first) {
			name = "usr/" + name
		}
		if first, _, _ := strings.Cut(e.Link, "/"); isUsrLink(first) {
			e.Link = "usr/" + e.Link
		}
		moved[name] = e
	}
	return moved
}

// withRepository runs apt-get in a root; the repository is at its /mnt.
const withRepository = `root=$1 debs=$2; shift 2
mount --bind "$debs" "$root/mnt"
` + `set -- "$root" apt-get -q -y --no-install-recommends -o Dir::Etc::SourceList=/mnt/sources.list -o Dir::Etc::SourceParts=- "$@"
` + inRoot

// apt runs apt-get in the workspace.
func (w *workspace) apt(t testing.TB, d *debs, words ...string) {
	t.Helper()
	execute(t, alone(withRepository, append([]string{w.dir, d.dir}, words...)...)...)
}

// TestProgramApt: apt-get and dpkg install, verify and purge packages in a
// workspace; what is committed in between is an image that works. So the images nginx
// and httpd are made again by hand.
func TestProgramApt(t *testing.T) {
	t.Parallel()
	of := map[string]string{"fuse": "nginx", "kernel": "httpd"}
	eachEngine(t, func(t *testing.T, engine string) {
		s := services[of[engine]]
		d := newDebs(t, s)
		w := newWorkspace(t, engine, "debian")
		w.write(t, "usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")
		fatal(t, os.Chmod(w.path("usr/sbin/policy-rc.d"), 0o755))
		before := readUnion(t, w.dir)
		faults := w.inside(t, "sh", "-c", verify)
		verified := func() {
			t.Helper()
			if got := w.inside(t, "sh", "-c", verify); got != faults {
				t.Errorf("dpkg --audit and --verify:\n%s\nwant:\n%s", got, faults)
			}
		}
		w.apt(t, d, "update")
		w.apt(t, d, "install", s.pkg)
		verified()
		w.write(t, "srv/page", page())
		w.write(t, s.conf, s.config)
		all := w.settled(t, "")
		verified()
		sameUnion(t, "what was installed", d.files, filtered(all, func(name string, _ tree.Entry) bool {
			_, ok := d.files[name]
			return ok
		}))
		s.remade(t, w, all)
		fatal(t, errors.Join(os.Remove(w.path("srv/page")), os.Remove(w.path(s.conf))))

		purge := append([]string{"purge"}, d.names...)
		w.apt(t, d, purge...)
		d.purged(t, w)
		// And once more without apt, over what the first time has left.
		execute(t, alone(`mount --bind "$2" "$1/mnt"; set -- "$1" sh -c 'dpkg -i /mnt/*.deb'
`+inRoot, w.dir, d.dir)...)
		verified()
		w.apt(t, d, purge...)
		d.purged(t, w)
		asBefore(t, before, w.settled(t, ""))
	})
}

// verify finds faults with what is installed. The base has some too.
const verify = `dpkg --audit; dpkg --verify || :`

// purged holds that dpkg knows nothing of the packages any more.
func (d *debs) purged(t testing.TB, w *workspace) {
	t.Helper()
	if left := w.inside(t, "sh", "-c", "dpkg --audit; dpkg -l | tail -n +6 | grep -v ^ii || :"); left != "" {
		t.Errorf("after purge there is left:\n%s", left)
	}
}

// asBefore compares the workspace, with the packages gone, with what was there before:
// only what package managers keep for themselves may differ, what services
// leave on purge, and times of folders.
func asBefore(t testing.TB, before, after tree.Tree) {
	t.Helper()
	own := []string{"var/lib/dpkg/", "var/lib/apt/", "var/cache/", "var/log/", "etc/ld.so.cache", "var/www", "var/lib/apache2"}
	keep := func(name string, _ tree.Entry) bool {
		return !slices.ContainsFunc(own, func(p string) bool { return strings.HasPrefix(name, p) })
	}
	after = filtered(after, keep)
	for name, e := range after {
		if b, ok := before[name]; ok && e.Mode&unix.S_IFMT == unix.S_IFDIR {
			e.Mtime = b.Mtime
			after[name] = e
		}
	}
	sameUnion(t, "after purge", filtered(before, keep), after)
}

// serveOnce runs a service in a root that is read-only, and fetches a page from it.
const serveOnce = `root=$1 start=$2 quit=$3; shift 3
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for d; do mount -t tmpfs tmpfs "$root/$d"; done
ip link set lo up
chroot "$root" sh -ec "$start" >&2 &
pid=$!
curl -fsS --retry 100 --retry-delay 0 --retry-max-time 20 --retry-connrefused http://127.0.0.1:8080/page
kill -$quit $pid
wait $pid`

// page is a page to serve.
func page() string { return strings.Repeat("a page of the workspace\n", 50_000) }

// remade commits the workspace, into which the service was installed, and has it serve
// a page from a read-only mount of that image.
func (s service) remade(t testing.TB, w *workspace, want tree.Tree) {
	t.Helper()
	name := "example.com/" + s.image + ":remade"
	w.run(t, "commit", w.dir, name)
	dir := w.store.mount(t, name)
	sameUnion(t, "the image that was committed", want, readUnion(t, dir))
	words := append([]string{dir, s.start, s.quit}, s.dirs...)
	if got := execute(t, alone(serveOnce, words...)...); got != page() {
		t.Errorf("%s serves %d bytes %.100q, not the page of %d", s.pkg, len(got), got, len(page()))
	}
	w.umount(t, dir)
}
