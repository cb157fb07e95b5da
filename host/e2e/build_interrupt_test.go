//go:build linux

package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// shows waits until the terminal was sent what matches want.
func (x *terminal) shows(t testing.TB, want string) {
	t.Helper()
	re := regexp.MustCompile(want)
	eventually(t, want, func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return re.MatchString(x.text.String())
	})
}

// interrupt presses Ctrl-C, and checks that the command ends as one that failed, or by
// the signal.
func (x *terminal) interrupt(t testing.TB) {
	t.Helper()
	if _, err := x.tty.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	if text, code := x.end(); code == 0 {
		t.Errorf("it ended with %d, and says\n%q", code, text)
	}
}

// busy returns how many connections the engine has, and what is on its way into the
// store.
func (h *home) busy(t testing.TB) (conns int, files string) {
	t.Helper()
	out := h.berth().ok(t, "ssh", "--", `ls -l /proc/$(pidof berth-guest)/fd | grep -c socket:; ls /var/lib/berth/images/content/ingest; `+
		`ls -d /var/lib/berth/images/snapshots/snapshots/new-* 2>/dev/null; true`)
	count, files, _ := strings.Cut(out, "\n")
	conns, err := strconv.Atoi(count)
	if err != nil {
		t.Fatal(out)
	}
	return conns, files
}

// TestBuildInterruptedAnywhere: Ctrl-C while the context is sent, while layers are made
// of what was built, and while they are pushed: nothing of the build goes on, and the
// engine holds nothing for it.
func TestBuildInterruptedAnywhere(t *testing.T) {
	needFull(t) // a step writes much, and a terminal is slow to tell
	h := machine(t)
	target, err := url.Parse("http://" + suite.registry.addr)
	if err != nil {
		t.Fatal(err)
	}
	var pushes atomic.Int64
	pushed := make(chan struct{}, 100)
	proxy := httputil.NewSingleHostReverseProxy(target)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPatch && r.Method != http.MethodPut {
			proxy.ServeHTTP(w, r)
			return
		}
		pushes.Add(1)
		defer pushes.Add(-1)
		_, _ = io.Copy(io.Discard, r.Body)
		pushed <- struct{}{}
		<-r.Context().Done()
	}))
	defer srv.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(srv.URL, "http://"), ":")
	large := buildContext(t, map[string]string{"Dockerfile": "FROM hello\nCOPY large /\n", "large": ""})
	if err := os.Truncate(filepath.Join(large, "large"), 16<<30); err != nil {
		t.Fatal(err)
	}
	written := buildIn(t, "FROM hello\nRUN dd if=/dev/zero of=/zeros bs=1M count=400 2>&1")
	unpushed := buildIn(t, "FROM hello\nRUN cat /proc/sys/kernel/random/uuid > /u")

	h.berth().ok(t, "build", "-q", buildIn(t, "FROM hello\nRUN true"))
	before, _ := h.busy(t)
	left := func(t *testing.T) {
		t.Helper()
		h.noSteps(t)
		eventually(t, "the end of all that was open", func() bool {
			conns, files := h.busy(t)
			return conns <= before && files == ""
		})
		if got := h.berth().ok(t, "buildx", "history", "ls", "--format", "{{.Status}}"); strings.Contains(got, "Running") {
			t.Errorf("a build goes on: %s", got)
		}
	}
	for _, c := range h.builders(t) {
		c.env = append(c.env, "BUILDKIT_PROGRESS=plain")
		on := func(t *testing.T, args ...string) *terminal {
			return c.onTerminal(t, append([]string{"build"}, args...)...)
		}
		t.Run(c.name+"/context", func(t *testing.T) {
			x := on(t, large)
			if c.classic {
				x.shows(t, `Sending build context to Docker daemon +[\d.]+ *[MG]B`)
			} else {
				x.shows(t, `transferring context: [\d.]+[MG]B`)
			}
			x.interrupt(t)
			left(t)
		})
		if c.classic {
			continue // it does not tell of what follows
		}
		t.Run(c.name+"/export", func(t *testing.T) {
			x := on(t, "--no-cache", "-t", "e2e-interrupted", written)
			x.shows(t, `exporting layers`)
			x.interrupt(t)
			left(t)
			h.docker().fails(t, "No such image", "image", "inspect", "e2e-interrupted")
		})
		if !c.buildx {
			continue // it does not push
		}
		t.Run(c.name+"/push", func(t *testing.T) {
			for len(pushed) > 0 { // another client's
				<-pushed
			}
			x := on(t, "--push", "-t", "localhost:"+port+"/interrupted:1", unpushed)
			<-pushed
			x.interrupt(t)
			eventually(t, "the end of the push", func() bool { return pushes.Load() == 0 })
			left(t)
		})
	}
	h.berth().ok(t, "builder", "prune", "-a", "-f")
}
