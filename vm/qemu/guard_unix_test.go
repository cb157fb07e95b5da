//go:build unix

package qemu

import (
	"errors"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// TestGuard has a guard lose the process that made it, and be told that it is not
// needed any more.
func TestGuard(t *testing.T) {
	for _, tt := range []struct {
		name   string
		end    func(*guard)
		killed bool
	}{
		{"its maker dies", func(g *guard) { g.pipe.Close(); g.cmd.Wait() }, true},
		{"the process has ended", func(g *guard) { g.Close() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd, ended := sleeper(t)
			g, err := newGuard(cmd.Process.Pid)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				t.Fatalf("the process ended although the guard's maker lives: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			tt.end(g)
			if !tt.killed {
				if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
					t.Errorf("the guard has killed the process: %v", err)
				}
				cmd.Process.Kill()
			}
			var exit *exec.ExitError
			select {
			case err := <-ended:
				if !errors.As(err, &exit) || exit.String() != "signal: killed" {
					t.Errorf("the process ended with %v", err)
				}
			case <-time.After(20 * time.Second):
				cmd.Process.Kill()
				t.Fatal("the process outlives the guard's maker")
			}
		})
	}
}

// sleeper starts a process that ends when it is told to, and then says how.
func sleeper(t *testing.T) (*exec.Cmd, <-chan error) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return cmd, ended
}
