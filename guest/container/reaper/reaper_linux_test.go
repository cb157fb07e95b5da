package reaper

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain runs the init when the test program is executed as one.
func TestMain(m *testing.M) {
	if os.Getenv("REAPER") != "" {
		Main(os.Args[1:])
	}
	os.Exit(m.Run())
}

func start(t *testing.T, args ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	c := exec.Command(os.Args[0], args...)
	c.Env = append(os.Environ(), "REAPER=1")
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, &out
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want int
	}{
		{[]string{"--", "sh", "-c", "exit 7"}, 7},
		{[]string{"sh", "-c", "kill -9 $$"}, 137},
		{[]string{"nosuchprogram"}, 127},
		{[]string{"/etc/passwd"}, 126},
		{nil, 127},
	} {
		cmd, _ := start(t, c.args...)
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("%q: exit code %d, want %d", c.args, got, c.want)
		}
	}
}

func TestSignalsArePassedOn(t *testing.T) {
	cmd, out := start(t, "sh", "-c", `trap 'echo got; exit 5' TERM; echo up; while :; do sleep 0.05; done`)
	time.Sleep(300 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 5 || !strings.Contains(out.String(), "got") {
		t.Errorf("exit code %d, output %q", cmd.ProcessState.ExitCode(), out)
	}
}
