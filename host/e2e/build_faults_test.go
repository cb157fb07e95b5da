//go:build linux

package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// TestBuildEngineKilled: the engine dies in the middle of a step. The step dies with
// it, what was built before is there, and the build can be repeated.
func TestBuildEngineKilled(t *testing.T) {
	h := machine(t)
	c := h.berth()
	dir := buildContext(t, map[string]string{
		"Dockerfile": "FROM hello\nRUN cat /proc/sys/kernel/random/uuid > /early\nARG WAIT\nRUN : killed-engine; [ -z \"$WAIT\" ] || sleep 600; :\nCMD cat /early\n",
	})
	c.ok(t, "build", "-t", "e2e-killed", dir)
	early := c.ok(t, "run", "--rm", "e2e-killed")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := c.command(ctx, "build", "--build-arg", "WAIT=1", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.stepRuns(t, "killed-engine")
	c.exec("ssh", "--", "kill -9 $(pidof berth-guest)")
	if err := cmd.Wait(); err == nil {
		t.Error("the client says that the build succeeded")
	}
	eventually(t, "the engine's return", func() bool { return c.exec("version").code == 0 })
	h.noSteps(t)
	c.ok(t, "build", "-t", "e2e-killed", dir)
	if got := c.ok(t, "run", "--rm", "e2e-killed"); got != early {
		t.Errorf("the step that had ended before ran again: %q, want %q", got, early)
	}
}

// TestBuildHugeDockerfile: a Dockerfile that is too large to read is refused.
func TestBuildHugeDockerfile(t *testing.T) {
	h := machine(t)
	sizes := []int64{17 << 20}
	if os.Getenv("BERTH_FULL") == "1" {
		sizes = append(sizes, 1<<30)
	}
	for _, size := range sizes {
		dir := buildContext(t, map[string]string{"Dockerfile": ""})
		if err := os.Truncate(filepath.Join(dir, "Dockerfile"), size); err != nil {
			t.Fatal(err)
		}
		h.builders(t)[1].fails(t, "exceeds maximum allowed size", "build", dir)
		h.berth().ok(t, "version")
	}
}

// TestBuildRegistryDies: a registry that goes away during a push fails the build,
// and takes nothing but the push.
func TestBuildRegistryDies(t *testing.T) {
	needFull(t) // the push is repeated for a minute
	h := machine(t)
	target, _ := url.Parse("http://" + suite.registry.addr)
	var dead atomic.Bool
	proxy := httputil.NewSingleHostReverseProxy(target)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if dead.Load() || strings.Contains(r.URL.Path, "/blobs/uploads/") && r.Method != http.MethodPost {
			dead.Store(true)
			panic(http.ErrAbortHandler)
		}
		proxy.ServeHTTP(w, r)
	}))
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	ref := "localhost:" + port + "/dies:1"
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN cat /proc/sys/kernel/random/uuid > /u\n"})
	c := h.berth()
	r := c.exec("build", "--push", "-t", ref, dir)
	if r.code == 0 || r.code == -1 || !dead.Load() {
		t.Errorf("the push should have failed by itself: %s", r)
	}
	h.noSteps(t)
	dead.Store(true)
	c.ok(t, "build", "-t", "e2e-survives", dir)
	c.ok(t, "run", "--rm", "e2e-survives", "cat", "/u")
}

// TestBuildDiskFull: a step that fills the disk fails alone.
func TestBuildDiskFull(t *testing.T) {
	needFull(t)
	h := ownHome(t)
	h.bootWith(t, "disk: 1GiB\n")
	c := h.berth()
	dir := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN cat /dev/zero > /big\n"})
	c.fails(t, "No space left", "build", dir)
	h.noSteps(t)
	eventually(t, "room on the disk once the failed step's files are gone", func() bool {
		return c.ok(t, "ssh", "--", `df -m /var/lib/berth | awk 'END { print ($4 > 300) }'`) == "1"
	})
	dir = buildContext(t, map[string]string{"Dockerfile": "FROM hello\nRUN echo fine > /small\nCMD cat /small\n"})
	c.ok(t, "build", "-t", "small", dir)
	if got := c.ok(t, "run", "--rm", "small"); got != "fine" {
		t.Errorf("the image made afterwards prints %q", got)
	}
}
