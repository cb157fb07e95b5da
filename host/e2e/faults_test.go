//go:build linux

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestEngineKilled: containers outlive the engine's process, and it finds them.
func TestEngineKilled(t *testing.T) {
	h := machine(t)
	c := h.berth()
	t.Cleanup(func() { c.exec("rm", "-f", "survivor", "shortlived") })
	c.ok(t, "run", "-d", "--name", "survivor", "hello", "sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done")
	c.ok(t, "run", "-d", "--name", "shortlived", "hello", "sh", "-c", "sleep 1; exit 17")
	before := c.ok(t, "inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", "survivor")
	c.exec("ssh", "--", "kill -9 $(pidof berth-guest)")
	eventually(t, "the engine answers again", func() bool { return c.exec("ps", "-q").code == 0 })
	if after := c.ok(t, "inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", "survivor"); after != before {
		t.Errorf("the container was %q, is %q", before, after)
	}
	eventually(t, "the exit is known", func() bool {
		return c.ok(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "shortlived") == "exited 17"
	})
	if got := c.ok(t, "exec", "survivor", "echo", "here"); got != "here" {
		t.Errorf("exec: %q", got)
	}
	c.ok(t, "stop", "-t", "0", "survivor")
	checkCounting(t, c.ok(t, "logs", "survivor"))
}

// checkCounting: the log holds line 1, line 2, ... with none missing; a batch may
// be there twice.
func checkCounting(t *testing.T, log string) {
	t.Helper()
	last := 0
	for _, line := range strings.Split(log, "\n") {
		n, err := strconv.Atoi(strings.TrimPrefix(line, "line "))
		if err != nil {
			t.Fatalf("a torn log line: %q", line)
		}
		if n > last+1 {
			t.Fatalf("log lines %d to %d are lost", last+1, n-1)
		}
		last = max(last, n)
	}
	if last < 10 {
		t.Errorf("only %d log lines", last)
	}
}

// TestDaemonKilled: kill -9 of the daemon takes QEMU with it and the next start
// repairs everything.
func TestDaemonKilled(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "run", "-d", "--name", "keep", "--restart", "always", "hello", "sleep", "100000")
	// In the middle of a run.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	running := c.command(ctx, "run", "--rm", "hello", "sleep", "1000")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	s := h.status(t)
	syscall.Kill(s.PID, syscall.SIGKILL)
	if err := running.Wait(); err == nil {
		t.Error("the client did not notice that the machine is gone")
	}
	eventually(t, "QEMU is gone", func() bool { return len(h.processes()) == 0 })
	if s := h.status(t); s.State == "running" {
		t.Errorf("status after the daemon was killed: %+v", s)
	}
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the restart policy is applied", func() bool {
		return c.ok(t, "inspect", "--format", "{{.State.Running}}", "keep") == "true"
	})

	// In the middle of a start.
	c.ok(t, "stop")
	starting := c.command(ctx, "start")
	if err := starting.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon runs", func() bool {
		s := h.status(t)
		return s.PID != 0 && syscall.Kill(s.PID, syscall.SIGKILL) == nil
	})
	starting.Wait()
	eventually(t, "nothing is left", func() bool { return len(h.processes()) == 0 })
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "run", "--rm", "hello", "true")
}

// TestQEMUKilled: the daemon says why the machine ended, and start mends it.
func TestQEMUKilled(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("pkill", "-KILL", "-f", "qemu-system.*"+filepath.Base(h.dir)).CombinedOutput()
	if err != nil {
		killed := false
		for _, p := range h.processes() {
			pid, rest, _ := strings.Cut(p, ": ")
			if strings.Contains(rest, "qemu-system") {
				n, _ := strconv.Atoi(pid)
				killed = syscall.Kill(n, syscall.SIGKILL) == nil
			}
		}
		if !killed {
			t.Fatalf("no QEMU found: %v %s", err, out)
		}
	}
	eventually(t, "the daemon ends", func() bool { return len(h.processes()) == 0 })
	if out := c.ok(t, "status"); !strings.Contains(strings.ToLower(out), "killed") {
		t.Errorf("status does not say why the machine ended:\n%s", out)
	}
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "run", "--rm", "hello", "true")
}

// TestPowerCut: the plug is pulled while an image is being pulled; afterwards the
// store is sound and the pull can be repeated.
func TestPowerCut(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	// An image of which a fresh machine has no layer: the built-in one's are there.
	image := suiteImage(t, "powercut:1")
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{}, 100)
	slow := slowRegistry(t, reached)
	ref := "localhost:" + slow + "/powercut:1"
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pull := c.command(ctx, "pull", ref)
	if err := pull.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reached:
	case <-ctx.Done():
		t.Fatal("the pull never asked for a layer")
	}
	time.Sleep(time.Second)
	syscall.Kill(h.status(t).PID, syscall.SIGKILL)
	pull.Wait()
	eventually(t, "nothing is left", func() bool { return len(h.processes()) == 0 })
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "pull", image)
	if got := c.ok(t, "run", "--rm", image, "sh", "-c", "busybox sha256sum /bin/busybox | cut -c1-64"); len(got) != 64 {
		t.Errorf("the image's busybox: %q", got)
	}
}

// suiteImage pushes an image with a layer of its own to the registry.
func suiteImage(t *testing.T, name string) string {
	t.Helper()
	c := machine(t).berth()
	ref := suite.registry.image(name)
	t.Cleanup(func() { c.exec("rm", "-f", "maker"); c.exec("rmi", "-f", ref) })
	c.ok(t, "run", "--name", "maker", "hello", "sh", "-c", "head -c 3000000 /dev/urandom >/random")
	c.ok(t, "commit", "maker", ref)
	c.ok(t, "push", ref)
	return ref
}

// slowRegistry serves the test registry at 64 KiB/s for blobs.
func slowRegistry(t *testing.T, reached chan<- struct{}) (port string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := http.DefaultTransport.RoundTrip(&http.Request{Method: r.Method, Header: r.Header,
			URL: &url.URL{Scheme: "http", Host: suite.registry.addr, Path: r.URL.Path, RawQuery: r.URL.RawQuery}})
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		if !strings.Contains(r.URL.Path, "/blobs/") {
			io.Copy(w, resp.Body)
			return
		}
		for {
			n, err := io.CopyN(w, resp.Body, 16<<10)
			w.(http.Flusher).Flush()
			if n > 0 {
				select {
				case reached <- struct{}{}:
				default:
				}
			}
			if err != nil {
				return
			}
			time.Sleep(250 * time.Millisecond)
		}
	}))
	t.Cleanup(s.CloseClientConnections)
	addr, _ := url.Parse(s.URL)
	return addr.Port()
}

// TestBadImage: a missing or damaged guest image is refused before it boots.
func TestBadImage(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	dir := filepath.Join(t.TempDir(), "image")
	c.env = append(c.env, "BERTH_IMAGE="+dir)
	c.fails(t, "image", "start")

	if out, err := exec.Command("cp", "-r", filepath.Join(root, "bin", "image"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var biggest string
	var size int64
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.Size() > size {
			biggest, size = filepath.Join(dir, e.Name()), fi.Size()
		}
	}
	f, err := os.OpenFile(biggest, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("damage"), size/2)
	f.Close()
	c.fails(t, filepath.Base(biggest), "start")
	if left := h.processes(); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
}

// TestNoQEMU: without QEMU the error names what to install.
func TestNoQEMU(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	for i, kv := range c.env {
		if strings.HasPrefix(kv, "PATH=") {
			c.env[i] = "PATH=/nonexistent"
		}
	}
	r := c.fails(t, "qemu", "start")
	if r.code != 4 {
		t.Errorf("%s\nwant exit code 4, host unsupported", r)
	}
	if !strings.Contains(r.err, "install") {
		t.Errorf("%s\nit should say what to install", r)
	}
}

// TestHostDiskFull: a host without space gets a clear error, and nothing is left.
func TestHostDiskFull(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	small := filepath.Join(h.dir, "berth")
	if err := os.MkdirAll(small, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	os.WriteFile(filepath.Join(small, "filler"), bytes.Repeat([]byte{1}, 60<<10), 0o600)
	c.fails(t, "space", "start")
	if left := h.processes(); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
}

// dockerSocket speaks raw HTTP to the engine.
func dockerSocket(t testing.TB, h *home, request string) string {
	t.Helper()
	conn, err := net.Dial("unix", h.status(t).DockerSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, request)
	answer, _ := io.ReadAll(io.LimitReader(conn, 64<<10))
	return string(answer)
}

// TestBadBodies: malformed, huge and never-ending API bodies are answered with an
// error, and the engine goes on.
func TestBadBodies(t *testing.T) {
	h := machine(t)
	for _, c := range []struct{ name, head, body string }{
		{"not JSON", "Content-Type: application/json\r\n", "{{{{"},
		{"wrong type", "Content-Type: application/json\r\n", `{"Image": 5, "Cmd": {"a": 1}}`},
		{"two values", "Content-Type: application/json\r\n", `{"Image":"hello"}{"Image":"hello"}`},
		{"no content type", "Content-Type: text/plain\r\n", `hello`},
		{"huge", "Content-Type: application/json\r\n", `{"Image":"` + strings.Repeat("x", 20<<20) + `"}`},
		{"deep", "Content-Type: application/json\r\n", strings.Repeat("[", 1<<20)},
	} {
		t.Run(c.name, func(t *testing.T) {
			answer := dockerSocket(t, h, fmt.Sprintf("POST /v1.44/containers/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", c.head, len(c.body), c.body))
			if !strings.HasPrefix(answer, "HTTP/1.1 4") || !strings.Contains(answer, `{"message":`) {
				t.Errorf("answer: %.300q, want a 4xx with a message", answer)
			}
		})
	}
	t.Run("never ends", func(t *testing.T) {
		conn, err := net.Dial("unix", h.status(t).DockerSocket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "POST /v1.44/containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
		conn.SetDeadline(time.Now().Add(patience))
		chunk := "10000\r\n" + strings.Repeat(" ", 0x10000) + "\r\n"
		sent := 0
		for ; sent < 200<<20; sent += 0x10000 {
			if _, err := io.WriteString(conn, chunk); err != nil {
				break
			}
		}
		if sent >= 200<<20 {
			t.Error("the engine took 200 MiB of nothing")
		}
	})
	h.berth().ok(t, "run", "--rm", "hello", "true")
}

// counted is what a container could leave in the VM.
var counted = [...]string{"mounts", "cgroups", "network interfaces", "network namespaces", "temporary files", "processes", "descriptors of the engine"}

// inVM counts what there is.
func inVM(t *testing.T, h *home) (n [len(counted)]int) {
	t.Helper()
	out := h.berth().ok(t, "ssh", "--", `grep -c . /proc/mounts; find /sys/fs/cgroup -type d | wc -l; ls /sys/class/net | wc -l
ls /run/berth/netns 2>/dev/null | wc -l; ls -A /tmp /var/lib/berth/tmp 2>/dev/null | wc -l; ls -d /proc/[0-9]* | wc -l; ls /proc/$(pidof berth-guest)/fd | wc -l`)
	for i, line := range strings.Fields(out) {
		n[i], _ = strconv.Atoi(line)
	}
	return n
}

// checkNothingLeft compares with an earlier count, once things have settled. Kernel
// threads, and connections that are just being closed, come and go: of processes
// and descriptors slack more or less are no leak.
func checkNothingLeft(t *testing.T, h *home, before [len(counted)]int, slack int) {
	t.Helper()
	left := func() (names []string) {
		after := inVM(t, h)
		for i, what := range counted {
			allowed := 0
			if what == "processes" || what == "descriptors of the engine" {
				allowed = slack
			}
			if after[i] > before[i]+allowed {
				names = append(names, fmt.Sprintf("%s: %d before, %d after", what, before[i], after[i]))
			}
		}
		return names
	}
	names := left()
	for deadline := time.Now().Add(20 * time.Second); len(names) > 0 && time.Now().Before(deadline); names = left() {
		time.Sleep(time.Second)
	}
	for _, name := range names {
		t.Error(name)
	}
}

// TestNothingLeaks: after many containers the VM is as it was before.
func TestNothingLeaks(t *testing.T) {
	h := machine(t)
	c := h.berth()
	run := func() {
		for _, args := range [][]string{
			{"run", "--rm", "hello", "true"},
			{"run", "--rm", "hello", "nothere"},
			{"run", "--rm", "--network", "none", "hello", "true"},
			{"run", "--rm", "-v", "/data", "hello", "true"},
			{"run", "--rm", "--memory", "16m", "hello", "true"},
			{"run", "--rm", "-w", "/etc/passwd/x", "hello", "true"},
		} {
			c.exec(args...)
		}
	}
	run()
	time.Sleep(2 * time.Second)
	before := inVM(t, h)
	const rounds = 6 // a leak in any of the ways to run shows once for each
	for range rounds {
		run()
	}
	checkNothingLeft(t, h, before, rounds-2)
}
