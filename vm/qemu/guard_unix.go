//go:build unix

package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// guard is a process that kills QEMU when this one is gone. It notices by the end
// of a pipe, of which this process alone has the other end.
type guard struct {
	cmd  *exec.Cmd
	pipe *os.File
}

// guardScript kills the process that is its first argument, unless it is told that
// this has ended.
const guardScript = `read -r word <&3; [ "$word" = done ] || kill -KILL "$1"`

func newGuard(pid int) (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	g := &guard{cmd: exec.Command("/bin/sh", "-c", guardScript, "berth-guard", fmt.Sprint(pid)), pipe: w}
	g.cmd.ExtraFiles = []*os.File{r}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := g.cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("guard: %w", err)
	}
	return g, nil
}

// Close ends the guard, and leaves QEMU alone.
func (g *guard) Close() error {
	fmt.Fprintln(g.pipe, "done")
	g.pipe.Close()
	return g.cmd.Wait()
}
