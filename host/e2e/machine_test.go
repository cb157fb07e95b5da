//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// status is what `berth status --format json` promises to scripts.
type status struct {
	Name         string `json:"name"`
	State        string `json:"state"`
	PID          int    `json:"pid"`
	DockerSocket string `json:"dockerSocket"`
	Driver       string `json:"driver"`
	Acceleration string `json:"acceleration"`
	CPUs         int    `json:"cpus"`
	MemoryMiB    int    `json:"memoryMiB"`
}

func (h *home) status(t testing.TB, args ...string) status {
	t.Helper()
	var s status
	out := h.berth().ok(t, append(append([]string{}, args...), "status", "--format", "json")...)
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
	return s
}

// TestStatus: status names the socket, which only the user can open.
func TestStatus(t *testing.T) {
	h := machine(t)
	s := h.status(t)
	if s.State != "running" || s.Driver != "qemu" || s.Acceleration == "" {
		t.Errorf("status: %+v", s)
	}
	fi, err := os.Stat(s.DockerSocket)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("docker.sock has mode %v, want 0600", fi.Mode().Perm())
	}
	if out := h.berth().ok(t, "list", "--format", "json"); !strings.Contains(out, s.Name) {
		t.Errorf("list: %s", out)
	}
	if out := h.berth().ok(t, "machine", "logs"); !strings.Contains(out, "berth") {
		t.Errorf("machine logs: %q", out)
	}
}

// TestStartIsIdempotent: starting a running machine is quick and changes nothing.
func TestStartIsIdempotent(t *testing.T) {
	h := machine(t)
	before := h.status(t)
	h.berth().ok(t, "start")
	h.berth().ok(t, "machine", "start")
	if after := h.status(t); after.PID != before.PID {
		t.Errorf("daemon was %d, is %d", before.PID, after.PID)
	}
}

// TestSSH: a command's output, input and exit code, and a terminal.
func TestSSH(t *testing.T) {
	h := machine(t)
	c := h.berth()
	if got := c.ok(t, "ssh", "--", "uname", "-s"); got != "Linux" {
		t.Errorf("uname -s: %q", got)
	}
	if r := c.exec("ssh", "--", "exit 5"); r.code != 5 {
		t.Errorf("%s\nwant exit code 5", r)
	}
	if r := c.execIn("through", "ssh", "--", "cat"); r.out != "through" {
		t.Errorf("%s", r)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := c.command(ctx, "ssh")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 20, Cols: 70})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	read := make(chan string)
	go func() {
		var all strings.Builder
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			all.Write(buf[:n])
			if err != nil {
				read <- all.String()
				return
			}
		}
	}()
	tty.WriteString("stty size; exit 6\n")
	err = cmd.Wait()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 6 {
		t.Errorf("the shell ended with %v, want exit status 6", err)
	}
	if text := <-read; !strings.Contains(text, "20 70") {
		t.Errorf("the terminal has another size:\n%s", text)
	}
}

// TestContext: the docker context exists and did not become the current one of
// a user who has a working one.
func TestContext(t *testing.T) {
	h := machine(t)
	if out := h.docker().ok(t, "context", "inspect", "berth", "--format", "{{.Endpoints.docker.Host}}"); !strings.Contains(out, h.status(t).DockerSocket) {
		t.Errorf("context berth points at %q", out)
	}
}

// TestUnknownMachine: a wrong name is one clear line.
func TestUnknownMachine(t *testing.T) {
	h := machine(t)
	for _, args := range [][]string{{"status"}, {"stop"}, {"ssh", "--", "true"}, {"machine", "logs"}, {"delete", "--force"}, {"ps"}} {
		r := h.berth().fails(t, "nowhere", append([]string{"--machine", "nowhere"}, args...)...)
		if n := strings.Count(strings.TrimSpace(r.err), "\n"); n > 2 {
			t.Errorf("%s\nthat is more than a clear line", r)
		}
	}
	h.berth().fails(t, "name", "--machine", "../up", "start")
}

// TestClock: the VM has the host's time.
func TestClock(t *testing.T) {
	h := machine(t)
	got := h.berth().ok(t, "ssh", "--", "date", "+%s")
	sec, err := time.ParseDuration(got + "s")
	if err != nil {
		t.Fatal(err)
	}
	if diff := time.Since(time.Unix(int64(sec.Seconds()), 0)); diff > 10*time.Second || diff < -10*time.Second {
		t.Errorf("the VM's clock is %v behind the host's", diff)
	}
}

// TestMachineLife: stop, start, restart; state survives, restart policies hold,
// delete leaves nothing.
func TestMachineLife(t *testing.T) {
	h := ownHome(t)
	c := h.berth()
	if err := h.boot(); err != nil {
		t.Fatal(err)
	}
	c.ok(t, "run", "-d", "--name", "back", "--restart", "always", "hello", "sleep", "100000")
	c.ok(t, "run", "-d", "--name", "gone", "hello", "sleep", "100000")
	if r := c.exec("run", "--name", "done", "hello", "sh", "-c", "exit 3"); r.code != 3 {
		t.Errorf("%s", r)
	}
	c.ok(t, "exec", "back", "sh", "-c", "echo more >/kept")

	begin := time.Now()
	c.ok(t, "stop")
	t.Logf("stop took %v", time.Since(begin))
	if s := h.status(t); s.State != "stopped" {
		t.Errorf("state after stop: %+v", s)
	}
	if left := h.processes(); len(left) > 0 {
		t.Errorf("processes after stop: %v", left)
	}
	c.ok(t, "stop")
	c.ok(t, "start")
	checkSurvivors := func() {
		t.Helper()
		want := map[string]string{"back": "running 0", "gone": "exited 137", "done": "exited 3"}
		for name, state := range want {
			if got := c.ok(t, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name); got != state {
				t.Errorf("%s is %q, want %q", name, got, state)
			}
		}
		if got := c.ok(t, "exec", "back", "cat", "/kept"); got != "more" {
			t.Errorf("a file in the container: %q", got)
		}
	}
	checkSurvivors()
	c.ok(t, "machine", "restart")
	checkSurvivors()
	c.ok(t, "delete", "--force")
	if left := h.processes(); len(left) > 0 {
		t.Errorf("processes after delete: %v", left)
	}
	var files []string
	filepath.WalkDir(filepath.Join(h.dir, "berth"), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, p)
		}
		return nil
	})
	for _, f := range files {
		if strings.Contains(f, "default") || strings.HasSuffix(f, ".raw") || strings.HasSuffix(f, ".sock") {
			t.Errorf("left after delete: %s", f)
		}
	}
}

// TestTwoStarts: of two starts at once one boots, both succeed.
func TestTwoStarts(t *testing.T) {
	h := ownHome(t)
	results := make(chan result, 2)
	for range 2 {
		go func() { results <- h.berth().exec("start") }()
	}
	for range 2 {
		if r := <-results; r.code != 0 {
			t.Errorf("%s", r)
		}
	}
	h.berth().ok(t, "run", "--rm", "hello", "true")
}
