package engine

import (
	"bufio"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestHeeds(t *testing.T) {
	for script, want := range map[string]bool{
		"echo; read x":                  false,
		"trap 'x=1' USR1; echo; read x": true,
		"trap '' USR1; echo; read x":    true,
	} {
		cmd := exec.Command("sh", "-c", script)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		if got := heeds(cmd.Process.Pid, syscall.SIGUSR1); got != want {
			t.Errorf("%s: %v", script, got)
		}
		in.Close()
		_ = cmd.Wait() // its status is that of read
		if !heeds(cmd.Process.Pid, syscall.SIGUSR1) {
			t.Errorf("%s: who is gone is waited for", script)
		}
	}
	if !heeds(os.Getpid(), syscall.SIGTERM) {
		t.Error("the runtime of Go catches SIGTERM")
	}
}
