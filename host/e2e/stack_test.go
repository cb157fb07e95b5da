//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// composeStock is compose's own program, which finds the machine by its context.
func (h *home) composeStock() cli {
	c := h.docker()
	c.name, c.bin = "docker-compose", filepath.Join(root, "bin", "tools", "docker-compose")
	return c
}

// testImages builds the named images where they are missing, and pushes them to the
// test registry. It returns the registry's name in references.
func testImages(t testing.TB, names ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append([]string{"run", "./scripts/testimages", "-push", suite.registry.addr}, names...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("test images: %v\n%s", err, out)
	}
	return strings.TrimSuffix(suite.registry.image(""), "/")
}

// TestStack: a real stack lives its life with both composes.
func TestStack(t *testing.T) {
	needFull(t)
	h := machine(t)
	registry := testImages(t, "postgres", "redis", "nginx", "service")
	for _, c := range []cli{h.composeBerth(), h.composeStock()} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "stack"))); err != nil {
				t.Fatal(err)
			}
			c := compose(c, dir, "REGISTRY="+registry)
			c.patience = long
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("%s%s", c.exec("ps", "-a"), c.exec("logs", "--tail", "20"))
				}
				c.exec("--profile", "tools", "down", "-v", "--timeout", "1")
			})
			c.ok(t, "up", "-d", "--wait")
			s := &stack{c: c, dir: dir, url: "http://" + c.ok(t, "port", "web", "8000")}
			t.Run("serves", s.serves)
			t.Run("scales", s.scales)
			t.Run("exec and logs", s.execAndLogs)
			t.Run("profiles", s.profiles)
			t.Run("watch", s.watch)
			t.Run("keeps its data", s.keepsData)
			c.ok(t, "--profile", "tools", "down", "-v", "--timeout", "10")
			nothingOf(t, h, "stack")
		})
	}
}

type stack struct {
	c        cli
	dir, url string
}

// visited is the service's answer.
type visited struct {
	Host, Greeting string
	Count, Rows    int `json:",string"`
}

func (s *stack) visit(t testing.TB) visited {
	t.Helper()
	var v visited
	eventually(t, "an answer of the service through nginx", func() bool {
		resp, err := http.Get(s.url + "/api/visit")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK && json.Unmarshal(text, &v) == nil
	})
	return v
}

func (s *stack) serves(t *testing.T) {
	if got := get(t, s.url+"/"); got != "<p>static</p>\n" {
		t.Errorf("a file of the host: %q", got)
	}
	a, b := s.visit(t), s.visit(t)
	if a.Greeting != "good day" || a.Count >= b.Count || a.Rows >= b.Rows {
		t.Errorf("visits: %+v, %+v", a, b)
	}
	if r := s.c.exec("exec", "-T", "cache", "bash", "-c", "exec 3<>/dev/tcp/1.1.1.1/80"); r.code == 0 {
		t.Errorf("an internal network reaches the world")
	}
}

func (s *stack) scales(t *testing.T) {
	s.c.ok(t, "up", "-d", "--wait", "--no-recreate", "--scale", "service=3")
	hosts := map[string]bool{}
	eventually(t, "answers of three services", func() bool {
		hosts[s.visit(t).Host] = true
		return len(hosts) == 3
	})
	s.c.ok(t, "scale", "service=1")
	if got := strings.Fields(s.c.ok(t, "ps", "-q", "service")); len(got) != 1 {
		t.Errorf("scaled down to %d", len(got))
	}
	s.visit(t)
}

func (s *stack) execAndLogs(t *testing.T) {
	rows := s.visit(t).Rows
	if got := s.c.ok(t, "exec", "-T", "-u", "postgres", "db", "psql", "-tAc", "SELECT count(*) FROM visits"); got != strconv.Itoa(rows) {
		t.Errorf("psql counts %q, the service %d", got, rows)
	}
	if got := s.c.ok(t, "logs", "--no-color", "service"); !strings.Contains(got, "/visit") {
		t.Errorf("logs:\n%s", tail(got, 20))
	}
	if got := s.c.ok(t, "top", "db"); !strings.Contains(got, "postgres") {
		t.Errorf("top:\n%s", got)
	}
	s.c.ok(t, "restart", "cache")
	s.visit(t)
}

func (s *stack) profiles(t *testing.T) {
	if got := s.c.ok(t, "ps", "-a", "--services"); strings.Contains(got, "tool") {
		t.Errorf("a service of another profile is there: %q", got)
	}
	if r := s.c.exec("--profile", "tools", "run", "--rm", "-T", "tool"); r.code != 0 || strings.TrimSpace(r.out) == "" {
		t.Errorf("%s", r)
	}
}

// watch: a change on the host is in the container, and another restarts it.
func (s *stack) watch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cmd := s.c.command(ctx, "watch", "--no-up", "web")
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		cmd.Wait()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("watch said:\n%s", text)
		}
	}()
	n := 0
	eventually(t, "the changed file in the container", func() bool {
		if n++; n%20 == 1 { // again, as the first may come before the watch
			writeFile(t, filepath.Join(s.dir, "live", "page.txt"), fmt.Sprint("changed ", n))
		}
		resp, err := http.Get(s.url + "/live/page.txt")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return strings.HasPrefix(string(text), "changed")
	})
	started := func() string {
		id := s.c.ok(t, "ps", "-aq", "web")
		b := cli{name: "berth", bin: filepath.Join(root, "bin", "berth"), env: s.c.env}
		return b.ok(t, "inspect", "-f", "{{.State.StartedAt}}", id)
	}
	before := started()
	writeFile(t, filepath.Join(s.dir, "settings", "level"), "2")
	eventually(t, "a restart", func() bool { return started() != before })
	s.url = "http://" + s.c.ok(t, "port", "web", "8000")
}

// keepsData: volumes outlive a down.
func (s *stack) keepsData(t *testing.T) {
	before := s.visit(t)
	s.c.ok(t, "down", "--timeout", "30")
	s.c.ok(t, "up", "-d", "--wait")
	s.url = "http://" + s.c.ok(t, "port", "web", "8000")
	if after := s.visit(t); after.Rows <= before.Rows {
		t.Errorf("%+v, and after down and up %+v", before, after)
	}
}

// writeFile writes a file of a project anew.
func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
