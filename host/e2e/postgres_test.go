//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPostgresOnHostFolder: initdb in a folder of the host, with its owners and
// modes, and a server that finds all of it again after the machine was off.
func TestPostgresOnHostFolder(t *testing.T) {
	needFull(t)
	machine(t) // for its registry
	image := testImages(t, "postgres") + "/postgres"
	h := ownHome(t)
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c := h.berth()
	c.patience = long
	data := filepath.Join(h.dir, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "run", "-d", "--name", "db", "-v", data+":/var/lib/postgresql/data", image)
	psql := func(sql string) result { return c.exec("exec", "-u", "postgres", "db", "psql", "-tAc", sql) }
	ready := func() {
		t.Helper()
		eventually(t, "a database that answers", func() bool {
			if state := c.ok(t, "inspect", "-f", "{{.State.Status}}", "db"); state != "running" {
				t.Fatalf("it is %s:\n%s", state, c.exec("logs", "--tail", "30", "db"))
			}
			return psql("SELECT 1").code == 0
		})
	}
	ready()
	if r := psql("CREATE TABLE t (n int); INSERT INTO t SELECT generate_series(1, 1000)"); r.code != 0 {
		t.Fatalf("%s", r)
	}
	if got := c.ok(t, "exec", "db", "stat", "-c", "%U %a", "/var/lib/postgresql/data/PG_VERSION"); got != "postgres 600" {
		t.Errorf("in the container: %s", got)
	}
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); err != nil {
		t.Errorf("on the host: %v", err)
	}
	c.ok(t, "restart")
	c.ok(t, "start", "db")
	ready()
	if r := psql("SELECT sum(n) FROM t"); strings.TrimSpace(r.out) != "500500" {
		t.Errorf("after a restart of the machine: %s", r)
	}
	if got := c.ok(t, "logs", "db"); strings.Count(got, "initdb: made a database") != 1 {
		t.Errorf("a database was made again:\n%s", tail(got, 30))
	}
}
