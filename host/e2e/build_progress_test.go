//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
)

// terminal is a command that runs on a terminal of its own.
type terminal struct {
	cmd  *exec.Cmd
	tty  *os.File
	read sync.WaitGroup

	mu   sync.Mutex // guards what follows
	text strings.Builder
}

// onTerminal starts a command on a terminal; it is ended with the test.
func (c cli) onTerminal(t testing.TB, args ...string) *terminal {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	x := &terminal{cmd: c.command(ctx, args...)}
	var err error
	if x.tty, err = pty.StartWithSize(x.cmd, &pty.Winsize{Rows: 40, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); x.tty.Close() })
	x.read.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := x.tty.Read(buf)
			x.mu.Lock()
			x.text.Write(buf[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return x
}

// end waits for the command and returns what the terminal was sent.
func (x *terminal) end() (text string, code int) {
	_ = x.cmd.Wait()
	x.read.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.text.String(), x.cmd.ProcessState.ExitCode()
}

// TestBuildProgress: what happens is told in the form that is asked for, and on a
// terminal in its own.
func TestBuildProgress(t *testing.T) {
	h := machine(t)
	dir := buildContext(t, map[string]string{
		"Dockerfile": "FROM hello AS good\nRUN echo said-by-$((40+2))\nFROM hello AS bad\nRUN echo said-before; exit 3\n",
	})
	const cursorUp, showCursor = "\x1b[1A", "\x1b[?25h"
	imageID := regexp.MustCompile(`^sha256:[0-9a-f]{64}\s*$`)
	for _, c := range h.buildxes(t) {
		t.Run(c.name, func(t *testing.T) {
			build := func(mode, target string) result {
				return c.exec("buildx", "build", "--no-cache", "--progress", mode, "--target", target, dir)
			}
			if r := build("plain", "good"); r.code != 0 || !regexp.MustCompile(`(?m)^#\d+ [\d.]+ said-by-42$`).MatchString(r.err) || strings.Contains(r.err, cursorUp) {
				t.Errorf("plain: %s", r)
			}
			r := build("rawjson", "good")
			said := false
			for line := range strings.Lines(r.err) {
				var status struct{ Logs []struct{ Data []byte } }
				if err := json.Unmarshal([]byte(line), &status); err != nil {
					t.Errorf("rawjson has %q: %v", line, err)
				}
				for _, l := range status.Logs {
					said = said || strings.Contains(string(l.Data), "said-by-42")
				}
			}
			if r.code != 0 || !said {
				t.Errorf("rawjson: %s", r)
			}
			if r := build("quiet", "good"); r.code != 0 || !imageID.MatchString(r.out) || strings.Contains(r.err, "said-by") {
				t.Errorf("quiet: %s", r)
			}
			if r := build("quiet", "bad"); r.code == 0 || !strings.Contains(r.err, "exit code: 3") {
				t.Errorf("quiet, a build that fails: %s", r)
			}
			if r := build("tty", "good"); r.code == 0 || !strings.Contains(r.err, "failed to get console") {
				t.Errorf("tty without a terminal: %s", r)
			}
			for _, mode := range []string{"tty", "auto"} {
				text, code := c.onTerminal(t, "buildx", "build", "--no-cache", "--progress", mode, "--target", "good", dir).end()
				if code != 0 || !strings.Contains(text, "[+] Building") || !strings.Contains(text, "FINISHED") || !strings.Contains(text, "[good 2/2] RUN echo said-by-") ||
					!strings.Contains(text, cursorUp) || !strings.HasSuffix(text[:strings.LastIndex(text, showCursor)+len(showCursor)], showCursor) {
					t.Errorf("%s ended with %d, and says\n%q", mode, code, text)
				}
			}
			text, code := c.onTerminal(t, "buildx", "build", "--no-cache", "--target", "bad", dir).end()
			if code != 1 || !strings.Contains(text, "said-before") || !strings.Contains(text, "exit code: 3") || !strings.Contains(text, "Dockerfile:4") {
				t.Errorf("a build that fails ended with %d, and says\n%q", code, text)
			}
		})
	}
	kit := h.builders(t)[1]
	kit.env = append(kit.env, "BUILDKIT_PROGRESS=auto")
	if text, code := kit.onTerminal(t, "build", "--no-cache", "--target", "good", dir).end(); code != 0 || !strings.Contains(text, "FINISHED") || !strings.Contains(text, cursorUp) {
		t.Errorf("%s ended with %d, and says\n%q", kit.name, code, text)
	}
}

// stepRuns waits for the start of a step whose shell has mark in its command line.
func (h *home) stepRuns(t testing.TB, mark string) {
	t.Helper()
	eventually(t, "the step's start", func() bool {
		return h.berth().ok(t, "ssh", `for p in $(cat /sys/fs/cgroup/berth-build/*/cgroup.procs 2>/dev/null); do grep -l `+mark+` /proc/$p/cmdline; done 2>/dev/null; true`) != ""
	})
}

// TestBuildInterrupted: Ctrl-C on a terminal ends a build, with all that it runs.
func TestBuildInterrupted(t *testing.T) {
	h := machine(t)
	kit := h.builders(t)[1].cli
	builds := []struct {
		c    cli
		args []string
	}{{kit, []string{"build"}}, {h.composeBerth(), nil}}
	for _, c := range h.buildxes(t) {
		builds = append(builds, struct {
			c    cli
			args []string
		}{c, []string{"buildx", "build"}})
	}
	for i, b := range builds {
		t.Run(b.c.name, func(t *testing.T) {
			mark := fmt.Sprint("interrupted-", i)
			dir := buildContext(t, map[string]string{
				"Dockerfile":   fmt.Sprintf("FROM hello\nRUN --mount=type=tmpfs,target=/t : %s; trap '' INT TERM; sleep 1000000 & sleep 1000000; :\n", mark),
				"compose.yaml": "name: e2e-interrupted\nservices:\n  one: {build: .}\n",
			})
			c, args := b.c, append(b.args, dir)
			if b.args == nil {
				c, args = compose(c, dir), []string{"build"}
			}
			x := c.onTerminal(t, args...)
			h.stepRuns(t, mark)
			if _, err := x.tty.WriteString("\x03"); err != nil {
				t.Fatal(err)
			}
			if text, code := x.end(); code == 0 || code == -1 {
				t.Errorf("it ended with %d, and says\n%q", code, text)
			}
			h.noSteps(t)
		})
	}
}
