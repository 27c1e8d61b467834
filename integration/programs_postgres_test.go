//go:build integration

package integration_test

import (
	"os"
	"path/filepath"
	"testing"
)

// serveTables runs PostgreSQL for one script of commands, as a user who is not root,
// and stops it as the third argument says.
const serveTables = `bin=$1 data=$2 stop=$3; shift 3
export PATH=$bin:$PATH PGHOST=$data PGDATABASE=postgres PGUSER=postgres
as="setpriv --reuid=65534 --regid=65534 --clear-groups env LC_ALL=C"
[ -e "$data/PG_VERSION" ] || $as initdb -D "$data" --data-checksums -A trust -U postgres -E UTF8 >&2
$as pg_ctl -D "$data" -w -t 60 -l "$data/log" -o "-c listen_addresses= -c unix_socket_directories=$data" start >&2
$as sh -euc "$1"
$as pg_ctl -D "$data" -w -t 60 -m "$stop" stop >&2`

// TestProgramPostgres: a database that crashed in a workspace is whole after a
// remount. It takes the machine's own PostgreSQL: hack/setup.sh installs none, and on
// a machine that has none there is nothing to be tested.
func TestProgramPostgres(t *testing.T) {
	t.Parallel()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	fatal(t, err)
	if len(found) == 0 {
		t.Log("there is no PostgreSQL on this machine")
		return
	}
	bin := filepath.Dir(found[len(found)-1])
	eachEngine(t, func(t *testing.T, engine string) {
		w := newWorkspace(t, engine, "debian")
		data := w.path("srv/pg")
		fatal(t, os.Mkdir(data, 0o700))
		fatal(t, os.Chown(data, 65534, 65534))
		run := func(stop, script string) string {
			t.Helper()
			return execute(t, alone(serveTables, bin, data, stop, script)...)
		}
		const count = `psql -Atc "SELECT count(*), sum(delta) = (SELECT sum(abalance) FROM pgbench_accounts) FROM pgbench_history"`
		got := run("immediate", "pgbench -q -i -s 1 2>/dev/null >&2; pgbench -n -c 4 -j 2 -t 100 >&2; "+count)
		if got != "400|t\n" {
			t.Errorf("of 400 transactions there are %q", got)
		}
		w.settled(t, "srv/pg")
		if again := run("fast", count); again != got {
			t.Errorf("after a crash and a remount there are %q", again)
		}
		w.settled(t, "srv/pg")
		execute(t, filepath.Join(bin, "pg_checksums"), "--check", "-D", data)
		run("fast", "psql -Atc 'VACUUM FULL'; pg_dump >/dev/null")
	})
}
