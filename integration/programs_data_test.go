//go:build integration

package integration_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/laminafs/lamina/integration/tree"
)

// accounts has two processes move money between accounts while another looks that
// none is lost. Its words are the database, the number of transactions of each, and
// "new" to make it.
const accounts = `
import multiprocessing, random, sqlite3, sys
db, count, new = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["new"]

def connect():
    c = sqlite3.connect(db, timeout=100, isolation_level=None)
    if c.execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
        sys.exit("no WAL")
    c.execute("PRAGMA wal_autocheckpoint=50")
    return c

def total(c):
    return c.execute("SELECT sum(money), count(*) FROM account").fetchone()

def mover(seed):
    c, rng = connect(), random.Random(seed)
    for i in range(count):
        c.execute("BEGIN IMMEDIATE")
        a, b = rng.sample(range(500), 2)
        for account, sum in (a, -i), (b, i):
            c.execute("UPDATE account SET money = money + ? WHERE id = ?", (sum, account))
        c.execute("INSERT INTO log(who, text) VALUES (?, ?)", (seed, rng.randbytes(rng.randrange(6000))))
        c.execute("ROLLBACK" if i % 10 == 9 else "COMMIT")

if new:
    c = connect()
    c.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, money INTEGER)")
    c.execute("CREATE TABLE log(who INTEGER, text BLOB)")
    c.execute("BEGIN")
    c.executemany("INSERT INTO account VALUES (?, 1000)", ((i,) for i in range(500)))
    c.execute("COMMIT")
    c.close()
c = connect()
had = c.execute("SELECT count(*) FROM log").fetchone()[0]
c.close()
movers = [multiprocessing.Process(target=mover, args=(s,)) for s in (1, 2)]
for m in movers: m.start()
c = connect()
while any(m.is_alive() for m in movers):
    if total(c) != (500000, 500): sys.exit("lost: %s" % (total(c),))
for m in movers: m.join()
if any(m.exitcode for m in movers): sys.exit("a process failed")
if (got := c.execute("SELECT count(*) FROM log").fetchone()[0]) != had + 2 * (count - count // 10):
    sys.exit("%d entries, and there were %d" % (got, had))
print(total(c), c.execute("PRAGMA integrity_check").fetchall(), c.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])
`

// look reads a database and finds faults with it.
const look = `
import hashlib, sqlite3, sys
c = sqlite3.connect(sys.argv[1])
sum = hashlib.sha256("\n".join(c.iterdump()).encode()).hexdigest()
print(c.execute("PRAGMA integrity_check").fetchall(), sum)
`

// TestProgramSQLite: two processes write to one database, in WAL mode, that is new,
// and then to one that is in the image.
func TestProgramSQLite(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		w := newWorkspace(t, engine, "python")
		const right = "(500000, 500) [('ok',)] 0\n"
		work := func(words ...string) {
			t.Helper()
			if got := w.inside(t, append([]string{"python3", "/srv/accounts.py", "/srv/db/accounts"}, words...)...); got != right {
				t.Errorf("the database: %s, want %s", got, right)
			}
		}
		w.write(t, "srv/accounts.py", accounts)
		w.write(t, "srv/look.py", look)
		fatal(t, os.Mkdir(w.path("srv/db"), 0o755))
		work("150", "new")
		before := w.inside(t, "python3", "/srv/look.py", "/srv/db/accounts")
		w.settled(t, "srv/db")
		if got := w.inside(t, "python3", "/srv/look.py", "/srv/db/accounts"); got != before {
			t.Errorf("after a remount the database is %s, not %s", got, before)
		}
		w.run(t, "commit", w.dir, "example.com/db:1")
		w.run(t, "umount", "--rm", w.dir)
		w.image = "example.com/db:1"
		w.mount(t, engine)
		if got := w.inside(t, "python3", "/srv/look.py", "/srv/db/accounts"); got != before {
			t.Errorf("in an image the database is %s, not %s", got, before)
		}
		work("150")
		w.settled(t, "srv/db")
		work("20")
	})
}

// fio has random blocks written to a file and reads them back; it ends with an error
// if they are not what was written.
func fio(t testing.TB, file, engine string, size int64, more ...string) {
	t.Helper()
	execute(t, append([]string{
		"fio", "--name=verified", "--filename=" + file, "--ioengine=" + engine, "--rw=randwrite",
		fmt.Sprintf("--size=%d", size), "--verify=crc32c", "--verify_fatal=1",
		"--overwrite=0", "--fallocate=none", "--aux-path=" + t.TempDir(), "--output=/dev/null",
	}, more...)...)
}

// largest returns the name of the largest file of an image, and its size.
func largest(t testing.TB, image string) (name string, size int64) {
	t.Helper()
	for n, e := range shared.truth(t, image) {
		if e.Size > size && e.Nlink == 1 {
			name, size = n, e.Size
		}
	}
	return name, size
}

// after returns the sum of what a file has from an offset on.
func after(t testing.TB, file string, offset int64) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(file)
	fatal(t, err)
	defer func() { _ = f.Close() }()
	_, err = f.Seek(offset, io.SeekStart)
	fatal(t, err)
	h := sha256.New()
	_, err = io.Copy(h, f)
	fatal(t, err)
	return [sha256.Size]byte(h.Sum(nil))
}

// TestProgramFio: what fio writes, through mappings and without, to new files and to
// a part of the image's largest, is there when it reads it, after a remount too; the
// rest of the file is the image's.
func TestProgramFio(t *testing.T) {
	t.Parallel()
	name, length := largest(t, "debian")
	size := length / 2 // of which fio takes whole blocks
	kinds := map[string][]string{
		"mmap":      {"mmap", "--bs=4k"},
		"psync":     {"psync", "--bs=4k"},
		"unaligned": {"psync", "--bsrange=512-40k", "--bs_unaligned=1"},
		"synced":    {"psync", "--bs=64k", "--fsync=16"},
		"direct":    {"psync", "--bs=16k", "--direct=1"},
	}
	eachEngine(t, func(t *testing.T, engine string) {
		w := newWorkspace(t, engine, "debian")
		fatal(t, os.Mkdir(w.path("srv/fio"), 0o755))
		want := after(t, filepath.Join(shared.set.Tree("debian"), name), size)
		for kind, o := range kinds {
			fio(t, w.path("srv/fio", kind), o[0], 16<<20, o[1:]...)
			fio(t, w.path(name), o[0], size, o[1:]...)
			if got := after(t, w.path(name), size); got != want {
				t.Fatalf("%s: what fio wrote has changed the rest of %s", kind, name)
			}
		}
		sum, err := tree.Sum(w.path(name))
		fatal(t, err)
		w.settled(t, "srv/fio")
		if got, err := tree.Sum(w.path(name)); err != nil || got != sum {
			t.Errorf("after a remount %s is another: %v", name, err)
		}
		for kind, o := range kinds {
			if kind != "unaligned" { // where fio does not know its last blocks from those under them
				fio(t, w.path("srv/fio", kind), o[0], 16<<20, append(o[1:], "--verify_only")...)
			}
		}
	})
}

// compiled compares what Python has compiled with the sources: the words are the
// directories.
const compiled = `
import importlib.util, marshal, os, struct, sys
n = 0
for top in sys.argv[1:]:
    for dir, dirs, names in os.walk(top):
        for name in names:
            if not name.endswith(".py"): continue
            src = os.path.join(dir, name)
            st = os.stat(src)
            with open(importlib.util.cache_from_source(src), "rb") as f: data = f.read()
            if data[:16] != importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(st.st_mtime), st.st_size):
                sys.exit("%s: not of this source" % src)
            marshal.loads(data[16:])
            n += 1
print(n)
`

// TestProgramPython: Python compiles its library, which is in the image, again, makes
// an environment and an archive, and runs what it has made.
func TestProgramPython(t *testing.T) {
	t.Parallel()
	const main = `import email.message, asyncio, json, sys; print(json.dumps([sys.prefix, asyncio.run(asyncio.sleep(0, 1))]))`
	eachEngine(t, func(t *testing.T, engine string) {
		w := newWorkspace(t, engine, "python")
		library := strings.TrimSpace(w.inside(t, "python3", "-c", "import os; print(os.path.dirname(os.__file__))"))
		var dirs []string
		for _, d := range []string{"asyncio", "email", "json", "ctypes", "xml"} {
			dirs = append(dirs, library+"/"+d)
		}
		w.inside(t, append([]string{"python3", "-m", "compileall", "-q", "-f", "-j", "2"}, dirs...)...)
		w.write(t, "srv/app/__main__.py", main)
		w.write(t, "srv/compiled.py", compiled)
		w.inside(t, "python3", "-m", "zipapp", "-c", "-p", "/usr/bin/env python3", "-o", "/srv/app.pyz", "/srv/app")
		w.inside(t, "python3", "-m", "venv", "--without-pip", "--system-site-packages", "/srv/env")
		check := func() {
			t.Helper()
			if got := w.inside(t, append([]string{"python3", "/srv/compiled.py"}, dirs...)...); len(got) < 3 {
				t.Errorf("there are only %s compiled files", got)
			}
			if got := w.inside(t, "/srv/app.pyz"); got != "[\"/usr\", 1]\n" {
				t.Errorf("the archive prints %q", got)
			}
			if got := w.inside(t, "/srv/env/bin/python3", "/srv/app.pyz"); got != "[\"/srv/env\", 1]\n" {
				t.Errorf("in the environment the archive prints %q", got)
			}
		}
		check()
		w.settled(t, strings.TrimPrefix(library, "/"))
		w.settled(t, "srv")
		check()
	})
}
